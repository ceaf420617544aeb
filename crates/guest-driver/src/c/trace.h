/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Trace events of the coherent device memory driver, under events/cdm/ in tracefs.
 * Names and fields are described in docs/reference/driver.md.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM cdm

#if !defined(_CDM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _CDM_TRACE_H

#include <linux/tracepoint.h>

#include "helpers.h"

TRACE_EVENT(cdm_probe,
	TP_PROTO(u32 device, u32 memory_type, u64 base, u64 bytes, u64 metadata, int node),
	TP_ARGS(device, memory_type, base, bytes, metadata, node),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, memory_type)
		__field(u64, base)
		__field(u64, bytes)
		__field(u64, metadata)
		__field(int, node)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->memory_type = memory_type;
		__entry->base = base;
		__entry->bytes = bytes;
		__entry->metadata = metadata;
		__entry->node = node;
	),
	TP_printk("device=%u memory_type=%s base=0x%llx bytes=%llu metadata=%llu node=%d",
		  __entry->device,
		  __print_symbolic(__entry->memory_type,
				   { CDM_MEMORY_PRIVATE, "private" },
				   { CDM_MEMORY_COHERENT, "coherent" },
				   { CDM_MEMORY_PUBLIC, "public" }),
		  __entry->base, __entry->bytes, __entry->metadata, __entry->node)
);

TRACE_EVENT(cdm_migrate_batch,
	TP_PROTO(u32 device, u32 direction, u64 address, u64 pages, u64 moved, u64 there,
		 u64 failed, u32 tries),
	TP_ARGS(device, direction, address, pages, moved, there, failed, tries),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, direction)
		__field(u64, address)
		__field(u64, pages)
		__field(u64, moved)
		__field(u64, there)
		__field(u64, failed)
		__field(u32, tries)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->direction = direction;
		__entry->address = address;
		__entry->pages = pages;
		__entry->moved = moved;
		__entry->there = there;
		__entry->failed = failed;
		__entry->tries = tries;
	),
	TP_printk("device=%u to=%s address=0x%llx pages=%llu moved=%llu there=%llu failed=%llu tries=%u",
		  __entry->device,
		  __print_symbolic(__entry->direction,
				   { CDM_TO_DEVICE, "device" },
				   { CDM_TO_SYSTEM, "system" }),
		  __entry->address, __entry->pages, __entry->moved, __entry->there,
		  __entry->failed, __entry->tries)
);

TRACE_EVENT(cdm_fault,
	TP_PROTO(u32 device, u64 address, u64 pages),
	TP_ARGS(device, address, pages),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u64, address)
		__field(u64, pages)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->address = address;
		__entry->pages = pages;
	),
	TP_printk("device=%u address=0x%llx pages=%llu",
		  __entry->device, __entry->address, __entry->pages)
);

TRACE_EVENT(cdm_evacuate,
	TP_PROTO(u32 device, u64 in_use, u64 moved),
	TP_ARGS(device, in_use, moved),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u64, in_use)
		__field(u64, moved)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->in_use = in_use;
		__entry->moved = moved;
	),
	TP_printk("device=%u in_use=%llu moved=%llu",
		  __entry->device, __entry->in_use, __entry->moved)
);

TRACE_EVENT(cdm_evict,
	TP_PROTO(u32 device, u32 why, u64 asked, u64 moved, u64 failed),
	TP_ARGS(device, why, asked, moved, failed),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, why)
		__field(u64, asked)
		__field(u64, moved)
		__field(u64, failed)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->why = why;
		__entry->asked = asked;
		__entry->moved = moved;
		__entry->failed = failed;
	),
	TP_printk("device=%u why=%s asked=%llu moved=%llu failed=%llu",
		  __entry->device,
		  __print_symbolic(__entry->why,
				   { CDM_EVICT_ON_REQUEST, "request" },
				   { CDM_EVICT_FOR_ROOM, "room" },
				   { CDM_EVICT_UNDER_PRESSURE, "pressure" },
				   { CDM_EVICT_FOR_CPUS, "cpus" }),
		  __entry->asked, __entry->moved, __entry->failed)
);

TRACE_EVENT(cdm_page_request,
	TP_PROTO(u32 device, u32 pasid, u32 id, u64 address, u64 pages, bool write, bool atomic,
		 u64 entries, u32 status),
	TP_ARGS(device, pasid, id, address, pages, write, atomic, entries, status),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, pasid)
		__field(u32, id)
		__field(u64, address)
		__field(u64, pages)
		__field(bool, write)
		__field(bool, atomic)
		__field(u64, entries)
		__field(u32, status)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->pasid = pasid;
		__entry->id = id;
		__entry->address = address;
		__entry->pages = pages;
		__entry->write = write;
		__entry->atomic = atomic;
		__entry->entries = entries;
		__entry->status = status;
	),
	TP_printk("device=%u pasid=%u id=%u address=0x%llx pages=%llu write=%d atomic=%d entries=%llu status=%u",
		  __entry->device, __entry->pasid, __entry->id, __entry->address,
		  __entry->pages, __entry->write, __entry->atomic, __entry->entries,
		  __entry->status)
);

TRACE_EVENT(cdm_hot,
	TP_PROTO(u32 device, u32 pasid, u64 address, u64 accesses, u64 moved, u64 over_rate,
		 u64 failed),
	TP_ARGS(device, pasid, address, accesses, moved, over_rate, failed),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, pasid)
		__field(u64, address)
		__field(u64, accesses)
		__field(u64, moved)
		__field(u64, over_rate)
		__field(u64, failed)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->pasid = pasid;
		__entry->address = address;
		__entry->accesses = accesses;
		__entry->moved = moved;
		__entry->over_rate = over_rate;
		__entry->failed = failed;
	),
	TP_printk("device=%u pasid=%u address=0x%llx accesses=%llu moved=%llu over_rate=%llu failed=%llu",
		  __entry->device, __entry->pasid, __entry->address, __entry->accesses,
		  __entry->moved, __entry->over_rate, __entry->failed)
);

TRACE_EVENT(cdm_invalidate,
	TP_PROTO(u32 device, u32 pasid, u64 start, u64 end, bool done),
	TP_ARGS(device, pasid, start, end, done),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, pasid)
		__field(u64, start)
		__field(u64, end)
		__field(bool, done)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->pasid = pasid;
		__entry->start = start;
		__entry->end = end;
		__entry->done = done;
	),
	TP_printk("device=%u pasid=%u start=0x%llx end=0x%llx done=%d",
		  __entry->device, __entry->pasid, __entry->start, __entry->end,
		  __entry->done)
);

TRACE_EVENT(cdm_command_submit,
	TP_PROTO(u32 device, u32 queue, u64 token, u32 opcode, u32 ranges, u64 bytes),
	TP_ARGS(device, queue, token, opcode, ranges, bytes),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, queue)
		__field(u64, token)
		__field(u32, opcode)
		__field(u32, ranges)
		__field(u64, bytes)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->queue = queue;
		__entry->token = token;
		__entry->opcode = opcode;
		__entry->ranges = ranges;
		__entry->bytes = bytes;
	),
	TP_printk("device=%u queue=%u token=%llu opcode=%u ranges=%u bytes=%llu",
		  __entry->device, __entry->queue, __entry->token, __entry->opcode,
		  __entry->ranges, __entry->bytes)
);

TRACE_EVENT(cdm_command_done,
	TP_PROTO(u32 device, u32 queue, u64 token, u32 status, u64 result, u64 bytes),
	TP_ARGS(device, queue, token, status, result, bytes),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, queue)
		__field(u64, token)
		__field(u32, status)
		__field(u64, result)
		__field(u64, bytes)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->queue = queue;
		__entry->token = token;
		__entry->status = status;
		__entry->result = result;
		__entry->bytes = bytes;
	),
	TP_printk("device=%u queue=%u token=%llu status=%u result=0x%llx bytes=%llu",
		  __entry->device, __entry->queue, __entry->token, __entry->status,
		  __entry->result, __entry->bytes)
);

#endif /* _CDM_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
