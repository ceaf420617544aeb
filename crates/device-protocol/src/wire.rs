// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Layouts and numbers that cross the line between driver and device.
//!
//! All fields are little-endian and carry that in their type. A structure never
//! changes once it is released: growth is a feature bit and a new opcode.
//! Reserved fields are sent as zero and refused otherwise.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Virtio device ID of the function.
///
/// QEMU's generic vhost-user device only takes an ID that QEMU can name, so the
/// device borrows one (38) that no Linux driver claims. A driver binds by
/// [`Config::magic`], never by this number alone.
pub const VIRTIO_ID: u32 = 38;

/// Virtio shared memory region (`VIRTIO_PCI_CAP_SHARED_MEMORY_CFG`) that holds the device memory.
pub const SHMEM_REGION_ID: u8 = 0;

/// First eight bytes of the config space, in memory order.
pub const MAGIC: [u8; 8] = *b"cdm-dev\0";
/// Protocol major version: differs when an old driver cannot talk to the device.
pub const VERSION_MAJOR: u16 = 1;
/// Protocol minor version: grows with every addition behind a feature bit.
pub const VERSION_MINOR: u16 = 3;

/// The device honours [`ControlOpcode::SET_METADATA`] and refuses every command that touches that range.
pub const FEATURE_METADATA_GUARD: u64 = 1 << 0;
/// The device carries out [`Opcode::FETCH_ADD`] and [`Opcode::COMPARE_SWAP`].
pub const FEATURE_ATOMICS: u64 = 1 << 1;
/// The device carries out [`Opcode::SUM`], [`Opcode::AXPY`], [`Opcode::POINTER_CHASE`] and [`Opcode::HISTOGRAM`].
pub const FEATURE_COMPUTE: u64 = 1 << 2;
/// The device carries out [`Opcode::PROGRAM`].
pub const FEATURE_PROGRAM: u64 = 1 << 3;
/// The device honours [`FLAG_UNORDERED`] and carries out [`Opcode::FENCE`].
pub const FEATURE_UNORDERED: u64 = 1 << 4;
/// The device honours [`FLAG_TAGGED`] and carries out [`ControlOpcode::CANCEL`].
pub const FEATURE_CANCEL: u64 = 1 << 5;
/// The device translates addresses of processes: [`Space::PROCESS`], [`ControlOpcode::BIND`] and what belongs to it.
pub const FEATURE_SVA: u64 = 1 << 6;
/// The device tells of memory of its own that has failed: [`ControlOpcode::FIND_BAD`] and [`MemoryError`].
pub const FEATURE_MEMORY_ERROR: u64 = 1 << 7;
/// The device counts its accesses to memory of processes: [`ControlOpcode::COUNT_ACCESSES`].
pub const FEATURE_ACCESS_COUNTERS: u64 = 1 << 8;
/// The device's link carries no atomics: on guest memory they need pages with [`PageEntry::EXCLUSIVE`].
pub const FEATURE_EXCLUSIVE_ATOMICS: u64 = 1 << 9;
/// All features of this protocol version.
pub const FEATURES_ALL: u64 = FEATURE_METADATA_GUARD
    | FEATURE_ATOMICS
    | FEATURE_COMPUTE
    | FEATURE_PROGRAM
    | FEATURE_UNORDERED
    | FEATURE_CANCEL
    | FEATURE_SVA
    | FEATURE_MEMORY_ERROR
    | FEATURE_ACCESS_COUNTERS
    | FEATURE_EXCLUSIVE_ATOMICS;

/// Smallest device memory, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 256 << 20;
/// Largest device memory, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 64 << 30;

/// Queue index of the control queue.
pub const QUEUE_CONTROL: u16 = 0;
/// Queue index of the event queue.
pub const QUEUE_EVENT: u16 = 1;
/// Queue index of the first command queue; the others follow it.
pub const QUEUE_FIRST_COMMAND: u16 = 2;
/// Most command queues that a device offers.
pub const COMMAND_QUEUES_MAX: u16 = 8;
/// Descriptors in each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Most ranges that source and destination list of one command hold together.
pub const RANGES_MAX: usize = 512;
/// Most bytes that one operand list of a command covers.
pub const TRANSFER_BYTES_MAX: u64 = 1 << 30;
/// Most applications of one [`Opcode::FETCH_ADD`], most hops of one [`Opcode::POINTER_CHASE`].
pub const REPEAT_MAX: u32 = 1 << 20;
/// Most counters of one [`Opcode::HISTOGRAM`].
pub const BINS_MAX: u32 = 1 << 16;
/// Most instructions that one [`Opcode::PROGRAM`] consists of.
pub const PROGRAM_INSTRUCTIONS_MAX: u32 = 256;
/// Most instructions that one [`Opcode::PROGRAM`] carries out.
pub const PROGRAM_STEPS_MAX: u64 = 1 << 36;
/// Registers of a [`Opcode::PROGRAM`], each of 64 bits.
pub const PROGRAM_REGISTERS: u8 = 16;

/// Largest PASID; zero is none (PCI Express Base Specification, PASID TLP prefix: 20 bits).
pub const PASID_MAX: u32 = (1 << 20) - 1;
/// Most address spaces that are bound at a time.
pub const ADDRESS_SPACES_MAX: usize = 4096;
/// Most pages that one [`PageRequest`] asks for, and most entries of one [`ControlOpcode::PAGE_RESPONSE`].
pub const PAGE_REQUEST_PAGES_MAX: u16 = 512;
/// Bytes of a page that a [`PageEntry`] without [`PageEntry::LARGE`] stands for.
pub const PAGE_BYTES_SMALL: u64 = 4 << 10;
/// Bytes of a page that a [`PageEntry`] with [`PageEntry::LARGE`] stands for.
pub const PAGE_BYTES_LARGE: u64 = 2 << 20;

/// Bytes that device memory fails by, and a multiple of which begins what has failed.
pub const ERROR_BYTES: u64 = 4 << 10;
/// Bytes of a granule, which accesses are counted for together.
pub const GRANULE_BYTES: u64 = 64 << 10;
/// Bytes that one access to an operand in order covers at most, aligned to them.
pub const ACCESS_BYTES: u64 = 64;
/// Most granules of one address space that have a count at a time.
pub const GRANULES_PER_SPACE_MAX: usize = 4096;
/// Most granules that have a count at a time, of all address spaces.
pub const GRANULES_MAX: usize = 65_536;
/// Buffers of the event queue that an [`AccessReport`] never takes: they are for page requests.
pub const REPORT_BUFFERS_SPARED: u16 = 32;

/// Memory pools that [`Config`] has room for.
pub const POOLS_MAX: usize = 4;
/// Agents that [`Config`] has room for.
pub const AGENTS_MAX: usize = 8;

/// Asserts where a field of a wire structure lies, at compile time.
macro_rules! assert_layout {
    ($type:ty, $size:literal, $($field:ident @ $offset:literal),+ $(,)?) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)+
    };
}

/// Defines a wire number: a wrapper with named constants that keeps unknown values.
macro_rules! wire_number {
    (
        $(#[$meta:meta])*
        $name:ident {
            $($(#[$value_meta:meta])* $value:ident = $number:literal, $label:literal;)+
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        #[repr(transparent)]
        pub struct $name(pub U16);

        impl $name {
            $($(#[$value_meta])* pub const $value: Self = Self(U16::from_bytes(($number as u16).to_le_bytes()));)+

            /// Every value of this protocol version with its name.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$value, $label)),+];

            /// The number as it is on the wire.
            pub fn get(self) -> u16 {
                self.0.get()
            }

            /// The name that specification, logs and tools use; `None` for an unknown value.
            pub fn name(self) -> Option<&'static str> {
                Self::ALL.iter().find(|(value, _)| *value == self).map(|(_, name)| *name)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#06x})"), self.get()),
                }
            }
        }
    };
}

wire_number! {
    /// What a CCIX agent does on the link (CCIX Base Specification, agent types).
    AgentKind {
        /// Owns an address range and keeps it coherent.
        HOME = 1, "home";
        /// Issues reads and writes.
        REQUEST = 2, "request";
        /// Holds memory for a home agent.
        SLAVE = 3, "slave";
    }
}

wire_number! {
    /// What a memory pool is good for.
    PoolKind {
        /// Volatile memory for general use; contents survive a driver, not the device.
        GENERAL = 1, "general";
    }
}

/// One coherence agent of the device.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Agent {
    /// Number of the agent on the link, unique in the device.
    pub id: U16,
    /// What it does.
    pub kind: AgentKind,
    /// Home agent: pool that it keeps coherent. Slave agent: pool that it holds. Request agent: zero.
    pub pool: U16,
    /// Zero.
    pub reserved: U16,
}
assert_layout!(Agent, 8, id @ 0, kind @ 2, pool @ 4, reserved @ 6);

/// One pool of device memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Pool {
    /// First byte, as an offset into the device memory.
    pub base: U64,
    /// Length in bytes.
    pub bytes: U64,
    /// What it is good for.
    pub kind: PoolKind,
    /// Zero.
    pub reserved: [U16; 3],
}
assert_layout!(Pool, 24, base @ 0, bytes @ 8, kind @ 16, reserved @ 18);

/// Device config space.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Config {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION_MAJOR`].
    pub version_major: U16,
    /// [`VERSION_MINOR`].
    pub version_minor: U16,
    /// Length of this structure in bytes.
    pub config_bytes: U32,
    /// `FEATURE_*` bits that the device has.
    pub features: U64,
    /// Bytes of device memory in shared memory region [`SHMEM_REGION_ID`].
    pub memory_bytes: U64,
    /// Command queues, from [`QUEUE_FIRST_COMMAND`] on.
    pub num_command_queues: U16,
    /// Entries of `pools` that are in use.
    pub num_pools: U16,
    /// Entries of `agents` that are in use.
    pub num_agents: U16,
    /// Lanes of the link.
    pub link_width_lanes: U16,
    /// Transfer rate of each lane in megatransfers per second.
    pub link_speed_mts: U32,
    /// Zero.
    pub reserved: U32,
    /// Memory pools, lowest base first.
    pub pools: [Pool; POOLS_MAX],
    /// Coherence agents, lowest id first.
    pub agents: [Agent; AGENTS_MAX],
}
assert_layout!(
    Config, 208,
    magic @ 0, version_major @ 8, version_minor @ 10, config_bytes @ 12, features @ 16,
    memory_bytes @ 24, num_command_queues @ 32, num_pools @ 34, num_agents @ 36,
    link_width_lanes @ 38, link_speed_mts @ 40, reserved @ 44, pools @ 48, agents @ 144,
);

wire_number! {
    /// Operation of a [`ControlRequest`].
    ControlOpcode {
        /// Map the device memory into the shared memory region. `result`: bytes mapped.
        MAP_MEMORY = 1, "MAP_MEMORY";
        /// Declare `[arg0, arg0 + arg1)` of the device memory the driver's own; `arg1` zero takes it back.
        SET_METADATA = 2, "SET_METADATA";
        /// Fail every outstanding command with [`Status::CANCELLED`]; memory and mapping stay. `result`: commands failed.
        RESET = 3, "RESET";
        /// Stop the command with the tag `arg0` on queue `arg1`. `result`: 1 if it had begun, else 0.
        CANCEL = 4, "CANCEL";
        /// Make the PASID the name of a new address space, of which nothing is known yet.
        BIND = 5, "BIND";
        /// Forget the address space; commands that use it end with [`Status::UNBOUND`].
        UNBIND = 6, "UNBIND";
        /// Answer the [`PageRequest`] `arg0` with the `arg1` [`PageEntry`]s that follow.
        PAGE_RESPONSE = 7, "PAGE_RESPONSE";
        /// Forget the translations of `[arg0, arg1]`, both ends included, and end every use of them.
        INVALIDATE = 8, "INVALIDATE";
        /// Find failed device memory from `arg0` on. `result`: where it begins; `bytes_done`: how much of it follows.
        FIND_BAD = 9, "FIND_BAD";
        /// Report granules of the address space whose count reaches `arg0`; zero counts no more.
        COUNT_ACCESSES = 10, "COUNT_ACCESSES";
    }
}

/// Driver to device, on the control queue; followed by `arg1` [`PageEntry`]s if it is a
/// [`ControlOpcode::PAGE_RESPONSE`], and then a device-writable [`Completion`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControlRequest {
    /// What to do.
    pub opcode: ControlOpcode,
    /// Zero.
    pub flags: U16,
    /// Address space of the operation; zero if it has none.
    pub pasid: U32,
    /// First argument of the operation; zero if it has none.
    pub arg0: U64,
    /// Second argument of the operation; zero if it has none.
    pub arg1: U64,
}
assert_layout!(ControlRequest, 24, opcode @ 0, flags @ 2, pasid @ 4, arg0 @ 8, arg1 @ 16);

/// Where one page of a process is, or why the device does not get it.
///
/// Without [`Self::REFUSED`]: the address of the page's first byte, a multiple of its size, and flags.
/// With it: the [`Status`] that commands end with which need the page, shifted by [`Self::STATUS_SHIFT`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct PageEntry(pub U64);

impl PageEntry {
    /// The device may store to the page.
    pub const WRITABLE: u64 = 1 << 0;
    /// The address is an offset into the device memory, else it is guest-physical.
    pub const DEVICE: u64 = 1 << 1;
    /// The page has [`PAGE_BYTES_LARGE`] bytes, else [`PAGE_BYTES_SMALL`].
    pub const LARGE: u64 = 1 << 2;
    /// There is no page for the device.
    pub const REFUSED: u64 = 1 << 3;
    /// No CPU accesses the page, so the device's atomics may; goes with [`Self::WRITABLE`].
    pub const EXCLUSIVE: u64 = 1 << 4;
    /// Bits of the address.
    pub const ADDRESS_MASK: u64 = !(PAGE_BYTES_SMALL - 1);
    /// Place of the status in an entry that is refused.
    pub const STATUS_SHIFT: u32 = 16;
}

wire_number! {
    /// Operation of a [`CommandHeader`].
    Opcode {
        /// Nothing; completes in order with the queue's other commands.
        NOP = 1, "NOP";
        /// Store the low `width` bytes of `arg0`, little-endian, all over the destination.
        FILL = 2, "FILL";
        /// Copy source to destination, both of one total length.
        COPY = 3, "COPY";
        /// CRC-32C of the source, continued from `arg0`. `result`: the CRC.
        CHECKSUM = 4, "CHECKSUM";
        /// Compare source and destination. `result`: offset of the first difference, or [`COMPARE_EQUAL`].
        COMPARE = 5, "COMPARE";
        /// Add `arg0` atomically to the destination, `repeat` times. `result`: value before the last addition.
        FETCH_ADD = 6, "FETCH_ADD";
        /// Store `arg1` atomically in the destination if it holds `arg0`. `result`: value found.
        COMPARE_SWAP = 7, "COMPARE_SWAP";
        /// Add the elements of the source to `arg0`. `result`: the sum.
        SUM = 8, "SUM";
        /// Add `arg0` times each source element to the destination element of the same place.
        AXPY = 9, "AXPY";
        /// Follow pointers from `arg0` on, `repeat` times, in the source. `result`: the last pointer.
        POINTER_CHASE = 10, "POINTER_CHASE";
        /// Count the source's elements in `repeat` bins. `result`: elements in no bin.
        HISTOGRAM = 11, "HISTOGRAM";
        /// Carry out the `repeat` instructions of the source on the destination. `result`: register 0.
        PROGRAM = 12, "PROGRAM";
        /// Nothing; begins when every earlier command of the queue has ended, and ends before any later one begins.
        FENCE = 13, "FENCE";
    }
}

/// Bit of [`CommandHeader::flags`]: elements are IEEE 754 binary32 numbers.
pub const FLAG_FLOAT: u16 = 1 << 0;
/// Bit of [`CommandHeader::flags`]: the command need not wait for others with this bit.
pub const FLAG_UNORDERED: u16 = 1 << 1;
/// Bit of [`CommandHeader::flags`]: a [`CommandTag`] follows the header.
pub const FLAG_TAGGED: u16 = 1 << 2;

/// `result` of a [`Opcode::COMPARE`] that found no difference.
pub const COMPARE_EQUAL: u64 = u64::MAX;

/// Driver to device, on a command queue; followed by a [`CommandTag`] if [`FLAG_TAGGED`] is set,
/// `num_src + num_dst` [`Range`]s and then a device-writable [`Completion`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandHeader {
    /// What to do.
    pub opcode: Opcode,
    /// `FLAG_*` bits.
    pub flags: U16,
    /// Ranges of the source list.
    pub num_src: U16,
    /// Ranges of the destination list, which follow the source's.
    pub num_dst: U16,
    /// Bytes of one element; zero if the operation has none.
    pub width: U16,
    /// Zero.
    pub reserved: U16,
    /// How often or how many; zero if the operation has no count.
    pub repeat: U32,
    /// First argument of the operation; zero if it has none.
    pub arg0: U64,
    /// Second argument of the operation; zero if it has none.
    pub arg1: U64,
}
assert_layout!(
    CommandHeader, 32,
    opcode @ 0, flags @ 2, num_src @ 4, num_dst @ 6, width @ 8, reserved @ 10, repeat @ 12,
    arg0 @ 16, arg1 @ 24,
);

/// Between the [`CommandHeader`] and the ranges, if [`FLAG_TAGGED`] is set.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandTag {
    /// Name of the command for a [`ControlOpcode::CANCEL`].
    pub tag: U64,
}
assert_layout!(CommandTag, 8, tag @ 0);

wire_number! {
    /// Address space of a [`Range`].
    Space {
        /// Offset into the device memory.
        DEVICE = 1, "device";
        /// Guest-physical address of ordinary guest memory; the device's own BAR is not part of it.
        GUEST = 2, "guest";
        /// Virtual address of the process that [`Range::pasid`] names.
        PROCESS = 3, "process";
    }
}

/// One piece of an operand.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Range {
    /// What `address` counts in.
    pub space: Space,
    /// Zero.
    pub reserved: U16,
    /// Address space of a process; zero in another space.
    pub pasid: U32,
    /// First byte.
    pub address: U64,
    /// Length in bytes, not zero.
    pub bytes: U64,
}
assert_layout!(Range, 24, space @ 0, reserved @ 2, pasid @ 4, address @ 8, bytes @ 16);

wire_number! {
    /// What an [`Instruction`] does. Registers are `r[...]`, memory is `m[...]`.
    Operator {
        /// End the program; so does the end of the list.
        END = 1, "END";
        /// `r[d] = immediate`.
        SET = 2, "SET";
        /// `r[d] = r[a]`.
        MOVE = 3, "MOVE";
        /// `r[d] = r[a] + r[b] + immediate`, wrapping.
        ADD = 4, "ADD";
        /// `r[d] = r[a] - r[b]`, wrapping.
        SUBTRACT = 5, "SUBTRACT";
        /// `r[d] = r[a] & r[b]`.
        AND = 6, "AND";
        /// `r[d] = r[a] << immediate`, which is less than 64.
        SHIFT_LEFT = 7, "SHIFT_LEFT";
        /// `r[d] = m[r[a] + immediate]`.
        LOAD = 8, "LOAD";
        /// `m[r[a] + immediate] = r[b]`.
        STORE = 9, "STORE";
        /// `r[d] = m[r[a] + immediate]; m[r[a] + immediate] += r[b]`, atomically.
        ATOMIC_ADD = 10, "ATOMIC_ADD";
        /// `r[d] = m[r[a] + immediate]; m[r[a] + immediate] = r[b]`, atomically.
        ATOMIC_SWAP = 11, "ATOMIC_SWAP";
        /// `r[d]` gets what `m[r[a] + immediate]` holds, and that gets `r[b]` if it held `r[d]`, atomically.
        ATOMIC_COMPARE_SWAP = 12, "ATOMIC_COMPARE_SWAP";
        /// Order accesses before it and after it.
        BARRIER = 13, "BARRIER";
        /// Let others run for a moment; belongs into a loop that waits.
        PAUSE = 14, "PAUSE";
        /// Go on at instruction `immediate` if `r[a] == r[b]`.
        JUMP_EQUAL = 15, "JUMP_EQUAL";
        /// Go on at instruction `immediate` if `r[a] != r[b]`.
        JUMP_NOT_EQUAL = 16, "JUMP_NOT_EQUAL";
        /// Go on at instruction `immediate` if `r[a] < r[b]`.
        JUMP_LESS = 17, "JUMP_LESS";
    }
}

wire_number! {
    /// How an [`Instruction`] is ordered towards other accesses to memory; as in C11 and Rust.
    MemoryOrder {
        /// Atomic, and nothing else.
        RELAXED = 1, "relaxed";
        /// What follows stays behind it.
        ACQUIRE = 2, "acquire";
        /// What precedes stays before it.
        RELEASE = 3, "release";
        /// Both.
        ACQUIRE_RELEASE = 4, "acquire-release";
        /// Both, and in one order that all such accesses agree on.
        SEQ_CST = 5, "seq-cst";
    }
}

/// One instruction of a [`Opcode::PROGRAM`]. A field that the operator does not use is zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub operator: Operator,
    /// Order of an access or a barrier.
    pub order: MemoryOrder,
    /// Bytes of an access: 4 or 8.
    pub width: u8,
    /// Register that gets the outcome.
    pub d: u8,
    /// First register that is read.
    pub a: u8,
    /// Second register that is read.
    pub b: u8,
    /// A number of the instruction's own.
    pub immediate: U64,
}
assert_layout!(
    Instruction, 16,
    operator @ 0, order @ 2, width @ 4, d @ 5, a @ 6, b @ 7, immediate @ 8,
);

wire_number! {
    /// Outcome of a request.
    Status {
        /// Done; `result` is valid.
        OK = 0, "OK";
        /// The request is shorter or longer than its header says, or than a header.
        MALFORMED = 1, "MALFORMED";
        /// No such operation, or the device lacks its feature.
        UNKNOWN_OPCODE = 2, "UNKNOWN_OPCODE";
        /// A flag, reserved field or unused argument is not zero.
        RESERVED_FIELD = 3, "RESERVED_FIELD";
        /// The operation takes another number of ranges, or there are more than [`RANGES_MAX`].
        BAD_RANGE_COUNT = 4, "BAD_RANGE_COUNT";
        /// A range is of an unknown address space.
        BAD_SPACE = 5, "BAD_SPACE";
        /// A range, or part of it, is not memory.
        BAD_ADDRESS = 6, "BAD_ADDRESS";
        /// A range touches the driver's metadata.
        PROTECTED = 7, "PROTECTED";
        /// An operand is not naturally aligned, or not a whole number of elements.
        MISALIGNED = 8, "MISALIGNED";
        /// A range has a length of zero.
        ZERO_LENGTH = 9, "ZERO_LENGTH";
        /// An operand is longer than [`TRANSFER_BYTES_MAX`].
        TOO_LONG = 10, "TOO_LONG";
        /// Source and destination differ in length.
        LENGTH_MISMATCH = 11, "LENGTH_MISMATCH";
        /// `width` is not one that the operation takes.
        BAD_WIDTH = 12, "BAD_WIDTH";
        /// `repeat` is zero or above the operation's limit.
        BAD_REPEAT = 13, "BAD_REPEAT";
        /// The device memory is not mapped yet.
        NOT_MAPPED = 14, "NOT_MAPPED";
        /// A RESET or CANCEL came before the command was done; `bytes_done` tells how far it went.
        CANCELLED = 15, "CANCELLED";
        /// The host could not do it; the device log says why.
        HOST_ERROR = 16, "HOST_ERROR";
        /// An argument is not one that the operation takes.
        BAD_ARGUMENT = 17, "BAD_ARGUMENT";
        /// An address that the command found or computed is not in its operand, or not aligned.
        BAD_POINTER = 18, "BAD_POINTER";
        /// An instruction is not one; `range_index` is its place in the program.
        BAD_PROGRAM = 19, "BAD_PROGRAM";
        /// The program carried out as many instructions as it may.
        STEP_LIMIT = 20, "STEP_LIMIT";
        /// The PASID is zero, too large, bound where it must not be, or not bound where it must.
        BAD_PASID = 21, "BAD_PASID";
        /// [`ADDRESS_SPACES_MAX`] address spaces are bound.
        TOO_MANY_SPACES = 22, "TOO_MANY_SPACES";
        /// Nothing is mapped at an address of the process.
        UNMAPPED = 23, "UNMAPPED";
        /// The process may not access its memory there in this way.
        NO_ACCESS = 24, "NO_ACCESS";
        /// The address space was unbound, or its process has gone, before the command was done.
        UNBOUND = 25, "UNBOUND";
        /// The event queue had no buffer for a page request.
        PAGE_QUEUE_FULL = 26, "PAGE_QUEUE_FULL";
        /// The driver could not make a page of the process available.
        PAGE_ERROR = 27, "PAGE_ERROR";
        /// A range touches device memory that has failed.
        POISONED = 28, "POISONED";
    }
}

/// Device to driver: ends every request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Completion {
    /// Outcome.
    pub status: Status,
    /// Zero.
    pub reserved: U16,
    /// Index of the range that a bad status speaks of, source list first; zero otherwise.
    pub range_index: U32,
    /// Result of the operation; zero unless `status` is OK.
    pub result: U64,
    /// Bytes of the destination written, or of the source read where there is no destination.
    pub bytes_done: U64,
}
assert_layout!(Completion, 24, status @ 0, reserved @ 2, range_index @ 4, result @ 8, bytes_done @ 16);

wire_number! {
    /// What an [`Event`] reports.
    EventKind {
        /// Queue `queue` held a chain with no room for a completion, or its ring is inconsistent; the chain was dropped.
        QUEUE_ERROR = 1, "QUEUE_ERROR";
        /// A command needs pages of a process; the event is a [`PageRequest`].
        PAGE_REQUEST = 2, "PAGE_REQUEST";
        /// Device memory has failed; the event is a [`MemoryError`].
        MEMORY_ERROR = 3, "MEMORY_ERROR";
        /// The device uses a part of a process's memory much; the event is an [`AccessReport`].
        ACCESS_REPORT = 4, "ACCESS_REPORT";
    }
}

/// Device to driver, in a buffer that the driver put on the event queue.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Queue it happened on.
    pub queue: U16,
    /// Zero.
    pub reserved: U32,
    /// Events of this kind that were lost before this one for want of a buffer.
    pub lost: U64,
}
assert_layout!(Event, 16, kind @ 0, queue @ 2, reserved @ 4, lost @ 8);

/// Bit of [`PageRequest::flags`]: the device will store to the pages.
pub const PAGE_REQUEST_WRITE: u16 = 1 << 0;
/// Bit of [`PageRequest::flags`], beside [`PAGE_REQUEST_WRITE`]: the device will carry out atomic operations on the pages.
pub const PAGE_REQUEST_ATOMIC: u16 = 1 << 1;

/// Device to driver, in a buffer of the event queue: what a [`ControlOpcode::PAGE_RESPONSE`] answers.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PageRequest {
    /// [`EventKind::PAGE_REQUEST`].
    pub kind: EventKind,
    /// Queue of the command.
    pub queue: U16,
    /// Address space.
    pub pasid: U32,
    /// First byte of the first page, a multiple of [`PAGE_BYTES_SMALL`].
    pub address: U64,
    /// Name of the request; no other one has it that is not answered.
    pub id: U32,
    /// Small pages that the command will need from there on, 1 to [`PAGE_REQUEST_PAGES_MAX`].
    pub pages: U16,
    /// `PAGE_REQUEST_*` bits.
    pub flags: U16,
    /// Zero.
    pub reserved: U64,
}
assert_layout!(
    PageRequest, 32,
    kind @ 0, queue @ 2, pasid @ 4, address @ 8, id @ 16, pages @ 20, flags @ 22, reserved @ 24,
);

/// Device to driver, in a buffer of the event queue: this much of the device memory has failed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MemoryError {
    /// [`EventKind::MEMORY_ERROR`].
    pub kind: EventKind,
    /// Zero.
    pub reserved: [U16; 3],
    /// First byte, as an offset into the device memory; a multiple of [`ERROR_BYTES`].
    pub address: U64,
    /// Length; a multiple of [`ERROR_BYTES`].
    pub bytes: U64,
    /// Zero: no such event is ever lost.
    pub lost: U64,
}
assert_layout!(MemoryError, 32, kind @ 0, reserved @ 2, address @ 8, bytes @ 16, lost @ 24);

/// Device to driver, in a buffer of the event queue: a granule whose count reached the threshold.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AccessReport {
    /// [`EventKind::ACCESS_REPORT`].
    pub kind: EventKind,
    /// Queue of the command that made the last of the accesses.
    pub queue: U16,
    /// Address space.
    pub pasid: U32,
    /// First byte of the granule, a multiple of [`GRANULE_BYTES`].
    pub address: U64,
    /// Accesses since the count began; at least the threshold.
    pub accesses: U64,
    /// Reports that were lost before this one for want of a buffer, since the last one told.
    pub lost: U64,
}
assert_layout!(
    AccessReport, 32,
    kind @ 0, queue @ 2, pasid @ 4, address @ 8, accesses @ 16, lost @ 24,
);
