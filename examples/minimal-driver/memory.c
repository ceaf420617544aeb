// SPDX-License-Identifier: GPL-2.0-only
/* The device memory as memory of the kernel, and pages that move there and back. */

#include <linux/bitmap.h>
#include <linux/delay.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/numa.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/topology.h>

#include "example.h"

/* The series in images/kernel/patches adds the first; every 7.3 kernel has the second. */
#ifdef CONFIG_DEVICE_PUBLIC
#define MEMORY_TYPE	MEMORY_DEVICE_PUBLIC
#define SELECT_DEVICE	MIGRATE_VMA_SELECT_DEVICE_PUBLIC
#else
#define MEMORY_TYPE	MEMORY_DEVICE_COHERENT
#define SELECT_DEVICE	MIGRATE_VMA_SELECT_DEVICE_COHERENT
#endif

/* Pages that are brought home at a time. */
#define HOME_PAGES	64

/* The last reference to a page is gone. Runs in any context. */
static void folio_free(struct folio *folio)
{
	struct example_memory *memory = folio->pgmap->owner;
	unsigned long flags;

	spin_lock_irqsave(&memory->lock, flags);
	bitmap_clear(memory->used, folio_pfn(folio) - memory->first_pfn, folio_nr_pages(folio));
	memory->in_use -= folio_nr_pages(folio);
	spin_unlock_irqrestore(&memory->lock, flags);
}

static const struct dev_pagemap_ops ops = { .folio_free = folio_free };

/* Gives every page of the device memory a struct page, which guest memory has room for. */
struct example_memory *example_hotplug(u64 base, u64 bytes)
{
	struct example_memory *memory = kzalloc(sizeof(*memory), GFP_KERNEL);
	void *mapped;

	if (!memory)
		return ERR_PTR(-ENOMEM);
	spin_lock_init(&memory->lock);
	memory->first_pfn = PHYS_PFN(base);
	memory->pages = bytes >> PAGE_SHIFT;
	memory->used = bitmap_zalloc(memory->pages, GFP_KERNEL);
	memory->pgmap.type = MEMORY_TYPE;
	memory->pgmap.range.start = base;
	memory->pgmap.range.end = base + bytes - 1;
	memory->pgmap.nr_range = 1;
	memory->pgmap.ops = &ops;
	memory->pgmap.owner = memory;
	mapped = memory->used ? memremap_pages(&memory->pgmap, numa_mem_id()) : ERR_PTR(-ENOMEM);
	if (IS_ERR(mapped)) {
		bitmap_free(memory->used);
		kfree(memory);
		return ERR_CAST(mapped);
	}
	return memory;
}

/* A free page of the device, locked and with a reference, as a migration wants it. */
static struct page *take(struct example_memory *memory)
{
	unsigned long free, flags;
	struct page *page;

	spin_lock_irqsave(&memory->lock, flags);
	free = find_first_zero_bit(memory->used, memory->pages);
	if (free < memory->pages) {
		__set_bit(free, memory->used);
		memory->in_use++;
	}
	spin_unlock_irqrestore(&memory->lock, flags);
	if (free >= memory->pages)
		return NULL;
	page = pfn_to_page(memory->first_pfn + free);
	/* A free page is a folio by a cast: it may look like a part of an earlier one. */
	zone_device_folio_init((struct folio *)page, &memory->pgmap, 0);
	return page;
}

/* Whether a page is one of the device's. */
bool example_is_home(struct example_memory *memory, struct page *page)
{
	return is_zone_device_page(page) && page_pgmap(page) == &memory->pgmap;
}

/*
 * Locks and unmaps one page of a process: then nobody changes it. NULL if there is none
 * that moves in this direction. Who calls finishes the move, whatever happens in between.
 */
struct example_move *example_collect(struct example_memory *memory, struct mm_struct *mm,
				     unsigned long address, bool to_device)
{
	struct example_move *move = kzalloc(sizeof(*move), GFP_KERNEL);

	if (!move)
		return NULL;
	move->mm = mm;
	address &= PAGE_MASK;
	mmap_read_lock(mm);
	move->args.vma = vma_lookup(mm, address);
	move->args.start = address;
	move->args.end = address + PAGE_SIZE;
	move->args.src = &move->src;
	move->args.dst = &move->dst;
	move->args.pgmap_owner = memory;
	move->args.flags = to_device ? MIGRATE_VMA_SELECT_SYSTEM : SELECT_DEVICE;
	if (!move->args.vma || migrate_vma_setup(&move->args))
		goto none;
	if (move->src & MIGRATE_PFN_MIGRATE)
		return move;
	migrate_vma_finalize(&move->args);
none:
	mmap_read_unlock(mm);
	kfree(move);
	return NULL;
}

/* Gives a collected page its new place, with its contents. */
int example_copy(struct example_memory *memory, struct example_move *move, bool to_device)
{
	struct page *from = migrate_pfn_to_page(move->src);
	struct page *to;

	if (to_device) {
		to = take(memory);
	} else {
		to = alloc_page(GFP_HIGHUSER_MOVABLE);
		if (to)
			lock_page(to);
	}
	if (!to)
		return -ENOMEM;
	/* No page there stands for one of zeroes. */
	if (from)
		copy_highpage(to, from);
	else
		clear_highpage(to);
	move->dst = migrate_pfn(page_to_pfn(to));
	return 0;
}

/* Maps the page again, at its new place if it has one; whether it does. */
bool example_finish(struct example_move *move)
{
	bool moved;

	migrate_vma_pages(&move->args);
	moved = move->dst && (move->src & MIGRATE_PFN_MIGRATE);
	migrate_vma_finalize(&move->args);
	mmap_read_unlock(move->mm);
	kfree(move);
	return moved;
}

/* Brings pages home by their frames, whoever has them; a page in use stays for now. */
static void bring_home(unsigned long pfn, unsigned long pages)
{
	unsigned long src[HOME_PAGES], dst[HOME_PAGES] = {};
	unsigned long i;

	migrate_device_range(src, pfn, pages);
	for (i = 0; i < pages; i++) {
		struct page *to;

		if (!(src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		to = alloc_page(GFP_HIGHUSER_MOVABLE);
		if (!to)
			continue;
		lock_page(to);
		copy_highpage(to, migrate_pfn_to_page(src[i]));
		dst[i] = migrate_pfn(page_to_pfn(to));
	}
	migrate_device_pages(src, dst, pages);
	migrate_device_finalize(src, dst, pages);
}

/* Takes the memory out of the kernel, when every page is home. Waits for pages in use. */
void example_unplug(struct example_memory *memory)
{
	unsigned long i;

	while (READ_ONCE(memory->in_use)) {
		for (i = 0; i < memory->pages; i += HOME_PAGES)
			bring_home(memory->first_pfn + i,
				   min(memory->pages - i, (unsigned long)HOME_PAGES));
		if (READ_ONCE(memory->in_use))
			msleep(20);
	}
	memunmap_pages(&memory->pgmap);
	bitmap_free(memory->used);
	kfree(memory);
}
