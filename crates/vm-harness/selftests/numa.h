/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What the kernel's mm selftests use of libnuma's <numa.h>, so that they can be linked without it:
 * a guest has no libraries, and few systems have this one as a static one.
 */
#ifndef CDM_NUMA_H
#define CDM_NUMA_H

#include <stddef.h>

/* A set of nodes. */
struct bitmask {
	unsigned long words[1];
};

/* Nodes that have memory. */
extern struct bitmask *numa_all_nodes_ptr;

int numa_available(void);
int numa_max_node(void);
int numa_max_possible_node(void);
int numa_num_task_cpus(void);
int numa_bitmask_isbitset(const struct bitmask *mask, unsigned int node);
unsigned int numa_bitmask_weight(const struct bitmask *mask);
long numa_node_size(int node, long *free_bytes);
void *numa_alloc_onnode(size_t bytes, int node);
void numa_free(void *memory, size_t bytes);

#endif
