// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PROGRAM: single accesses to memory in an order that the driver chose.
//!
//! Each access is one access of the host's, with the order that the instruction asks for,
//! so what the guest's CPUs may see of it is what the host's memory model allows.

use super::{Progress, Word};
use crate::model::access::{Stop, Uses, WordAccess};
use crate::model::request::{Action, AtomicWidth, Code};
use cdm_protocol::{PROGRAM_REGISTERS, Status};
use std::hint;
use std::sync::atomic::fence;
use std::thread;

/// Instructions between two looks at the cancellation: some tens of microseconds.
const PIECE_STEPS: u64 = 4096;

/// Carries out at most `limit` instructions on the words of an operand; register 0 begins
/// with `argument`, the others with zero.
pub fn program(
    code: &Code,
    words: &impl WordAccess,
    argument: u64,
    limit: u64,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let mut registers = [0u64; PROGRAM_REGISTERS as usize];
    registers[0] = argument;
    let mut next = 0;
    for step in 0..limit {
        if step.is_multiple_of(PIECE_STEPS) && cancelled() {
            return Progress::cancelled(step);
        }
        let Some(instruction) = code.get(next) else {
            return Progress::finished(registers[0], step);
        };
        next += 1;
        let (a, b) = (registers[instruction.a], registers[instruction.b]);
        let number = instruction.immediate;
        let place = a.wrapping_add(number);
        let outcome = match instruction.action {
            Action::End => return Progress::finished(registers[0], step + 1),
            Action::Set => number,
            Action::Move => a,
            Action::Add => a.wrapping_add(b).wrapping_add(number),
            Action::Subtract => a.wrapping_sub(b),
            Action::And => a & b,
            // Less than 64: checked when the program was read.
            Action::ShiftLeft => a << number,
            Action::Load { width, order } => {
                match words.with(place, width, Uses::READ, |word| word.load(order)) {
                    Ok(value) => value,
                    Err(stop) => return Progress::stopped(stop, step),
                }
            }
            Action::Store { width, order } => {
                match words.with(place, width, Uses::WRITE, |word| word.store(b, order)) {
                    Ok(()) => continue,
                    Err(stop) => return Progress::stopped(stop, step),
                }
            }
            Action::AtomicAdd { width, order } => {
                match change(words, place, width, |word| word.fetch_add(b, order)) {
                    Ok(found) => found,
                    Err(stop) => return Progress::stopped(stop, step),
                }
            }
            Action::AtomicSwap { width, order } => {
                match change(words, place, width, |word| word.swap(b, order)) {
                    Ok(found) => found,
                    Err(stop) => return Progress::stopped(stop, step),
                }
            }
            Action::AtomicCompareSwap { width, order } => {
                let expected = registers[instruction.d];
                let swap = |word: Word<'_>| word.compare_swap(expected, b, order);
                match change(words, place, width, swap) {
                    Ok(Ok(found) | Err(found)) => found,
                    Err(stop) => return Progress::stopped(stop, step),
                }
            }
            Action::Barrier { order } => {
                fence(order);
                continue;
            }
            Action::Pause => {
                if cancelled() {
                    return Progress::cancelled(step);
                }
                hint::spin_loop();
                thread::yield_now();
                continue;
            }
            Action::Jump { condition, target } => {
                if condition.holds(a, b) {
                    next = target;
                }
                continue;
            }
        };
        registers[instruction.d] = outcome;
    }
    // The end of the list is no instruction, and the limit does not matter there.
    if code.get(next).is_none() {
        return Progress::finished(registers[0], limit);
    }
    Progress::stopped(Status::STEP_LIMIT, limit)
}

/// Does something to a word that loads and stores in one.
fn change<T>(
    words: &impl WordAccess,
    place: u64,
    width: AtomicWidth,
    action: impl FnOnce(Word<'_>) -> T,
) -> Result<T, Stop> {
    words.with(place, width, Uses::ATOMIC, action)
}
