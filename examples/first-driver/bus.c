// SPDX-License-Identifier: GPL-2.0-only
/*
 * The virtio bus and a device node, for a driver in Rust, whose kernel crate has no abstraction
 * of the former: the methods are Rust's.
 */

#include <linux/kstrtox.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/virtio_config.h>

#include "first.h"

static struct {
	int (*probe)(struct virtio_device *vdev, void **data);
	void (*remove)(void *data);
	int (*migrate)(void *data, unsigned long address);
	/* Of the one device that the driver is bound to. */
	void *data;
} methods;

/* "7f0123456000" written to the node moves that page of the writer. */
static ssize_t node_write(struct file *file, const char __user *text, size_t count, loff_t *at)
{
	unsigned long address;
	int err = kstrtoul_from_user(text, count, 16, &address);

	return err ?: methods.migrate(methods.data, address) ?: count;
}

static const struct file_operations node_operations = {
	.owner = THIS_MODULE,
	.write = node_write,
};

static struct miscdevice node = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "first",
	.mode = 0600,
	.fops = &node_operations,
};

static int bus_probe(struct virtio_device *vdev)
{
	int err;

	if (methods.data)
		return -EBUSY;
	err = methods.probe(vdev, &methods.data);
	if (err)
		return err;
	err = misc_register(&node);
	if (err) {
		methods.remove(methods.data);
		methods.data = NULL;
	}
	return err;
}

static void bus_remove(struct virtio_device *vdev)
{
	misc_deregister(&node);
	methods.remove(methods.data);
	methods.data = NULL;
}

/* Without this the core resets the device at power-off, below the pages in its memory. */
static void bus_shutdown(struct virtio_device *vdev)
{
}

static struct virtio_device_id ids[2];
static struct virtio_driver driver = {
	.driver.name = "first",
	.driver.suppress_bind_attrs = true,
	.id_table = ids,
	.probe = bus_probe,
	.remove = bus_remove,
	.shutdown = bus_shutdown,
};

int first_register(void *owner, u32 id,
		   int (*probe)(struct virtio_device *vdev, void **data),
		   void (*remove)(void *data), int (*migrate)(void *data, unsigned long address))
{
	ids[0] = (struct virtio_device_id){ id, VIRTIO_DEV_ANY_ID };
	methods.probe = probe;
	methods.remove = remove;
	methods.migrate = migrate;
	return __register_virtio_driver(&driver, owner);
}

void first_unregister(void)
{
	unregister_virtio_driver(&driver);
}

void first_config(struct virtio_device *vdev, void *config, u32 bytes)
{
	virtio_cread_bytes(vdev, 0, config, bytes);
}

struct example_move *first_collect_own(struct example_memory *memory, unsigned long address)
{
	return example_collect(memory, current->mm, address, true);
}
