/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note OR Apache-2.0 OR MIT */
/*
 * Interface of the coherent device memory driver (/dev/cdm0, /dev/cdm1, ...).
 *
 * Every structure has the same layout for 32-bit and 64-bit programs. Fields
 * are marked [in], [out] or [in, out]. A reserved field must be zero, an unknown
 * flag or a non-zero reserved field is EINVAL, an unknown ioctl ENOTTY. An ioctl
 * that fails leaves its structure and the caller's memory as they were.
 *
 * Where "a signal" ends a call early, so does work that the kernel has for the calling
 * task and delivers like a signal, for instance deferred work of its io_uring, or a live
 * patch. A program that gets no signals calls again all the same.
 *
 * Numbers of opcodes and statuses are those of the device specification
 * (docs/reference/device.md).
 */
#ifndef _UAPI_CDM_H
#define _UAPI_CDM_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Version of this interface; grows with every addition. */
#define CDM_UAPI_VERSION	5

#define CDM_IOC_MAGIC		0xCD

/* Type of the struct pages that stand for the device memory. */
enum cdm_memory_type {
	CDM_MEMORY_PRIVATE	= 1,
	CDM_MEMORY_COHERENT	= 2,
	CDM_MEMORY_PUBLIC	= 3,
};

/**
 * struct cdm_query - what the device is and how much of it is in use
 * @uapi_version: [out] CDM_UAPI_VERSION of the driver
 * @memory_type: [out] enum cdm_memory_type
 * @base: [out] guest-physical address of the first byte of device memory
 * @bytes_total: [out] bytes that pages can migrate to
 * @bytes_free: [out] of these, bytes that hold no page
 * @bytes_metadata: [out] bytes of device memory spent on struct pages; they
 *	lie below the usable ones, at @base
 * @pages_to_device: [out] pages migrated to the device since probe
 * @pages_to_system: [out] pages migrated from the device since probe
 * @device_features: [out] feature bits of the device
 * @numa_node: [out] node of the memory, -1 if it has none
 * @device: [out] number of the device, N of /dev/cdmN
 * @protocol_major: [out] version of the wire protocol
 * @protocol_minor: [out]
 * @num_command_queues: [out] command queues in use
 * @link_width_lanes: [out] lanes of the coherent link
 * @link_speed_mts: [out] megatransfers per second of each lane
 * @num_home_agents: [out] coherence agents of the device by kind
 * @num_request_agents: [out]
 * @num_slave_agents: [out]
 * @num_pools: [out] memory pools of the device
 * @capabilities: [out] what driver and kernel can do, CDM_CAN_*
 * @pages_evicted: [out] pages brought back to system memory that nobody asked for by
 *	address: by CDM_IOC_EVICT, to make room, or because memory was short. They count
 *	in @pages_to_system as well.
 * @pages_poisoned: [out] pages with a memory error; they are never used again, and count
 *	in @bytes_total but not in @bytes_free
 */
struct cdm_query {
	__u32 uapi_version;
	__u32 memory_type;
	__u64 base;
	__u64 bytes_total;
	__u64 bytes_free;
	__u64 bytes_metadata;
	__u64 pages_to_device;
	__u64 pages_to_system;
	__u64 device_features;
	__s32 numa_node;
	__u32 device;
	__u16 protocol_major;
	__u16 protocol_minor;
	__u16 num_command_queues;
	__u16 link_width_lanes;
	__u32 link_speed_mts;
	__u16 num_home_agents;
	__u16 num_request_agents;
	__u16 num_slave_agents;
	__u16 num_pools;
	__u32 capabilities;
	__u64 pages_evicted;
	__u64 pages_poisoned;
};

/* Folios of 2 MiB move whole. Without it they are split, or the module parameter says so. */
#define CDM_CAN_MOVE_LARGE	(1u << 0)
/* Page cache and shared memory move to the device. Without it anonymous memory does. */
#define CDM_CAN_MOVE_FILES	(1u << 1)
/* The kernel asks the driver to bring pages back when a memory cgroup is at its limit. */
#define CDM_CAN_RELIEVE		(1u << 2)
/* The CPU loads and stores device memory in place. */
#define CDM_CAN_CPU_ACCESS	(1u << 3)
/* The device works on addresses of a process: CDM_IOC_BIND. */
#define CDM_CAN_BIND		(1u << 4)
/* The driver takes many commands in one call: CDM_IOC_BATCH. */
#define CDM_CAN_BATCH		(1u << 5)

/* Pages that the device uses much move to it by themselves, on request: CDM_IOC_HOT. */
#define CDM_CAN_MOVE_HOT	(1u << 6)
/*
 * Pages that the CPUs use much come back by themselves where the administrator asks for that
 * (cpu_scan_ms in sysfs).
 */
#define CDM_CAN_RETURN_HOT	(1u << 7)

/* Where a migration goes. */
enum cdm_direction {
	CDM_TO_DEVICE	= 1,
	CDM_TO_SYSTEM	= 2,
};

/*
 * Why a page did not move; index of cdm_migrate.failed. Each page counts once, with
 * the last reason found for it. Some of them pass by themselves: BUSY, WRITEBACK and
 * PINNED (when the pin is dropped).
 */
enum cdm_reason {
	/* Nothing is mapped there, or the page was never touched, or it is swapped out. */
	CDM_REASON_NOT_PRESENT	= 0,
	/* No free page where it should go. */
	CDM_REASON_NO_MEMORY	= 1,
	/* Locked, or referenced by somebody for a moment, or being moved already. */
	CDM_REASON_BUSY		= 2,
	/* Pinned for DMA. */
	CDM_REASON_PINNED	= 3,
	/* Being written to its file or to swap. */
	CDM_REASON_WRITEBACK	= 4,
	/* Page cache with private data of its file system. */
	CDM_REASON_PRIVATE_DATA	= 5,
	/* Page cache of a mapping that cannot move: file system unknown, or inaccessible. */
	CDM_REASON_MAPPING	= 6,
	/* Part of a larger folio that had to be split and could not be. */
	CDM_REASON_SPLIT	= 7,
	/* Any other kind: hugetlb, DAX, device registers, page cache where only anonymous
	 * memory can move, a page that KSM has merged, a memory error, another device's page
	 * that shall go to the system.
	 */
	CDM_REASON_UNSUPPORTED	= 8,
	CDM_REASON_COUNT	= 9,
};

/*
 * Fault in what is not present first, as a read would do, and what is swapped out. A page
 * that cannot be faulted in (no mapping, no read access, behind the end of a file) stays
 * NOT_PRESENT.
 */
#define CDM_MIGRATE_POPULATE	(1u << 0)
/*
 * If the device is full, bring the least recently migrated pages back to system memory, so
 * that these find room; without it what finds no room stays. With CDM_TO_DEVICE only.
 * Pages that this call moved are not brought back.
 */
#define CDM_MIGRATE_MAKE_ROOM	(1u << 1)
/* Move 2 MiB folios as 4 KiB pages, also where they could move whole. */
#define CDM_MIGRATE_SMALL	(1u << 2)

/**
 * struct cdm_migrate - move the pages of an address range
 * @address: [in] first byte, a multiple of the page size
 * @length: [in] bytes, a multiple of the page size, not zero
 * @pid: [in] process whose memory it is, 0 for the caller. Another process must
 *	run as the caller's user and be dumpable, or the caller have CAP_SYS_PTRACE.
 * @direction: [in] enum cdm_direction
 * @flags: [in] CDM_MIGRATE_*
 * @reserved: [in] zero
 * @pages_asked: [out] pages of the range that the call got to: all of them unless
 *	a signal, or kernel work for the task, ended it early
 * @pages_moved: [out] pages that this call moved
 * @pages_there: [out] pages that were where they should be before the call
 * @failed: [out] pages that did not move, by enum cdm_reason;
 *	@pages_asked = @pages_moved + @pages_there + sum of @failed
 * @pages_large: [out] of @pages_moved, pages that moved as 2 MiB folios; 512 for each
 * @pages_evicted: [out] pages that left the device to make room
 * @reserved_out: [out] zero
 *
 * CDM_TO_DEVICE takes pages from system memory and from other devices,
 * CDM_TO_SYSTEM from this device. A page that cannot move is no error: the call
 * returns 0 and counts it. After a signal, or kernel work for the task, the call returns
 * what it did so far, or EINTR if that is nothing; call again for the rest.
 *
 * A page of a file moves for everybody who maps or reads the file.
 *
 * Errors: EINVAL unaligned, empty or wrapping range, unknown direction, flag or
 * reserved value, a flag that does not go with the direction; ESRCH no such process;
 * EPERM not allowed to move its pages; ENODEV the device is going away; ENOMEM no memory
 * for the call itself; EFAULT the structure itself is not readable and writable.
 */
struct cdm_migrate {
	__u64 address;
	__u64 length;
	__s32 pid;
	__u32 direction;
	__u32 flags;
	__u32 reserved;
	__u64 pages_asked;
	__u64 pages_moved;
	__u64 pages_there;
	__u64 failed[CDM_REASON_COUNT];
	__u64 pages_large;
	__u64 pages_evicted;
	__u64 reserved_out[2];
};

/* The least recently migrated pages first, wherever they are. */
#define CDM_EVICT_OLDEST	(1u << 0)

/**
 * struct cdm_evict - bring pages of the device back to system memory, whoever they belong to
 * @address: [in] guest-physical address of the first byte of device memory, a multiple of
 *	the page size; zero together with @length for all of the device
 * @length: [in] bytes, a multiple of the page size
 * @pages_max: [in] stop when so many pages left the device; zero for no limit. As a folio
 *	leaves whole, up to 511 more may.
 * @flags: [in] CDM_EVICT_*
 * @reserved: [in] zero
 * @pages_asked: [out] pages in use that the call got to
 * @pages_moved: [out] pages that it brought back to system memory
 * @failed: [out] pages that did not move, by enum cdm_reason;
 *	@pages_asked = @pages_moved + sum of @failed
 * @pages_large: [out] of @pages_moved, pages that moved as 2 MiB folios
 * @reserved_out: [out] zero
 *
 * Pages are found by their frame, so page cache that no process maps leaves, too. Page
 * tables are not asked. Without CDM_EVICT_OLDEST the lowest frames come first. A folio
 * of which the range holds a part leaves whole. Pages that are freed meanwhile are not
 * counted. After a signal, or kernel work for the task, the call returns what it did so
 * far, or EINTR if that is nothing; call again for the rest.
 *
 * Errors: EINVAL unaligned or wrapping range, unknown flag or reserved value, a range
 * that is not all usable device memory, a range with CDM_EVICT_OLDEST; EPERM without
 * CAP_SYS_ADMIN; ENODEV; ENOMEM; EFAULT.
 */
struct cdm_evict {
	__u64 address;
	__u64 length;
	__u64 pages_max;
	__u32 flags;
	__u32 reserved;
	__u64 pages_asked;
	__u64 pages_moved;
	__u64 failed[CDM_REASON_COUNT];
	__u64 pages_large;
	__u64 reserved_out[2];
};

/*
 * Where a page is; values of the map that struct cdm_residency points to. A page in
 * memory that the CPU cannot map (CDM_MEMORY_PRIVATE) counts by its device as any other.
 */
enum cdm_place {
	CDM_PLACE_ABSENT	= 0,
	CDM_PLACE_SYSTEM	= 1,
	CDM_PLACE_THIS_DEVICE	= 2,
	CDM_PLACE_OTHER_DEVICE	= 3,
};

/**
 * struct cdm_residency - where the pages of an address range are
 * @address: [in] first byte, a multiple of the page size
 * @length: [in] bytes, a multiple of the page size, not zero
 * @map: [in] 0, or the address of one byte for each page, which receives its enum cdm_place
 * @pid: [in] as in struct cdm_migrate
 * @flags: [in] zero
 * @pages: [out] pages of the range by enum cdm_place
 * @pages_large: [out] of the pages in this device, those of 2 MiB folios
 * @reserved_out: [out] zero
 *
 * Errors: as struct cdm_migrate; EFAULT also for @map.
 */
struct cdm_residency {
	__u64 address;
	__u64 length;
	__u64 map;
	__s32 pid;
	__u32 flags;
	__u64 pages[4];
	__u64 pages_large;
	__u64 reserved_out;
};

/**
 * struct cdm_bind - let the device use the caller's address space
 * @flags: [in] zero
 * @reserved: [in] zero
 * @pasid: [out] number of the address space on the device, as traces show it; not zero
 * @reserved_out: [out] zero
 *
 * Commands with CDM_COMMAND_SVA then name memory by the caller's own addresses. Nothing is
 * pinned: what a command touches is faulted in as if the process had touched it, and pages
 * move, are unmapped and swapped out as ever. Before a page that the device knows is taken
 * away, the device stops using it, so what a process unmaps no command reaches any more.
 *
 * An open file has one binding at a time. It is of the address space that made this call,
 * also when a child inherits the file: for every other process, and for this one after an
 * execve(), its commands are EPERM, as is CDM_IOC_UNBIND. Such a process opens a file of its
 * own. The binding ends with CDM_IOC_UNBIND or when the file is closed; commands that are
 * under way then end with the status UNBOUND. When the process ends before, the device has
 * nothing of its memory any more.
 *
 * Errors: EINVAL unknown flag or reserved value; EBUSY the file has a binding; EOPNOTSUPP
 * the device cannot do it (CDM_CAN_BIND); ENOSPC too many address spaces are bound; EIO the
 * device refused, or was reset instead of answering; ENODEV; ENOMEM; EFAULT.
 */
struct cdm_bind {
	__u32 flags;
	__u32 reserved;
	__u32 pasid;
	__u32 reserved_out;
};

/* SUM and AXPY: elements are IEEE 754 binary32 numbers. */
#define CDM_COMMAND_FLOAT	(1u << 0)
/* Operands are addresses of the process that is bound, and are not pinned. */
#define CDM_COMMAND_SVA		(1u << 1)

/**
 * struct cdm_command - let the device work on the caller's memory
 * @opcode: [in] operation, by its number in the device specification
 * @flags: [in] CDM_COMMAND_FLOAT, CDM_COMMAND_SVA
 * @source: [in] address of the first source byte; zero if the operation has none
 * @destination: [in] address of the first destination byte; zero if it has none
 * @length: [in] bytes of each operand; zero for NOP. HISTOGRAM: of the source, and
 *	the destination is @repeat counters of eight bytes. PROGRAM: of the destination,
 *	and the source is @repeat instructions of 16 bytes.
 * @width: [in] bytes of an element where the operation has elements, else zero
 * @repeat: [in] how often or how many where the operation has a count, else zero
 * @arg0: [in] first argument of the operation
 * @arg1: [in] second argument of the operation
 * @status: [out] status of the device specification; 0 is OK. The ioctl
 *	returns 0 whenever the device answered.
 * @reserved: [in] zero
 * @result: [out] result of the operation
 * @bytes_done: [out] bytes that the device processed
 *
 * Pages may be in system memory or in this device; they stay where they are
 * until the device has answered. A signal, or kernel work for the task, ends the wait
 * with EINTR; the command itself goes on and may still write to the destination.
 *
 * With CDM_COMMAND_SVA nothing is pinned, see struct cdm_bind, and @status says what became
 * of a page that the device could not get: UNMAPPED, NO_ACCESS, PAGE_ERROR, PAGE_QUEUE_FULL,
 * UNBOUND; or, of one in device memory that has failed, POISONED. What the command did before
 * that stays done, and @bytes_done says how far it came. A signal ends the wait and the command,
 * also while it waits for a page. Operands of such commands may change while the device works
 * on them; what it then finds is what was mapped at that moment.
 *
 * A device whose link carries no atomics (FEATURE_EXCLUSIVE_ATOMICS of @device_features)
 * reaches memory of the system with FETCH_ADD, COMPARE_SWAP, HISTOGRAM and the atomic
 * instructions of a PROGRAM by CDM_COMMAND_SVA only: without, @status is BAD_SPACE. With it,
 * the page has to be anonymous memory, else @status is PAGE_ERROR. Memory of the device is
 * as good as ever.
 *
 * Errors: EINVAL zero or wrapping range, unknown flag or reserved value; EFAULT
 * an operand is not mapped, or not writable; EINTR; ENODEV the device is going
 * away, or does not answer any more; ENOMEM; EIO the device was reset before it
 * answered, on request or because it gave no answer for too long; with CDM_COMMAND_SVA
 * also EIO the machine was paused meanwhile, ENXIO nothing is bound, and EPERM it is
 * another process's.
 */
struct cdm_command {
	__u32 opcode;
	__u32 flags;
	__u64 source;
	__u64 destination;
	__u64 length;
	__u32 width;
	__u32 repeat;
	__u64 arg0;
	__u64 arg1;
	__u32 status;
	__u32 reserved;
	__u64 result;
	__u64 bytes_done;
};

/*
 * The device need not wait for other commands of the batch that have this flag. A command
 * without it begins when all before it in the batch have ended, and ends before any behind it
 * begins. In a batch only.
 */
#define CDM_COMMAND_UNORDERED	(1u << 2)

/**
 * struct cdm_range - a piece of an operand
 * @address: [in] first byte
 * @bytes: [in] length, not zero
 */
struct cdm_range {
	__u64 address;
	__u64 bytes;
};

/*
 * Values of cdm_batch_command.status of a command that the device did not answer; above all
 * statuses of the device.
 */
/* The device was not given the command. Nothing of it is done, and nothing will be. */
#define CDM_STATUS_NOT_BEGUN	0x10000
/*
 * The device was given the command, and the call did not wait for the answer. The device may
 * still be at it, and come to write to its destination.
 */
#define CDM_STATUS_NO_ANSWER	0x10001

/**
 * struct cdm_batch_command - a command of a batch
 * @opcode: [in] operation, by its number in the device specification
 * @flags: [in] CDM_COMMAND_FLOAT, CDM_COMMAND_UNORDERED
 * @source: [in] address of @num_source struct cdm_range, which are the source one after
 *	another; zero if there are none
 * @destination: [in] the same for the destination
 * @num_source: [in] ranges of the source
 * @num_destination: [in] ranges of the destination
 * @width: [in] bytes of an element where the operation has elements, else zero
 * @repeat: [in] how often or how many where the operation has a count, else zero
 * @arg0: [in] first argument of the operation
 * @arg1: [in] second argument of the operation
 * @status: [out] status of the device specification, 0 is OK; or CDM_STATUS_*
 * @range_index: [out] range that a bad status speaks of, sources first, or instruction; zero if
 *	it speaks of none
 * @result: [out] result of the operation
 * @bytes_done: [out] bytes that the device processed
 * @reserved: [in] zero
 */
struct cdm_batch_command {
	__u32 opcode;
	__u32 flags;
	__u64 source;
	__u64 destination;
	__u32 num_source;
	__u32 num_destination;
	__u32 width;
	__u32 repeat;
	__u64 arg0;
	__u64 arg1;
	__u32 status;
	__u32 range_index;
	__u64 result;
	__u64 bytes_done;
	__u64 reserved;
};

/* Most commands of a batch. */
#define CDM_BATCH_COMMANDS_MAX	1024
/* Most ranges of one of its commands, source and destination together. */
#define CDM_COMMAND_RANGES_MAX	512
/* Most ranges of all its commands together. */
#define CDM_BATCH_RANGES_MAX	8192
/* Most bytes of all operands of a batch together, unless CDM_BATCH_SVA (2 GiB). */
#define CDM_BATCH_BYTES_MAX	0x80000000

/* All operands are addresses of the process that is bound, and are not pinned. */
#define CDM_BATCH_SVA		(1u << 0)
/*
 * When a command ends with another status than OK, none behind it begins any more that has to
 * wait for it: none at all if it is without CDM_COMMAND_UNORDERED, else none from the next one
 * on that is without it. Unordered ones beside it may have begun; these go on to their end.
 */
#define CDM_BATCH_STOP		(1u << 1)

/**
 * struct cdm_batch - let the device carry out many commands
 * @commands: [in] address of @num_commands struct cdm_batch_command
 * @num_commands: [in] 1 to CDM_BATCH_COMMANDS_MAX
 * @flags: [in] CDM_BATCH_*
 * @num_ok: [out] commands whose status is OK
 * @error: [out] 0; or, if the batch was ended early by something else than CDM_BATCH_STOP, the
 *	errno that says by what
 * @reserved: [in] zero
 *
 * All commands go to one queue of the device, in their order, and it is told of as many at once
 * as the queue has room for. Each has its own answer, in its own structure, as with
 * CDM_IOC_COMMAND. A command that fails does not keep later ones from being carried out, but
 * with CDM_BATCH_STOP. FENCE is a command that does nothing but wait for all before it, and
 * keep all behind it waiting. Between batches, and commands, of different calls there is no
 * order but that a call which begins after another one has returned finds all of that done.
 *
 * Everything is copied in, and every operand pinned, before the first command is given to the
 * device; operands stay pinned until the device has answered the command, as with
 * CDM_IOC_COMMAND. With CDM_BATCH_SVA nothing is pinned, see struct cdm_bind and
 * CDM_COMMAND_SVA. In memory that the CPU cannot reach nothing is pinned either; a batch is
 * carried out command by command there.
 *
 * The call returns 0 when something was given to the device, whatever became of it. A signal,
 * or kernel work for the task, ends the batch: @error is EINTR, what the device has it is asked
 * to cancel, and @status tells of each command what became of it: it has ended by itself, was
 * cancelled (CANCELLED, and @bytes_done), has not begun (CDM_STATUS_NOT_BEGUN), or does not end
 * within a second (CDM_STATUS_NO_ANSWER). The same goes for what else ends a batch: EIO the
 * device was reset, on request or because it gave no answer for too long, or gave one that
 * is none, or, with CDM_BATCH_SVA, the machine was paused; ENODEV the device is going away, or
 * does not answer any more; ENOMEM; and, in memory that the CPU cannot reach, EFAULT an operand
 * is not mapped, or not writable. To go on, send those again that have not begun.
 *
 * Errors, with nothing given to the device: EINVAL no commands, unknown flag or reserved value,
 * zero or wrapping range, a list of ranges without address or an address without ranges; E2BIG
 * more commands, ranges or bytes than CDM_*_MAX; EFAULT a structure is not readable and
 * writable, a list of ranges not readable, or an operand is not mapped, or not writable;
 * EOPNOTSUPP the memory is one that the CPU cannot reach, and HISTOGRAM, POINTER_CHASE and
 * PROGRAM do not work there; EINTR; ENODEV; ENOMEM; EIO; with CDM_BATCH_SVA also ENXIO nothing
 * is bound, and EPERM it is another process's. EFAULT also if structures cannot be written to
 * any more when all is done.
 */
struct cdm_batch {
	__u64 commands;
	__u32 num_commands;
	__u32 flags;
	__u32 num_ok;
	__u32 error;
	__u64 reserved;
};

/*
 * If the device is full, bring the least recently migrated pages back to system memory, so
 * that hot ones find room; without it what finds no room stays.
 */
#define CDM_HOT_MAKE_ROOM	(1u << 0)

/**
 * struct cdm_hot - move what the device uses much to it
 * @threshold: [in] accesses of the device to 64 KiB of memory, aligned, that make those hot;
 *	zero for no more moves, and then all else is zero
 * @flags: [in] CDM_HOT_*
 * @pages_per_second: [in] most pages that move in a second, in the long run
 * @pages_burst: [in] pages that may move at once, not zero: what was not used of
 *	@pages_per_second is saved up to that many. With a rate of zero it is all that moves.
 * @reserved: [in] zero
 *
 * The caller's address space must be bound through the file. From then on, as long as it is
 * bound, the device counts how often commands with CDM_COMMAND_SVA use memory of the process
 * that is not in the device (one access is 64 bytes in a row, or a word; see COUNT_ACCESSES in
 * the device specification), and the driver moves the pages of granules that pass the
 * threshold, as CDM_IOC_MIGRATE would without flags. Nobody waits for that. Pages that are over
 * the rate, or find no room, stay, until the device has used them as much again.
 *
 * A second call replaces what the first one asked for, and begins with a full burst. After one
 * with a threshold of zero nothing new begins to move; a granule may be under way. Child
 * processes and memory that is not used by commands on addresses are not concerned.
 *
 * Errors: EINVAL unknown flag or reserved value, @pages_burst zero, a field that is not zero
 * without a threshold; EOPNOTSUPP the device does not count (CDM_CAN_MOVE_HOT); ENXIO nothing
 * is bound; EPERM another process's binding; EIO the device refused, or was reset instead of
 * answering: nothing moves then; ENODEV; ENOMEM; EFAULT.
 */
struct cdm_hot {
	__u32 threshold;
	__u32 flags;
	__u32 pages_per_second;
	__u32 pages_burst;
	__u64 reserved;
};

/**
 * struct cdm_hot_counters - what became of what the device uses much, since the bind
 * @threshold: [out] as asked for last; zero if nothing is
 * @flags: [out]
 * @pages_per_second: [out]
 * @pages_burst: [out]
 * @reports: [out] times that the driver looked at 64 KiB which the device reported
 * @accesses: [out] accesses that these reports told of
 * @pages_moved: [out] pages that moved for it
 * @pages_there: [out] pages that were in the device already
 * @failed: [out] pages that did not move, by enum cdm_reason
 * @pages_over_rate: [out] pages that did not move because of the rate
 * @pages_recent: [out] pages that did not move because the CPUs had just had them back
 * @pages_evicted: [out] pages that left the device to make room
 * @reports_lost: [out] reports of the device, about whatever process, that were lost since probe
 * @reserved_out: [out] zero
 *
 * Errors: ENXIO nothing is bound; EPERM another process's binding; ENODEV; EFAULT.
 */
struct cdm_hot_counters {
	__u32 threshold;
	__u32 flags;
	__u32 pages_per_second;
	__u32 pages_burst;
	__u64 reports;
	__u64 accesses;
	__u64 pages_moved;
	__u64 pages_there;
	__u64 failed[CDM_REASON_COUNT];
	__u64 pages_over_rate;
	__u64 pages_recent;
	__u64 pages_evicted;
	__u64 reports_lost;
	__u64 reserved_out[2];
};

#define CDM_IOC_QUERY		_IOWR(CDM_IOC_MAGIC, 0x00, struct cdm_query)
#define CDM_IOC_MIGRATE		_IOWR(CDM_IOC_MAGIC, 0x01, struct cdm_migrate)
#define CDM_IOC_RESIDENCY	_IOWR(CDM_IOC_MAGIC, 0x02, struct cdm_residency)
#define CDM_IOC_COMMAND		_IOWR(CDM_IOC_MAGIC, 0x03, struct cdm_command)
/*
 * Fails every outstanding command of the device; needs CAP_SYS_ADMIN. Memory stays as it is.
 * Errors: EPERM; EINTR; ENODEV the device is going away, or does not answer.
 */
#define CDM_IOC_RESET		_IO(CDM_IOC_MAGIC, 0x04)
#define CDM_IOC_EVICT		_IOWR(CDM_IOC_MAGIC, 0x05, struct cdm_evict)
#define CDM_IOC_BIND		_IOWR(CDM_IOC_MAGIC, 0x06, struct cdm_bind)
/* Ends the binding of the file. Errors: ENXIO nothing is bound; EPERM another process's. */
#define CDM_IOC_UNBIND		_IO(CDM_IOC_MAGIC, 0x07)
#define CDM_IOC_BATCH		_IOWR(CDM_IOC_MAGIC, 0x08, struct cdm_batch)
#define CDM_IOC_HOT		_IOWR(CDM_IOC_MAGIC, 0x0a, struct cdm_hot)
#define CDM_IOC_HOT_COUNTERS	_IOWR(CDM_IOC_MAGIC, 0x0b, struct cdm_hot_counters)

#endif /* _UAPI_CDM_H */
