// SPDX-License-Identifier: Apache-2.0 OR MIT

//! However a process gives up its memory, the device gets its pages back.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::PAGE_BYTES;
use nix::sys::mman::{MmapAdvise, ProtFlags};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::WaitStatus;

use crate::fixture::{Fixture, physical_addresses};
use crate::isolate::Child;

crate::tests!("lifecycle":
    munmap_gives_the_pages_back,
    munmap_of_a_part_gives_that_part_back,
    mremap_moves_the_mapping_and_not_the_pages,
    mremap_to_fewer_pages_gives_the_rest_back,
    mprotect_keeps_the_pages_and_forbids_the_store,
    madvise_dontneed_gives_the_pages_back_and_reads_zero,
    exit_gives_the_pages_back,
    kill_gives_the_pages_back,
    exec_gives_the_pages_back,
    close_of_the_node_keeps_the_pages,
    locked_memory_migrates_and_stays_locked,
);

const PAGES: usize = 512;

fn munmap_gives_the_pages_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_memory(PAGES, 1)?;
    t.expect_free_pages(free - PAGES as u64)?;
    drop(memory);
    t.expect_free_pages(free)
}

fn munmap_of_a_part_gives_that_part_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = t.resident_small_pages(PAGES, 2)?;
    memory.unmap_tail(100 * PAGE_BYTES)?;
    t.expect_free_pages(free - PAGES as u64 + 100)?;
    memory.check_pattern(2)?;
    t.expect_in_device(memory.range())?;
    memory.unmap_head(11 * PAGE_BYTES)?;
    t.expect_free_pages(free - PAGES as u64 + 111)?;
    t.expect_in_device(memory.range())?;
    drop(memory);
    t.expect_free_pages(free)
}

fn mremap_moves_the_mapping_and_not_the_pages(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = t.resident_memory(PAGES, 3)?;
    let physical = physical_addresses(memory.range())?;
    let old = memory.address();
    memory.move_and_resize(2 * PAGES * PAGE_BYTES)?;
    ensure!(
        memory.address() != old,
        "mremap left the mapping where it was"
    );
    let moved = memory.page_range(0, PAGES);
    ensure!(
        physical_addresses(moved)? == physical,
        "mremap changed the pages"
    );
    memory.check_pattern_pages(3, 0..PAGES)?;
    t.expect_in_device(moved)?;
    t.expect_free_pages(free - PAGES as u64)?;
    // The new half is ordinary zeroed memory.
    ensure!(
        memory.word(PAGES * PAGE_BYTES).load(Relaxed) == 0,
        "new memory is not zero"
    );
    drop(memory);
    t.expect_free_pages(free)
}

fn mremap_to_fewer_pages_gives_the_rest_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = t.resident_small_pages(PAGES, 4)?;
    memory.move_and_resize(PAGES / 4 * PAGE_BYTES)?;
    t.expect_free_pages(free - PAGES as u64 / 4)?;
    memory.check_pattern(4)?;
    t.expect_in_device(memory.range())
}

/// Exit status of a child that was stopped by a fault.
const FAULTED: i32 = 77;

extern "C" fn on_fault(_signal: libc::c_int) {
    // SAFETY: `_exit` may be called in a signal handler and does not return.
    unsafe { libc::_exit(FAULTED) }
}

fn mprotect_keeps_the_pages_and_forbids_the_store(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_memory(PAGES, 5)?;
    let physical = physical_addresses(memory.range())?;
    memory.protect_pages(PAGES / 2, PAGES / 2, ProtFlags::PROT_READ)?;
    memory.check_pattern(5)?;
    let mut child = Child::spawn(|_| {
        // Handled, because the kernel logs a fault that nobody handles.
        let handler = SigHandler::Handler(on_fault);
        // SAFETY: the handler does nothing but end the process, which is allowed in a handler.
        unsafe { signal(Signal::SIGSEGV, handler) }.context("cannot handle SIGSEGV")?;
        memory.word(PAGES / 2 * PAGE_BYTES).store(0, Relaxed);
        Ok(())
    })?;
    match child.wait()? {
        WaitStatus::Exited(_, FAULTED) => {}
        other => bail!("a store to a read-only device page ended with {other:?}"),
    }
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    memory.protect_pages(0, PAGES, all)?;
    ensure!(
        physical_addresses(memory.range())? == physical,
        "mprotect changed the pages"
    );
    memory.fill_pattern(6);
    memory.check_pattern(6)?;
    t.expect_in_device(memory.range())?;
    drop(memory);
    t.expect_free_pages(free)
}

fn madvise_dontneed_gives_the_pages_back_and_reads_zero(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_small_pages(PAGES, 7)?;
    memory.advise_pages(0, PAGES / 2, MmapAdvise::MADV_DONTNEED)?;
    t.expect_free_pages(free - PAGES as u64 / 2)?;
    ensure!(
        memory.word(0).load(Relaxed) == 0,
        "dropped memory is not zero"
    );
    memory.check_pattern_pages(7, PAGES / 2..PAGES)?;
    t.expect_in_device(memory.page_range(PAGES / 2, PAGES / 2))?;
    memory.advise(MmapAdvise::MADV_DONTNEED)?;
    t.expect_free_pages(free)
}

/// A child with device memory of its own that waits for its end.
fn child_with_memory(t: &Fixture) -> Result<Child> {
    let free = t.free_pages()?;
    let mut child = Child::spawn(|parent| {
        let memory = t.resident_memory(PAGES, 8)?;
        parent.meet()?;
        memory.check_pattern(8)?;
        // Exit with the pages still mapped.
        std::mem::forget(memory);
        Ok(())
    })?;
    child.wait_for_arrival()?;
    t.expect_free_pages(free - PAGES as u64)?;
    Ok(child)
}

fn exit_gives_the_pages_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut child = child_with_memory(t)?;
    child.release()?;
    child.finish()?;
    t.expect_free_pages(free)
}

fn kill_gives_the_pages_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    child_with_memory(t)?.kill()?;
    t.expect_free_pages(free)
}

fn exec_gives_the_pages_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let child = Child::spawn(|_| {
        let memory = t.resident_memory(PAGES, 9)?;
        std::mem::forget(memory);
        let program = std::env::current_exe().context("cannot find this program")?;
        // `--version` ends at once, and well.
        Err(Command::new(program)
            .arg("--version")
            .stdout(std::process::Stdio::null())
            .exec()
            .into())
    })?;
    child.finish()?;
    t.expect_free_pages(free)
}

fn close_of_the_node_keeps_the_pages(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 10)?;
    let other = Device::open(0)?;
    other.migrate(0, memory.range(), Direction::ToDevice)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    drop(other);
    t.expect_in_device(memory.range())?;
    memory.check_pattern(10)?;
    Ok(())
}

fn locked_memory_migrates_and_stays_locked(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(64, 11)?;
    memory.lock()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(11)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(11)?;
    memory.unlock()?;
    Ok(())
}
