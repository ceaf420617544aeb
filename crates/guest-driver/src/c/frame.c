// SPDX-License-Identifier: GPL-2.0-only
/* Frames of device memory, which are found without a mapping or a reference. */

#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "helpers.h"

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

/*
 * Splits a large folio of the device where there is no folio of its size to move it to.
 * An unpatched kernel has no sound way.
 */
bool cdm_frame_split(unsigned long pfn)
{
#ifdef CDM_HAS_migrate_device_split_pfn
	return !migrate_device_split_pfn(pfn);
#else
	return false;
#endif
}

/*
 * Whether the CPUs used a folio of the device since the last call, by its first frame: 1 or 0,
 * or a negative number if that cannot be told now.
 */
int cdm_frame_young(unsigned long pfn)
{
#ifdef MIGRATE_DEVICE_HAS_YOUNG
	return migrate_device_young_pfn(pfn);
#else
	return -EOPNOTSUPP;
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

/*
 * A device may write to a page that is mapped for writing. The page table entry need not
 * say that it was written to, and the kernel drops a clean page of anonymous or shared
 * memory whose copy is in swap. Page cache of a file is no matter: what is mapped for
 * writing there is dirty. The page is mapped, and stays so during the call.
 */
void cdm_page_mark_dirty(struct page *page)
{
	struct folio *folio = page_folio(page);

	if (folio_test_anon(folio) || folio_test_swapbacked(folio))
		folio_set_dirty(folio);
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
