// SPDX-License-Identifier: GPL-2.0
/*
 * C side of cdm.ko; see helpers.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/delay.h>
#include <linux/cred.h>
#include <linux/highmem.h>
#include <linux/hmm.h>
#include <linux/hugetlb.h>
#include <linux/ioport.h>
#include <linux/memremap.h>
#include <linux/miscdevice.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/nodemask.h>
#include <linux/pci.h>
#include <linux/rcupdate.h>
#include <linux/scatterlist.h>
#include <linux/sched/exec_state.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <linux/sysfs.h>
#include <linux/topology.h>
#include <linux/userfaultfd_k.h>
#include <linux/virtio_pci.h>
#include <linux/workqueue.h>

#include "helpers.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* ---- Module parameters ------------------------------------------------- */

/*
 * The variables have names of their own: the kernel has a per-CPU numa_node, and
 * tentative definitions of the two would be one variable.
 */

/*
 * Zero is the best type that the kernel has. One entry is for all devices, more are for
 * one device each, by its number.
 */
#define PARAM_DEVICES_MAX 64
static u32 param_memory_types[PARAM_DEVICES_MAX];
static u32 param_memory_types_num = 1;

static const struct {
	const char *name;
	u32 type;
} memory_type_names[] = {
	{ "auto", 0 },
	{ "private", CDM_MEMORY_PRIVATE },
	{ "coherent", CDM_MEMORY_COHERENT },
	{ "public", CDM_MEMORY_PUBLIC },
};

static const char *memory_type_name(u32 type)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(memory_type_names); i++)
		if (memory_type_names[i].type == type)
			return memory_type_names[i].name;
	return "unknown";
}

/* The type of that name, which is @length bytes long; -EINVAL if there is none. */
static int memory_type_find(const char *name, size_t length)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(memory_type_names); i++)
		if (strlen(memory_type_names[i].name) == length &&
		    !memcmp(memory_type_names[i].name, name, length))
			return memory_type_names[i].type;
	return -EINVAL;
}

static int memory_type_set(const char *val, const struct kernel_param *kp)
{
	u32 num = 0;

	while (num < PARAM_DEVICES_MAX) {
		size_t length = strcspn(val, ",\n");
		int type = memory_type_find(val, length);

		if (type < 0) {
			pr_err("memory_type=%.*s is unknown; it is auto, public, coherent or private, for all devices or, with commas, for each\n",
			       (int)length, val);
			return type;
		}
		param_memory_types[num++] = type;
		val += length;
		if (*val != ',') {
			param_memory_types_num = num;
			return 0;
		}
		val++;
	}
	pr_err("memory_type names more than %u devices\n", PARAM_DEVICES_MAX);
	return -EINVAL;
}

static int memory_type_get(char *buf, const struct kernel_param *kp)
{
	int at = 0;
	u32 i;

	for (i = 0; i < param_memory_types_num; i++)
		at += sysfs_emit_at(buf, at, "%s%s", i ? "," : "",
				    memory_type_name(param_memory_types[i]));
	return at + sysfs_emit_at(buf, at, "\n");
}

static const struct kernel_param_ops memory_type_ops = {
	.set = memory_type_set,
	.get = memory_type_get,
};

module_param_cb(memory_type, &memory_type_ops, NULL, 0444);
MODULE_PARM_DESC(memory_type,
		 "type of the device memory: public, coherent, private, or auto, the best that the kernel has (default auto); one for all devices, or, with commas, one for each");

static bool param_altmap = true;
module_param_named(altmap, param_altmap, bool, 0444);
MODULE_PARM_DESC(altmap,
		 "keep the struct pages of the device memory in the device memory itself (default Y)");

static int param_numa_node = NUMA_NO_NODE;
module_param_named(numa_node, param_numa_node, int, 0444);
MODULE_PARM_DESC(numa_node,
		 "NUMA node of the device memory; -1: that of the device, else the nearest with memory (default -1)");

static int param_max_order = -1;

static int max_order_set(const char *val, const struct kernel_param *kp)
{
	int order, err;

	err = kstrtoint(val, 0, &order);
	if (err)
		return err;
	if (order != -1 && order != 0 && order != HPAGE_PMD_ORDER) {
		pr_err("max_order=%d is none; it is 0, %d, or -1 for what the kernel can\n",
		       order, HPAGE_PMD_ORDER);
		return -EINVAL;
	}
	return param_set_int(val, kp);
}

static const struct kernel_param_ops max_order_ops = {
	.set = max_order_set,
	.get = param_get_int,
};

module_param_cb(max_order, &max_order_ops, &param_max_order, 0644);
MODULE_PARM_DESC(max_order,
		 "largest folios that move whole: 0 for 4 KiB, 9 for 2 MiB; -1: 9 where the kernel can, else 0 (default -1)");

static uint param_evacuate_ms = 30000;
module_param_named(evacuate_ms, param_evacuate_ms, uint, 0644);
MODULE_PARM_DESC(evacuate_ms,
		 "how long the end of a device waits without progress for pages to leave, in milliseconds (default 30000)");

static bool param_pressure_help = true;
module_param_named(pressure_help, param_pressure_help, bool, 0644);
MODULE_PARM_DESC(pressure_help,
		 "bring pages of a memory cgroup that is at its limit back to system memory, where they can be reclaimed (default Y)");

static bool param_dmirror;
module_param_named(dmirror, param_dmirror, bool, 0444);
MODULE_PARM_DESC(dmirror,
		 "serve the kernel's HMM test suite on /dev/hmm_dmirror0 and so on (default N)");

u32 cdm_param_memory_type(u32 device)
{
	if (param_memory_types_num == 1)
		device = 0;
	if (device >= param_memory_types_num)
		return CDM_PARAM_NO_MEMORY_TYPE;
	return param_memory_types[device];
}

u32 cdm_param_memory_types(void)
{
	return param_memory_types_num;
}

bool cdm_param_dmirror(void)
{
	return param_dmirror;
}

bool cdm_param_altmap(void)
{
	return param_altmap;
}

int cdm_param_numa_node(void)
{
	return param_numa_node;
}

int cdm_param_max_order(void)
{
	return READ_ONCE(param_max_order);
}

bool cdm_param_pressure_help(void)
{
	return READ_ONCE(param_pressure_help);
}

u32 cdm_param_evacuate_ms(void)
{
	return READ_ONCE(param_evacuate_ms);
}

/* ---- virtio ------------------------------------------------------------ */

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

void cdm_warn_unknown_event(struct device *dev, u32 device, u32 kind)
{
	dev_warn_ratelimited(dev, "cdm%u: unknown event %u\n", device, kind);
}

/* ---- Pages ------------------------------------------------------------- */

struct page *cdm_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

unsigned long cdm_page_to_pfn(struct page *page)
{
	return page_to_pfn(page);
}

struct dev_pagemap *cdm_page_pgmap(struct page *page)
{
	return is_zone_device_page(page) ? page_pgmap(page) : NULL;
}

/* A reason on its way to Rust: enum cdm_reason plus one, zero for none. */
#define CDM_REASON(_reason)	(CDM_REASON_##_reason + 1)

#ifdef MIGRATE_PFN_REFUSED
static u32 cdm_reason_of(enum migrate_refusal refusal)
{
	switch (refusal) {
	case MIGRATE_REFUSED_NONE:
		return 0;
	case MIGRATE_REFUSED_ABSENT:
		return CDM_REASON(NOT_PRESENT);
	case MIGRATE_REFUSED_MAPPING:
		return CDM_REASON(MAPPING);
	case MIGRATE_REFUSED_PRIVATE:
		return CDM_REASON(PRIVATE_DATA);
	case MIGRATE_REFUSED_WRITEBACK:
		return CDM_REASON(WRITEBACK);
	case MIGRATE_REFUSED_LOCKED:
	case MIGRATE_REFUSED_BUSY:
	/* Was split, which unmapped it: the next try faults it in again. */
	case MIGRATE_REFUSED_REFAULT:
		return CDM_REASON(BUSY);
	case MIGRATE_REFUSED_PINNED:
		return CDM_REASON(PINNED);
	case MIGRATE_REFUSED_SPLIT:
		return CDM_REASON(SPLIT);
	case MIGRATE_REFUSED_TYPE:
	case MIGRATE_REFUSED_FILE:
	default:
		return CDM_REASON(UNSUPPORTED);
	}
}

/* As far as the folio itself tells, which is locked. */
static u32 cdm_folio_reason(struct folio *folio)
{
	return cdm_reason_of(migrate_device_refusal(folio));
}

/* Why the kernel left an entry of a source array alone. */
u32 cdm_mpfn_reason(unsigned long mpfn)
{
	return cdm_reason_of(migrate_pfn_refusal(mpfn));
}
#else
static u32 cdm_folio_reason(struct folio *folio)
{
	if (folio_test_hugetlb(folio) || !folio_test_anon(folio))
		return CDM_REASON(UNSUPPORTED);
	return 0;
}

u32 cdm_mpfn_reason(unsigned long mpfn)
{
	return 0;
}
#endif

/* What can be seen of a page: CDM_TRAIT_*. It is mapped or referenced, and stays so. */
u32 cdm_page_traits(struct page *page)
{
	struct folio *folio = page_folio(page);
	u32 traits = 0;

	if (folio_test_anon(folio))
		traits |= CDM_TRAIT_ANON;
	if (folio_test_large(folio))
		traits |= CDM_TRAIT_COMPOUND;
	if (folio_order(folio) == HPAGE_PMD_ORDER)
		traits |= CDM_TRAIT_LARGE;
	if (folio_maybe_dma_pinned(folio))
		traits |= CDM_TRAIT_PINNED;
	return traits;
}

/* Why a page that is referenced and locked did not move although it was tried. */
u32 cdm_page_late_reason(struct page *page)
{
	struct folio *folio = page_folio(page);
	u32 reason = cdm_folio_reason(folio);

	if (reason)
		return reason;
	if (folio_test_writeback(folio))
		return CDM_REASON(WRITEBACK);
	if (folio_maybe_dma_pinned(folio))
		return CDM_REASON(PINNED);
	return CDM_REASON(BUSY);
}

int cdm_page_refs(struct page *page)
{
	return page_ref_count(page);
}

int cdm_page_maps(struct page *page)
{
	return folio_mapcount(page_folio(page));
}

/*
 * The stamp says when the folio was migrated to the device. It lies where the LRU list
 * of other folios is; parts of a folio that is split inherit it.
 */
void cdm_page_init(struct page *page, struct dev_pagemap *pgmap, u32 order, u64 stamp)
{
	struct folio *folio = (struct folio *)page;

	zone_device_folio_init(folio, pgmap, order);
	folio->page.zone_device_data = (void *)(unsigned long)stamp;
}

bool cdm_page_poisoned(struct page *page)
{
	return PageHWPoison(page);
}

void cdm_page_unlock_put(struct page *page)
{
	unlock_page(page);
	put_page(page);
}

void cdm_page_put(struct page *page)
{
	put_page(page);
}

/*
 * Copies @pages pages that follow each other. A page with a memory error is not read:
 * with @give_up it comes out as zeroes, else the copy fails.
 */
int cdm_pages_copy(struct page *to, struct page *from, u32 pages, bool give_up)
{
	u32 i;

	for (i = 0; i < pages; i++) {
		if (PageHWPoison(from + i) || copy_mc_highpage(to + i, from + i)) {
			if (!give_up)
				return -EIO;
			clear_highpage(to + i);
		}
		cond_resched();
	}
	return 0;
}

void cdm_pages_clear(struct page *page, u32 pages)
{
	u32 i;

	for (i = 0; i < pages; i++) {
		clear_highpage(page + i);
		cond_resched();
	}
}

struct page *cdm_page_alloc(struct vm_area_struct *vma, unsigned long address, u32 order)
{
	gfp_t gfp = GFP_HIGHUSER_MOVABLE | __GFP_NOWARN;
	struct folio *folio;

	/* There is always the way to take small ones, so do not try too hard. */
	if (order)
		gfp = GFP_TRANSHUGE | __GFP_NORETRY;
	folio = vma_alloc_folio(gfp, order, vma, address);
	if (!folio)
		return NULL;
	folio_lock(folio);
	return folio_page(folio, 0);
}

/*
 * A destination for a page that has to leave the device. The owner's mempolicy is
 * not known here. Memory may be short for a while; rather than wake the OOM killer,
 * fail and be called again. Who is reclaiming already must not begin to do so again.
 */
struct page *cdm_page_alloc_evicted(u32 order, bool in_reclaim)
{
	gfp_t gfp = GFP_HIGHUSER_MOVABLE | __GFP_NOWARN | __GFP_RETRY_MAYFAIL;
	struct folio *folio;

	if (order)
		gfp = GFP_TRANSHUGE | __GFP_NORETRY;
#ifdef DEV_PAGEMAP_HAS_RECLAIM
	if (in_reclaim)
		gfp = GFP_DEVICE_RECLAIM;
#endif
	folio = folio_alloc(gfp, order);
	if (!folio)
		return NULL;
	folio_lock(folio);
	return folio_page(folio, 0);
}

/*
 * Empties the per-CPU batches that hold references to folios for a while. Only a
 * kernel with the series exports this; elsewhere, migrate_vma_setup() drains once
 * per call and the callers wait and retry.
 */
void cdm_drain(void)
{
#ifdef CONFIG_DEVICE_PUBLIC
	lru_add_drain_all();
#endif
}

unsigned long cdm_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

u32 cdm_folio_order(struct folio *folio)
{
	return folio_order(folio);
}

u32 cdm_page_order(struct page *page)
{
	return folio_order(page_folio(page));
}

/*
 * Looks at a frame of device memory without a reference: whether it is part of a folio
 * in use, and then the folio's first frame, order and stamp. The folio may be gone, or
 * be another one, by the time that this returns; whoever acts on it looks again under
 * a reference. A page that is free, or being split or moved, is not in use: its count
 * is zero. It may still look like part of the folio that it was in before.
 */
bool cdm_frame_look(unsigned long pfn, unsigned long *head, u32 *order, u64 *stamp)
{
	struct page *page = pfn_to_page(pfn);
	struct folio *folio = page_folio(page);
	unsigned long first = page_to_pfn(&folio->page);

	if (!folio_ref_count(folio) || !folio_is_zone_device(folio))
		return false;
	*order = min_t(u32, folio_order(folio), HPAGE_PMD_ORDER);
	if (first > pfn || pfn - first >= 1UL << *order)
		return false;
	*head = first;
	*stamp = (unsigned long)READ_ONCE(folio->page.zone_device_data);
	return true;
}

/* Why a frame did not leave the device; zero if it is not in use (any more). */
u32 cdm_frame_reason(unsigned long pfn)
{
	struct folio *folio = (struct folio *)pfn_to_page(pfn);
	u32 reason;

	if (!folio_try_get(folio))
		return 0;
	reason = CDM_REASON(BUSY);
	if (folio_trylock(folio)) {
		/* The reference taken here is none that keeps it from leaving. */
		reason = cdm_page_late_reason(&folio->page);
		folio_unlock(folio);
	}
	folio_put(folio);
	return reason;
}

/*
 * Splits a large folio of the device where there is no folio of its size to move it to.
 * An unpatched kernel has no sound way.
 */
bool cdm_frame_split(unsigned long pfn)
{
#ifdef MIGRATE_PFN_REFUSED
	return !migrate_device_split_pfn(pfn);
#else
	return false;
#endif
}

/*
 * Whether a large folio of anonymous memory has pages that nothing maps any more. They
 * are in use until the folio is split, and no kernel list knows of it: those are for
 * system memory. It is a hint, taken without the folio lock; one that several processes
 * map may be missed.
 */
bool cdm_frame_partly_mapped(unsigned long pfn)
{
	struct folio *folio = (struct folio *)pfn_to_page(pfn);
	bool is_partly_mapped;

	if (!folio_try_get(folio))
		return false;
	is_partly_mapped = folio_test_large(folio) && folio_test_anon(folio) &&
			   folio_mapped(folio) && !folio_entire_mapcount(folio) &&
			   folio_mapcount(folio) < folio_nr_pages(folio);
	folio_put(folio);
	return is_partly_mapped;
}

/* Takes a reference to a folio of the device that will never be dropped, and stamps it. */
bool cdm_frame_hold(unsigned long pfn, u64 stamp)
{
	struct folio *folio = (struct folio *)pfn_to_page(pfn);

	if (!folio_try_get(folio))
		return false;
	folio->page.zone_device_data = (void *)(unsigned long)stamp;
	return true;
}

/* Whoever has just left the allocator's lock shall also have left the module's code. */
void cdm_wait_for_callbacks(void)
{
	synchronize_rcu();
	msleep(100);
}

#ifdef DEV_PAGEMAP_HAS_RECLAIM
static unsigned long reclaim(struct dev_pagemap *pgmap, struct mem_cgroup *memcg,
			     unsigned long nr_pages)
{
	return cdm_reclaim(pgmap, memcg, nr_pages);
}

void cdm_ops_set_reclaim(struct dev_pagemap_ops *ops)
{
	ops->reclaim = reclaim;
}

/* Whether evicting the folio of a frame helps a memory cgroup; takes and drops a reference. */
bool cdm_frame_reclaimable(unsigned long pfn, void *memcg)
{
	return device_page_reclaimable(pfn_to_page(pfn), memcg);
}
#else
void cdm_ops_set_reclaim(struct dev_pagemap_ops *ops)
{
}

bool cdm_frame_reclaimable(unsigned long pfn, void *memcg)
{
	return false;
}
#endif

/* Whether the current process was killed; lets others run, too. */
bool cdm_dying(void)
{
	cond_resched();
	return fatal_signal_pending(current);
}

struct dev_pagemap *cdm_folio_pgmap(struct folio *folio)
{
	return folio->pgmap;
}

/* Addresses for the pages of memory that no CPU can reach: free ones, now reserved. */
int cdm_private_range_get(u64 bytes, u64 *start)
{
	struct resource *res;

	res = request_free_mem_region(&iomem_resource, bytes, "Device Private Memory");
	if (IS_ERR(res))
		return PTR_ERR(res);
	*start = res->start;
	return 0;
}

void cdm_private_range_put(u64 start, u64 bytes)
{
	release_mem_region(start, bytes);
}

void cdm_page_get(struct page *page)
{
	get_page(page);
}

bool cdm_node_usable(int node)
{
	return node >= 0 && node < MAX_NUMNODES && node_online(node);
}

int cdm_node_default(void)
{
	return numa_mem_id();
}

bool cdm_page_is_zero(struct page *page)
{
	return is_zero_pfn(page_to_pfn(page));
}

void *cdm_page_address(struct page *page)
{
	return page_address(page);
}

void cdm_folio_unlock_put(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}

u64 cdm_struct_page_bytes(void)
{
	return sizeof(struct page);
}

/* ---- Address spaces ---------------------------------------------------- */

/*
 * Whether current may move the memory of @task: the rule of cdm.h. It is the rule
 * of ptrace_may_access(PTRACE_MODE_ATTACH_FSCREDS), which no module may call,
 * without the security modules.
 */
static int cdm_may_move(struct task_struct *task)
{
	const struct task_exec_state *exec_state;
	const struct cred *cred = current_cred(), *tcred;
	struct user_namespace *ns;
	bool is_dumpable;
	int err = 0;

	if (same_thread_group(task, current))
		return 0;

	rcu_read_lock();
	tcred = __task_cred(task);
	if (!(uid_eq(cred->fsuid, tcred->euid) && uid_eq(cred->fsuid, tcred->suid) &&
	      uid_eq(cred->fsuid, tcred->uid) && gid_eq(cred->fsgid, tcred->egid) &&
	      gid_eq(cred->fsgid, tcred->sgid) && gid_eq(cred->fsgid, tcred->gid)) &&
	    !ns_capable(tcred->user_ns, CAP_SYS_PTRACE)) {
		rcu_read_unlock();
		return -EPERM;
	}
	/* Dumpable is read after the credentials: pairs with commit_creds(). */
	smp_rmb();
	exec_state = rcu_dereference(task->exec_state);
	is_dumpable = READ_ONCE(exec_state->dumpable) == TASK_DUMPABLE_OWNER;
	ns = exec_state->user_ns;
	if (!is_dumpable && !ns_capable(ns, CAP_SYS_PTRACE))
		err = -EPERM;
	rcu_read_unlock();
	return err;
}

/*
 * The address space of the process @pid, as current sees pids, with a reference for
 * mmput(). Credentials and address space belong together: an execve() in between
 * is kept out by exec_update_lock, as in mm_access().
 */
int cdm_mm_of(pid_t pid, struct mm_struct **mm)
{
	struct task_struct *task;
	int err;

	rcu_read_lock();
	task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	rcu_read_unlock();
	if (!task)
		return -ESRCH;

	err = down_read_killable(&task->signal->exec_update_lock);
	if (err)
		goto out_task;
	err = cdm_may_move(task);
	if (!err) {
		*mm = get_task_mm(task);
		if (!*mm)
			err = -ESRCH;
	}
	up_read(&task->signal->exec_update_lock);
out_task:
	put_task_struct(task);
	return err;
}

/* Whether migrate_vma_setup() takes the area at all. */
bool cdm_vma_migratable(struct vm_area_struct *vma)
{
	return !is_vm_hugetlb_page(vma) && !(vma->vm_flags & VM_SPECIAL) && !vma_is_dax(vma);
}

bool cdm_vma_is_anonymous(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma);
}

/* Whether hmm_range_fault() looks into the area. */
bool cdm_vma_readable(struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_READ) || (vma->vm_flags & (VM_IO | VM_PFNMAP));
}

/*
 * Whether the area may be faulted in on behalf of somebody else. A fault that user
 * space has to serve would need the mmap lock to be dropped.
 */
bool cdm_vma_faultable(struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_READ) && !(vma->vm_flags & (VM_IO | VM_PFNMAP)) &&
	       !userfaultfd_armed(vma);
}

/* Faults one page in as a read does. The caller holds the mmap lock, which stays held. */
bool cdm_fault_in(struct mm_struct *mm, unsigned long address)
{
	return !fixup_user_fault(mm, address, FAULT_FLAG_REMOTE, NULL);
}

bool cdm_notifier_blockable(const struct mmu_notifier_range *range)
{
	return mmu_notifier_range_blockable(range);
}

void cdm_notifier_set_seq(struct mmu_interval_notifier *sub, unsigned long seq)
{
	mmu_interval_set_seq(sub, seq);
}

bool cdm_notifier_retry(struct mmu_interval_notifier *sub, unsigned long seq)
{
	return mmu_interval_read_retry(sub, seq);
}

/* What hmm_range_fault() shall bring about: pages that can be read, or written to. */
unsigned long cdm_hmm_request(bool write)
{
	return HMM_PFN_REQ_FAULT | (write ? HMM_PFN_REQ_WRITE : 0);
}

bool cdm_hmm_valid(unsigned long hmm_pfn)
{
	return hmm_pfn & HMM_PFN_VALID;
}

bool cdm_hmm_writable(unsigned long hmm_pfn)
{
	return hmm_pfn & HMM_PFN_WRITE;
}

bool cdm_hmm_error(unsigned long hmm_pfn)
{
	return hmm_pfn & HMM_PFN_ERROR;
}

u32 cdm_hmm_order(unsigned long hmm_pfn)
{
	return hmm_pfn_to_map_order(hmm_pfn);
}

struct page *cdm_hmm_page(unsigned long hmm_pfn)
{
	return hmm_pfn_to_page(hmm_pfn);
}

/*
 * The page that is mapped at @address, with a reference, or NULL; for areas without
 * VM_READ, which hmm_range_fault() passes over. Nothing is faulted in. The caller
 * holds the mmap lock.
 */
struct page *cdm_page_mapped_at(struct mm_struct *mm, unsigned long address)
{
	struct page *page;

	if (get_user_pages_remote(mm, address, 1, FOLL_FORCE | FOLL_NOFAULT, &page, NULL) != 1)
		return NULL;
	return page;
}

/* Fills an area that is being mapped with zeroed pages of the kernel. */
int cdm_map_zeroed_pages(struct vm_area_struct *vma)
{
	unsigned long addr;

	for (addr = vma->vm_start; addr < vma->vm_end; addr += PAGE_SIZE) {
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);
		int err;

		if (!page)
			return -ENOMEM;
		err = vm_insert_page(vma, addr, page);
		/* The mapping has its own reference now, if there is one. */
		put_page(page);
		if (err)
			return err;
	}
	return 0;
}

struct vm_area_struct *cdm_fault_vma(struct vm_fault *vmf)
{
	return vmf->vma;
}

unsigned long cdm_fault_address(struct vm_fault *vmf)
{
	return vmf->address;
}

struct page *cdm_fault_page(struct vm_fault *vmf)
{
	return vmf->page;
}

/* Order of what one page table entry maps; the folio may be larger, and is split then. */
u32 cdm_fault_order(struct vm_fault *vmf)
{
	return vmf->pte ? 0 : folio_order(page_folio(vmf->page));
}

/* ---- Work and CPUs ----------------------------------------------------- */

struct workqueue_struct *cdm_workqueue_alloc(void)
{
	return alloc_workqueue("cdm", WQ_UNBOUND, 0);
}

u32 cdm_cpu(void)
{
	return raw_smp_processor_id();
}

bool cdm_may_manage(void)
{
	return capable(CAP_SYS_ADMIN);
}

unsigned long cdm_jiffies_of_ms(u32 ms)
{
	return msecs_to_jiffies(ms);
}

/* False once the module is being unloaded, which nothing stops any more. */
bool cdm_module_is_live(void)
{
	return module_is_live(THIS_MODULE);
}

/* ---- sysfs ------------------------------------------------------------- */

/* The class device's drvdata is its struct miscdevice; see misc_register(). */
#define CDM_ATTRIBUTE(_name, _id, _format, _type)					\
static ssize_t _name##_show(struct device *dev, struct device_attribute *attr, char *buf) \
{											\
	return sysfs_emit(buf, _format "\n",						\
			  (_type)cdm_attribute(dev_get_drvdata(dev), _id));		\
}											\
static DEVICE_ATTR_RO(_name)

static ssize_t memory_type_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	s64 type = cdm_attribute(dev_get_drvdata(dev), CDM_ATTRIBUTE_MEMORY_TYPE);

	return sysfs_emit(buf, "%s\n", memory_type_name(type));
}
static DEVICE_ATTR_RO(memory_type);

CDM_ATTRIBUTE(base, CDM_ATTRIBUTE_BASE, "0x%llx", u64);
CDM_ATTRIBUTE(bytes_total, CDM_ATTRIBUTE_BYTES_TOTAL, "%llu", u64);
CDM_ATTRIBUTE(bytes_free, CDM_ATTRIBUTE_BYTES_FREE, "%llu", u64);
CDM_ATTRIBUTE(bytes_metadata, CDM_ATTRIBUTE_BYTES_METADATA, "%llu", u64);
CDM_ATTRIBUTE(numa_node, CDM_ATTRIBUTE_NUMA_NODE, "%lld", s64);
CDM_ATTRIBUTE(link_width_lanes, CDM_ATTRIBUTE_LINK_WIDTH_LANES, "%llu", u64);
CDM_ATTRIBUTE(link_speed_mts, CDM_ATTRIBUTE_LINK_SPEED_MTS, "%llu", u64);
CDM_ATTRIBUTE(max_order, CDM_ATTRIBUTE_MAX_ORDER, "%llu", u64);

static struct attribute *cdm_attrs[] = {
	&dev_attr_memory_type.attr,
	&dev_attr_base.attr,
	&dev_attr_bytes_total.attr,
	&dev_attr_bytes_free.attr,
	&dev_attr_bytes_metadata.attr,
	&dev_attr_numa_node.attr,
	&dev_attr_link_width_lanes.attr,
	&dev_attr_link_speed_mts.attr,
	&dev_attr_max_order.attr,
	NULL,
};
ATTRIBUTE_GROUPS(cdm);

const struct attribute_group **cdm_attribute_groups(void)
{
	return cdm_groups;
}

/* ---- Trace events ------------------------------------------------------ */

void cdm_trace_probe(u32 device, u32 memory_type, u64 base, u64 bytes, u64 metadata, int node)
{
	trace_cdm_probe(device, memory_type, base, bytes, metadata, node);
}

void cdm_trace_migrate_batch(u32 device, u32 direction, u64 address, u64 pages, u64 moved,
			     u64 there, u64 failed, u32 tries)
{
	trace_cdm_migrate_batch(device, direction, address, pages, moved, there, failed, tries);
}

void cdm_trace_fault(u32 device, u64 address, u64 pages)
{
	trace_cdm_fault(device, address, pages);
}

void cdm_trace_evacuate(u32 device, u64 in_use, u64 moved)
{
	trace_cdm_evacuate(device, in_use, moved);
}

void cdm_trace_evict(u32 device, u32 why, u64 asked, u64 moved, u64 failed)
{
	trace_cdm_evict(device, why, asked, moved, failed);
}

void cdm_trace_command_submit(u32 device, u32 queue, u64 token, u32 opcode, u32 ranges, u64 bytes)
{
	trace_cdm_command_submit(device, queue, token, opcode, ranges, bytes);
}

void cdm_trace_command_done(u32 device, u32 queue, u64 token, u32 status, u64 result, u64 bytes)
{
	trace_cdm_command_done(device, queue, token, status, result, bytes);
}
