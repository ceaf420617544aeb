// SPDX-License-Identifier: GPL-2.0-only
/* Device memory as memory of the kernel. */

#include <linux/delay.h>
#include <linux/ioport.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/nodemask.h>
#include <linux/rcupdate.h>
#include <linux/topology.h>

#include "helpers.h"

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

unsigned long cdm_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

u32 cdm_folio_order(struct folio *folio)
{
	return folio_order(folio);
}

struct dev_pagemap *cdm_folio_pgmap(struct folio *folio)
{
	return folio->pgmap;
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

u64 cdm_struct_page_bytes(void)
{
	return sizeof(struct page);
}

bool cdm_node_usable(int node)
{
	return node >= 0 && node < MAX_NUMNODES && node_online(node);
}

int cdm_node_default(void)
{
	return numa_mem_id();
}
