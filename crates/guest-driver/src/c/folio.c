// SPDX-License-Identifier: GPL-2.0-only
/* Pages and folios, wherever they are: what can be seen of them, and references. */

#include <linux/hugetlb.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "helpers.h"

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

#ifdef CDM_HAS_MIGRATE_VMA_SELECT_FILE
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
	if (folio_test_ksm(folio))
		traits |= CDM_TRAIT_MERGED;
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

int cdm_page_refs(struct page *page)
{
	return page_ref_count(page);
}

int cdm_page_maps(struct page *page)
{
	return folio_mapcount(page_folio(page));
}

u32 cdm_page_order(struct page *page)
{
	return folio_order(page_folio(page));
}

bool cdm_page_poisoned(struct page *page)
{
	return PageHWPoison(page);
}

/*
 * Has the kernel take a page of public memory from whoever uses it. It is a real error,
 * not an injected one, as far as the kernel is concerned. Process context.
 */
int cdm_memory_failure(unsigned long pfn)
{
#if defined(CONFIG_DEVICE_PUBLIC) && defined(CONFIG_MEMORY_FAILURE)
	return memory_failure(pfn, 0);
#else
	return -EOPNOTSUPP;
#endif
}

bool cdm_page_is_zero(struct page *page)
{
	return is_zero_pfn(page_to_pfn(page));
}

void *cdm_page_address(struct page *page)
{
	return page_address(page);
}

void cdm_page_get(struct page *page)
{
	get_page(page);
}

void cdm_page_put(struct page *page)
{
	put_page(page);
}

void cdm_page_unlock_put(struct page *page)
{
	unlock_page(page);
	put_page(page);
}

void cdm_folio_unlock_put(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}
