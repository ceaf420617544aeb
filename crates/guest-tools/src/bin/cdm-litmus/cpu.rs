// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A thread of a test on a CPU: the same loop as the device's.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use cdm_guest_tools::memory::Mapping;

use crate::layout::{INSTANCES, LINE_BYTES, Layout, WORD_BYTES};
use crate::shape::{LOCATIONS_MAX, Places, Thread};

/// Times that a CPU looks for the others before it goes on without them. It takes longer than an
/// instance of the device's, which is slower than a CPU, so that the device catches up.
const PATIENCE: u64 = 2000;
/// Longest pause before an instance, as a power of two.
pub const PAUSE_SHIFT_MAX: usize = 8;

/// Runs all instances of a batch; at how many of them somebody was missing, or nothing if the batch
/// was given up.
pub fn run(
    thread: &Thread,
    number: usize,
    layout: &Layout,
    memory: &Mapping,
    is_given_up: &AtomicBool,
) -> Option<u64> {
    let word = |offset: usize| memory.word(offset);
    let column = |offset: usize| &memory.words()[offset / WORD_BYTES..][..INSTANCES];
    let own = word(layout.meeting(number));
    let others: Vec<&AtomicU64> = (0..layout.threads())
        .filter(|&other| other != number)
        .map(|other| word(layout.meeting(other)))
        .collect();
    let pauses = column(layout.pauses(number));
    let reads: Vec<&[AtomicU64]> = (0..thread.reads())
        .map(|read| column(layout.reads(number, read)))
        .collect();
    let lines: [&[AtomicU64]; LOCATIONS_MAX] = std::array::from_fn(|location| {
        // A location that the test does not have is not accessed.
        let location = location.min(layout.locations() - 1);
        let words = INSTANCES * LINE_BYTES / WORD_BYTES;
        &memory.words()[layout.location(location) / WORD_BYTES..][..words]
    });

    // No instance begins before everybody is there.
    own.store(1, Relaxed);
    for other in &others {
        while other.load(Relaxed) == 0 {
            if is_given_up.load(Relaxed) {
                return None;
            }
            thread::yield_now();
        }
    }
    let mut missed = 0;
    for instance in 0..INSTANCES {
        let line = instance * LINE_BYTES / WORD_BYTES;
        let places: Places<'_> = [&lines[0][line], &lines[1][line], &lines[2][line]];
        let pause = pauses[instance].load(Relaxed);
        let turn = instance as u64 + 2;
        own.store(turn, Relaxed);
        for other in &others {
            missed += u64::from(!is_there(other, turn));
        }
        for turn in 0..pause {
            black_box(turn);
        }
        let found = (thread.on_cpu)(&places);
        for (column, value) in reads.iter().zip(found.all()) {
            column[instance].store(*value, Relaxed);
        }
    }
    Some(missed)
}

/// Waits for somebody to come to a turn, but not for ever.
fn is_there(other: &AtomicU64, turn: u64) -> bool {
    (0..PATIENCE).any(|_| other.load(Relaxed) >= turn)
}
