/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the kernel's mm selftests use of libnuma's <numaif.h>. */
#ifndef CDM_NUMAIF_H
#define CDM_NUMAIF_H

#include <linux/mempolicy.h>

long move_pages(int pid, unsigned long count, void **pages, const int *nodes, int *status, int flags);
long mbind(void *start, unsigned long bytes, int mode, const unsigned long *nodes,
	   unsigned long node_count, unsigned int flags);

#endif
