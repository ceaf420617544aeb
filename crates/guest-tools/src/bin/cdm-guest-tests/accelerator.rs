// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that calculate, against the CPU; programs together with the CPU; and what a
//! signal does to a command that waits.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use cdm_guest_tools::accelerator::{Bins, Code, Elements, Number};
use cdm_guest_tools::device::{Answer, Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use cdm_protocol::{MemoryOrder, PROGRAM_STEPS_MAX, Status};
use nix::sys::mman::MmapAdvise;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::fixture::Fixture;

crate::tests!("accelerator":
    sums_are_those_of_the_cpu_to_the_bit,
    sum_over_more_pieces_than_a_command_takes_is_one_sum,
    axpy_changes_elements_as_the_cpu_does_and_nothing_between,
    chase_follows_a_list_of_the_processs_own_addresses,
    chase_never_leaves_its_operand,
    histogram_over_many_pieces_counts_what_the_cpu_counts,
    program_and_cpu_pass_messages_through_device_and_system_memory,
    additions_of_program_and_cpu_are_none_lost,
    program_that_leaves_its_memory_or_never_ends_is_stopped,
    signal_cancels_a_command_that_waits,
);

/// Rounds of what program and CPU do together.
const ROUNDS: u64 = 5_000;

/// Memory in the device and the same in the system.
fn both(t: &Fixture, pages: usize, seed: u64) -> Result<[Mapping; 2]> {
    Ok([
        t.resident_memory(pages, seed)?,
        t.system_memory(pages, seed)?,
    ])
}

/// Memory whose pages lie in the device and in the system by turns.
pub fn mixed(t: &Fixture, pages: usize, seed: u64) -> Result<Mapping> {
    let memory = Mapping::anonymous(pages * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(seed);
    for page in (0..pages).step_by(2) {
        t.move_all(memory.page_range(page, 1), Direction::ToDevice)?;
    }
    Ok(memory)
}

/// Every kind of elements, with and without gaps.
fn all_elements() -> impl Iterator<Item = Elements> {
    [Number::U32, Number::U64, Number::F32]
        .into_iter()
        .flat_map(|number| [0, 24].map(|stride| Elements { number, stride }))
}

fn sums_are_those_of_the_cpu_to_the_bit(t: &Fixture) -> Result<()> {
    for memory in both(t, 8, 1)? {
        let bytes = memory.read_bytes(memory.bytes());
        // Begins and ends inside a page, at no multiple of the elements.
        let span = Span {
            offset: 3,
            bytes: memory.bytes() - 8 - 3 - 5,
        };
        for elements in all_elements() {
            let part = &bytes[span.offset..span.offset + span.bytes];
            let expected = elements.sum(7, elements.read(part));
            let answer = t.device.sum(&memory, span, elements, 7)?;
            ensure!(
                (answer.ok()?, answer.bytes_done) == (expected, span.bytes as u64),
                "{elements:?}: {answer:?}, not {expected:#x}"
            );
        }
    }
    Ok(())
}

fn sum_over_more_pieces_than_a_command_takes_is_one_sum(t: &Fixture) -> Result<()> {
    let memory = mixed(t, 1200, 2)?;
    let bytes = memory.read_bytes(memory.bytes());
    for number in [Number::U64, Number::F32] {
        for stride in [0, 24, 8192] {
            let elements = Elements { number, stride };
            let expected = elements.sum(0, elements.read(&bytes));
            let found = t
                .device
                .sum(&memory, Span::all(&memory), elements, 0)?
                .ok()?;
            ensure!(
                found == expected,
                "{elements:?}: {found:#x}, not {expected:#x}"
            );
        }
    }
    Ok(())
}

fn axpy_changes_elements_as_the_cpu_does_and_nothing_between(t: &Fixture) -> Result<()> {
    const PAGES: usize = 600;
    let x = mixed(t, PAGES, 3)?;
    let xs = x.read_bytes(x.bytes());
    for elements in all_elements() {
        let y = t.resident_memory(PAGES, 4)?;
        let mut expected = y.read_bytes(y.bytes());
        let width = elements.number.bytes();
        let stride = (elements.stride as usize).max(width);
        let old: Vec<u64> = elements.read(&expected).collect();
        for (index, (a, b)) in elements.read(&xs).zip(old).enumerate() {
            let value = elements.axpy(0x4040_0000, a, b).to_le_bytes();
            expected[index * stride..][..width].copy_from_slice(&value[..width]);
        }
        let operands = ((&x, Span::all(&x)), (&y, Span::all(&y)));
        let answer = t
            .device
            .axpy(operands.0, operands.1, elements, 0x4040_0000)?;
        answer.ok()?;
        ensure!(answer.bytes_done == x.bytes() as u64, "{answer:?}");
        let found = y.read_bytes(y.bytes());
        if let Some(at) = found.iter().zip(&expected).position(|(a, b)| a != b) {
            bail!("{elements:?}: byte {at} is {:#x}", found[at]);
        }
        x.check_pattern(3)?;
    }
    Ok(())
}

/// Makes one cycle of all words, in random order; every word holds the address of the next.
fn make_cycle(memory: &Mapping, random: &mut Random) {
    let words = memory.words();
    let mut order: Vec<usize> = (0..words.len()).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, random.below(index + 1));
    }
    for (index, &word) in order.iter().enumerate() {
        let next = order[(index + 1) % order.len()];
        words[word].store(memory.address() + next as u64 * 8, Relaxed);
    }
}

fn chase_follows_a_list_of_the_processs_own_addresses(t: &Fixture) -> Result<()> {
    let mut random = Random::new(t.seed);
    for memory in [t.resident_memory(64, 5)?, mixed(t, 64, 5)?] {
        make_cycle(&memory, &mut random);
        for hops in [1, 1000, 100_000] {
            let mut at = memory.address();
            for _ in 0..hops {
                at = memory.word((at - memory.address()) as usize).load(Relaxed);
            }
            let chased = t
                .device
                .chase(&memory, Span::all(&memory), memory.address(), hops)?;
            ensure!(
                (chased.ok()?, chased.bytes_done) == (at, u64::from(hops) * 8),
                "{hops} hops: {chased:?}, not {at:#x}"
            );
        }
    }
    Ok(())
}

fn chase_never_leaves_its_operand(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(2, 6)?;
    let base = memory.address();
    let half = Span {
        offset: 0,
        bytes: PAGE_BYTES,
    };
    memory.word(0).store(base + 16, Relaxed);
    for outside in [0, base - 8, base + PAGE_BYTES as u64, base + 20, u64::MAX] {
        memory.word(16).store(outside, Relaxed);
        let answer = t.device.chase(&memory, half, base, 3)?;
        let expected = Answer {
            status: Status::BAD_POINTER,
            result: 0,
            bytes_done: 16,
        };
        ensure!(answer == expected, "{outside:#x}: {answer:?}");
    }
    Ok(())
}

fn histogram_over_many_pieces_counts_what_the_cpu_counts(t: &Fixture) -> Result<()> {
    const BINS: usize = 1000;
    let source = mixed(t, 1200, 7)?;
    let bytes = source.read_bytes(source.bytes());
    for counters in both(t, BINS * 8 / PAGE_BYTES + 1, 0)? {
        counters.fill(5);
        let bins = Bins {
            base: 10_000,
            width: 50,
        };
        let span = Span {
            offset: 0,
            bytes: BINS * 8,
        };
        let operands = ((&source, Span::all(&source)), (&counters, span));
        let outside = t.device.histogram(operands.0, operands.1, 2, bins)?.ok()?;
        let mut expected = vec![5u64; BINS];
        let mut expected_outside = 0;
        for element in bytes.chunks(2) {
            let value = u64::from(u16::from_le_bytes([element[0], element[1]]));
            let bin = value.checked_sub(bins.base).map(|value| value / bins.width);
            match bin.and_then(|bin| expected.get_mut(bin as usize)) {
                Some(count) => *count += 1,
                None => expected_outside += 1,
            }
        }
        ensure!(
            outside == expected_outside,
            "{outside}, not {expected_outside}"
        );
        let counts = counters.words()[..BINS]
            .iter()
            .map(|word| word.load(Relaxed));
        ensure!(counts.eq(expected), "the counters differ from the CPU's");
        // What is behind the counters is not theirs.
        ensure!(counters.word(BINS * 8).load(Relaxed) == 5);
    }
    Ok(())
}

/// Round by round: waits for the CPU's flag, takes the CPU's message, and gives it back as its
/// own, by message and flag in the other page.
fn echo() -> Code {
    use MemoryOrder as M;
    const PAGE: u64 = PAGE_BYTES as u64;
    let mut code = Code::new();
    // Register 1 is the round, 2 the last one.
    code.set(2, ROUNDS).add(1, 1, 15, 1);
    let wait = code.here();
    code.pause()
        .load(M::ACQUIRE, 3, 15, 0)
        .jump_not_equal(3, 1, wait)
        .load(M::RELAXED, 4, 15, 8)
        .store(M::RELAXED, 4, 15, PAGE + 8)
        .store(M::RELEASE, 1, 15, PAGE)
        .add(0, 0, 4, 0)
        .jump_not_equal(1, 2, 1);
    code
}

fn program_and_cpu_pass_messages_through_device_and_system_memory(t: &Fixture) -> Result<()> {
    // The CPU's page in the system and the program's in the device, and the other way round.
    for in_device in [0, 1] {
        let memory = Mapping::anonymous(2 * PAGE_BYTES)?;
        memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
        memory.fill(0);
        t.move_all(memory.page_range(in_device, 1), Direction::ToDevice)?;
        let (flag, message) = (memory.word(0), memory.word(8));
        let (echo_flag, echo_message) = (memory.word(PAGE_BYTES), memory.word(PAGE_BYTES + 8));
        let sum = thread::scope(|scope| -> Result<u64> {
            let program = scope.spawn(|| {
                let operand = (&memory, Span::all(&memory));
                t.device.program(&echo(), operand, 0, PROGRAM_STEPS_MAX)
            });
            for round in 1..=ROUNDS {
                message.store(round * 3, Relaxed);
                flag.store(round, Release);
                while echo_flag.load(Acquire) != round {
                    if program.is_finished() {
                        break;
                    }
                    thread::yield_now();
                }
                let found = echo_message.load(Relaxed);
                ensure!(found == round * 3, "round {round}: {found}");
            }
            Ok(program.join().expect("the thread only waits")?.ok()?)
        })?;
        let expected = 3 * ROUNDS * (ROUNDS + 1) / 2;
        ensure!(sum == expected, "{sum}, not {expected}");
    }
    Ok(())
}

fn additions_of_program_and_cpu_are_none_lost(t: &Fixture) -> Result<()> {
    const EACH: u64 = 200_000;
    let mut code = Code::new();
    code.set(1, 1).set(2, EACH);
    let again = code.here();
    code.atomic_add(MemoryOrder::RELAXED, 3, 1, 15, 0)
        .add(2, 2, 15, u64::MAX)
        .jump_not_equal(2, 15, again);
    for memory in both(t, 1, 8)? {
        memory.word(0).store(0, SeqCst);
        let answer = thread::scope(|scope| {
            let program = scope.spawn(|| {
                let operand = (&memory, Span::all(&memory));
                t.device.program(&code, operand, 0, PROGRAM_STEPS_MAX)
            });
            for _ in 0..EACH {
                memory.word(0).fetch_add(1, Relaxed);
            }
            program.join().expect("the thread only waits")
        })?;
        ensure!(answer.bytes_done == 2 + 3 * EACH, "{answer:?}");
        let sum = memory.word(0).load(SeqCst);
        ensure!(sum == 2 * EACH, "{sum}, not {}", 2 * EACH);
    }
    Ok(())
}

fn program_that_leaves_its_memory_or_never_ends_is_stopped(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(1, 9)?;
    let run = |code: &Code| {
        t.device
            .program(code, (&memory, Span::all(&memory)), 0, 1000)
    };
    let mut code = Code::new();
    code.load(MemoryOrder::RELAXED, 0, 15, 8)
        .store(MemoryOrder::RELAXED, 0, 15, PAGE_BYTES as u64);
    let answer = run(&code)?;
    let expect = |status, bytes_done| Answer {
        status,
        result: 0,
        bytes_done,
    };
    ensure!(answer == expect(Status::BAD_POINTER, 1), "{answer:?}");
    let mut code = Code::new();
    code.jump_equal(0, 0, 0);
    let answer = run(&code)?;
    ensure!(answer == expect(Status::STEP_LIMIT, 1000), "{answer:?}");
    let mut code = Code::new();
    code.set(16, 0);
    let answer = run(&code)?;
    ensure!(answer == expect(Status::BAD_PROGRAM, 0), "{answer:?}");
    memory.check_pattern(9)?;
    Ok(())
}

/// Longest that the driver may take to stop a command after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(5);

extern "C" fn on_signal(_: libc::c_int) {}

fn signal_cancels_a_command_that_waits(t: &Fixture) -> Result<()> {
    let handler = SigHandler::Handler(on_signal);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    let memory = t.resident_memory(1, 10)?;
    memory.fill(0);
    // Says that it is there, waits for ever, and would say that it was let through.
    let mut code = Code::new();
    code.set(1, 1).store(MemoryOrder::SEQ_CST, 1, 15, 0);
    let wait = code.here();
    code.pause()
        .load(MemoryOrder::ACQUIRE, 2, 15, 8)
        .jump_equal(2, 15, wait)
        .store(MemoryOrder::SEQ_CST, 1, 15, 16);
    let (is_over, waiter) = (AtomicBool::new(false), AtomicU64::new(0));
    let (result, took) = thread::scope(|scope| -> Result<_> {
        let program = scope.spawn(|| {
            // SAFETY: takes nothing, and cannot fail.
            waiter.store(unsafe { libc::pthread_self() }, Release);
            let operand = (&memory, Span::all(&memory));
            let result = t.device.program(&code, operand, 0, PROGRAM_STEPS_MAX);
            is_over.store(true, Release);
            result
        });
        while memory.word(0).load(Acquire) == 0 && !is_over.load(Acquire) {
            thread::yield_now();
        }
        let start = Instant::now();
        // SAFETY: the thread has stored its own handle, and is not joined yet.
        unsafe { libc::pthread_kill(waiter.load(Acquire), libc::SIGUSR1) };
        let result = program.join().expect("the thread only waits");
        Ok((result, start.elapsed()))
    })?;
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
        other => bail!("the wait ended with {other:?}"),
    }
    ensure!(took < STOP_LIMIT, "it took {took:?}");
    // Nobody is at the gate any more, and nothing holds the page.
    memory.word(8).store(1, SeqCst);
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.device.nop()?.ok()?;
    let passed = memory.word(16).load(SeqCst);
    ensure!(passed == 0, "the program went on");
    Ok(())
}
