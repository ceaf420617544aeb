/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * C side of cdm.ko: what Rust cannot reach because it is a macro, an inline
 * function or a table of macros; a file for each subject. Nothing here decides
 * anything; the one exception is cdm_mm_of(), which is the rule of who may move
 * whose memory.
 */
#ifndef _CDM_HELPERS_H
#define _CDM_HELPERS_H

#include <linux/hmm.h>
#include <linux/migrate.h>
#include <linux/memremap.h>
#include <linux/types.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "../../uapi/cdm.h"

/*
 * What the kernel has. A type that it lacks and its select flag are zero, which is no
 * memory type and selects nothing.
 */
#ifdef CONFIG_DEVICE_PRIVATE
static const u32 CDM_MEMORY_TYPE_PRIVATE = MEMORY_DEVICE_PRIVATE;
static const u64 CDM_SELECT_PRIVATE = MIGRATE_VMA_SELECT_DEVICE_PRIVATE;
#else
static const u32 CDM_MEMORY_TYPE_PRIVATE = 0;
static const u64 CDM_SELECT_PRIVATE = 0;
#endif
static const u32 CDM_MEMORY_TYPE_COHERENT = MEMORY_DEVICE_COHERENT;
static const u64 CDM_SELECT_SYSTEM = MIGRATE_VMA_SELECT_SYSTEM;
static const u64 CDM_SELECT_COHERENT = MIGRATE_VMA_SELECT_DEVICE_COHERENT;
#if defined(CONFIG_DEVICE_PUBLIC) && defined(CDM_HAS_MIGRATE_VMA_SELECT_DEVICE_PUBLIC)
static const u32 CDM_MEMORY_TYPE_PUBLIC = MEMORY_DEVICE_PUBLIC;
static const u64 CDM_SELECT_PUBLIC = MIGRATE_VMA_SELECT_DEVICE_PUBLIC;
#else
static const u32 CDM_MEMORY_TYPE_PUBLIC = 0;
static const u64 CDM_SELECT_PUBLIC = 0;
#endif

static const u64 CDM_MPFN_VALID = MIGRATE_PFN_VALID;
static const u64 CDM_MPFN_MIGRATE = MIGRATE_PFN_MIGRATE;
static const u64 CDM_MPFN_COMPOUND = MIGRATE_PFN_COMPOUND;
static const u32 CDM_MPFN_SHIFT = MIGRATE_PFN_SHIFT;
static const u64 CDM_SELECT_COMPOUND = MIGRATE_VMA_SELECT_COMPOUND;
static const u64 CDM_PMD_BYTES = PMD_SIZE;
static const u32 CDM_PGMAP_ALTMAP_VALID = PGMAP_ALTMAP_VALID;

/*
 * Whether folios of 2 MiB that the CPU can map are sound there: the series mends what
 * breaks them, for both types. And whether page cache migrates to public memory, and a
 * refusal comes with its reason.
 */
#ifdef CONFIG_DEVICE_PUBLIC
static const bool CDM_LARGE_IS_SOUND = true;
#else
static const bool CDM_LARGE_IS_SOUND = false;
#endif
#ifdef CDM_HAS_MIGRATE_VMA_SELECT_FILE
static const bool CDM_FILES_MIGRATE = true;
static const u64 CDM_SELECT_FILE = MIGRATE_VMA_SELECT_FILE;
#else
static const bool CDM_FILES_MIGRATE = false;
static const u64 CDM_SELECT_FILE = 0;
#endif

#ifdef DEV_PAGEMAP_HAS_RECLAIM
static const bool CDM_HAS_RECLAIM = true;
#else
static const bool CDM_HAS_RECLAIM = false;
#endif

/* Whether pages of private memory can be taken from those who map them. */
#ifdef CDM_HAS_migrate_device_poison
static const bool CDM_CAN_POISON = true;
#else
static const bool CDM_CAN_POISON = false;
#endif

/* Whether memory_failure() takes pages of public memory from those who map them. */
#if defined(CONFIG_DEVICE_PUBLIC) && defined(CONFIG_MEMORY_FAILURE)
static const bool CDM_HANDLES_MEMORY_FAILURE = true;
#else
static const bool CDM_HANDLES_MEMORY_FAILURE = false;
#endif

/* Whether the kernel says which device pages the CPUs used. */
#ifdef MIGRATE_DEVICE_HAS_YOUNG
static const bool CDM_HAS_YOUNG = true;
#else
static const bool CDM_HAS_YOUNG = false;
#endif

/* What can be seen of a page that is mapped: see cdm_page_traits(). */
static const u32 CDM_TRAIT_ANON = 1 << 0;
static const u32 CDM_TRAIT_LARGE = 1 << 1;
static const u32 CDM_TRAIT_COMPOUND = 1 << 2;
static const u32 CDM_TRAIT_PINNED = 1 << 3;
/* KSM has merged it with others. */
static const u32 CDM_TRAIT_MERGED = 1 << 4;

/* What a device may be given of an area: see cdm_vma_rights(). */
static const u32 CDM_AREA_READ = 1 << 0;
static const u32 CDM_AREA_WRITE = 1 << 1;
/* No memory with struct pages. */
static const u32 CDM_AREA_SPECIAL = 1 << 2;
/* User space may serve its faults. */
static const u32 CDM_AREA_SERVED = 1 << 3;

static const u32 CDM_FAULT_SIGBUS = VM_FAULT_SIGBUS;
static const u32 CDM_FAULT_OOM = VM_FAULT_OOM;

struct miscdevice;
struct workqueue_struct;
struct completion;
struct task_struct;

/* What cdm_param_copy() says. */
static const u32 CDM_COPY_AUTO = 0;
static const u32 CDM_COPY_CPU = 1;
static const u32 CDM_COPY_ENGINE = 2;

/* What cdm_param_memory_type() says of a device that the parameter does not name. */
static const u32 CDM_PARAM_NO_MEMORY_TYPE = U32_MAX;

/* Module parameters: param.c */
u32 cdm_param_memory_type(u32 device);
u32 cdm_param_memory_types(void);
bool cdm_param_altmap(void);
int cdm_param_numa_node(void);
int cdm_param_max_order(void);
u32 cdm_param_command_ms(void);
u32 cdm_param_evacuate_ms(void);
bool cdm_param_pressure_help(void);
bool cdm_param_dmirror(void);
u32 cdm_param_copy(void);
#ifndef __BINDGEN__
const char *cdm_memory_type_name(u32 type);
#endif

/* virtio: virtio.c */
void *cdm_vdev_priv(struct virtio_device *vdev);
void cdm_vdev_set_priv(struct virtio_device *vdev, void *priv);
struct device *cdm_vdev_device(struct virtio_device *vdev);
int cdm_vdev_node(struct virtio_device *vdev);
u32 cdm_vdev_config_bytes(struct virtio_device *vdev);
void cdm_vdev_read_config(struct virtio_device *vdev, void *buf, u32 bytes);
void cdm_vdev_ready(struct virtio_device *vdev);
bool cdm_vdev_shm_region(struct virtio_device *vdev, u8 id, u64 *base, u64 *bytes);
int cdm_vdev_find_vqs(struct virtio_device *vdev, u32 num, struct virtqueue **vqs,
		      const char *const *names, void (*callback)(struct virtqueue *vq));
void cdm_vdev_del_vqs(struct virtio_device *vdev);
bool cdm_vdev_is_leaving(struct virtio_device *vdev);
bool cdm_vdev_leave_running(struct virtio_device *vdev);
void cdm_vdevs_let_go(void);
struct virtio_device *cdm_vq_vdev(struct virtqueue *vq);
u32 cdm_vq_index(struct virtqueue *vq);
int cdm_vq_add(struct virtqueue *vq, void *out, u32 out_bytes, void *in, u32 in_bytes,
	       void *token);
void cdm_warn_queue_error(struct device *dev, u32 device, u32 queue, u64 lost);
void cdm_warn_unknown_event(struct device *dev, u32 device, u32 kind);
void cdm_warn_memory_error(struct device *dev, u32 device, u64 offset, u64 bytes);

/* Pages and folios: folio.c, frame.c, move.c, pgmap.c */
struct page *cdm_pfn_to_page(unsigned long pfn);
unsigned long cdm_page_to_pfn(struct page *page);
struct dev_pagemap *cdm_page_pgmap(struct page *page);
u32 cdm_page_traits(struct page *page);
u32 cdm_mpfn_reason(unsigned long mpfn);
u32 cdm_page_late_reason(struct page *page);
int cdm_page_refs(struct page *page);
int cdm_page_maps(struct page *page);
void cdm_page_init(struct page *page, struct dev_pagemap *pgmap, u32 order, u64 stamp);
bool cdm_page_poisoned(struct page *page);
int cdm_memory_failure(unsigned long pfn);
void cdm_page_unlock_put(struct page *page);
void cdm_page_put(struct page *page);
int cdm_pages_copy(struct page *to, struct page *from, u32 pages, bool give_up);
bool cdm_pages_poisoned(struct page *page, u32 pages);
void cdm_pages_clear(struct page *page, u32 pages);
struct page *cdm_page_alloc(struct vm_area_struct *vma, unsigned long address, u32 order);
struct page *cdm_page_alloc_evicted(u32 order, bool in_reclaim);
void cdm_drain(void);
void cdm_mpfns_poison(unsigned long *src, unsigned long npages);
unsigned long cdm_folio_pfn(struct folio *folio);
u32 cdm_folio_order(struct folio *folio);
u32 cdm_page_order(struct page *page);
bool cdm_frame_look(unsigned long pfn, unsigned long *head, u32 *order, u64 *stamp);
u32 cdm_frame_reason(unsigned long pfn);
bool cdm_frame_split(unsigned long pfn);
bool cdm_frame_partly_mapped(unsigned long pfn);
int cdm_frame_young(unsigned long pfn);
bool cdm_frame_hold(unsigned long pfn, u64 stamp);
void cdm_wait_for_callbacks(void);
bool cdm_frame_reclaimable(unsigned long pfn, void *memcg);
void cdm_ops_set_reclaim(struct dev_pagemap_ops *ops);
bool cdm_dying(void);
struct dev_pagemap *cdm_folio_pgmap(struct folio *folio);
int cdm_private_range_get(u64 bytes, u64 *start);
void cdm_private_range_put(u64 start, u64 bytes);
void cdm_page_get(struct page *page);
void cdm_page_mark_dirty(struct page *page);
bool cdm_page_is_zero(struct page *page);
void *cdm_page_address(struct page *page);
void cdm_folio_unlock_put(struct folio *folio);
int cdm_map_zeroed_pages(struct vm_area_struct *vma);
bool cdm_node_usable(int node);
int cdm_node_default(void);
u64 cdm_struct_page_bytes(void);

#ifndef __BINDGEN__
/* Rust; the reclaim method of the device memory. */
unsigned long cdm_reclaim(struct dev_pagemap *pgmap, void *memcg, unsigned long pages);
#endif

/* Address spaces: task.c, vm.c */
int cdm_mm_of(pid_t pid, struct mm_struct **mm);
bool cdm_vma_migratable(struct vm_area_struct *vma);
bool cdm_vma_is_anonymous(struct vm_area_struct *vma);
bool cdm_vma_executable(struct vm_area_struct *vma);
bool cdm_vma_readable(struct vm_area_struct *vma);
bool cdm_vma_faultable(struct vm_area_struct *vma);
u32 cdm_vma_rights(struct vm_area_struct *vma);
bool cdm_fault_in(struct mm_struct *mm, unsigned long address);
bool cdm_notifier_blockable(const struct mmu_notifier_range *range);
bool cdm_notifier_is_own(const struct mmu_notifier_range *range, const void *owner);
void cdm_notifier_set_seq(struct mmu_interval_notifier *sub, unsigned long seq);
bool cdm_notifier_retry(struct mmu_interval_notifier *sub, unsigned long seq);
unsigned long cdm_hmm_request(bool write);
bool cdm_hmm_valid(unsigned long hmm_pfn);
bool cdm_hmm_writable(unsigned long hmm_pfn);
bool cdm_hmm_error(unsigned long hmm_pfn);
u32 cdm_hmm_order(unsigned long hmm_pfn);
struct page *cdm_hmm_page(unsigned long hmm_pfn);
struct page *cdm_page_mapped_at(struct mm_struct *mm, unsigned long address);
struct vm_area_struct *cdm_fault_vma(struct vm_fault *vmf);
unsigned long cdm_fault_address(struct vm_fault *vmf);
struct page *cdm_fault_page(struct vm_fault *vmf);
u32 cdm_fault_order(struct vm_fault *vmf);

/* Work, time, the current process: sched.c */
struct workqueue_struct *cdm_workqueue_alloc(bool is_urgent);
u64 cdm_now_ns(void);
u32 cdm_cpu(void);
bool cdm_may_manage(void);
unsigned long cdm_jiffies_of_ms(u32 ms);
bool cdm_module_is_live(void);
void cdm_completion_rearm(struct completion *done);
u64 cdm_look_begin(void);
bool cdm_look_on(u64 since_ns, u64 window_ns);
void cdm_look_end(void);
u64 cdm_local_ns(void);
struct task_struct *cdm_current(void);
void cdm_heed_kill(bool heed);
void cdm_kill(struct task_struct *task);

/* sysfs.c: numbers that cdm_attribute() in chardev.rs knows. */
enum cdm_attribute_id {
	CDM_ATTRIBUTE_MEMORY_TYPE,
	CDM_ATTRIBUTE_BASE,
	CDM_ATTRIBUTE_BYTES_TOTAL,
	CDM_ATTRIBUTE_BYTES_FREE,
	CDM_ATTRIBUTE_BYTES_METADATA,
	CDM_ATTRIBUTE_NUMA_NODE,
	CDM_ATTRIBUTE_LINK_WIDTH_LANES,
	CDM_ATTRIBUTE_LINK_SPEED_MTS,
	CDM_ATTRIBUTE_MAX_ORDER,
	CDM_ATTRIBUTE_CPU_SCAN_MS,
	CDM_ATTRIBUTE_CPU_SCAN_FOLIOS,
	CDM_ATTRIBUTE_CPU_PAGES_PER_SECOND,
	CDM_ATTRIBUTE_PAGES_HOT_TO_DEVICE,
	CDM_ATTRIBUTE_PAGES_HOT_TO_SYSTEM,
	CDM_ATTRIBUTE_BYTES_COPIED_BY_CPU,
	CDM_ATTRIBUTE_BYTES_COPIED_BY_ENGINE,
};
const struct attribute_group **cdm_attribute_groups(void);
#ifndef __BINDGEN__
/* Rust; runs while the node is registered, in process context. */
s64 cdm_attribute(struct miscdevice *misc, enum cdm_attribute_id id);
int cdm_attribute_set(struct miscdevice *misc, enum cdm_attribute_id id, u32 value);
#endif

/* Why pages are evicted. */
enum cdm_evict_why {
	CDM_EVICT_ON_REQUEST,
	CDM_EVICT_FOR_ROOM,
	CDM_EVICT_UNDER_PRESSURE,
	CDM_EVICT_FOR_CPUS,
};

/* Trace events: trace.c */
void cdm_trace_probe(u32 device, u32 memory_type, u64 base, u64 bytes, u64 metadata, int node);
void cdm_trace_migrate_batch(u32 device, u32 direction, u64 address, u64 pages, u64 moved,
			     u64 there, u64 failed, u32 tries);
void cdm_trace_fault(u32 device, u64 address, u64 pages);
void cdm_trace_evacuate(u32 device, u64 in_use, u64 moved);
void cdm_trace_evict(u32 device, u32 why, u64 asked, u64 moved, u64 failed);
void cdm_trace_command_submit(u32 device, u32 queue, u64 token, u32 opcode, u32 ranges, u64 bytes);
void cdm_trace_page_request(u32 device, u32 pasid, u32 id, u64 address, u64 pages, bool write,
			    bool atomic, u64 entries, u32 status);
void cdm_trace_hot(u32 device, u32 pasid, u64 address, u64 accesses, u64 moved, u64 over_rate,
		   u64 failed);
void cdm_trace_invalidate(u32 device, u32 pasid, u64 start, u64 end, bool done);
void cdm_trace_command_done(u32 device, u32 queue, u64 token, u32 status, u64 result, u64 bytes);

#endif /* _CDM_HELPERS_H */
