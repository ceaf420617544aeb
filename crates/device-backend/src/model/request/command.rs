// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands of the command queues.

use super::range::{parse_list, total_bytes};
use super::{Extent, Refusal, Request};
use cdm_protocol::{CommandHeader, Opcode, RANGES_MAX, REPEAT_MAX, Range, Status};
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
}

/// A command of the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedCommand {
    /// What to do.
    pub operation: Operation,
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
        let Ok((header, list_bytes)) = CommandHeader::read_from_prefix(request.bytes()) else {
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
        let expected_bytes = size_of::<CommandHeader>() + num_ranges * size_of::<Range>();
        if request.total() != expected_bytes as u64 {
            return refuse(Status::MALFORMED);
        }
        let operation = operation(&header).map_err(Refusal::of)?;
        let Ok(ranges) = <[Range]>::ref_from_bytes(list_bytes) else {
            return refuse(Status::MALFORMED);
        };
        let (source, destination) = ranges.split_at(num_src);
        let command = Self {
            operation,
            source: parse_list(source, 0)?,
            destination: parse_list(destination, num_src)?,
        };
        command.check_lengths()?;
        Ok(command)
    }

    /// Bytes of the longer operand: how much there is to do.
    pub fn bytes(&self) -> u64 {
        total_bytes(&self.source).max(total_bytes(&self.destination))
    }

    fn check_lengths(&self) -> Result<(), Refusal> {
        let num_src = self.source.len();
        let destination_bytes = total_bytes(&self.destination);
        match self.operation {
            Operation::Nop | Operation::Checksum { .. } => Ok(()),
            Operation::Copy | Operation::Compare => {
                if total_bytes(&self.source) == destination_bytes {
                    Ok(())
                } else {
                    Err(Refusal::of(Status::LENGTH_MISMATCH))
                }
            }
            Operation::Fill(pattern) => {
                if destination_bytes.is_multiple_of(pattern.element().len() as u64) {
                    Ok(())
                } else {
                    let last = num_src + self.destination.len() - 1;
                    Err(Refusal::of_range(Status::MISALIGNED, last))
                }
            }
            Operation::FetchAdd { width, .. } | Operation::CompareSwap { width, .. } => {
                let operand = self.destination[0];
                let address = match operand.place {
                    super::Place::Device(address) | super::Place::Guest(address) => address,
                };
                if operand.bytes == width.bytes() && address.is_multiple_of(width.bytes()) {
                    Ok(())
                } else {
                    Err(Refusal::of_range(Status::MISALIGNED, num_src))
                }
            }
        }
    }
}

/// Ranges that an operation takes; `None` for one that the device does not know.
fn arity(opcode: Opcode) -> Option<Arity> {
    use RangeCount::{None as Zero, One, Some as Any};
    let (source, destination) = match opcode {
        Opcode::NOP => (Zero, Zero),
        Opcode::FILL => (Zero, Any),
        Opcode::COPY | Opcode::COMPARE => (Any, Any),
        Opcode::CHECKSUM => (Any, Zero),
        Opcode::FETCH_ADD | Opcode::COMPARE_SWAP => (Zero, One),
        _ => return None,
    };
    Some(Arity {
        source,
        destination,
    })
}

/// Whether anything is set that the operation has no use for.
fn has_reserved_bits(header: &CommandHeader) -> bool {
    let (uses_width, uses_repeat, arg0_mask, uses_arg1) = match header.opcode {
        Opcode::FILL => (true, false, u64::MAX, false),
        Opcode::CHECKSUM => (false, false, u64::from(u32::MAX), false),
        Opcode::FETCH_ADD => (true, true, u64::MAX, false),
        Opcode::COMPARE_SWAP => (true, false, u64::MAX, true),
        _ => (false, false, 0, false),
    };
    header.flags.get() != 0
        || header.reserved.get() != 0
        || (!uses_width && header.width.get() != 0)
        || (!uses_repeat && header.repeat.get() != 0)
        || header.arg0.get() & !arg0_mask != 0
        || (!uses_arg1 && header.arg1.get() != 0)
}

fn operation(header: &CommandHeader) -> Result<Operation, Status> {
    let (arg0, arg1) = (header.arg0.get(), header.arg1.get());
    let atomic_width = || match header.width.get() {
        4 => Ok(AtomicWidth::Four),
        8 => Ok(AtomicWidth::Eight),
        _ => Err(Status::BAD_WIDTH),
    };
    Ok(match header.opcode {
        Opcode::NOP => Operation::Nop,
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
            repeat: match header.repeat.get() {
                repeat @ 1..=REPEAT_MAX => repeat,
                _ => return Err(Status::BAD_REPEAT),
            },
        },
        Opcode::COMPARE_SWAP => Operation::CompareSwap {
            width: atomic_width()?,
            expected: arg0,
            new: arg1,
        },
        _ => return Err(Status::UNKNOWN_OPCODE),
    })
}
