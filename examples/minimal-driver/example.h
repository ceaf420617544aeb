/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the two example drivers share: talking to the device (device.c), and its memory as
 * memory of the kernel (memory.c). minimal_main.c makes a driver of them in C, first-driver one in Rust.
 */
#ifndef _EXAMPLE_H
#define _EXAMPLE_H

#include <linux/completion.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>

#include "../../crates/device-protocol/include/cdm_device.h"

/* A device whose control queue works. */
struct example_device {
	struct virtio_device *vdev;
	struct virtqueue *control;
	/* One request at a time. */
	struct mutex turn;
	struct completion answered;
};

struct example_device *example_start(struct virtio_device *vdev);
int example_ask(struct example_device *dev, u16 opcode, u64 *result);
int example_region(struct example_device *dev, u64 *base, u64 *bytes);
void example_stop(struct example_device *dev);

/* The device memory, hotplugged. */
struct example_memory {
	struct dev_pagemap pgmap;
	/* Guards @used, a bit for each page, and @in_use, how many are set. */
	spinlock_t lock;
	unsigned long *used;
	unsigned long in_use;
	unsigned long first_pfn;
	unsigned long pages;
};

struct example_memory *example_hotplug(u64 base, u64 bytes);
bool example_is_home(struct example_memory *memory, struct page *page);
void example_unplug(struct example_memory *memory);

/* One page of a process on its way into the device, or out of it. */
struct example_move {
	struct migrate_vma args;
	struct mm_struct *mm;
	unsigned long src;
	unsigned long dst;
};

struct example_move *example_collect(struct example_memory *memory, struct mm_struct *mm,
				     unsigned long address, bool to_device);
int example_copy(struct example_memory *memory, struct example_move *move, bool to_device);
bool example_finish(struct example_move *move);

#endif /* _EXAMPLE_H */
