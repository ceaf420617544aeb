/* SPDX-License-Identifier: GPL-2.0-only */
/* What bus.c gives to glue.rs; @owner is a struct module. */
#ifndef _FIRST_H
#define _FIRST_H

#include "../minimal-driver/example.h"

int first_register(void *owner, u32 id,
		   int (*probe)(struct virtio_device *vdev, void **data),
		   void (*remove)(void *data), int (*migrate)(void *data, unsigned long address));
void first_unregister(void);
void first_config(struct virtio_device *vdev, void *config, u32 bytes);
struct example_move *first_collect_own(struct example_memory *memory, unsigned long address);

#endif /* _FIRST_H */
