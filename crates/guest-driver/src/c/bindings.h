/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads; see Kbuild for the names that it takes from here. */
#include <linux/hmm.h>
#include <linux/migrate.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "helpers.h"

/* bindgen does not evaluate the _IOWR() macros, but it does evaluate constants. */
static const u32 CDM_IOCTL_QUERY = CDM_IOC_QUERY;
static const u32 CDM_IOCTL_MIGRATE = CDM_IOC_MIGRATE;
static const u32 CDM_IOCTL_RESIDENCY = CDM_IOC_RESIDENCY;
static const u32 CDM_IOCTL_COMMAND = CDM_IOC_COMMAND;
static const u32 CDM_IOCTL_RESET = CDM_IOC_RESET;
static const u32 CDM_IOCTL_EVICT = CDM_IOC_EVICT;
