// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device whose link carries no atomics: it gets a page of the system for itself as long as it
//! does atomic operations there, and the CPUs take it back by touching it.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::accelerator::{Bins, Code};
use cdm_guest_tools::cgroup::Cgroup;
use cdm_guest_tools::device::{Answer, Bound, Device, Direction, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES, WORD_BYTES};
use cdm_guest_tools::swap::Swap;
use cdm_protocol::{FEATURE_EXCLUSIVE_ATOMICS, MemoryOrder, Status};
use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::addresses::{bind, untouched};
use crate::fixture::{Fixture, figure, skip};
use crate::isolate::Child;
use crate::stores::memory_file;

crate::tests!("exclusive":
    device_says_that_its_atomics_need_pages_of_its_own,
    each_atomic_operation_takes_its_page_once,
    loads_and_stores_take_no_page,
    access_of_a_cpu_takes_the_page_back_and_the_device_asks_again,
    counter_of_device_and_cpus_loses_no_addition,
    counter_of_two_bindings_two_devices_and_a_cpu_loses_no_addition,
    pages_in_the_device_are_shared_with_the_cpus_meanwhile,
    pages_that_the_device_has_migrate_and_come_back,
    additions_are_none_lost_while_pages_migrate,
    word_of_a_huge_page_costs_no_more_than_its_own_page,
    memory_of_a_file_is_a_page_error_and_a_private_copy_of_it_is_not,
    memory_that_is_read_only_or_gone_is_refused_with_its_status,
    atomics_on_pinned_memory_are_refused_and_other_operations_are_not,
    addition_of_the_parent_after_a_fork_does_not_reach_the_child,
    dropped_pages_that_are_used_again_are_not_added_to,
    memory_that_moved_is_added_to_at_its_new_address,
    pages_that_the_device_has_are_swapped_out_and_come_back,
    process_that_is_killed_in_an_addition_leaves_nothing_behind,
);

/// A word at the beginning of a page.
fn word_of(page: usize) -> Span {
    Span {
        offset: page * PAGE_BYTES,
        bytes: WORD_BYTES,
    }
}

fn expect_status(answer: io::Result<Answer>, status: Status) -> Result<()> {
    match answer {
        Ok(answer) if answer.status == status => Ok(()),
        other => bail!("expected {status:?}, got {other:?}"),
    }
}

/// How many pages the device got for itself while something was done.
fn taken_by(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = figure("pages_exclusive")?;
    work()?;
    Ok(figure("pages_exclusive")? - before)
}

/// Has the device add `each` to the first word of every page.
fn add_to_each(bound: &Bound, memory: &Mapping, each: u32) -> Result<()> {
    for page in 0..memory.pages() {
        bound.fetch_add(memory, word_of(page), 1, each)?.ok()?;
    }
    Ok(())
}

/// Expects a value in the first word of every page.
fn expect_each(memory: &Mapping, expected: u64) -> Result<()> {
    for page in 0..memory.pages() {
        let found = memory.word(page * PAGE_BYTES).load(SeqCst);
        ensure!(found == expected, "page {page}: {found}, not {expected}");
    }
    Ok(())
}

fn device_says_that_its_atomics_need_pages_of_its_own(t: &Fixture) -> Result<()> {
    let features = t.start.device_features;
    ensure!(features & FEATURE_EXCLUSIVE_ATOMICS != 0, "{features:#x}");
    Ok(())
}

fn each_atomic_operation_takes_its_page_once(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = untouched(8)?;
    let source = untouched(1)?;
    source.fill(5);
    let counters = Span {
        offset: 2 * PAGE_BYTES - WORD_BYTES,
        bytes: 2 * WORD_BYTES,
    };
    // In either counter, on either side of the border of two pages.
    let bins = Bins { base: 4, width: 1 };
    let mut code = Code::new();
    code.set(1, 7)
        .atomic_add(MemoryOrder::SEQ_CST, 0, 1, 15, 4 * PAGE_BYTES as u64)
        .atomic_swap(MemoryOrder::ACQUIRE, 0, 1, 15, 5 * PAGE_BYTES as u64)
        .atomic_compare_swap(MemoryOrder::RELAXED, 3, 1, 15, 6 * PAGE_BYTES as u64)
        .atomic_add(MemoryOrder::RELEASE, 2, 1, 15, 4 * PAGE_BYTES as u64);
    let whole = Span::all(&memory);
    let work = || -> Result<()> {
        bound.fetch_add(&memory, word_of(0), 3, 10)?.ok()?;
        bound.compare_swap(&memory, word_of(3), 0, 9)?.ok()?;
        let answer =
            bound.histogram((&source, Span::all(&source)), (&memory, counters), 8, bins)?;
        answer.ok()?;
        bound.program(&code, (&memory, whole), 0, 100)?.ok()?;
        Ok(())
    };
    let taken = taken_by(work)?;
    // The word of the empty bin is not needed.
    ensure!(taken == 6, "{taken} pages for the first time");
    let taken = taken_by(work)?;
    ensure!(taken == 0, "{taken} pages that it had");
    for (offset, expected) in [
        (0, 60),
        (2 * PAGE_BYTES - WORD_BYTES, 0),
        (2 * PAGE_BYTES, PAGE_BYTES as u64 / 8 * 2),
        (3 * PAGE_BYTES, 9),
        (4 * PAGE_BYTES, 28),
        (5 * PAGE_BYTES, 7),
        (6 * PAGE_BYTES, 7),
    ] {
        let found = memory.word(offset).load(SeqCst);
        ensure!(found == expected, "{offset:#x}: {found}, not {expected}");
    }
    Ok(())
}

fn loads_and_stores_take_no_page(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let (memory, copy) = (untouched(4)?, untouched(4)?);
    let all = Span::all(&memory);
    let mut code = Code::new();
    code.set(1, 7).store(MemoryOrder::SEQ_CST, 1, 15, 0).load(
        MemoryOrder::SEQ_CST,
        2,
        15,
        PAGE_BYTES as u64,
    );
    let taken = taken_by(|| {
        bound.fill(&memory, all, 8, 7)?.ok()?;
        bound.copy((&memory, all), (&copy, all))?.ok()?;
        bound.program(&code, (&memory, all), 0, 100)?.ok()?;
        bound.checksum(&copy, all, 0)?;
        Ok(())
    })?;
    ensure!(taken == 0, "{taken} pages were taken");
    copy.check_fill(7)?;
    Ok(())
}

fn access_of_a_cpu_takes_the_page_back_and_the_device_asks_again(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = untouched(1)?;
    for round in 1..=20 {
        let taken = taken_by(|| add_to_each(&bound, &memory, 3))?;
        ensure!(taken == 1, "round {round}: {taken} pages were taken");
        let before = figure("invalidations")?;
        // By a load as well as by a store.
        if round % 2 == 0 {
            memory.word(8).store(round, SeqCst);
        }
        expect_each(&memory, 3 * round)?;
        let invalidations = figure("invalidations")? - before;
        ensure!(invalidations == 1, "round {round}: {invalidations}");
        // It is the CPU's now.
        memory.word(8).store(round, SeqCst);
        ensure!(figure("invalidations")? - before == 1, "round {round}");
    }
    Ok(())
}

/// Additions of everybody to one word.
struct Sum<'a> {
    memory: &'a Mapping,
    added: AtomicU64,
    is_over: AtomicBool,
}

impl<'a> Sum<'a> {
    fn of(memory: &'a Mapping) -> Self {
        memory.word(0).store(0, SeqCst);
        Self {
            memory,
            added: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// What a CPU does until it is over.
    fn add_as_cpu(&self) {
        let mut added = 0;
        while !self.is_over.load(Acquire) {
            self.memory.word(0).fetch_add(1, Relaxed);
            added += 1;
        }
        self.added.fetch_add(added, SeqCst);
    }

    /// What a device does.
    fn add_as_device(&self, bound: &Bound, rounds: u64, each: u32) -> Result<()> {
        for _ in 0..rounds {
            bound.fetch_add(self.memory, word_of(0), 1, each)?.ok()?;
            self.added.fetch_add(each.into(), SeqCst);
        }
        Ok(())
    }

    /// Has CPUs add as long as the devices do.
    fn run(&self, cpus: usize, devices: &[&Bound], rounds: u64, each: u32) -> Result<()> {
        thread::scope(|scope| {
            for _ in 0..cpus {
                scope.spawn(|| self.add_as_cpu());
            }
            let adders: Vec<_> = devices
                .iter()
                .map(|bound| scope.spawn(|| self.add_as_device(bound, rounds, each)))
                .collect();
            let mut done = Ok(());
            for adder in adders {
                done = done.and(adder.join().expect("the thread panics nowhere"));
            }
            self.is_over.store(true, Release);
            done
        })?;
        let found = self.memory.word(0).load(SeqCst);
        let expected = self.added.load(SeqCst);
        ensure!(found == expected, "{found}, not {expected}");
        Ok(())
    }
}

fn counter_of_device_and_cpus_loses_no_addition(t: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = untouched(1)?;
    let before = figure("invalidations")?;
    let sum = Sum::of(&memory);
    let taken = taken_by(|| sum.run(2, &[&bound, &bound], 40, 1000))?;
    let invalidations = figure("invalidations")? - before;
    t.note(format!(
        "{} additions, the page was taken {taken} times and given back {invalidations} times",
        sum.added.load(SeqCst)
    ));
    ensure!(
        taken >= 5 && invalidations >= 5,
        "device and CPUs did not meet: {taken}, {invalidations}"
    );
    Ok(())
}

fn counter_of_two_bindings_two_devices_and_a_cpu_loses_no_addition(t: &Fixture) -> Result<()> {
    if !Device::numbers()?.contains(&1) {
        return skip("needs a second device");
    }
    let (bound, again, other) = (bind()?, bind()?, Bound::open(1)?);
    let memory = untouched(1)?;
    let sum = Sum::of(&memory);
    let taken = taken_by(|| sum.run(1, &[&bound, &again, &other], 20, 1000))?;
    t.note(format!("the first device took the page {taken} times"));
    ensure!(taken >= 5, "they did not meet: {taken}");
    Ok(())
}

fn pages_in_the_device_are_shared_with_the_cpus_meanwhile(t: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = t.resident_memory(1, 0)?;
    let sum = Sum::of(&memory);
    let taken = taken_by(|| sum.run(2, &[&bound, &bound], 20, 5000))?;
    ensure!(taken == 0, "{taken} pages of the device were taken");
    t.expect_in_device(memory.range())
}

fn pages_that_the_device_has_migrate_and_come_back(t: &Fixture) -> Result<()> {
    const PAGES: usize = 16;
    let bound = bind()?;
    let memory = untouched(PAGES)?;
    let taken = taken_by(|| add_to_each(&bound, &memory, 5))?;
    ensure!(taken == PAGES as u64, "{taken} pages were taken");
    // Nobody has touched them since.
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    let taken = taken_by(|| add_to_each(&bound, &memory, 5))?;
    ensure!(taken == 0, "{taken} pages of the device were taken");
    t.move_all(memory.range(), Direction::ToSystem)?;
    let taken = taken_by(|| add_to_each(&bound, &memory, 5))?;
    ensure!(taken == PAGES as u64, "{taken} pages were taken");
    // What is there already need not move, and is there although no CPU has it.
    let moved = t.device.migrate(0, memory.range(), Direction::ToSystem)?;
    ensure!(moved.there == PAGES as u64, "{moved:?}");
    expect_each(&memory, 15)
}

fn additions_are_none_lost_while_pages_migrate(t: &Fixture) -> Result<()> {
    const PAGES: usize = 8;
    const ROUNDS: u64 = 60;
    let bound = bind()?;
    let memory = untouched(PAGES)?;
    memory.fill(0);
    let (is_over, by_cpu) = (AtomicBool::new(false), AtomicU64::new(0));
    let moved = thread::scope(|scope| {
        let mover = scope.spawn(|| -> io::Result<u64> {
            let mut moved = 0;
            while !is_over.load(Acquire) {
                for direction in [Direction::ToDevice, Direction::ToSystem] {
                    moved += t.device.migrate(0, memory.range(), direction)?.moved;
                }
                for page in 0..PAGES {
                    memory.word(page * PAGE_BYTES).fetch_add(1, Relaxed);
                }
                by_cpu.fetch_add(1, Relaxed);
            }
            Ok(moved)
        });
        let add = || (0..ROUNDS).try_for_each(|_| add_to_each(&bound, &memory, 300));
        let added = add();
        is_over.store(true, Release);
        let moved = mover.join().expect("the thread panics nowhere")?;
        added.map(|()| moved)
    })?;
    t.note(format!("{moved} pages moved meanwhile"));
    ensure!(moved >= 2 * PAGES as u64, "only {moved} pages moved");
    expect_each(&memory, ROUNDS * 300 + by_cpu.into_inner())
}

fn word_of_a_huge_page_costs_no_more_than_its_own_page(t: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = t.huge_memory(2, 3)?;
    let all = Span::all(&memory);
    let crc = bound.checksum(&memory, all, 0)?;
    ensure!(crc == memory.crc32c(memory.bytes()), "CRC {crc:#x}");
    let span = word_of(700);
    let before = memory.word(span.offset).load(SeqCst);
    let taken = taken_by(|| {
        bound.fetch_add(&memory, span, 1, 9)?.ok()?;
        bound.fetch_add(&memory, span, 1, 9)?.ok()?;
        Ok(())
    })?;
    ensure!(taken == 1, "{taken} pages were taken");
    let found = memory.word(span.offset).load(SeqCst);
    ensure!(
        found == before.wrapping_add(18),
        "{found}, not {before} + 18"
    );
    memory.word(span.offset).store(before, SeqCst);
    memory.check_pattern(3)?;
    let crc = bound.checksum(&memory, all, 0)?;
    ensure!(crc == memory.crc32c(memory.bytes()), "CRC {crc:#x}");
    ensure!(memory.bytes() == 2 * HUGE_PAGE_BYTES);
    Ok(())
}

fn memory_of_a_file_is_a_page_error_and_a_private_copy_of_it_is_not(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let file = memory_file(PAGE_BYTES)?;
    let shared = Mapping::shared_file(&file, PAGE_BYTES)?;
    shared.word(0).store(5, SeqCst);
    for memory in [&shared, &Mapping::shared(PAGE_BYTES)?] {
        let before = memory.word(0).load(SeqCst);
        let refused = figure("page_requests_refused")?;
        let answer = bound.fetch_add(memory, word_of(0), 1, 1);
        expect_status(answer, Status::PAGE_ERROR)?;
        ensure!(figure("page_requests_refused")? == refused + 1);
        ensure!(memory.word(0).load(SeqCst) == before);
        // What needs no atomics is as before.
        bound.fill(memory, word_of(0), 8, 6)?.ok()?;
        ensure!(memory.word(0).load(SeqCst) == 6);
    }
    let private = Mapping::private_file(&file, PAGE_BYTES)?;
    bound.fetch_add(&private, word_of(0), 1, 4)?.ok()?;
    let found = (private.word(0).load(SeqCst), shared.word(0).load(SeqCst));
    ensure!(found == (10, 6), "{found:?}");
    Ok(())
}

fn memory_that_is_read_only_or_gone_is_refused_with_its_status(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let mut memory = untouched(4)?;
    add_to_each(&bound, &memory, 1)?;
    // While the device has them.
    memory.protect_pages(0, 1, ProtFlags::PROT_READ)?;
    memory.protect_pages(1, 1, ProtFlags::PROT_NONE)?;
    memory.protect_pages(2, 1, ProtFlags::PROT_WRITE)?;
    for page in 0..3 {
        let answer = bound.fetch_add(&memory, word_of(page), 1, 1);
        expect_status(answer, Status::NO_ACCESS).context(page)?;
    }
    ensure!(memory.word(0).load(SeqCst) == 1);
    memory.protect_pages(0, 3, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    add_to_each(&bound, &memory, 1)?;
    expect_each(&memory, 2)?;
    add_to_each(&bound, &memory, 1)?;
    let gone = Span {
        offset: 0,
        bytes: WORD_BYTES,
    };
    let next = untouched(1)?;
    memory.unmap_head(PAGE_BYTES)?;
    next.fill(1);
    // The mapping begins a page later now.
    bound.fetch_add(&memory, gone, 1, 1)?.ok()?;
    ensure!(memory.word(0).load(SeqCst) == 4);
    next.check_fill(1)?;
    Ok(())
}

fn atomics_on_pinned_memory_are_refused_and_other_operations_are_not(t: &Fixture) -> Result<()> {
    let memory = untouched(2)?;
    memory.fill(3);
    let bins = Bins { base: 0, width: 9 };
    let whole = Span::all(&memory);
    for answer in [
        t.device.fetch_add(&memory, word_of(0), 1, 1),
        t.device.compare_swap(&memory, word_of(0), 3, 4),
        t.device
            .histogram((&memory, word_of(1)), (&memory, word_of(0)), 8, bins),
    ] {
        expect_status(answer, Status::BAD_SPACE)?;
    }
    memory.check_fill(3)?;
    let mut code = Code::new();
    code.set(1, 8)
        .store(MemoryOrder::RELAXED, 1, 15, 8)
        .atomic_add(MemoryOrder::RELAXED, 2, 1, 15, 16);
    let answer = t.device.program(&code, (&memory, whole), 0, 100);
    expect_status(answer, Status::BAD_SPACE)?;
    let found = [8, 16].map(|offset| memory.word(offset).load(SeqCst));
    ensure!(found == [8, 3], "{found:?}");
    t.device.fill(&memory, whole, 8, 4)?.ok()?;
    memory.check_fill(4)?;
    // Memory of the device is on the device's side of the link.
    let resident = t.resident_memory(1, 0)?;
    resident.fill(0);
    t.device.fetch_add(&resident, word_of(0), 1, 7)?.ok()?;
    ensure!(resident.word(0).load(SeqCst) == 7);
    Ok(())
}

fn addition_of_the_parent_after_a_fork_does_not_reach_the_child(_: &Fixture) -> Result<()> {
    let bound = bind()?;
    let memory = untouched(8)?;
    add_to_each(&bound, &memory, 1)?;
    // The device has the pages, and the child gets their contents.
    let mut child = Child::spawn(|parent| {
        expect_each(&memory, 1)?;
        parent.meet()?;
        expect_each(&memory, 1)?;
        memory.fill(30);
        parent.meet()
    })?;
    child.wait_for_arrival()?;
    add_to_each(&bound, &memory, 1)?;
    child.release()?;
    child.wait_for_arrival()?;
    add_to_each(&bound, &memory, 1)?;
    expect_each(&memory, 3)?;
    child.release()?;
    child.finish()
}

/// Adds to every page of a mapping until told to end.
fn add_until(
    bound: &Bound,
    memory: &Mapping,
    is_over: &AtomicBool,
    rounds: &AtomicU64,
) -> Result<()> {
    while !is_over.load(Acquire) {
        add_to_each(bound, memory, 5)?;
        rounds.fetch_add(1, Release);
    }
    Ok(())
}

fn dropped_pages_that_are_used_again_are_not_added_to(_: &Fixture) -> Result<()> {
    const PAGES: usize = 16;
    let bound = bind()?;
    let memory = untouched(PAGES)?;
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let adder = scope.spawn(|| add_until(&bound, &memory, &is_over, &rounds));
        let steps = || -> Result<()> {
            for seed in 0..40 {
                let before = rounds.load(Acquire);
                let next = untouched(PAGES)?;
                memory.advise(MmapAdvise::MADV_DONTNEED)?;
                next.fill_pattern(seed);
                while rounds.load(Acquire) < before + 2 && !adder.is_finished() {
                    thread::yield_now();
                }
                next.check_pattern(seed)?;
            }
            Ok(())
        };
        let steps = steps();
        is_over.store(true, Release);
        let added = adder.join().expect("the thread panics nowhere");
        added.and(steps)
    })?;
    let most = 5 * rounds.into_inner();
    for page in 0..PAGES {
        let found = memory.word(page * PAGE_BYTES).load(SeqCst);
        ensure!(found <= most && found % 5 == 0, "page {page}: {found}");
    }
    Ok(())
}

fn memory_that_moved_is_added_to_at_its_new_address(_: &Fixture) -> Result<()> {
    const PAGES: usize = 8;
    let bound = bind()?;
    let mut memory = untouched(PAGES)?;
    add_to_each(&bound, &memory, 4)?;
    memory.move_over(untouched(PAGES)?)?;
    add_to_each(&bound, &memory, 4)?;
    expect_each(&memory, 8)
}

fn pages_that_the_device_has_are_swapped_out_and_come_back(t: &Fixture) -> Result<()> {
    const PAGES: usize = 256;
    let _swap = Swap::start()?;
    let group = Cgroup::new()?;
    let child = Child::spawn(|_| {
        group.enter()?;
        let bound = bind()?;
        let memory = untouched(PAGES)?;
        memory.fill(0);
        for round in 1..=3 {
            add_to_each(&bound, &memory, 2)?;
            let before = group.figure("memory.stat", "pswpout")?;
            let bytes = PAGES * PAGE_BYTES;
            // It may not get all that is asked for.
            let _ = group.write("memory.reclaim", &bytes.to_string());
            let swapped = group.figure("memory.stat", "pswpout")? - before;
            t.note(format!("{swapped} pages were swapped out"));
            ensure!(swapped >= PAGES as u64 / 4, "only {swapped} pages");
            if round == 2 {
                expect_each(&memory, 4)?;
            }
        }
        add_to_each(&bound, &memory, 2)?;
        expect_each(&memory, 8)
    })?;
    child.finish()?;
    group.remove()
}

fn process_that_is_killed_in_an_addition_leaves_nothing_behind(_: &Fixture) -> Result<()> {
    let spaces = figure("address_spaces")?;
    for _ in 0..5 {
        let mut child = Child::spawn(|parent| {
            let bound = bind()?;
            let memory = untouched(16)?;
            add_to_each(&bound, &memory, 1)?;
            parent.arrive()?;
            loop {
                add_to_each(&bound, &memory, 100_000)?;
                expect_some(&memory)?;
            }
        })?;
        child.wait_for_arrival()?;
        child.kill()?;
    }
    ensure!(figure("address_spaces")? == spaces);
    // The device works on.
    let bound = bind()?;
    let memory = untouched(2)?;
    add_to_each(&bound, &memory, 3)?;
    expect_each(&memory, 3)
}

/// A look at every page, which takes it from the device.
fn expect_some(memory: &Mapping) -> Result<()> {
    for page in 0..memory.pages() {
        ensure!(memory.word(page * PAGE_BYTES).load(SeqCst) > 0);
    }
    Ok(())
}
