// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Programs: from bytes to checked instructions.

use super::{AtomicWidth, Refusal};
use cdm_protocol::{Instruction as Raw, MemoryOrder, Operator, PROGRAM_REGISTERS, Status};
use std::sync::atomic::Ordering;
use zerocopy::FromBytes;

/// What an instruction does. Accesses go to register `a` plus the immediate number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the program.
    End,
    /// The immediate number.
    Set,
    /// Register `a`.
    Move,
    /// Register `a` plus register `b` plus the immediate number.
    Add,
    /// Register `a` minus register `b`.
    Subtract,
    /// Bits that registers `a` and `b` share.
    And,
    /// Register `a`, shifted by the immediate number.
    ShiftLeft,
    /// Read a word.
    Load {
        /// Its size.
        width: AtomicWidth,
        /// Relaxed, acquire or sequentially consistent.
        order: Ordering,
    },
    /// Write register `b` to a word.
    Store {
        /// Its size.
        width: AtomicWidth,
        /// Relaxed, release or sequentially consistent.
        order: Ordering,
    },
    /// Add register `b` to a word.
    AtomicAdd {
        /// Its size.
        width: AtomicWidth,
        /// Any.
        order: Ordering,
    },
    /// Exchange a word for register `b`.
    AtomicSwap {
        /// Its size.
        width: AtomicWidth,
        /// Any.
        order: Ordering,
    },
    /// Exchange a word for register `b` if it is register `d`.
    AtomicCompareSwap {
        /// Its size.
        width: AtomicWidth,
        /// Any.
        order: Ordering,
    },
    /// Order other accesses.
    Barrier {
        /// Any but relaxed.
        order: Ordering,
    },
    /// Let others run.
    Pause,
    /// Go on elsewhere.
    Jump {
        /// When.
        condition: Condition,
        /// Index of an instruction, or of the end of the program.
        target: usize,
    },
}

/// What a jump depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `a == b`.
    Equal,
    /// `a != b`.
    NotEqual,
    /// `a < b`.
    Less,
}

impl Condition {
    /// Whether it holds.
    pub fn holds(self, a: u64, b: u64) -> bool {
        match self {
            Self::Equal => a == b,
            Self::NotEqual => a != b,
            Self::Less => a < b,
        }
    }
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub action: Action,
    /// Index of the register for the outcome.
    pub d: usize,
    /// Index of the first register that is read.
    pub a: usize,
    /// Index of the second register that is read.
    pub b: usize,
    /// The instruction's own number.
    pub immediate: u64,
}

/// A checked program.
///
/// # Invariants
///
/// Every register's index is below [`PROGRAM_REGISTERS`], and every jump ends in the
/// program or right behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code(Vec<Instruction>);

/// Fields of a raw instruction that its operator uses; the others are zero.
#[derive(Clone, Copy, Default)]
struct Uses {
    order: bool,
    width: bool,
    d: bool,
    a: bool,
    b: bool,
    immediate: bool,
}

impl Code {
    /// Checks a program, which is a whole number of instructions.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let Ok(raw) = <[Raw]>::ref_from_bytes(bytes) else {
            return Err(Refusal::of(Status::BAD_PROGRAM));
        };
        raw.iter()
            .enumerate()
            .map(|(index, instruction)| {
                parse(instruction, raw.len()).ok_or(Refusal::of_range(Status::BAD_PROGRAM, index))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The instruction at `index`; none behind the end.
    pub fn get(&self, index: usize) -> Option<&Instruction> {
        self.0.get(index)
    }
}

fn parse(raw: &Raw, length: usize) -> Option<Instruction> {
    let order = ordering(raw.order);
    let immediate = raw.immediate.get();
    let access = Uses {
        order: true,
        width: true,
        a: true,
        immediate: true,
        ..Uses::default()
    };
    let exchange = Uses {
        d: true,
        b: true,
        ..access
    };
    let jump = |condition| {
        let target = usize::try_from(immediate).ok()?;
        let uses = Uses {
            a: true,
            b: true,
            immediate: true,
            ..Uses::default()
        };
        (target <= length).then_some((Action::Jump { condition, target }, uses))
    };
    let width = match raw.width {
        4 => Some(AtomicWidth::Four),
        8 => Some(AtomicWidth::Eight),
        _ => None,
    };
    // Registers only.
    let two = |action, b| {
        let uses = Uses {
            d: true,
            a: true,
            b,
            ..Uses::default()
        };
        (action, uses)
    };
    let (action, uses) = match raw.operator {
        Operator::END => (Action::End, Uses::default()),
        Operator::PAUSE => (Action::Pause, Uses::default()),
        Operator::SET => {
            let uses = Uses {
                d: true,
                immediate: true,
                ..Uses::default()
            };
            (Action::Set, uses)
        }
        Operator::MOVE => two(Action::Move, false),
        Operator::SUBTRACT => two(Action::Subtract, true),
        Operator::AND => two(Action::And, true),
        Operator::ADD => {
            let (action, uses) = two(Action::Add, true);
            (
                action,
                Uses {
                    immediate: true,
                    ..uses
                },
            )
        }
        Operator::SHIFT_LEFT => {
            let (action, uses) = two(Action::ShiftLeft, false);
            (immediate < 64).then_some((
                action,
                Uses {
                    immediate: true,
                    ..uses
                },
            ))?
        }
        Operator::LOAD => {
            let order = order.filter(|order| {
                matches!(
                    order,
                    Ordering::Relaxed | Ordering::Acquire | Ordering::SeqCst
                )
            })?;
            let uses = Uses { d: true, ..access };
            (
                Action::Load {
                    width: width?,
                    order,
                },
                uses,
            )
        }
        Operator::STORE => {
            let order = order.filter(|order| {
                matches!(
                    order,
                    Ordering::Relaxed | Ordering::Release | Ordering::SeqCst
                )
            })?;
            let uses = Uses { b: true, ..access };
            (
                Action::Store {
                    width: width?,
                    order,
                },
                uses,
            )
        }
        Operator::ATOMIC_ADD => (
            Action::AtomicAdd {
                width: width?,
                order: order?,
            },
            exchange,
        ),
        Operator::ATOMIC_SWAP => (
            Action::AtomicSwap {
                width: width?,
                order: order?,
            },
            exchange,
        ),
        Operator::ATOMIC_COMPARE_SWAP => (
            Action::AtomicCompareSwap {
                width: width?,
                order: order?,
            },
            exchange,
        ),
        Operator::BARRIER => {
            let order = order.filter(|&order| order != Ordering::Relaxed)?;
            let uses = Uses {
                order: true,
                ..Uses::default()
            };
            (Action::Barrier { order }, uses)
        }
        Operator::JUMP_EQUAL => jump(Condition::Equal)?,
        Operator::JUMP_NOT_EQUAL => jump(Condition::NotEqual)?,
        Operator::JUMP_LESS => jump(Condition::Less)?,
        _ => return None,
    };
    let is_unused_zero = (uses.order || raw.order.get() == 0)
        && (uses.width || raw.width == 0)
        && (uses.d || raw.d == 0)
        && (uses.a || raw.a == 0)
        && (uses.b || raw.b == 0)
        && (uses.immediate || immediate == 0);
    // INVARIANT: registers are checked here, targets above.
    let is_register = |index: u8| index < PROGRAM_REGISTERS;
    let is_good = is_unused_zero && is_register(raw.d) && is_register(raw.a) && is_register(raw.b);
    is_good.then_some(Instruction {
        action,
        d: raw.d.into(),
        a: raw.a.into(),
        b: raw.b.into(),
        immediate,
    })
}

fn ordering(order: MemoryOrder) -> Option<Ordering> {
    Some(match order {
        MemoryOrder::RELAXED => Ordering::Relaxed,
        MemoryOrder::ACQUIRE => Ordering::Acquire,
        MemoryOrder::RELEASE => Ordering::Release,
        MemoryOrder::ACQUIRE_RELEASE => Ordering::AcqRel,
        MemoryOrder::SEQ_CST => Ordering::SeqCst,
        _ => return None,
    })
}
