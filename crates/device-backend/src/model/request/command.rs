// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands of the command queues.

use super::range::{parse_list, total_bytes};
use super::{Bins, Elements, Extent, Place, Refusal, Request};
use crate::model::operands::Part;
use cdm_protocol::{
    BINS_MAX, CommandHeader, CommandTag, FLAG_FLOAT, FLAG_TAGGED, FLAG_UNORDERED, Instruction,
    Opcode, PROGRAM_INSTRUCTIONS_MAX, PROGRAM_STEPS_MAX, RANGES_MAX, REPEAT_MAX, Range, Status,
};
use zerocopy::FromBytes;

/// Size of an atomic operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicWidth {
    /// 32 bits.
    Four,
    /// 64 bits.
    Eight,
}

impl AtomicWidth {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// The element that FILL repeats: 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillPattern {
    bytes: [u8; 8],
    width: usize,
}

impl FillPattern {
    fn new(width: u16, value: u64) -> Option<Self> {
        matches!(width, 1 | 2 | 4 | 8).then_some(Self {
            bytes: value.to_le_bytes(),
            width: usize::from(width),
        })
    }

    /// The element as it is stored.
    pub fn element(&self) -> &[u8] {
        &self.bytes[..self.width]
    }
}

/// What a command does, with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing.
    Nop,
    /// Store a pattern all over the destination.
    Fill(FillPattern),
    /// Copy source to destination.
    Copy,
    /// CRC-32C of the source, continued from a CRC.
    Checksum {
        /// CRC of what came before the source.
        initial: u32,
    },
    /// Compare source and destination.
    Compare,
    /// Add to the destination atomically.
    FetchAdd {
        /// Size of the destination.
        width: AtomicWidth,
        /// What to add each time.
        addend: u64,
        /// How often.
        repeat: u32,
    },
    /// Replace the destination atomically if it is as expected.
    CompareSwap {
        /// Size of the destination.
        width: AtomicWidth,
        /// What the destination must hold.
        expected: u64,
        /// What it gets.
        new: u64,
    },
    /// Add the elements of the source up.
    Sum {
        /// What they are.
        elements: Elements,
        /// What they are added to.
        initial: u64,
    },
    /// Add a multiple of the source to the destination.
    Axpy {
        /// What both consist of.
        elements: Elements,
        /// What the source is multiplied by.
        factor: u64,
    },
    /// Follow pointers in the source.
    PointerChase {
        /// The first pointer.
        first: u64,
        /// The pointer to the source's first byte.
        base: u64,
        /// How many to follow.
        hops: u32,
    },
    /// Count the source's elements in the destination.
    Histogram {
        /// Bytes of an element.
        width: usize,
        /// What is counted where.
        bins: Bins,
    },
    /// Carry out the instructions of the source on the destination.
    Program {
        /// How many there are.
        instructions: u32,
        /// What register 0 begins with.
        argument: u64,
        /// How many are carried out at most.
        limit: u64,
    },
}

/// Bytes of a counter of a histogram, and what a pointer or a program's memory is aligned to.
const WORD_BYTES: u64 = 8;

/// A command of the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedCommand {
    /// What to do.
    pub operation: Operation,
    /// Whether it may run beside other unordered ones.
    pub is_unordered: bool,
    /// How a CANCEL names it.
    pub tag: Option<u64>,
    /// Where to read.
    pub source: Vec<Extent>,
    /// Where to write, and to read where the operation needs it.
    pub destination: Vec<Extent>,
}

/// How many ranges an operation takes.
struct Arity {
    source: RangeCount,
    destination: RangeCount,
}

#[derive(Clone, Copy)]
enum RangeCount {
    None,
    One,
    Some,
}

impl RangeCount {
    fn admits(self, count: usize) -> bool {
        match self {
            Self::None => count == 0,
            Self::One => count == 1,
            Self::Some => count >= 1,
        }
    }
}

impl ParsedCommand {
    /// Checks a command's form.
    ///
    /// The checks run in the order in which the specification lists the statuses, so that
    /// a request with several faults has one answer.
    pub fn parse(request: &Request<'_>) -> Result<Self, Refusal> {
        let refuse = |status| Err(Refusal::of(status));
        let Ok((header, mut list_bytes)) = CommandHeader::read_from_prefix(request.bytes()) else {
            return refuse(Status::MALFORMED);
        };
        let Some(arity) = arity(header.opcode) else {
            return refuse(Status::UNKNOWN_OPCODE);
        };
        if has_reserved_bits(&header) {
            return refuse(Status::RESERVED_FIELD);
        }
        let num_src = usize::from(header.num_src.get());
        let num_dst = usize::from(header.num_dst.get());
        let num_ranges = num_src + num_dst;
        if num_ranges > RANGES_MAX
            || !arity.source.admits(num_src)
            || !arity.destination.admits(num_dst)
        {
            return refuse(Status::BAD_RANGE_COUNT);
        }
        let is_tagged = header.flags.get() & FLAG_TAGGED != 0;
        let tag_bytes = if is_tagged {
            size_of::<CommandTag>()
        } else {
            0
        };
        let expected_bytes =
            size_of::<CommandHeader>() + tag_bytes + num_ranges * size_of::<Range>();
        if request.total() != expected_bytes as u64 {
            return refuse(Status::MALFORMED);
        }
        let mut tag = None;
        if is_tagged {
            let Ok((found, rest)) = CommandTag::read_from_prefix(list_bytes) else {
                return refuse(Status::MALFORMED);
            };
            (tag, list_bytes) = (Some(found.tag.get()), rest);
        }
        let operation = operation(&header).map_err(Refusal::of)?;
        let Ok(ranges) = <[Range]>::ref_from_bytes(list_bytes) else {
            return refuse(Status::MALFORMED);
        };
        let (source, destination) = ranges.split_at(num_src);
        let command = Self {
            operation,
            is_unordered: header.flags.get() & FLAG_UNORDERED != 0,
            tag,
            source: parse_list(source, 0)?,
            destination: parse_list(destination, num_src)?,
        };
        command.check_lengths()?;
        Ok(command)
    }

    /// Bytes that there is to do, or would be in the time that it takes.
    pub fn bytes(&self) -> u64 {
        match self.operation {
            // One piece of a copy for each step, and steps may wait for somebody.
            Operation::Program { limit, .. } => limit,
            // Each hop waits for a line of a cache.
            Operation::PointerChase { hops, .. } => u64::from(hops) * 64,
            // Each addition waits for the one before.
            Operation::FetchAdd { repeat, .. } => u64::from(repeat) * WORD_BYTES,
            _ => total_bytes(&self.source).max(total_bytes(&self.destination)),
        }
    }

    /// Whether it may wait for what the guest's CPUs do: its program for what they store, or
    /// the command for pages that the driver makes available.
    pub fn waits_for_guest(&self) -> bool {
        matches!(self.operation, Operation::Program { .. }) || self.is_of_process()
    }

    /// Whether it names memory of a process.
    pub fn is_of_process(&self) -> bool {
        self.ranges().any(|extent| extent.place.pasid().is_some())
    }

    /// The first range of guest memory that the operation is to change by atomics, if there is one.
    /// What a program does only its instructions tell.
    pub fn atomic_on_guest(&self) -> Option<usize> {
        let is_atomic = matches!(
            self.operation,
            Operation::FetchAdd { .. }
                | Operation::CompareSwap { .. }
                | Operation::Histogram { .. }
        );
        let is_guest = |extent: &Extent| matches!(extent.place, Place::Guest(_));
        let index = self.destination.iter().position(is_guest)?;
        is_atomic.then(|| self.source.len() + index)
    }

    /// The source list.
    pub fn source_part(&self) -> Part<'_> {
        Part {
            list: &self.source,
            first_index: 0,
        }
    }

    /// The destination list.
    pub fn destination_part(&self) -> Part<'_> {
        Part {
            list: &self.destination,
            first_index: self.source.len(),
        }
    }

    /// All ranges, sources first.
    pub fn ranges(&self) -> impl Iterator<Item = &Extent> {
        self.source.iter().chain(&self.destination)
    }

    fn check_lengths(&self) -> Result<(), Refusal> {
        let num_src = self.source.len();
        let source_bytes = total_bytes(&self.source);
        let destination_bytes = total_bytes(&self.destination);
        let expect_length = |found: u64, expected: u64| match found == expected {
            true => Ok(()),
            false => Err(Refusal::of(Status::LENGTH_MISMATCH)),
        };
        // The range that a list ends with has the odd bytes.
        let expect_whole = |bytes: u64, element: u64, last: usize| match bytes {
            bytes if bytes.is_multiple_of(element) => Ok(()),
            _ => Err(Refusal::of_range(Status::MISALIGNED, last - 1)),
        };
        let num_ranges = num_src + self.destination.len();
        match self.operation {
            Operation::Nop | Operation::Checksum { .. } => Ok(()),
            Operation::Copy | Operation::Compare => expect_length(source_bytes, destination_bytes),
            Operation::Fill(pattern) => {
                expect_whole(destination_bytes, pattern.width as u64, num_ranges)
            }
            Operation::FetchAdd { width, .. } | Operation::CompareSwap { width, .. } => {
                let operand = self.destination[0];
                let is_aligned = operand.place.address().is_multiple_of(width.bytes());
                if operand.bytes == width.bytes() && is_aligned {
                    Ok(())
                } else {
                    Err(Refusal::of_range(Status::MISALIGNED, num_src))
                }
            }
            Operation::Sum { elements, .. } => {
                expect_whole(source_bytes, elements.number.bytes() as u64, num_src)
            }
            Operation::Axpy { elements, .. } => {
                expect_length(source_bytes, destination_bytes)?;
                expect_whole(source_bytes, elements.number.bytes() as u64, num_src)
            }
            Operation::PointerChase { .. } => expect_words(&self.source, 0),
            Operation::Histogram { width, bins } => {
                expect_length(destination_bytes, u64::from(bins.count) * WORD_BYTES)?;
                expect_whole(source_bytes, width as u64, num_src)?;
                expect_words(&self.destination, num_src)
            }
            Operation::Program { instructions, .. } => {
                let bytes = u64::from(instructions) * size_of::<Instruction>() as u64;
                expect_length(source_bytes, bytes)?;
                expect_words(&self.destination, num_src)
            }
        }
    }
}

/// Checks that a list, whose first range has index `first_index`, consists of aligned words.
fn expect_words(list: &[Extent], first_index: usize) -> Result<(), Refusal> {
    let is_odd =
        |extent: &Extent| !(extent.place.address() | extent.bytes).is_multiple_of(WORD_BYTES);
    match list.iter().position(is_odd) {
        Some(index) => Err(Refusal::of_range(Status::MISALIGNED, first_index + index)),
        None => Ok(()),
    }
}

/// Ranges that an operation takes; `None` for one that the device does not know.
fn arity(opcode: Opcode) -> Option<Arity> {
    use RangeCount::{None as Zero, One, Some as Any};
    let (source, destination) = match opcode {
        Opcode::NOP | Opcode::FENCE => (Zero, Zero),
        Opcode::FILL => (Zero, Any),
        Opcode::COPY | Opcode::COMPARE => (Any, Any),
        Opcode::CHECKSUM => (Any, Zero),
        Opcode::FETCH_ADD | Opcode::COMPARE_SWAP => (Zero, One),
        Opcode::SUM | Opcode::POINTER_CHASE => (Any, Zero),
        Opcode::AXPY | Opcode::HISTOGRAM | Opcode::PROGRAM => (Any, Any),
        _ => return None,
    };
    Some(Arity {
        source,
        destination,
    })
}

/// Fields of a header that an operation uses; what is not set must be zero.
struct Uses {
    flags: u16,
    width: bool,
    repeat: bool,
    arg0_mask: u64,
    arg1: bool,
}

/// Whether anything is set that the operation has no use for.
fn has_reserved_bits(header: &CommandHeader) -> bool {
    let none = Uses {
        flags: FLAG_TAGGED | FLAG_UNORDERED,
        width: false,
        repeat: false,
        arg0_mask: 0,
        arg1: false,
    };
    let (any, narrow) = (u64::MAX, u64::from(u32::MAX));
    let uses = match header.opcode {
        Opcode::FILL => Uses {
            width: true,
            arg0_mask: any,
            ..none
        },
        Opcode::CHECKSUM => Uses {
            arg0_mask: narrow,
            ..none
        },
        Opcode::FETCH_ADD => Uses {
            width: true,
            repeat: true,
            arg0_mask: any,
            ..none
        },
        Opcode::COMPARE_SWAP => Uses {
            width: true,
            arg0_mask: any,
            arg1: true,
            ..none
        },
        Opcode::SUM | Opcode::AXPY => Uses {
            flags: none.flags | FLAG_FLOAT,
            width: true,
            arg0_mask: any,
            arg1: true,
            ..none
        },
        Opcode::POINTER_CHASE | Opcode::PROGRAM => Uses {
            repeat: true,
            arg0_mask: any,
            arg1: true,
            ..none
        },
        Opcode::HISTOGRAM => Uses {
            width: true,
            repeat: true,
            arg0_mask: any,
            arg1: true,
            ..none
        },
        Opcode::FENCE => Uses {
            flags: FLAG_TAGGED,
            ..none
        },
        _ => none,
    };
    header.flags.get() & !uses.flags != 0
        || header.reserved.get() != 0
        || (!uses.width && header.width.get() != 0)
        || (!uses.repeat && header.repeat.get() != 0)
        || header.arg0.get() & !uses.arg0_mask != 0
        || (!uses.arg1 && header.arg1.get() != 0)
}

fn operation(header: &CommandHeader) -> Result<Operation, Status> {
    let (arg0, arg1) = (header.arg0.get(), header.arg1.get());
    let atomic_width = || match header.width.get() {
        4 => Ok(AtomicWidth::Four),
        8 => Ok(AtomicWidth::Eight),
        _ => Err(Status::BAD_WIDTH),
    };
    let repeat = |max| match header.repeat.get() {
        repeat if (1..=max).contains(&repeat) => Ok(repeat),
        _ => Err(Status::BAD_REPEAT),
    };
    Ok(match header.opcode {
        // A fence is what every command without FLAG_UNORDERED is.
        Opcode::NOP | Opcode::FENCE => Operation::Nop,
        Opcode::FILL => {
            let pattern = FillPattern::new(header.width.get(), arg0);
            Operation::Fill(pattern.ok_or(Status::BAD_WIDTH)?)
        }
        Opcode::COPY => Operation::Copy,
        // The mask of has_reserved_bits leaves 32 bits.
        Opcode::CHECKSUM => Operation::Checksum {
            initial: arg0 as u32,
        },
        Opcode::COMPARE => Operation::Compare,
        Opcode::FETCH_ADD => Operation::FetchAdd {
            width: atomic_width()?,
            addend: arg0,
            repeat: repeat(REPEAT_MAX)?,
        },
        Opcode::COMPARE_SWAP => Operation::CompareSwap {
            width: atomic_width()?,
            expected: arg0,
            new: arg1,
        },
        Opcode::SUM => Operation::Sum {
            elements: Elements::new(header.width.get(), header.flags.get(), arg1)?,
            initial: arg0,
        },
        Opcode::AXPY => Operation::Axpy {
            elements: Elements::new(header.width.get(), header.flags.get(), arg1)?,
            factor: arg0,
        },
        Opcode::POINTER_CHASE => Operation::PointerChase {
            first: arg0,
            base: arg1,
            hops: repeat(REPEAT_MAX)?,
        },
        Opcode::HISTOGRAM => Operation::Histogram {
            width: match header.width.get() {
                width @ (1 | 2 | 4 | 8) => width.into(),
                _ => return Err(Status::BAD_WIDTH),
            },
            bins: Bins {
                count: repeat(BINS_MAX)?,
                base: arg0,
                width: match arg1 {
                    0 => return Err(Status::BAD_ARGUMENT),
                    width => width,
                },
            },
        },
        Opcode::PROGRAM => Operation::Program {
            instructions: repeat(PROGRAM_INSTRUCTIONS_MAX)?,
            argument: arg0,
            limit: match arg1 {
                1..=PROGRAM_STEPS_MAX => arg1,
                _ => return Err(Status::BAD_ARGUMENT),
            },
        },
        _ => return Err(Status::UNKNOWN_OPCODE),
    })
}
