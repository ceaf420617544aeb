// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands on addresses of the process: nothing is pinned, the device faults in what it needs,
//! and what the process gives up it never touches again.

use std::fs;
use std::io::{self, Read, Seek};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::accelerator::{Bins, Code, Elements, Number};
use cdm_guest_tools::device::{Answer, Bound, Comparison, Device, Direction, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES, WORD_BYTES};
use cdm_guest_tools::uapi::{
    CDM_CAN_BIND, CDM_COMMAND_SVA, CDM_IOCTL_BIND, CDM_IOCTL_COMMAND, cdm_bind, cdm_command,
};
use cdm_guest_tools::userfault::Userfault;
use cdm_protocol::{FEATURE_SVA, MemoryOrder, Opcode, PROGRAM_STEPS_MAX, Status};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::fixture::{Fixture, expect_errno, figure};
use crate::isolate::Child;
use crate::stores::memory_file;
use cdm_guest_tools::wait;

crate::tests!("addresses":
    driver_says_that_it_can_bind_where_the_device_can_translate,
    untouched_memory_is_faulted_in_by_every_operation,
    memory_of_one_byte_to_many_megabytes_is_copied_from_any_address,
    stack_of_the_caller_is_an_operand,
    shared_file_gets_what_the_device_stores_and_a_private_mapping_keeps_it,
    huge_pages_are_read_and_written_as_a_whole_and_in_parts,
    pages_in_the_device_stay_there,
    additions_are_none_lost_while_pages_move,
    contents_are_right_while_pages_move,
    additions_of_device_and_cpu_on_one_address_are_none_lost,
    unmapped_pages_that_are_used_again_are_not_written_to,
    dropped_pages_that_are_used_again_are_not_written_to,
    dropped_pages_are_zero_for_the_device,
    nothing_is_stored_after_memory_became_read_only,
    store_of_the_parent_after_a_fork_does_not_reach_the_child,
    memory_that_moved_is_found_at_its_new_address_and_not_at_the_old,
    pages_that_are_not_there_or_not_allowed_end_a_command_with_their_status,
    page_beyond_the_end_of_a_file_is_a_page_error,
    binding_is_refused_where_it_cannot_be,
    commands_without_a_binding_are_refused,
    binding_belongs_to_the_process_that_made_it,
    processes_with_equal_addresses_see_their_own_memory,
    unbind_ends_a_command_that_runs,
    closed_file_gives_its_address_space_back,
    process_that_is_killed_in_a_command_leaves_nothing_behind,
    page_that_user_space_serves_is_waited_for_and_nobody_else_waits,
    page_that_takes_longer_than_the_device_may_is_no_reason_to_reset_it,
    signal_cancels_a_command_that_waits_for_a_page,
    unbind_ends_a_command_that_waits_for_a_page,
);

/// Longest wait for something that takes milliseconds on a quiet machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Binds this process to the first device, by a file of its own.
pub fn bind() -> Result<Bound> {
    Bound::open(0).context("cannot bind this process")
}

/// Memory of single pages that nobody has touched.
pub fn untouched(pages: usize) -> Result<Mapping> {
    let memory = Mapping::anonymous(pages * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    Ok(memory)
}

/// Waits until something is so.
fn wait_until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    wait::wait_until(LIMIT, &format!("not so: {what}"), is_so)
}

/// Sends a command on addresses as they are: memory of the test's own that it accesses by atomics
/// alone, or no memory at all.
fn raw(device: &Device, command: cdm_command) -> io::Result<Answer> {
    let mut command = cdm_command {
        flags: command.flags | CDM_COMMAND_SVA,
        ..command
    };
    // SAFETY: the driver writes the structure; operands are as said above.
    unsafe { device.ioctl(CDM_IOCTL_COMMAND, (&raw mut command).cast()) }?;
    Ok(Answer::from(&command))
}

/// A FILL of words.
fn fill(address: u64, bytes: usize, value: u64) -> cdm_command {
    cdm_command {
        opcode: Opcode::FILL.get().into(),
        destination: address,
        length: bytes as u64,
        width: WORD_BYTES as u32,
        arg0: value,
        ..Default::default()
    }
}

/// A CHECKSUM.
fn checksum(address: u64, bytes: usize) -> cdm_command {
    cdm_command {
        opcode: Opcode::CHECKSUM.get().into(),
        source: address,
        length: bytes as u64,
        ..Default::default()
    }
}

fn expect_status(answer: io::Result<Answer>, status: Status) -> Result<Answer> {
    match answer {
        Ok(answer) if answer.status == status => Ok(answer),
        other => bail!("expected {status:?}, got {other:?}"),
    }
}

/// Says that it is there in the first word, and waits for the second one for ever.
pub fn endless() -> Code {
    let mut code = Code::new();
    code.set(1, 1).store(MemoryOrder::SEQ_CST, 1, 15, 0);
    let wait = code.here();
    code.pause()
        .load(MemoryOrder::ACQUIRE, 2, 15, 8)
        .jump_equal(2, 15, wait);
    code
}

fn driver_says_that_it_can_bind_where_the_device_can_translate(t: &Fixture) -> Result<()> {
    ensure!(
        t.start.device_features & FEATURE_SVA != 0,
        "the device does not translate: {:#x}",
        t.start.device_features
    );
    ensure!(
        t.start.capabilities & CDM_CAN_BIND != 0,
        "{:#x}",
        t.start.capabilities
    );
    let before = figure("address_spaces")?;
    let bound = bind()?;
    ensure!(bound.pasid() != 0, "a PASID of zero is none");
    ensure!(figure("address_spaces")? == before + 1);
    drop(bound);
    ensure!(figure("address_spaces")? == before);
    Ok(())
}

fn untouched_memory_is_faulted_in_by_every_operation(_: &Fixture) -> Result<()> {
    const PAGES: usize = 20;
    let bound = bind()?;
    let all = Span {
        offset: 0,
        bytes: PAGES * PAGE_BYTES,
    };
    let bytes = all.bytes as u64;
    let filled = untouched(PAGES)?;
    bound.fill(&filled, all, 8, 7)?.ok()?;
    filled.check_fill(7)?;

    let copied = untouched(PAGES)?;
    let answer = bound.copy((&filled, all), (&copied, all))?;
    ensure!(
        (answer.ok()?, answer.bytes_done) == (0, bytes),
        "{answer:?}"
    );
    copied.check_fill(7)?;

    let empty = untouched(PAGES)?;
    let crc = bound.checksum(&empty, all, 0)?;
    ensure!(crc == untouched(PAGES)?.crc32c(all.bytes), "CRC {crc:#x}");
    let other = untouched(PAGES)?;
    let compared = bound.compare((&empty, all), (&other, all))?;
    ensure!(compared == Comparison::Equal, "{compared:?}");

    let elements = Elements {
        number: Number::U64,
        stride: 0,
    };
    let sum = bound.sum(&untouched(PAGES)?, all, elements, 5)?.ok()?;
    ensure!(sum == 5, "the sum of zeroes and 5 is {sum}");
    let y = untouched(PAGES)?;
    bound.axpy((&filled, all), (&y, all), elements, 3)?.ok()?;
    y.check_fill(21)?;

    let counters = untouched(1)?;
    let one = Span {
        offset: 0,
        bytes: WORD_BYTES,
    };
    let bins = Bins { base: 7, width: 1 };
    let outside = bound.histogram((&filled, all), (&counters, one), 8, bins)?;
    ensure!(outside.ok()? == 0, "{outside:?}");
    let counted = counters.word(0).load(Relaxed);
    ensure!(counted == bytes / 8, "{counted} of {} elements", bytes / 8);

    let chased = untouched(1)?;
    let answer = bound.chase(&chased, Span::all(&chased), chased.address(), 1)?;
    ensure!(answer.ok()? == 0, "{answer:?}");

    let count = untouched(1)?;
    let before = bound.fetch_add(&count, one, 2, 10)?.ok()?;
    let found = bound.compare_swap(&count, one, 20, 99)?.ok()?;
    ensure!((before, found) == (18, 20), "{before}, {found}");
    ensure!(count.word(0).load(Relaxed) == 99);

    let mut code = Code::new();
    code.set(1, 11)
        .store(MemoryOrder::RELAXED, 1, 15, 3 * PAGE_BYTES as u64)
        .load(MemoryOrder::RELAXED, 0, 15, 5 * PAGE_BYTES as u64)
        .add(0, 0, 1, 0);
    let memory = untouched(PAGES)?;
    let operand = (&memory, Span::all(&memory));
    let result = bound.program(&code, operand, 0, PROGRAM_STEPS_MAX)?.ok()?;
    ensure!(result == 11, "register 0 is {result}");
    ensure!(memory.word(3 * PAGE_BYTES).load(Relaxed) == 11);
    Ok(())
}

fn memory_of_one_byte_to_many_megabytes_is_copied_from_any_address(t: &Fixture) -> Result<()> {
    const BYTES: usize = 24 << 20;
    let bound = bind()?;
    let source = t.system_memory(BYTES / PAGE_BYTES, 1)?;
    let expected = source.read_bytes(BYTES);
    for (offset, bytes) in [
        (PAGE_BYTES - 1, 1),
        (PAGE_BYTES - 1, 2),
        (5, 3 * PAGE_BYTES),
        (HUGE_PAGE_BYTES - 3, HUGE_PAGE_BYTES + 7),
        (0, BYTES),
    ] {
        let target = Mapping::anonymous(BYTES)?;
        let span = Span { offset, bytes };
        let answer = bound.copy((&source, span), (&target, span))?;
        answer.ok()?;
        ensure!(answer.bytes_done == bytes as u64, "{span:?}: {answer:?}");
        let found = target.read_bytes(BYTES);
        let inside = offset..offset + bytes;
        ensure!(
            found[inside.clone()] == expected[inside.clone()],
            "{span:?}"
        );
        let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == 0);
        ensure!(
            is_zero(&found[..offset]) && is_zero(&found[inside.end..]),
            "{span:?}: something beside it was written to"
        );
    }
    Ok(())
}

fn stack_of_the_caller_is_an_operand(_: &Fixture) -> Result<()> {
    const WORDS: usize = 1500;
    let bound = bind()?;
    let array = [const { AtomicU64::new(3) }; WORDS];
    let address = array.as_ptr() as u64;
    let inner = fill(address + 8, (WORDS - 2) * WORD_BYTES, 4);
    expect_status(raw(&bound, inner), Status::OK)?;
    for (index, word) in array.iter().enumerate() {
        let expected = if index == 0 || index == WORDS - 1 {
            3
        } else {
            4
        };
        ensure!(word.load(Relaxed) == expected, "word {index}: {word:?}");
    }
    Ok(())
}

fn shared_file_gets_what_the_device_stores_and_a_private_mapping_keeps_it(
    _: &Fixture,
) -> Result<()> {
    const PAGES: usize = 40;
    const BYTES: usize = PAGES * PAGE_BYTES;
    let bound = bind()?;
    let mut file = memory_file(PAGES * PAGE_BYTES)?;
    let shared = Mapping::shared_file(&file, BYTES)?;
    // Read first, so that the store has to ask for more.
    let crc = bound.checksum(&shared, Span::all(&shared), 0)?;
    ensure!(crc == untouched(PAGES)?.crc32c(BYTES), "CRC {crc:#x}");
    bound.fill(&shared, Span::all(&shared), 1, 0x5a)?.ok()?;
    let mut contents = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut contents)?;
    ensure!(
        contents.len() == BYTES && contents.iter().all(|byte| *byte == 0x5a),
        "the file has something else than the device stored"
    );
    let private = Mapping::private_file(&file, BYTES)?;
    let crc = bound.checksum(&private, Span::all(&private), 0)?;
    ensure!(crc == shared.crc32c(BYTES), "CRC {crc:#x}");
    bound.fill(&private, Span::all(&private), 1, 0x33)?.ok()?;
    private.check_fill(0x3333_3333_3333_3333)?;
    shared.check_fill(0x5a5a_5a5a_5a5a_5a5a)?;
    Ok(())
}

fn huge_pages_are_read_and_written_as_a_whole_and_in_parts(t: &Fixture) -> Result<()> {
    const HUGE: usize = 4;
    let bound = bind()?;
    let memory = t.huge_memory(HUGE, 2)?;
    let crc = bound.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(crc == memory.crc32c(memory.bytes()), "CRC {crc:#x}");
    bound.fill(&memory, Span::all(&memory), 8, 1)?.ok()?;
    memory.check_fill(1)?;
    // A part of a huge page is taken away, and the rest is still right.
    memory.advise_pages(700, 3, MmapAdvise::MADV_DONTNEED)?;
    bound
        .fill(
            &memory,
            Span {
                offset: 512 * PAGE_BYTES,
                bytes: 100 * PAGE_BYTES,
            },
            8,
            2,
        )?
        .ok()?;
    for page in 0..memory.pages() {
        let expected = match page {
            512..612 => 2,
            700..703 => 0,
            _ => 1,
        };
        let found = memory.word(page * PAGE_BYTES + 64).load(Relaxed);
        ensure!(found == expected, "page {page}: {found}, not {expected}");
    }
    let crc = bound.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(crc == memory.crc32c(memory.bytes()), "CRC {crc:#x}");
    Ok(())
}

fn pages_in_the_device_stay_there(t: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = t.resident_memory(64, 3)?;
    let crc = bound.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(crc == memory.crc32c(memory.bytes()), "CRC {crc:#x}");
    bound.fill(&memory, Span::all(&memory), 8, 9)?.ok()?;
    t.expect_in_device(memory.range())?;
    memory.check_fill(9)?;
    Ok(())
}

/// Moves memory to the device and back until something is over; how often.
fn move_until(t: &Fixture, memory: &Mapping, is_over: &AtomicBool) -> Result<u64> {
    let mut moves = 0;
    while !is_over.load(Acquire) {
        for direction in [Direction::ToDevice, Direction::ToSystem] {
            t.device.migrate(0, memory.range(), direction)?;
            moves += 1;
        }
    }
    Ok(moves)
}

/// Runs `work` while another thread moves `memory` about.
fn while_moving(t: &Fixture, memory: &Mapping, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let is_over = AtomicBool::new(false);
    let moves = thread::scope(|scope| {
        let mover = scope.spawn(|| move_until(t, memory, &is_over));
        let done = work();
        is_over.store(true, Release);
        let moves = mover.join().expect("the thread panics nowhere");
        done.and(moves)
    })?;
    t.note(format!("moved {moves} times meanwhile"));
    ensure!(moves >= 2, "the memory did not move");
    Ok(())
}

fn additions_are_none_lost_while_pages_move(t: &Fixture) -> Result<()> {
    const PAGES: u64 = 32;
    const ROUNDS: u64 = 40;
    const EACH: u32 = 200;
    let bound = bind()?;
    let memory = untouched(PAGES as usize)?;
    memory.fill(0);
    while_moving(t, &memory, || {
        for round in 0..ROUNDS * PAGES {
            let span = Span {
                offset: (round % PAGES) as usize * PAGE_BYTES,
                bytes: WORD_BYTES,
            };
            bound.fetch_add(&memory, span, 1, EACH)?.ok()?;
        }
        Ok(())
    })?;
    for page in 0..PAGES as usize {
        let found = memory.word(page * PAGE_BYTES).load(SeqCst);
        let expected = ROUNDS * u64::from(EACH);
        ensure!(found == expected, "page {page}: {found}, not {expected}");
    }
    Ok(())
}

fn contents_are_right_while_pages_move(t: &Fixture) -> Result<()> {
    const PAGES: usize = 700;
    let bound = bind()?;
    let memory = t.system_memory(PAGES, 4)?;
    let expected = memory.crc32c(memory.bytes());
    let copy = Mapping::anonymous(memory.bytes())?;
    while_moving(t, &memory, || {
        for _ in 0..30 {
            let crc = bound.checksum(&memory, Span::all(&memory), 0)?;
            ensure!(crc == expected, "CRC {crc:#x}, not {expected:#x}");
            let operands = ((&memory, Span::all(&memory)), (&copy, Span::all(&copy)));
            bound.copy(operands.0, operands.1)?.ok()?;
            copy.check_pattern(4)?;
            // And the other way round: what moves is written to.
            copy.fill_pattern(4);
            bound.copy(operands.1, operands.0)?.ok()?;
        }
        Ok(())
    })?;
    memory.check_pattern(4)?;
    Ok(())
}

fn additions_of_device_and_cpu_on_one_address_are_none_lost(t: &Fixture) -> Result<()> {
    const ROUNDS: u64 = 50;
    const EACH: u64 = 2_000;
    let bound = bind()?;
    for memory in [untouched(1)?, t.resident_memory(1, 0)?] {
        memory.word(0).store(0, SeqCst);
        let one = Span {
            offset: 0,
            bytes: WORD_BYTES,
        };
        thread::scope(|scope| -> Result<()> {
            let device = scope.spawn(|| -> io::Result<()> {
                for _ in 0..ROUNDS {
                    bound.fetch_add(&memory, one, 1, EACH as u32)?.ok()?;
                }
                Ok(())
            });
            for _ in 0..ROUNDS * EACH {
                memory.word(0).fetch_add(1, Relaxed);
            }
            device.join().expect("the thread panics nowhere")?;
            Ok(())
        })?;
        let found = memory.word(0).load(SeqCst);
        ensure!(found == 2 * ROUNDS * EACH, "{found} additions");
    }
    Ok(())
}

/// A thread that has the device fill some addresses again and again.
struct Filling<'a> {
    bound: &'a Bound,
    address: u64,
    bytes: usize,
    /// FILLs that ended well; the next one's value is one more.
    done: AtomicU64,
    is_over: AtomicBool,
}

impl<'a> Filling<'a> {
    fn new(bound: &'a Bound, memory: &Mapping) -> Self {
        Self {
            bound,
            address: memory.address(),
            bytes: memory.bytes(),
            done: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// Fills until it is over, or the answer is another than OK; the last answer.
    fn run(&self) -> io::Result<Answer> {
        loop {
            let value = self.done.load(Relaxed) + 1;
            let answer = raw(self.bound, fill(self.address, self.bytes, value))?;
            if answer.status != Status::OK || self.is_over.load(Acquire) {
                return Ok(answer);
            }
            self.done.fetch_add(1, Release);
        }
    }

    fn end(&self) {
        self.is_over.store(true, Release);
    }

    /// Waits until so many more FILLs were done.
    fn wait_for(&self, more: u64) -> Result<()> {
        let target = self.done.load(Acquire) + more;
        wait_until("the device fills", || Ok(self.done.load(Acquire) >= target))
    }
}

fn unmapped_pages_that_are_used_again_are_not_written_to(_: &Fixture) -> Result<()> {
    const PAGES: usize = 256;
    let bound = bind()?;
    for round in 0..20 {
        let mut victim = untouched(2 * PAGES)?;
        let all = victim.bytes() as u64;
        // Mapped before, so that it does not take the victim's addresses, and not touched yet, so
        // that it takes its pages.
        let next = untouched(PAGES)?;
        let filling = Filling::new(&bound, &victim);
        let answer = thread::scope(|scope| {
            let thread = scope.spawn(|| filling.run());
            let mut steps = || -> Result<()> {
                filling.wait_for(2)?;
                victim.unmap_tail(PAGES * PAGE_BYTES)?;
                next.fill_pattern(round);
                Ok(())
            };
            let steps = steps();
            if steps.is_err() {
                filling.end();
            }
            let answer = thread.join().expect("the thread panics nowhere");
            steps.map(|()| answer)
        })?;
        let answer = expect_status(answer, Status::UNMAPPED)?;
        // It may have been anywhere in the tail when that went.
        ensure!(answer.bytes_done < all, "{answer:?}");
        next.check_pattern(round)?;
    }
    Ok(())
}

fn dropped_pages_that_are_used_again_are_not_written_to(_: &Fixture) -> Result<()> {
    const PAGES: usize = 128;
    let bound = bind()?;
    let memory = untouched(PAGES)?;
    let filling = Filling::new(&bound, &memory);
    let answer = thread::scope(|scope| {
        let thread = scope.spawn(|| filling.run());
        let steps = || -> Result<()> {
            for round in 0..40 {
                filling.wait_for(1)?;
                let next = untouched(PAGES)?;
                memory.advise(MmapAdvise::MADV_DONTNEED)?;
                next.fill_pattern(round);
                filling.wait_for(1)?;
                next.check_pattern(round)?;
            }
            Ok(())
        };
        let steps = steps();
        filling.end();
        let answer = thread.join().expect("the thread panics nowhere");
        steps.map(|()| answer)
    })?;
    expect_status(answer, Status::OK)?;
    Ok(())
}

fn dropped_pages_are_zero_for_the_device(_: &Fixture) -> Result<()> {
    const PAGES: usize = 64;
    let bound = bind()?;
    let (memory, copy) = (untouched(PAGES)?, untouched(PAGES)?);
    let all = Span::all(&memory);
    bound.fill(&memory, all, 8, u64::MAX)?.ok()?;
    bound.copy((&memory, all), (&copy, all))?.ok()?;
    copy.check_fill(u64::MAX)?;
    memory.advise(MmapAdvise::MADV_DONTNEED)?;
    bound.copy((&memory, all), (&copy, all))?.ok()?;
    copy.check_fill(0)?;
    memory.check_fill(0)?;
    Ok(())
}

fn nothing_is_stored_after_memory_became_read_only(_: &Fixture) -> Result<()> {
    const PAGES: usize = 128;
    let bound = bind()?;
    let memory = untouched(PAGES)?;
    for _ in 0..10 {
        let filling = Filling::new(&bound, &memory);
        let answer = thread::scope(|scope| {
            let thread = scope.spawn(|| filling.run());
            let steps = || -> Result<()> {
                filling.wait_for(3)?;
                memory.protect_pages(0, PAGES, ProtFlags::PROT_READ)?;
                let before = memory.read_bytes(memory.bytes());
                thread::sleep(Duration::from_millis(20));
                let after = memory.read_bytes(memory.bytes());
                ensure!(before == after, "the device stored to read-only memory");
                Ok(())
            };
            let steps = steps();
            filling.end();
            let answer = thread.join().expect("the thread panics nowhere");
            steps.map(|()| answer)
        })?;
        expect_status(answer, Status::NO_ACCESS)?;
        // Reading is as good as before.
        let crc = bound.checksum(&memory, Span::all(&memory), 0)?;
        ensure!(crc == memory.crc32c(memory.bytes()), "CRC {crc:#x}");
        memory.protect_pages(0, PAGES, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        bound.fill(&memory, Span::all(&memory), 8, 0)?.ok()?;
        memory.check_fill(0)?;
    }
    Ok(())
}

fn store_of_the_parent_after_a_fork_does_not_reach_the_child(t: &Fixture) -> Result<()> {
    const PAGES: usize = 64;
    let bound = bind()?;
    for memory in [untouched(PAGES)?, t.resident_memory(PAGES, 0)?] {
        let all = Span::all(&memory);
        // The device may store to every page now.
        bound.fill(&memory, all, 8, 1)?.ok()?;
        let mut child = Child::spawn(|parent| {
            memory.check_fill(1)?;
            parent.meet()?;
            memory.check_fill(1)?;
            memory.fill(3);
            parent.meet()
        })?;
        child.wait_for_arrival()?;
        bound.fill(&memory, all, 8, 2)?.ok()?;
        memory.check_fill(2)?;
        child.release()?;
        child.wait_for_arrival()?;
        let elements = Elements {
            number: Number::U64,
            stride: 0,
        };
        let sum = bound.sum(&memory, all, elements, 0)?.ok()?;
        ensure!(sum == 2 * memory.words().len() as u64, "sum {sum}");
        child.release()?;
        child.finish()?;
    }
    Ok(())
}

fn memory_that_moved_is_found_at_its_new_address_and_not_at_the_old(_: &Fixture) -> Result<()> {
    const PAGES: usize = 32;
    let bound = bind()?;
    let mut memory = untouched(PAGES)?;
    bound.fill(&memory, Span::all(&memory), 8, 5)?.ok()?;
    let old = memory.address();
    memory.move_and_resize(PAGES * PAGE_BYTES)?;
    // Nothing is mapped between the move and these, so nothing has the old addresses.
    let written = raw(&bound, fill(old, PAGE_BYTES, 6));
    let read = raw(&bound, checksum(old, PAGE_BYTES));
    expect_status(written, Status::UNMAPPED)?;
    expect_status(read, Status::UNMAPPED)?;
    memory.check_fill(5)?;
    bound.fill(&memory, Span::all(&memory), 8, 7)?.ok()?;
    memory.check_fill(7)?;
    Ok(())
}

fn pages_that_are_not_there_or_not_allowed_end_a_command_with_their_status(
    _: &Fixture,
) -> Result<()> {
    let bound = bind()?;
    let mut memory = untouched(8)?;
    memory.fill(1);
    let gone = memory.address() + 6 * PAGE_BYTES as u64;
    memory.unmap_tail(2 * PAGE_BYTES)?;
    let refusals = [
        raw(&bound, checksum(gone, 8)),
        raw(&bound, fill(gone, 8, 2)),
        raw(&bound, checksum(memory.address(), 8 * PAGE_BYTES)),
        raw(&bound, checksum(1 << 60, 64)),
        raw(&bound, checksum(u64::MAX - 4095, 64)),
    ];
    for (index, answer) in refusals.into_iter().enumerate() {
        let answer = expect_status(answer, Status::UNMAPPED).context(index)?;
        ensure!(answer.result == 0, "{answer:?}");
        let limit = if index == 2 { 6 * PAGE_BYTES as u64 } else { 0 };
        ensure!(answer.bytes_done <= limit, "{index}: {answer:?}");
    }
    memory.protect_pages(2, 1, ProtFlags::PROT_READ)?;
    memory.protect_pages(4, 1, ProtFlags::PROT_NONE)?;
    let page = |index: usize| memory.address() + (index * PAGE_BYTES) as u64;
    expect_status(raw(&bound, fill(page(2), 64, 2)), Status::NO_ACCESS)?;
    expect_status(raw(&bound, checksum(page(2), 64)), Status::OK)?;
    expect_status(raw(&bound, checksum(page(4), 64)), Status::NO_ACCESS)?;
    expect_status(raw(&bound, fill(page(4), 64, 2)), Status::NO_ACCESS)?;
    let answer = expect_status(
        raw(&bound, fill(page(0), 5 * PAGE_BYTES, 2)),
        Status::NO_ACCESS,
    )?;
    ensure!(answer.bytes_done <= 2 * PAGE_BYTES as u64, "{answer:?}");
    // What was refused was not touched, and the next command works.
    ensure!(memory.word(2 * PAGE_BYTES).load(Relaxed) == 1);
    memory.protect_pages(0, 6, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    ensure!(memory.word(4 * PAGE_BYTES).load(Relaxed) == 1);
    bound.fill(&memory, Span::all(&memory), 8, 3)?.ok()?;
    memory.check_fill(3)?;
    Ok(())
}

fn page_beyond_the_end_of_a_file_is_a_page_error(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let file = memory_file(PAGE_BYTES)?;
    let memory = Mapping::shared_file(&file, 2 * PAGE_BYTES)?;
    let beyond = memory.address() + PAGE_BYTES as u64;
    expect_status(raw(&bound, checksum(beyond, 8)), Status::PAGE_ERROR)?;
    expect_status(raw(&bound, fill(beyond, 8, 1)), Status::PAGE_ERROR)?;
    // The page before it is there.
    expect_status(raw(&bound, fill(memory.address(), 8, 1)), Status::OK)?;
    Ok(())
}

/// Asks for a binding with these fields.
fn try_bind(device: &Device, request: cdm_bind) -> io::Result<()> {
    let mut request = request;
    // SAFETY: the driver writes the structure; a command names what the device may touch.
    unsafe { device.ioctl(CDM_IOCTL_BIND, (&raw mut request).cast()) }
}

fn binding_is_refused_where_it_cannot_be(t: &Fixture) -> Result<()> {
    for request in [
        cdm_bind {
            flags: 1,
            ..Default::default()
        },
        cdm_bind {
            reserved: 1,
            ..Default::default()
        },
    ] {
        expect_errno(try_bind(&t.device, request), Errno::EINVAL)?;
    }
    let bound = bind()?;
    expect_errno(try_bind(&bound, cdm_bind::default()), Errno::EBUSY)?;
    bound.unbind()?;
    expect_errno(bound.unbind(), Errno::ENXIO)?;
    try_bind(&bound, cdm_bind::default())?;
    expect_errno(try_bind(&bound, cdm_bind::default()), Errno::EBUSY)?;
    // Another file of the same process has one of its own.
    let other = bind()?;
    other.nop()?.ok()?;
    bound.nop()?.ok()?;
    Ok(())
}

fn commands_without_a_binding_are_refused(t: &Fixture) -> Result<()> {
    let memory = untouched(1)?;
    memory.fill(1);
    let command = fill(memory.address(), 64, 2);
    expect_errno(raw(&t.device, command), Errno::ENXIO)?;
    let bound = bind()?;
    bound.unbind()?;
    expect_errno(raw(&bound, command), Errno::ENXIO)?;
    memory.check_fill(1)?;
    // Without the flag nothing of this matters.
    t.device.fill(&memory, Span::all(&memory), 8, 3)?.ok()?;
    memory.check_fill(3)?;
    Ok(())
}

fn binding_belongs_to_the_process_that_made_it(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = untouched(1)?;
    memory.fill(1);
    let mut child = Child::spawn(|parent| {
        let command = fill(memory.address(), 64, 2);
        expect_errno(raw(&bound, command), Errno::EPERM)?;
        expect_errno(bound.unbind(), Errno::EPERM)?;
        expect_errno(try_bind(&bound, cdm_bind::default()), Errno::EBUSY)?;
        memory.check_fill(1)?;
        parent.meet()
    })?;
    child.wait_for_arrival()?;
    memory.check_fill(1)?;
    child.release()?;
    child.finish()?;
    // The child's end does not end what it inherited.
    bound.fill(&memory, Span::all(&memory), 8, 4)?.ok()?;
    memory.check_fill(4)?;
    Ok(())
}

fn processes_with_equal_addresses_see_their_own_memory(_: &Fixture) -> Result<()> {
    const PAGES: usize = 64;
    const ROUNDS: u64 = 50;
    let memory = untouched(PAGES)?;
    let play = |first: u64| -> Result<()> {
        let bound = bind()?;
        for value in (first..first + 2 * ROUNDS).step_by(2) {
            bound.fill(&memory, Span::all(&memory), 8, value)?.ok()?;
            thread::yield_now();
            memory.check_fill(value)?;
        }
        Ok(())
    };
    let mut child = Child::spawn(|parent| {
        parent.meet()?;
        play(1)
    })?;
    child.wait_for_arrival()?;
    child.release()?;
    play(2)?;
    child.finish()
}

/// Starts `code` on `memory` in another thread, waits until its first word is set, and runs
/// `then`; what became of the program.
fn with_program<'a>(
    bound: &'a Bound,
    memory: &'a Mapping,
    code: &'a Code,
    then: impl FnOnce() -> Result<()>,
) -> Result<io::Result<Answer>> {
    thread::scope(|scope| {
        let program = scope.spawn(|| {
            let operand = (memory, Span::all(memory));
            bound.program(code, operand, 0, PROGRAM_STEPS_MAX)
        });
        let begun = wait_until("the program begins", || {
            Ok(memory.word(0).load(Acquire) != 0 || program.is_finished())
        });
        let done = begun.and_then(|()| then());
        // Lets it through in any case.
        memory.word(8).store(1, SeqCst);
        let result = program.join().expect("the thread only waits");
        done.map(|()| result)
    })
}

fn unbind_ends_a_command_that_runs(t: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = untouched(1)?;
    memory.fill(0);
    let code = endless();
    let result = with_program(&bound, &memory, &code, || Ok(bound.unbind()?))?;
    expect_status(result, Status::UNBOUND)?;
    t.device.nop()?.ok()?;
    Ok(())
}

fn closed_file_gives_its_address_space_back(_: &Fixture) -> Result<()> {
    let before = figure("address_spaces")?;
    let memory = untouched(16)?;
    for round in 0..50 {
        let bound = bind()?;
        bound.fill(&memory, Span::all(&memory), 8, round)?.ok()?;
        ensure!(figure("address_spaces")? == before + 1);
        drop(bound);
        ensure!(figure("address_spaces")? == before);
        memory.check_fill(round)?;
    }
    Ok(())
}

fn process_that_is_killed_in_a_command_leaves_nothing_behind(t: &Fixture) -> Result<()> {
    let before = figure("address_spaces")?;
    for _ in 0..3 {
        let mut child = Child::spawn(|parent| {
            let bound = bind()?;
            let memory = t.resident_memory(16, 0)?;
            memory.fill(0);
            let code = endless();
            with_program(&bound, &memory, &code, || parent.meet())?.map(drop)?;
            Ok(())
        })?;
        child.wait_for_arrival()?;
        child.kill()?;
        wait_until("the address space is given back", || {
            Ok(figure("address_spaces")? == before)
        })?;
        t.device.nop()?.ok()?;
    }
    Ok(())
}

fn page_that_user_space_serves_is_waited_for_and_nobody_else_waits(t: &Fixture) -> Result<()> {
    let bound = bind()?;
    let served = untouched(2)?;
    let target = untouched(2)?;
    let contents = t.system_memory(1, 6)?;
    let userfault = Userfault::watch_missing(&served)?;
    let all = Span::all(&served);
    let answer = thread::scope(|scope| {
        let waiter = scope.spawn(|| bound.copy((&served, all), (&target, all)));
        let steps = || -> Result<()> {
            for page in 0..2 {
                let fault = userfault.wait_for_missing(LIMIT)?;
                let address = served.page_range(page, 1).start();
                ensure!(fault == Some(address), "{fault:x?}, not {address:#x}");
                // The same process, and the same device, with something else to do.
                let other = bind()?;
                let memory = untouched(16)?;
                other.fill(&memory, Span::all(&memory), 8, 1)?.ok()?;
                memory.check_fill(1)?;
                t.device.fill(&memory, Span::all(&memory), 8, 2)?.ok()?;
                memory.check_fill(2)?;
                ensure!(!waiter.is_finished(), "the command did not wait");
                userfault.fill_page(address, &contents)?;
            }
            Ok(())
        };
        let steps = steps();
        // Whatever is still waited for is zero then.
        userfault.leave(&served)?;
        let answer = waiter.join().expect("the thread only waits");
        steps.map(|()| answer)
    })?;
    let answer = expect_status(answer, Status::OK)?;
    ensure!(answer.bytes_done == served.bytes() as u64, "{answer:?}");
    let expected = contents.read_bytes(PAGE_BYTES);
    let found = target.read_bytes(2 * PAGE_BYTES);
    ensure!(
        found[..PAGE_BYTES] == expected && found[PAGE_BYTES..] == expected,
        "the copy is not what was served"
    );
    Ok(())
}

/// How long the device may give no answer; what it was before is put back in the end.
struct CommandLimit {
    usual: String,
}

impl CommandLimit {
    const PARAMETER: &str = "/sys/module/cdm/parameters/command_ms";

    fn of(limit: Duration) -> Result<Self> {
        let usual = fs::read_to_string(Self::PARAMETER)?;
        fs::write(Self::PARAMETER, limit.as_millis().to_string())?;
        Ok(Self { usual })
    }
}

impl Drop for CommandLimit {
    fn drop(&mut self) {
        if let Err(err) = fs::write(Self::PARAMETER, self.usual.trim()) {
            eprintln!("{} stays as it is: {err}", Self::PARAMETER);
        }
    }
}

fn page_that_takes_longer_than_the_device_may_is_no_reason_to_reset_it(t: &Fixture) -> Result<()> {
    const SHORT: Duration = Duration::from_secs(1);
    let bound = bind()?;
    let served = untouched(1)?;
    let target = untouched(1)?;
    let contents = t.system_memory(1, 6)?;
    let userfault = Userfault::watch_missing(&served)?;
    let all = Span::all(&served);
    let before = figure("timeouts")?;
    let limit = CommandLimit::of(SHORT)?;
    let answer = thread::scope(|scope| {
        let waiter = scope.spawn(|| bound.copy((&served, all), (&target, all)));
        let steps = || -> Result<()> {
            let fault = userfault.wait_for_missing(LIMIT)?;
            ensure!(fault == Some(served.address()), "{fault:x?}");
            thread::sleep(4 * SHORT);
            ensure!(!waiter.is_finished(), "the command did not wait");
            userfault.fill_page(served.address(), &contents)
        };
        let steps = steps();
        userfault.leave(&served)?;
        let answer = waiter.join().expect("the thread only waits");
        steps.map(|()| answer)
    })?;
    drop(limit);
    expect_status(answer, Status::OK)?;
    ensure!(target.read_bytes(PAGE_BYTES) == contents.read_bytes(PAGE_BYTES));
    let after = figure("timeouts")?;
    ensure!(after == before, "{} RESETs", after - before);
    Ok(())
}

/// Longest that the driver may take to stop a command after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(5);

extern "C" fn on_signal(_: libc::c_int) {}

/// Has a command wait for a page that nobody serves, runs `end` with the waiting thread, and gives
/// what became of the command and how long that took.
fn end_of_waiting(
    bound: &Bound,
    end: impl FnOnce(libc::pthread_t) -> Result<()>,
) -> Result<(io::Result<Answer>, Duration)> {
    let served = untouched(1)?;
    let target = untouched(1)?;
    let userfault = Userfault::watch_missing(&served)?;
    let all = Span::all(&served);
    let waiter = AtomicU64::new(0);
    let ended = thread::scope(|scope| {
        let command = scope.spawn(|| {
            // SAFETY: takes nothing, and cannot fail.
            waiter.store(unsafe { libc::pthread_self() }, Release);
            bound.copy((&served, all), (&target, all))
        });
        let steps = || -> Result<Instant> {
            let fault = userfault.wait_for_missing(LIMIT)?;
            ensure!(fault == Some(served.address()), "{fault:x?}");
            let start = Instant::now();
            end(waiter.load(Acquire))?;
            wait_until("the command ends", || Ok(command.is_finished()))?;
            Ok(start)
        };
        let start = steps();
        let took = start.map(|start| start.elapsed());
        userfault.leave(&served)?;
        let result = command.join().expect("the thread only waits");
        took.map(|took| (result, took))
    })?;
    target.check_fill(0)?;
    Ok(ended)
}

fn signal_cancels_a_command_that_waits_for_a_page(t: &Fixture) -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(on_signal),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    let bound = bind()?;
    for _ in 0..3 {
        let (result, took) = end_of_waiting(&bound, |waiter| {
            // SAFETY: the thread has stored its own handle, and is not joined yet.
            unsafe { libc::pthread_kill(waiter, libc::SIGUSR1) };
            Ok(())
        })?;
        expect_errno(result, Errno::EINTR)?;
        ensure!(took < STOP_LIMIT, "it took {took:?}");
        // The binding is as good as before.
        let memory = untouched(4)?;
        bound.fill(&memory, Span::all(&memory), 8, 1)?.ok()?;
        memory.check_fill(1)?;
        t.device.nop()?.ok()?;
    }
    Ok(())
}

fn unbind_ends_a_command_that_waits_for_a_page(t: &Fixture) -> Result<()> {
    let bound = bind()?;
    let (result, took) = end_of_waiting(&bound, |_| Ok(bound.unbind()?))?;
    expect_status(result, Status::UNBOUND)?;
    ensure!(took < STOP_LIMIT, "it took {took:?}");
    t.device.nop()?.ok()?;
    Ok(())
}
