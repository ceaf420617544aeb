// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * The part of libnuma that the kernel's mm selftests call, over the system calls and sysfs.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "numa.h"
#include "numaif.h"

#define NODES_MAX ((int)(sizeof(unsigned long) * CHAR_BIT))

static struct bitmask all_nodes;
struct bitmask *numa_all_nodes_ptr = &all_nodes;

/* Bytes of memory that a node has, or -1; and how many of them are free. */
long numa_node_size(int node, long *free_bytes)
{
	char path[64], line[128];
	long total = -1, kib;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	file = fopen(path, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "Node %*d MemTotal: %ld kB", &kib) == 1)
			total = kib * 1024;
		else if (free_bytes && sscanf(line, "Node %*d MemFree: %ld kB", &kib) == 1)
			*free_bytes = kib * 1024;
	}
	fclose(file);
	return total;
}

/* libnuma, too, looks before main(). */
__attribute__((constructor)) static void find_nodes(void)
{
	int node;

	for (node = 0; node < NODES_MAX; node++)
		if (numa_node_size(node, NULL) > 0)
			all_nodes.words[0] |= 1UL << node;
}

int numa_available(void)
{
	return syscall(SYS_get_mempolicy, NULL, NULL, 0, NULL, 0) ? -1 : 0;
}

int numa_bitmask_isbitset(const struct bitmask *mask, unsigned int node)
{
	return node < NODES_MAX && (mask->words[0] >> node & 1);
}

unsigned int numa_bitmask_weight(const struct bitmask *mask)
{
	return __builtin_popcountl(mask->words[0]);
}

int numa_max_node(void)
{
	int node;

	for (node = NODES_MAX - 1; node > 0; node--)
		if (numa_bitmask_isbitset(&all_nodes, node))
			break;
	return node;
}

int numa_max_possible_node(void)
{
	return NODES_MAX - 1;
}

int numa_num_task_cpus(void)
{
	cpu_set_t cpus;

	return sched_getaffinity(0, sizeof(cpus), &cpus) ? -1 : CPU_COUNT(&cpus);
}

long mbind(void *start, unsigned long bytes, int mode, const unsigned long *nodes,
	   unsigned long node_count, unsigned int flags)
{
	return syscall(SYS_mbind, start, bytes, mode, nodes, node_count, flags);
}

long move_pages(int pid, unsigned long count, void **pages, const int *nodes, int *status, int flags)
{
	return syscall(SYS_move_pages, pid, count, pages, nodes, status, flags);
}

void *numa_alloc_onnode(size_t bytes, int node)
{
	unsigned long nodes = 1UL << node;
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	/* The kernel reads one bit less than it is told. */
	if (mbind(memory, bytes, MPOL_BIND, &nodes, NODES_MAX + 1, 0)) {
		munmap(memory, bytes);
		return NULL;
	}
	return memory;
}

void numa_free(void *memory, size_t bytes)
{
	munmap(memory, bytes);
}
