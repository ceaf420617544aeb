// SPDX-License-Identifier: GPL-2.0-only
/* The device: its control queue, and where its memory is. */

#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "example.h"

/* A device that does not answer in this time does not work. */
#define ANSWER_MS	30000

static void answered(struct virtqueue *vq)
{
	struct example_device *dev = vq->vdev->priv;

	complete(&dev->answered);
}

/* Finds the control queue and tells the device that its driver is ready. */
struct example_device *example_start(struct virtio_device *vdev)
{
	struct virtqueue_info info = { .name = "control", .callback = answered };
	struct example_device *dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	int err;

	if (!dev)
		return ERR_PTR(-ENOMEM);
	dev->vdev = vdev;
	mutex_init(&dev->turn);
	init_completion(&dev->answered);
	vdev->priv = dev;
	/* The control queue is the first one. These drivers need no other. */
	err = virtio_find_vqs(vdev, 1, &dev->control, &info, NULL);
	if (err) {
		vdev->priv = NULL;
		kfree(dev);
		return ERR_PTR(err);
	}
	virtio_device_ready(vdev);
	return dev;
}

/*
 * Sends a control request without arguments and waits for its answer: specification,
 * section 6. What the device reads and writes is memory of its own, since it may be slow.
 */
int example_ask(struct example_device *dev, u16 opcode, u64 *result)
{
	struct {
		struct cdm_dev_control_request request;
		struct cdm_dev_completion answer;
	} *asked = kzalloc(sizeof(*asked), GFP_KERNEL);
	struct scatterlist out, in, *sgs[] = { &out, &in };
	unsigned int length;
	int err;

	if (!asked)
		return -ENOMEM;
	asked->request.opcode = cpu_to_le16(opcode);
	sg_init_one(&out, &asked->request, sizeof(asked->request));
	sg_init_one(&in, &asked->answer, sizeof(asked->answer));
	mutex_lock(&dev->turn);
	reinit_completion(&dev->answered);
	err = virtqueue_add_sgs(dev->control, sgs, 1, 1, asked, GFP_KERNEL);
	if (!err) {
		virtqueue_kick(dev->control);
		/* Too late is never: the device may still write to @asked, which stays. */
		if (!wait_for_completion_timeout(&dev->answered, msecs_to_jiffies(ANSWER_MS)))
			err = -ETIMEDOUT;
	}
	if (!err && (virtqueue_get_buf(dev->control, &length) != asked ||
		     length != sizeof(asked->answer) ||
		     asked->answer.status != cpu_to_le16(CDM_DEV_STATUS_OK)))
		err = -EIO;
	mutex_unlock(&dev->turn);
	if (err == -ETIMEDOUT)
		return err;
	if (!err && result)
		*result = le64_to_cpu(asked->answer.result);
	kfree(asked);
	return err;
}

/* Guest-physical address and length of the device memory; it must be mapped. */
int example_region(struct example_device *dev, u64 *base, u64 *bytes)
{
	struct virtio_shm_region region;

	if (!virtio_get_shm_region(dev->vdev, &region, CDM_DEV_SHMEM_REGION_ID))
		return -ENXIO;
	*base = region.addr;
	*bytes = region.len;
	return 0;
}

/* Resets the device, which unmaps its memory: nobody may use it any more. */
void example_stop(struct example_device *dev)
{
	virtio_reset_device(dev->vdev);
	/* The next driver of the device finds it as this one did. */
	dev->vdev->priv = NULL;
	dev->vdev->config->del_vqs(dev->vdev);
	kfree(dev);
}
