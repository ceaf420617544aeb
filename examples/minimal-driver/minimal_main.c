// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver of the cdm device that is as small as one can be and still serve cdmctl: it knows
 * the device from its specification and cdm_device.h, and programs from uapi/cdm.h. It moves
 * single pages of anonymous memory, and offers no commands of the device.
 *
 * Only root may open the node, and may move anybody's memory. An open file keeps the module
 * loaded, and nobody can unbind the device, so it is there as long as anybody asks; a device that
 * is unplugged is not provided for.
 */

#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/virtio_config.h>

#include "../../crates/guest-driver/uapi/cdm.h"
#include "example.h"

struct minimal {
	struct example_device *dev;
	struct example_memory *memory;
	struct miscdevice misc;
	struct cdm_dev_config config;
	atomic64_t to_device, to_system;
};

/* The address space that an ioctl is about: the caller's own is 0. */
static struct mm_struct *mm_of(pid_t pid)
{
	struct task_struct *task;
	struct mm_struct *mm;

	if (!pid)
		return mmget_not_zero(current->mm) ? current->mm : NULL;
	task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	if (!task)
		return NULL;
	mm = get_task_mm(task);
	put_task_struct(task);
	return mm;
}

/* Where the page at an address is. Pages of other devices count as the system's. */
static enum cdm_place place_of(struct minimal *m, struct mm_struct *mm, unsigned long address)
{
	enum cdm_place place = CDM_PLACE_ABSENT;
	struct page *page;

	mmap_read_lock(mm);
	if (get_user_pages_remote(mm, address, 1, FOLL_NOFAULT, &page, NULL) == 1) {
		place = example_is_home(m->memory, page) ? CDM_PLACE_THIS_DEVICE :
							   CDM_PLACE_SYSTEM;
		put_page(page);
	}
	mmap_read_unlock(mm);
	return place;
}

/* Moves a page; an enum cdm_reason if it stays. */
static int move_page(struct minimal *m, struct mm_struct *mm, unsigned long address, bool to_device)
{
	struct example_move *move = example_collect(m->memory, mm, address, to_device);
	int err;

	if (!move)
		return CDM_REASON_UNSUPPORTED;
	err = example_copy(m->memory, move, to_device);
	if (example_finish(move))
		return -1;
	return err ? CDM_REASON_NO_MEMORY : CDM_REASON_BUSY;
}

static void migrate(struct minimal *m, struct mm_struct *mm, struct cdm_migrate *args)
{
	bool to_device = args->direction == CDM_TO_DEVICE;
	enum cdm_place there = to_device ? CDM_PLACE_THIS_DEVICE : CDM_PLACE_SYSTEM;
	u64 address;

	for (address = args->address; address < args->address + args->length;
	     address += PAGE_SIZE) {
		enum cdm_place place = place_of(m, mm, address);
		int reason = CDM_REASON_NOT_PRESENT;

		args->pages_asked++;
		if (place == there) {
			args->pages_there++;
			continue;
		}
		if (place != CDM_PLACE_ABSENT)
			reason = move_page(m, mm, address, to_device);
		if (reason >= 0) {
			args->failed[reason]++;
		} else {
			args->pages_moved++;
			atomic64_inc(to_device ? &m->to_device : &m->to_system);
		}
		cond_resched();
	}
}

static bool is_range(u64 address, u64 length)
{
	return length && !((address | length) & ~PAGE_MASK) && address + length > address;
}

static long ioctl_migrate(struct minimal *m, struct cdm_migrate __user *user)
{
	struct cdm_migrate in, args = {};
	struct mm_struct *mm;

	if (copy_from_user(&in, user, sizeof(in)))
		return -EFAULT;
	/* None of the flags is known here. */
	if (!is_range(in.address, in.length) || in.flags || in.reserved ||
	    (in.direction != CDM_TO_DEVICE && in.direction != CDM_TO_SYSTEM))
		return -EINVAL;
	mm = mm_of(in.pid);
	if (!mm)
		return -ESRCH;
	args.address = in.address;
	args.length = in.length;
	args.pid = in.pid;
	args.direction = in.direction;
	migrate(m, mm, &args);
	mmput(mm);
	return copy_to_user(user, &args, sizeof(args)) ? -EFAULT : 0;
}

static long ioctl_residency(struct minimal *m, struct cdm_residency __user *user)
{
	struct cdm_residency in, args = {};
	struct mm_struct *mm;
	long err = 0;
	u64 i;

	if (copy_from_user(&in, user, sizeof(in)))
		return -EFAULT;
	if (!is_range(in.address, in.length) || in.flags)
		return -EINVAL;
	mm = mm_of(in.pid);
	if (!mm)
		return -ESRCH;
	args.address = in.address;
	args.length = in.length;
	args.map = in.map;
	args.pid = in.pid;
	for (i = 0; i < in.length >> PAGE_SHIFT && !err; i++) {
		u8 place = place_of(m, mm, in.address + (i << PAGE_SHIFT));

		args.pages[place]++;
		if (in.map && put_user(place, (u8 __user *)u64_to_user_ptr(in.map) + i))
			err = -EFAULT;
		cond_resched();
	}
	mmput(mm);
	if (!err && copy_to_user(user, &args, sizeof(args)))
		err = -EFAULT;
	return err;
}

static long ioctl_query(struct minimal *m, struct cdm_query __user *user)
{
	struct cdm_query query = {
		.uapi_version = CDM_UAPI_VERSION,
		.memory_type = IS_ENABLED(CONFIG_DEVICE_PUBLIC) ? CDM_MEMORY_PUBLIC :
								  CDM_MEMORY_COHERENT,
		.base = m->memory->pgmap.range.start,
		.bytes_total = (u64)m->memory->pages << PAGE_SHIFT,
		.bytes_free = (u64)(m->memory->pages - READ_ONCE(m->memory->in_use)) << PAGE_SHIFT,
		.pages_to_device = atomic64_read(&m->to_device),
		.pages_to_system = atomic64_read(&m->to_system),
		.device_features = le64_to_cpu(m->config.features),
		.numa_node = page_to_nid(pfn_to_page(m->memory->first_pfn)),
		.protocol_major = le16_to_cpu(m->config.version_major),
		.protocol_minor = le16_to_cpu(m->config.version_minor),
		.link_width_lanes = le16_to_cpu(m->config.link_width_lanes),
		.link_speed_mts = le32_to_cpu(m->config.link_speed_mts),
		.num_pools = le16_to_cpu(m->config.num_pools),
		.capabilities = CDM_CAN_CPU_ACCESS,
	};
	int i;

	for (i = 0; i < le16_to_cpu(m->config.num_agents) && i < CDM_DEV_AGENTS_MAX; i++) {
		u16 kind = le16_to_cpu(m->config.agents[i].kind);

		query.num_home_agents += kind == CDM_DEV_AGENT_KIND_HOME;
		query.num_request_agents += kind == CDM_DEV_AGENT_KIND_REQUEST;
		query.num_slave_agents += kind == CDM_DEV_AGENT_KIND_SLAVE;
	}
	return copy_to_user(user, &query, sizeof(query)) ? -EFAULT : 0;
}

static long ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	/* misc_open() left it there. */
	struct minimal *m = container_of(file->private_data, struct minimal, misc);
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case CDM_IOC_QUERY:
		return ioctl_query(m, user);
	case CDM_IOC_MIGRATE:
		return ioctl_migrate(m, user);
	case CDM_IOC_RESIDENCY:
		return ioctl_residency(m, user);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.unlocked_ioctl = ioctl,
};

static int probe(struct virtio_device *vdev)
{
	struct minimal *m = devm_kzalloc(&vdev->dev, sizeof(*m), GFP_KERNEL);
	u64 base, bytes;
	int err;

	if (!m)
		return -ENOMEM;
	/* Section 3: the virtio ID is borrowed, so look before anything else is done. */
	virtio_cread_bytes(vdev, 0, &m->config, sizeof(m->config));
	if (memcmp(m->config.magic, CDM_DEV_MAGIC, sizeof(m->config.magic)) ||
	    le16_to_cpu(m->config.version_major) != CDM_DEV_VERSION_MAJOR)
		return -ENODEV;
	m->dev = example_start(vdev);
	if (IS_ERR(m->dev))
		return PTR_ERR(m->dev);
	/* Section 6.3: the memory is there when this has completed. */
	err = example_ask(m->dev, CDM_DEV_CONTROL_OPCODE_MAP_MEMORY, NULL);
	err = err ?: example_region(m->dev, &base, &bytes);
	if (err)
		goto stop;
	m->memory = example_hotplug(base, bytes);
	if (IS_ERR(m->memory)) {
		err = PTR_ERR(m->memory);
		goto stop;
	}
	m->misc.minor = MISC_DYNAMIC_MINOR;
	m->misc.name = "cdm0";
	m->misc.fops = &fops;
	m->misc.parent = &vdev->dev;
	m->misc.mode = 0600;
	err = misc_register(&m->misc);
	if (err)
		goto unplug;
	dev_set_drvdata(&vdev->dev, m);
	dev_info(&vdev->dev, "minimal: %llu MiB at %#llx\n", bytes >> 20, base);
	return 0;

unplug:
	example_unplug(m->memory);
stop:
	example_stop(m->dev);
	return err;
}

static void remove(struct virtio_device *vdev)
{
	struct minimal *m = dev_get_drvdata(&vdev->dev);

	/* New work first, then the pages, then the memory below them. */
	misc_deregister(&m->misc);
	example_unplug(m->memory);
	example_stop(m->dev);
}

/* Without this the core resets the device at power-off, below the pages in its memory. */
static void shutdown(struct virtio_device *vdev)
{
}

static const struct virtio_device_id ids[] = {
	{ CDM_DEV_VIRTIO_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },
};

static struct virtio_driver minimal_driver = {
	.driver.name = "minimal",
	.driver.suppress_bind_attrs = true,
	.id_table = ids,
	.probe = probe,
	.remove = remove,
	.shutdown = shutdown,
};
module_virtio_driver(minimal_driver);

MODULE_DESCRIPTION("The least that drives a coherent device memory device");
MODULE_LICENSE("GPL");
