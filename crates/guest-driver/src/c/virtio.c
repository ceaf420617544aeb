// SPDX-License-Identifier: GPL-2.0-only
/* The virtio device and its queues. */

#include <linux/delay.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio_pci.h>

#include "helpers.h"

void *cdm_vdev_priv(struct virtio_device *vdev)
{
	return READ_ONCE(vdev->priv);
}

void cdm_vdev_set_priv(struct virtio_device *vdev, void *priv)
{
	smp_store_release(&vdev->priv, priv);
}

struct device *cdm_vdev_device(struct virtio_device *vdev)
{
	return &vdev->dev;
}

int cdm_vdev_node(struct virtio_device *vdev)
{
	return vdev->dev.parent ? dev_to_node(vdev->dev.parent) : NUMA_NO_NODE;
}

/*
 * Length of the device's config space. A read past it is a BUG() in virtio_pci, and
 * the virtio core does not tell, so ask the PCI capability that the transport took
 * it from. Other transports do not crash; they get the benefit of the doubt.
 */
u32 cdm_vdev_config_bytes(struct virtio_device *vdev)
{
	struct pci_dev *pci;
	u32 bytes;
	u8 type, pos;

	if (!vdev->dev.parent || !dev_is_pci(vdev->dev.parent))
		return U32_MAX;
	pci = to_pci_dev(vdev->dev.parent);
	for (pos = pci_find_capability(pci, PCI_CAP_ID_VNDR); pos;
	     pos = pci_find_next_capability(pci, pos, PCI_CAP_ID_VNDR)) {
		if (pci_read_config_byte(pci, pos + offsetof(struct virtio_pci_cap, cfg_type),
					 &type))
			return 0;
		if (type != VIRTIO_PCI_CAP_DEVICE_CFG)
			continue;
		if (pci_read_config_dword(pci, pos + offsetof(struct virtio_pci_cap, length),
					  &bytes))
			return 0;
		return bytes;
	}
	return 0;
}

void cdm_vdev_read_config(struct virtio_device *vdev, void *buf, u32 bytes)
{
	virtio_cread_bytes(vdev, 0, buf, bytes);
}

void cdm_vdev_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

bool cdm_vdev_shm_region(struct virtio_device *vdev, u8 id, u64 *base, u64 *bytes)
{
	struct virtio_shm_region region;

	if (!virtio_get_shm_region(vdev, &region, id))
		return false;
	*base = region.addr;
	*bytes = region.len;
	return true;
}

int cdm_vdev_find_vqs(struct virtio_device *vdev, u32 num, struct virtqueue **vqs,
		      const char *const *names, void (*callback)(struct virtqueue *vq))
{
	struct virtqueue_info *info;
	u32 i;
	int err;

	info = kcalloc(num, sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	for (i = 0; i < num; i++) {
		info[i].name = names[i];
		info[i].callback = callback;
	}
	err = virtio_find_vqs(vdev, num, vqs, info, NULL);
	kfree(info);
	return err;
}

void cdm_vdev_del_vqs(struct virtio_device *vdev)
{
	vdev->config->del_vqs(vdev);
}

/*
 * Whether the device goes away, and its memory with it: that is so when its parent, the PCI
 * function, loses its driver, as in an unplug. A machine that goes down waits for nobody.
 */
bool cdm_vdev_is_leaving(struct virtio_device *vdev)
{
	struct device *parent = vdev->dev.parent;

	return parent && READ_ONCE(parent->links.status) == DL_DEV_UNBINDING &&
	       READ_ONCE(system_state) <= SYSTEM_RUNNING;
}

/*
 * A device that is left running when its driver goes, because memory of it is in use
 * for good. The virtio core expects a driver to leave its device reset, and says so
 * with a warning; so for the core it looks reset once, and keeps its status.
 */
struct left_running {
	struct list_head node;
	struct virtio_device *vdev;
	const struct virtio_config_ops *config;
	struct virtio_config_ops ops;
	bool is_asked;
};

/* Changed in remove of a device and at the end of the module, which waits for the former. */
static LIST_HEAD(left_running);
static DEFINE_MUTEX(left_running_lock);

static u8 left_running_get_status(struct virtio_device *vdev)
{
	struct left_running *left = container_of(vdev->config, struct left_running, ops);

	if (!left->is_asked) {
		left->is_asked = true;
		return 0;
	}
	return left->config->get_status(vdev);
}

static void left_running_set_status(struct virtio_device *vdev, u8 status)
{
}

/*
 * Lets a device run without a driver: no callback any more, and no reset. The module
 * stays from here on, unless it is on its way out; then cdm_vdevs_let_go() follows.
 */
bool cdm_vdev_leave_running(struct virtio_device *vdev)
{
	struct left_running *left = kzalloc(sizeof(*left), GFP_KERNEL | __GFP_NOFAIL);
	struct virtqueue *vq;

	virtio_device_for_each_vq(vdev, vq)
		WRITE_ONCE(vq->callback, NULL);
	virtio_synchronize_cbs(vdev);

	left->vdev = vdev;
	left->config = vdev->config;
	left->ops = *vdev->config;
	left->ops.get_status = left_running_get_status;
	left->ops.set_status = left_running_set_status;
	get_device(&vdev->dev);
	mutex_lock(&left_running_lock);
	list_add(&left->node, &left_running);
	mutex_unlock(&left_running_lock);
	vdev->config = &left->ops;
	return try_module_get(THIS_MODULE);
}

/* The module goes: its functions are needed no more, now that no device has a driver. */
void cdm_vdevs_let_go(void)
{
	struct left_running *left, *next;

	mutex_lock(&left_running_lock);
	list_for_each_entry_safe(left, next, &left_running, node) {
		left->vdev->config = left->config;
		put_device(&left->vdev->dev);
		list_del(&left->node);
		kfree(left);
	}
	mutex_unlock(&left_running_lock);
}

struct virtio_device *cdm_vq_vdev(struct virtqueue *vq)
{
	return vq->vdev;
}

u32 cdm_vq_index(struct virtqueue *vq)
{
	return vq->index;
}

/* Either part may be missing. Runs under the queue's lock. */
int cdm_vq_add(struct virtqueue *vq, void *out, u32 out_bytes, void *in, u32 in_bytes,
	       void *token)
{
	struct scatterlist out_sg, in_sg, *sgs[2];
	unsigned int num_out = 0, num_in = 0;

	if (out_bytes) {
		sg_init_one(&out_sg, out, out_bytes);
		sgs[num_out++] = &out_sg;
	}
	if (in_bytes) {
		sg_init_one(&in_sg, in, in_bytes);
		sgs[num_out + num_in++] = &in_sg;
	}
	return virtqueue_add_sgs(vq, sgs, num_out, num_in, token, GFP_ATOMIC);
}

void cdm_warn_queue_error(struct device *dev, u32 device, u32 queue, u64 lost)
{
	dev_warn_ratelimited(dev,
			     "cdm%u: device dropped a request on queue %u (%llu reports lost before)\n",
			     device, queue, lost);
}

void cdm_warn_memory_error(struct device *dev, u32 device, u64 offset, u64 bytes)
{
	dev_warn_ratelimited(dev, "cdm%u: %llu bytes of the device memory have failed at offset %#llx\n",
			     device, bytes, offset);
}

void cdm_warn_unknown_event(struct device *dev, u32 device, u32 kind)
{
	dev_warn_ratelimited(dev, "cdm%u: unknown event %u\n", device, kind);
}
