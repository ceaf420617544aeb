// SPDX-License-Identifier: GPL-2.0-only
/* What moving pages takes besides the calls of linux/migrate.h: new pages, and copies. */

#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/swap.h>

#include "helpers.h"

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

/* Whether one of @pages pages that follow each other has a memory error. */
bool cdm_pages_poisoned(struct page *page, u32 pages)
{
	u32 i;

	for (i = 0; i < pages; i++)
		if (PageHWPoison(page + i))
			return true;
	return false;
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

/*
 * Ends a batch of private memory by taking it, with its contents, from those who map it.
 * Called only where CDM_CAN_POISON.
 */
void cdm_mpfns_poison(unsigned long *src, unsigned long npages)
{
#ifdef CDM_HAS_migrate_device_poison
	migrate_device_poison(src, npages);
#endif
}
