// SPDX-License-Identifier: GPL-2.0-only
/* Trace events as functions. */

#include "helpers.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

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

void cdm_trace_page_request(u32 device, u32 pasid, u32 id, u64 address, u64 pages, bool write,
			    bool atomic, u64 entries, u32 status)
{
	trace_cdm_page_request(device, pasid, id, address, pages, write, atomic, entries, status);
}

void cdm_trace_hot(u32 device, u32 pasid, u64 address, u64 accesses, u64 moved, u64 over_rate,
		   u64 failed)
{
	trace_cdm_hot(device, pasid, address, accesses, moved, over_rate, failed);
}

void cdm_trace_invalidate(u32 device, u32 pasid, u64 start, u64 end, bool done)
{
	trace_cdm_invalidate(device, pasid, start, end, done);
}

void cdm_trace_command_submit(u32 device, u32 queue, u64 token, u32 opcode, u32 ranges, u64 bytes)
{
	trace_cdm_command_submit(device, queue, token, opcode, ranges, bytes);
}

void cdm_trace_command_done(u32 device, u32 queue, u64 token, u32 status, u64 result, u64 bytes)
{
	trace_cdm_command_done(device, queue, token, status, result, bytes);
}
