/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen reads; see Kbuild for the names that it takes from here. */
#include <linux/hmm.h>
#include <linux/migrate.h>
#include <linux/rmap.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "helpers.h"
#include "../lib/test_hmm_uapi.h"

/* bindgen does not evaluate the _IOWR() macros, but it does evaluate constants. */
static const u32 CDM_IOCTL_QUERY = CDM_IOC_QUERY;
static const u32 CDM_IOCTL_MIGRATE = CDM_IOC_MIGRATE;
static const u32 CDM_IOCTL_RESIDENCY = CDM_IOC_RESIDENCY;
static const u32 CDM_IOCTL_COMMAND = CDM_IOC_COMMAND;
static const u32 CDM_IOCTL_RESET = CDM_IOC_RESET;
static const u32 CDM_IOCTL_EVICT = CDM_IOC_EVICT;
static const u32 CDM_IOCTL_BIND = CDM_IOC_BIND;
static const u32 CDM_IOCTL_UNBIND = CDM_IOC_UNBIND;
static const u32 CDM_IOCTL_BATCH = CDM_IOC_BATCH;
static const u32 CDM_IOCTL_HOT = CDM_IOC_HOT;
static const u32 CDM_IOCTL_HOT_COUNTERS = CDM_IOC_HOT_COUNTERS;

/* The suite's interface, from the header that it is built with. */
static const u32 CDM_DMIRROR_READ = HMM_DMIRROR_READ;
static const u32 CDM_DMIRROR_WRITE = HMM_DMIRROR_WRITE;
static const u32 CDM_DMIRROR_MIGRATE_TO_DEV = HMM_DMIRROR_MIGRATE_TO_DEV;
static const u32 CDM_DMIRROR_MIGRATE_TO_SYS = HMM_DMIRROR_MIGRATE_TO_SYS;
static const u32 CDM_DMIRROR_SNAPSHOT = HMM_DMIRROR_SNAPSHOT;
static const u32 CDM_DMIRROR_EXCLUSIVE = HMM_DMIRROR_EXCLUSIVE;
static const u32 CDM_DMIRROR_CHECK_EXCLUSIVE = HMM_DMIRROR_CHECK_EXCLUSIVE;
static const u32 CDM_DMIRROR_RELEASE = HMM_DMIRROR_RELEASE;
static const u32 CDM_DMIRROR_FLAGS = HMM_DMIRROR_FLAGS;
static const u32 CDM_DMIRROR_READ_UNLOCKED = HMM_DMIRROR_READ_UNLOCKED;
static const u64 CDM_DMIRROR_FLAG_FAIL_ALLOC = HMM_DMIRROR_FLAG_FAIL_ALLOC;
static const u8 CDM_DMIRROR_PROT_ERROR = HMM_DMIRROR_PROT_ERROR;
static const u8 CDM_DMIRROR_PROT_NONE = HMM_DMIRROR_PROT_NONE;
static const u8 CDM_DMIRROR_PROT_READ = HMM_DMIRROR_PROT_READ;
static const u8 CDM_DMIRROR_PROT_WRITE = HMM_DMIRROR_PROT_WRITE;
static const u8 CDM_DMIRROR_PROT_PMD = HMM_DMIRROR_PROT_PMD;
static const u8 CDM_DMIRROR_PROT_PUD = HMM_DMIRROR_PROT_PUD;
static const u8 CDM_DMIRROR_PROT_ZERO = HMM_DMIRROR_PROT_ZERO;
static const u8 CDM_DMIRROR_PROT_DEV_PRIVATE_LOCAL = HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL;
static const u8 CDM_DMIRROR_PROT_DEV_PRIVATE_REMOTE = HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE;
static const u8 CDM_DMIRROR_PROT_DEV_COHERENT_LOCAL = HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL;
static const u8 CDM_DMIRROR_PROT_DEV_COHERENT_REMOTE = HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE;
