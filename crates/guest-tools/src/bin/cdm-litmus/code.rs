// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A thread of a test as a PROGRAM of the device: a loop over all instances of a batch.

use std::sync::atomic::Ordering;

use cdm_guest_tools::accelerator::Code;
use cdm_protocol::MemoryOrder;

use crate::layout::{INSTANCES, LINE_BYTES, Layout, WORD_BYTES};
use crate::shape::{Access, READS_MAX, Thread};

/// Times that the device looks for the others before it goes on without them. It takes longer than
/// an instance, so whoever is behind catches up.
const PATIENCE: u64 = 100;
/// Turns of the device's wait for the others before the first instance: many seconds.
const START_TURNS: u64 = 20_000_000;
/// Longest pause before an instance, as a power of two.
pub const PAUSE_SHIFT_MAX: usize = 5;

/// Counts the instances at which somebody was missing.
const MISSED: u8 = 0;
/// Offset of the instance in the array of each location.
const LINE: u8 = 1;
/// Offset of the instance in each column.
const WORD: u8 = 2;
/// What the thread tells at this meeting.
const TURN: u8 = 3;
const SCRATCH: u8 = 4;
/// Counts down.
const COUNT: u8 = 5;
/// Offset behind the last instance in a column.
const END: u8 = 6;
/// Holds what was read; the others follow.
const READ: u8 = 7;
/// Holds what is written; the others follow.
const VALUE: u8 = READ + READS_MAX as u8;
/// Never written.
const ZERO: u8 = 15;

/// The program of a thread, and how many steps it may take.
pub fn program(thread: &Thread, number: usize, layout: &Layout) -> (Code, u64) {
    let mut code = Code::new();
    let others = || (0..layout.threads()).filter(move |&other| other != number);
    let meeting = |thread: usize| layout.meeting(thread) as u64;

    code.set(TURN, 1).set(END, (INSTANCES * WORD_BYTES) as u64);
    let values = values_of(thread);
    for (index, &value) in values.iter().enumerate() {
        code.set(VALUE + index as u8, value);
    }
    let register_of = |value: u64| {
        let index = values.iter().position(|&known| known == value);
        VALUE + index.expect("it is one of the thread's values") as u8
    };

    // No instance begins before everybody is there.
    code.store(MemoryOrder::RELAXED, TURN, ZERO, meeting(number));
    for other in others() {
        let look = code.here();
        code.pause()
            .load(MemoryOrder::RELAXED, SCRATCH, ZERO, meeting(other))
            .jump_less(SCRATCH, TURN, look);
    }

    let next_instance = code.here();
    code.add(TURN, TURN, ZERO, 1)
        .store(MemoryOrder::RELAXED, TURN, ZERO, meeting(number));
    for other in others() {
        code.set(COUNT, PATIENCE);
        let look = code.here();
        let (absent, gone_on) = (look + 3, look + 6);
        code.load(MemoryOrder::RELAXED, SCRATCH, ZERO, meeting(other))
            .jump_less(SCRATCH, TURN, absent)
            .jump_equal(ZERO, ZERO, gone_on)
            .add(COUNT, COUNT, ZERO, u64::MAX)
            .jump_not_equal(COUNT, ZERO, look)
            .add(MISSED, MISSED, ZERO, 1);
    }
    code.load(
        MemoryOrder::RELAXED,
        COUNT,
        WORD,
        layout.pauses(number) as u64,
    );
    let pause = code.here();
    code.jump_equal(COUNT, ZERO, pause + 3)
        .add(COUNT, COUNT, ZERO, u64::MAX)
        .jump_equal(ZERO, ZERO, pause);

    let mut reads = 0;
    for &access in thread.accesses {
        let read = READ + reads;
        reads += u8::from(access.reads());
        let offset = |location| layout.location(location) as u64;
        match access {
            Access::Load { location, order } => {
                code.load(on_wire(order), read, LINE, offset(location));
            }
            Access::Store {
                location,
                value,
                order,
            } => {
                code.store(on_wire(order), register_of(value), LINE, offset(location));
            }
            Access::Add {
                location,
                addend,
                order,
            } => {
                let addend = register_of(addend);
                code.atomic_add(on_wire(order), read, addend, LINE, offset(location));
            }
            Access::Swap {
                location,
                value,
                order,
            } => {
                let value = register_of(value);
                code.atomic_swap(on_wire(order), read, value, LINE, offset(location));
            }
            Access::CompareSwap {
                location,
                expected,
                new,
                order,
            } => {
                let new = register_of(new);
                code.set(read, expected).atomic_compare_swap(
                    on_wire(order),
                    read,
                    new,
                    LINE,
                    offset(location),
                );
            }
            Access::Fence { order } => {
                code.barrier(on_wire(order));
            }
        }
    }
    for read in 0..reads {
        let column = layout.reads(number, read.into()) as u64;
        code.store(MemoryOrder::RELAXED, READ + read, WORD, column);
    }
    code.add(LINE, LINE, ZERO, LINE_BYTES as u64)
        .add(WORD, WORD, ZERO, WORD_BYTES as u64)
        .jump_not_equal(WORD, END, next_instance);

    let limit = steps_max(code.here(), others().count() as u64);
    (code, limit)
}

/// Steps that a program of so many instructions takes at most.
fn steps_max(instructions: u64, others: u64) -> u64 {
    let waits = (4 * PATIENCE + 1) * others + 3 * (1 << PAUSE_SHIFT_MAX);
    let instances = INSTANCES as u64 * (instructions + waits);
    3 * START_TURNS + instances
}

/// What a thread writes, each value once.
fn values_of(thread: &Thread) -> Vec<u64> {
    let mut values: Vec<u64> = thread
        .accesses
        .iter()
        .filter_map(|access| match *access {
            Access::Store { value, .. } | Access::Swap { value, .. } => Some(value),
            Access::Add { addend, .. } => Some(addend),
            Access::CompareSwap { new, .. } => Some(new),
            Access::Load { .. } | Access::Fence { .. } => None,
        })
        .collect();
    values.sort_unstable();
    values.dedup();
    assert!(VALUE as usize + values.len() <= ZERO as usize);
    values
}

/// The same order by its number on the wire.
fn on_wire(order: Ordering) -> MemoryOrder {
    match order {
        Ordering::Relaxed => MemoryOrder::RELAXED,
        Ordering::Acquire => MemoryOrder::ACQUIRE,
        Ordering::Release => MemoryOrder::RELEASE,
        Ordering::AcqRel => MemoryOrder::ACQUIRE_RELEASE,
        _ => MemoryOrder::SEQ_CST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TESTS;
    use cdm_protocol::{Operator, PROGRAM_INSTRUCTIONS_MAX, PROGRAM_STEPS_MAX};

    #[test]
    fn every_program_is_within_the_limits_of_the_device() {
        for test in TESTS {
            let layout = Layout::new(test);
            for (number, thread) in test.threads.iter().enumerate() {
                let (code, limit) = program(thread, number, &layout);
                assert!(code.here() <= u64::from(PROGRAM_INSTRUCTIONS_MAX));
                assert!(limit <= PROGRAM_STEPS_MAX);
            }
        }
    }

    #[test]
    fn no_access_but_those_of_the_test_has_an_order() {
        // What paces the threads must not order what they are tested for.
        for test in TESTS {
            let layout = Layout::new(test);
            for (number, thread) in test.threads.iter().enumerate() {
                let (code, _) = program(thread, number, &layout);
                let mut ordered = thread
                    .accesses
                    .iter()
                    .filter(|access| !format!("{access}").ends_with(" relaxed"));
                for instruction in code.instructions() {
                    let none = [MemoryOrder(0.into()), MemoryOrder::RELAXED];
                    if !none.contains(&instruction.order) {
                        let access = ordered.next().expect("an access of the test");
                        let is_barrier = instruction.operator == Operator::BARRIER;
                        assert_eq!(is_barrier, access.location().is_none(), "{}", test.name);
                    }
                }
                assert!(ordered.next().is_none(), "{}", test.name);
            }
        }
    }
}
