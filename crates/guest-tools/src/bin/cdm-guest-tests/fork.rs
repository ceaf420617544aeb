// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A child shares device pages with its parent until one of them writes.

use anyhow::{Result, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::process;

use crate::fixture::{Fixture, physical_addresses};
use crate::isolate::Child;

crate::tests!("fork":
    child_shares_device_pages_and_takes_no_memory,
    write_of_the_child_copies_and_leaves_the_parent_alone,
    write_of_the_parent_copies_and_leaves_the_child_alone,
    writes_on_both_sides_keep_both_right,
    resident_set_counts_device_pages_on_both_sides,
    page_that_only_the_child_keeps_stays_in_the_device,
    shared_pages_migrate_for_parent_and_child_alike,
);

const PAGES: usize = 128;

fn child_shares_device_pages_and_takes_no_memory(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 1)?;
    let free = t.free_pages()?;
    let physical = physical_addresses(memory.range())?;
    let mut child = Child::spawn(|parent| {
        memory.check_pattern(1)?;
        ensure!(
            physical == physical_addresses(memory.range())?,
            "the child has other pages"
        );
        parent.meet()
    })?;
    child.wait_for_arrival()?;
    t.expect_in_device(memory.range())?;
    ensure!(t.free_pages()? == free, "sharing took device memory");
    child.release()?;
    child.finish()?;
    // The child's end must not free what the parent still has.
    t.expect_free_pages(free)?;
    memory.check_pattern(1)?;
    t.expect_in_device(memory.range())
}

fn write_of_the_child_copies_and_leaves_the_parent_alone(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 2)?;
    let free = t.free_pages()?;
    let physical = physical_addresses(memory.range())?;
    let mut child = Child::spawn(|parent| {
        memory.fill_pattern(3);
        let own = physical_addresses(memory.range())?;
        ensure!(
            own.iter().all(|page| !physical.contains(page)),
            "the child wrote to shared pages"
        );
        parent.meet()?;
        memory.check_pattern(3)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    memory.check_pattern(2)?;
    ensure!(
        physical == physical_addresses(memory.range())?,
        "the parent's pages changed"
    );
    // The copies are ordinary memory; the originals stay for the parent.
    t.expect_free_pages(free)?;
    child.release()?;
    child.finish()?;
    memory.check_pattern(2)?;
    t.expect_in_device(memory.range())
}

fn write_of_the_parent_copies_and_leaves_the_child_alone(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 4)?;
    let free = t.free_pages()?;
    let physical = physical_addresses(memory.range())?;
    let mut child = Child::spawn(|parent| {
        parent.meet()?;
        memory.check_pattern(4)?;
        ensure!(
            physical == physical_addresses(memory.range())?,
            "the child's pages changed"
        );
        Ok(())
    })?;
    child.wait_for_arrival()?;
    memory.fill_pattern(5);
    t.expect_free_pages(free)?;
    child.release()?;
    child.finish()?;
    memory.check_pattern(5)?;
    // The child had the originals last.
    t.expect_free_pages(free + PAGES as u64)?;
    t.expect_in_system(memory.range())
}

fn write_even_or_odd(memory: &Mapping, odd: bool, value: u64) {
    for page in (usize::from(odd)..memory.pages()).step_by(2) {
        memory
            .word(page * PAGE_BYTES)
            .store(value, std::sync::atomic::Ordering::Relaxed);
    }
}

fn writes_on_both_sides_keep_both_right(t: &Fixture) -> Result<()> {
    use std::sync::atomic::Ordering::Relaxed;
    let memory = t.resident_memory(PAGES, 6)?;
    let original = t.system_memory(PAGES, 6)?;
    let check = |odd: bool, value: u64| -> Result<()> {
        for page in 0..memory.pages() {
            let word = |memory: &Mapping| memory.word(page * PAGE_BYTES).load(Relaxed);
            let expected = if page % 2 == usize::from(odd) {
                value
            } else {
                word(&original)
            };
            ensure!(
                word(&memory) == expected,
                "page {page} is {:#x}",
                word(&memory)
            );
        }
        Ok(())
    };
    let mut child = Child::spawn(|parent| {
        write_even_or_odd(&memory, true, 0xc41d);
        parent.meet()?;
        check(true, 0xc41d)
    })?;
    child.wait_for_arrival()?;
    write_even_or_odd(&memory, false, 0xda4d);
    check(false, 0xda4d)?;
    child.release()?;
    child.finish()?;
    check(false, 0xda4d)
}

fn resident_set_counts_device_pages_on_both_sides(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 7)?;
    let expected = memory.bytes() as u64;
    let before = process::status_bytes(0, "RssAnon")?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    let after = process::status_bytes(0, "RssAnon")?;
    // The counter is exact up to a few pages that the calls above themselves touched.
    ensure!(
        after.abs_diff(before) <= 64 << 10,
        "RssAnon went from {before} to {after}"
    );
    let rss = process::smaps_bytes(0, memory.range(), "Rss")?;
    ensure!(
        rss == expected,
        "Rss of the mapping is {rss}, not {expected}"
    );
    let mut child = Child::spawn(|parent| parent.meet())?;
    child.wait_for_arrival()?;
    let rss = process::smaps_bytes(child.pid(), memory.range(), "Rss")?;
    ensure!(
        rss == expected,
        "Rss of the child's mapping is {rss}, not {expected}"
    );
    let pss = process::smaps_bytes(child.pid(), memory.range(), "Pss")?;
    ensure!(
        pss == expected / 2,
        "Pss of the child's mapping is {pss}, not {}",
        expected / 2
    );
    child.release()?;
    child.finish()?;
    let pss = process::smaps_bytes(0, memory.range(), "Pss")?;
    ensure!(
        pss == expected,
        "Pss after the child's end is {pss}, not {expected}"
    );
    Ok(())
}

fn page_that_only_the_child_keeps_stays_in_the_device(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 8)?;
    let free = t.free_pages()?;
    let range = memory.range();
    let mut child = Child::spawn(|parent| {
        parent.meet()?;
        memory.check_pattern(8)?;
        t.expect_in_device(memory.range())
    })?;
    child.wait_for_arrival()?;
    // SAFETY: the mapping is this process's alone and is forgotten below.
    let result =
        unsafe { libc::munmap(range.start() as *mut libc::c_void, range.bytes() as usize) };
    std::mem::forget(memory);
    ensure!(result == 0, "munmap failed");
    t.expect_free_pages(free)?;
    child.release()?;
    child.finish()?;
    t.expect_free_pages(free + PAGES as u64)
}

fn shared_pages_migrate_for_parent_and_child_alike(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 9)?;
    let mut child = Child::spawn(|parent| {
        parent.meet()?;
        t.expect_in_device(memory.range())?;
        memory.check_pattern(9)?;
        parent.meet()?;
        t.expect_in_system(memory.range())?;
        memory.check_pattern(9)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    child.release()?;
    child.wait_for_arrival()?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    child.release()?;
    child.finish()
}
