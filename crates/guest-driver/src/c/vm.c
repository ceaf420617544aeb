// SPDX-License-Identifier: GPL-2.0-only
/* Memory areas, what they map, and faults in them. */

#include <linux/hmm.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/userfaultfd_k.h>

#include "helpers.h"

/* Whether migrate_vma_setup() takes the area at all. */
bool cdm_vma_migratable(struct vm_area_struct *vma)
{
	return !is_vm_hugetlb_page(vma) && !(vma->vm_flags & VM_SPECIAL) && !vma_is_dax(vma);
}

bool cdm_vma_is_anonymous(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma);
}

bool cdm_vma_executable(struct vm_area_struct *vma)
{
	return vma->vm_flags & VM_EXEC;
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

/* What a device may be given of an area: CDM_AREA_*. */
u32 cdm_vma_rights(struct vm_area_struct *vma)
{
	u32 rights = 0;

	if (vma->vm_flags & VM_READ)
		rights |= CDM_AREA_READ;
	if (vma->vm_flags & VM_WRITE)
		rights |= CDM_AREA_WRITE;
	if (vma->vm_flags & (VM_IO | VM_PFNMAP))
		rights |= CDM_AREA_SPECIAL;
	if (userfaultfd_armed(vma))
		rights |= CDM_AREA_SERVED;
	return rights;
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

/* Whether this is make_device_exclusive() on behalf of @owner, who is not to undo it. */
bool cdm_notifier_is_own(const struct mmu_notifier_range *range, const void *owner)
{
	return range->event == MMU_NOTIFY_EXCLUSIVE && range->owner == owner;
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
