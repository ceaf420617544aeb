// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages on the move, copied by the device in the CPU's place.

use std::fs;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::uapi::CDM_CAN_MOVE_LARGE;
use cdm_protocol::PROGRAM_STEPS_MAX;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::mman::{MmapAdvise, ProtFlags};
use nix::unistd::Pid;

use crate::addresses::endless;
use crate::fixture::{Fixture, move_patiently, skip};

crate::tests!("engines":
    single_pages_and_holes_copied_by_the_device_are_as_they_were,
    huge_pages_copied_by_the_device_are_as_they_were,
    memory_goes_from_device_to_device_without_a_cpu,
    memory_that_may_be_executed_is_copied_by_a_cpu,
    pages_of_a_file_are_copied_by_a_cpu,
    device_that_has_something_else_to_do_is_not_waited_for,
    both_have_turns_before_one_is_chosen,
    unknown_way_to_copy_is_refused,
);

const PARAMETER: &str = "/sys/module/cdm/parameters/copy";

/// The driver's parameter, as it was when this is dropped.
struct Copy(String);

impl Copy {
    fn set(value: &str) -> Result<Self> {
        let before = fs::read_to_string(PARAMETER).context(PARAMETER)?;
        let this = Self(before.trim().to_owned());
        fs::write(PARAMETER, value).with_context(|| format!("{value} to {PARAMETER}"))?;
        Ok(this)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What was read from there can be written to it.
        let _ = fs::write(PARAMETER, &self.0);
    }
}

/// Bytes copied by the device and by CPUs so far.
fn copied(device: u32) -> Result<(u64, u64)> {
    let figure = |by: &str| -> Result<u64> {
        let path = format!("/sys/class/misc/cdm{device}/bytes_copied_by_{by}");
        let text = fs::read_to_string(&path).context(path)?;
        Ok(text.trim().parse()?)
    };
    Ok((figure("engine")?, figure("cpu")?))
}

/// Expects that `work` has the first device and CPUs copy so many bytes. Of the device it is at
/// least so many: what was busy may be copied again.
fn expect_copied(by_engine: u64, by_cpu: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = copied(0)?;
    work()?;
    let after = copied(0)?;
    let (engine, cpu) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        engine >= by_engine && (by_engine != 0 || engine == 0),
        "the device copied {engine} bytes, not {by_engine}"
    );
    ensure!(
        cpu >= by_cpu && (by_cpu != 0 || cpu == 0),
        "CPUs copied {cpu} bytes, not {by_cpu}"
    );
    Ok(())
}

/// There and back, with new contents on the way; each byte is looked at after each move.
fn round_trip(t: &Fixture, memory: &Mapping) -> Result<()> {
    memory.fill_pattern(11);
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.check_pattern(11).context("in the device")?;
    let crc = t.device.checksum(memory, Span::all(memory), 0)?;
    ensure!(crc == memory.crc32c(memory.bytes()), "the device differs");
    memory.fill_pattern(12);
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(12).context("back in the system")
}

fn single_pages_and_holes_copied_by_the_device_are_as_they_were(t: &Fixture) -> Result<()> {
    /// More than go into one command, and no whole batches.
    const PAGES: usize = 1111;
    let _copy = Copy::set("engine")?;
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    // Frames of neighbours are no neighbours.
    for page in (0..PAGES).rev() {
        memory.fill_pattern_pages(11, page..page + 1);
    }
    let failed = failed()?;
    let before = copied(0)?.0;
    round_trip(t, &memory)?;
    let bytes = copied(0)?.0 - before;
    ensure!(
        bytes >= memory.bytes() as u64 / 2,
        "the device copied {bytes} bytes of twice {}",
        memory.bytes()
    );
    memory.advise_pages(100, 300, MmapAdvise::MADV_DONTNEED)?;
    t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    memory.check_pattern_pages(12, 0..100)?;
    memory.check_pattern_pages(12, 400..PAGES)?;
    ensure!(memory.word(250 * PAGE_BYTES).load(Relaxed) == 0, "a hole");
    expect_none_failed(failed)
}

/// Copies that the device did not make.
fn failed() -> Result<u64> {
    let text = fs::read_to_string("/sys/kernel/debug/cdm/cdm0/engine_copies_failed")?;
    Ok(text.trim().parse()?)
}

fn expect_none_failed(before: u64) -> Result<()> {
    let failed = failed()? - before;
    ensure!(failed == 0, "{failed} copies of the device failed");
    Ok(())
}

/// Skips the test where the kernel takes folios of 2 MiB apart that are in the device.
fn need_large(t: &Fixture) -> Result<()> {
    match t.start.capabilities & CDM_CAN_MOVE_LARGE {
        0 => skip("the kernel moves no large folios to this type of memory"),
        _ => Ok(()),
    }
}

fn huge_pages_copied_by_the_device_are_as_they_were(t: &Fixture) -> Result<()> {
    need_large(t)?;
    let _copy = Copy::set("engine")?;
    let memory = t.huge_memory(4, 11)?;
    let failed = failed()?;
    for _ in 0..3 {
        let bytes = 2 * memory.bytes() as u64;
        expect_copied(bytes, 0, || round_trip(t, &memory))?;
    }
    // A part of a huge page, in pieces.
    let part = memory.page_range(7, 600);
    memory.fill_pattern(13);
    t.move_all(part, Direction::ToDevice)?;
    t.expect_in_device(part)?;
    memory.check_pattern(13)?;
    expect_none_failed(failed)
}

fn memory_goes_from_device_to_device_without_a_cpu(t: &Fixture) -> Result<()> {
    if !Device::numbers()?.contains(&1) {
        return skip("needs a second device");
    }
    let second = Device::open(1)?;
    // They and their places go into one command.
    let memory = t.resident_small_pages(200, 21)?;
    let _copy = Copy::set("engine")?;
    let before = copied(1)?;
    let (moved, _) = move_patiently(&second, 0, memory.range(), Direction::ToDevice)?;
    ensure!(moved.moved == memory.pages() as u64, "{moved:?}");
    let after = copied(1)?;
    let bytes = (after.0 - before.0, after.1 - before.1);
    ensure!(
        bytes == (memory.bytes() as u64, 0),
        "device and CPUs copied {bytes:?} bytes"
    );
    memory.check_pattern(21).context("in the other device")?;
    expect_copied(memory.bytes() as u64, 0, || {
        t.move_all(memory.range(), Direction::ToDevice).map(drop)
    })?;
    memory.check_pattern(21).context("back in the first one")
}

fn memory_that_may_be_executed_is_copied_by_a_cpu(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(512, 31)?;
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
    memory.protect_pages(0, memory.pages(), all)?;
    for value in ["engine", "auto"] {
        let _copy = Copy::set(value)?;
        let bytes = 2 * memory.bytes() as u64;
        expect_copied(0, bytes, || round_trip(t, &memory))?;
    }
    Ok(())
}

fn pages_of_a_file_are_copied_by_a_cpu(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let _copy = Copy::set("engine")?;
    let memory = Mapping::shared(64 * PAGE_BYTES)?;
    expect_copied(0, 2 * memory.bytes() as u64, || round_trip(t, &memory))
}

fn device_that_has_something_else_to_do_is_not_waited_for(t: &Fixture) -> Result<()> {
    /// Far below what the program would take.
    const LIMIT: Duration = Duration::from_secs(20);
    let _copy = Copy::set("engine")?;
    // A program and a move from the same CPU go to the same queue.
    let mut set = CpuSet::new();
    set.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    let words = t.resident_memory(1, 1)?;
    words.fill(0);
    let memory = t.system_memory(64, 41)?;
    let code = endless();
    thread::scope(|scope| -> Result<()> {
        let program = scope.spawn(|| {
            let operand = (&words, Span::all(&words));
            t.device.program(&code, operand, 0, PROGRAM_STEPS_MAX)
        });
        let start = Instant::now();
        while words.word(0).load(Acquire) == 0 && start.elapsed() < LIMIT {
            thread::yield_now();
        }
        let moved = expect_copied(0, memory.bytes() as u64, || {
            t.move_all(memory.range(), Direction::ToDevice).map(drop)
        });
        let is_waiting = !program.is_finished();
        // Lets it through in any case.
        words.word(8).store(1, SeqCst);
        program.join().expect("the thread only waits")?.ok()?;
        ensure!(is_waiting, "the program was over before the move");
        moved
    })?;
    memory.check_pattern(41)?;
    // The way back is free.
    expect_copied(memory.bytes() as u64, 0, || {
        t.move_all(memory.range(), Direction::ToSystem).map(drop)
    })?;
    Ok(memory.check_pattern(41)?)
}

fn both_have_turns_before_one_is_chosen(t: &Fixture) -> Result<()> {
    /// Both have had their turns by then, on both ways, whatever there was before.
    const TRIPS: usize = 8;
    need_large(t)?;
    let _copy = Copy::set("auto")?;
    let memory = t.huge_memory(8, 1)?;
    let before = copied(0)?;
    for _ in 0..TRIPS {
        round_trip(t, &memory)?;
    }
    let after = copied(0)?;
    let (engine, cpu) = (after.0 - before.0, after.1 - before.1);
    t.note(format!("the device copied {engine} bytes, CPUs {cpu}"));
    let all = (2 * TRIPS * memory.bytes()) as u64;
    ensure!(engine + cpu >= all, "{engine} and {cpu} of {all}");
    let turn = HUGE_PAGE_BYTES as u64;
    ensure!(
        after.0 >= turn && after.1 >= turn,
        "one of them never had a turn"
    );
    Ok(())
}

fn unknown_way_to_copy_is_refused(_: &Fixture) -> Result<()> {
    let before = fs::read_to_string(PARAMETER)?;
    ensure!(fs::write(PARAMETER, "dma").is_err(), "'dma' was taken");
    ensure!(fs::read_to_string(PARAMETER)? == before, "it has changed");
    Ok(())
}
