// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the kernel itself tells people about device memory: how much of a process
//! is there, how much went there and came back, and on which node it is.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Evicted};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::registered::Registered;
use cdm_guest_tools::{process, vmstat};
use nix::sys::mman::MmapAdvise;

use crate::fixture::{Fixture, move_patiently, physical_addresses, skip};
use crate::isolate::Child;
use crate::neighbours::move_pages;
use crate::stores::memory_file;

crate::tests!("accounts":
    smaps_counts_the_small_pages_in_the_device,
    smaps_counts_blocks_in_the_device_whole_and_cut,
    smaps_counts_pages_of_a_shared_file_for_each_who_maps_them,
    resident_set_is_the_same_by_counters_and_by_page_tables,
    vmstat_counts_the_pages_that_migrations_move,
    vmstat_counts_a_block_as_its_pages,
    vmstat_counts_a_move_between_devices_both_ways,
    vmstat_counts_pages_that_a_pin_or_an_eviction_brings_home,
    numa_maps_counts_device_pages_under_their_node,
    move_pages_tells_the_node_of_device_pages,
);

const PAGES: usize = 64;
const HUGE_PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;

/// Memory of single pages that begins a huge page, so that no neighbour becomes one mapping with
/// it.
fn small_pages(seed: u64) -> Result<Mapping> {
    let memory = Mapping::huge_aligned(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(seed);
    Ok(memory)
}

/// Expects that this process, all of whose device pages are in `memory`, has `pages` of them, by
/// the mapping and in sum, and that they count as resident as any others.
fn expect_counted(memory: &Mapping, pages: usize, resident: usize) -> Result<()> {
    let bytes = (pages * PAGE_BYTES) as u64;
    let by_mapping = process::smaps_bytes(0, memory.range(), "DeviceMemory")?;
    ensure!(
        by_mapping == bytes,
        "smaps counts {by_mapping} bytes in the device, not {bytes}"
    );
    let in_sum = process::rollup_bytes(0, "DeviceMemory")?;
    ensure!(
        in_sum == bytes,
        "smaps_rollup counts {in_sum} bytes in the device, not {bytes}"
    );
    let rss = process::smaps_bytes(0, memory.range(), "Rss")?;
    ensure!(
        rss == (resident * PAGE_BYTES) as u64,
        "{rss} bytes are resident, of {resident} pages"
    );
    Ok(())
}

fn smaps_counts_the_small_pages_in_the_device(t: &Fixture) -> Result<()> {
    let memory = small_pages(1)?;
    expect_counted(&memory, 0, PAGES)?;
    t.move_all(memory.page_range(3, 1), Direction::ToDevice)?;
    expect_counted(&memory, 1, PAGES)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    expect_counted(&memory, PAGES, PAGES)?;
    memory.advise_pages(0, 8, MmapAdvise::MADV_DONTNEED)?;
    expect_counted(&memory, PAGES - 8, PAGES - 8)?;
    t.move_all(memory.page_range(8, 16), Direction::ToSystem)?;
    expect_counted(&memory, PAGES - 24, PAGES - 8)?;
    memory.check_pattern_pages(1, 8..PAGES)?;
    Ok(())
}

fn smaps_counts_blocks_in_the_device_whole_and_cut(t: &Fixture) -> Result<()> {
    let memory = t.resident_huge_memory(2, 2)?;
    expect_counted(&memory, 2 * HUGE_PAGES, 2 * HUGE_PAGES)?;
    // A store of a child copies a page of its own, and leaves small entries to the block.
    let child = Child::spawn(|_| {
        expect_counted(&memory, 2 * HUGE_PAGES, 2 * HUGE_PAGES)?;
        memory.fill_pattern_pages(3, 5..6);
        expect_counted(&memory, 2 * HUGE_PAGES - 1, 2 * HUGE_PAGES)
    })?;
    child.finish()?;
    expect_counted(&memory, 2 * HUGE_PAGES, 2 * HUGE_PAGES)?;
    memory.check_pattern(2)?;
    Ok(())
}

fn smaps_counts_pages_of_a_shared_file_for_each_who_maps_them(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let bytes = PAGES * PAGE_BYTES;
    let file = memory_file(bytes)?;
    let memory = Mapping::shared_file(&file, bytes)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(4);
    t.move_all(memory.page_range(0, PAGES / 2), Direction::ToDevice)?;
    expect_counted(&memory, PAGES / 2, PAGES)?;
    let child = Child::spawn(|_| {
        // Another process has not touched them yet.
        expect_counted(&memory, 0, 0)?;
        memory.check_pattern(4)?;
        expect_counted(&memory, PAGES / 2, PAGES)
    })?;
    child.finish()?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(4)?;
    expect_counted(&memory, 0, PAGES)
}

fn resident_set_is_the_same_by_counters_and_by_page_tables(t: &Fixture) -> Result<()> {
    /// What the test program itself may gain or lose between two looks.
    const NOISE: u64 = 32 * PAGE_BYTES as u64;
    let small = t.resident_small_pages(1024, 13)?;
    let huge = t.resident_huge_memory(2, 14)?;
    let shared = Mapping::shared(1024 * PAGE_BYTES)?;
    shared.fill_pattern(15);
    let look = |what: &str| -> Result<()> {
        let mut counted = 0;
        for field in ["RssAnon", "RssFile", "RssShmem"] {
            counted += process::status_bytes(0, field)?;
        }
        let mapped = process::rollup_bytes(0, "Rss")?;
        ensure!(
            counted.abs_diff(mapped) <= NOISE,
            "{what}: the counters say {counted} bytes, the page tables {mapped}"
        );
        Ok(())
    };
    look("in the device")?;
    // Only some kernels move it.
    move_patiently(&t.device, 0, shared.range(), Direction::ToDevice)?;
    look("with shared memory")?;
    small.advise_pages(0, 512, MmapAdvise::MADV_DONTNEED)?;
    look("after a part was given back")?;
    t.move_all(small.page_range(512, 512), Direction::ToSystem)?;
    look("after a part came home")?;
    small.check_pattern_pages(13, 512..1024)?;
    huge.check_pattern(14)?;
    shared.check_pattern(15)?;
    Ok(())
}

/// Runs `body`, and expects that the kernel counted so many pages into and out of device memory
/// meanwhile.
fn expect_events(to: usize, from: usize, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let names = ["pgmigrate_to_device", "pgmigrate_from_device"];
    let read = || -> Result<[i64; 2]> {
        let counts = vmstat::Snapshot::take()?;
        Ok(names.map(|name| counts.get(name)))
    };
    let before = read()?;
    body()?;
    let after = read()?;
    let counted = [after[0] - before[0], after[1] - before[1]];
    ensure!(
        counted == [to as i64, from as i64],
        "{names:?} grew by {counted:?}, not [{to}, {from}]"
    );
    Ok(())
}

fn vmstat_counts_the_pages_that_migrations_move(t: &Fixture) -> Result<()> {
    let memory = small_pages(5)?;
    let move_to = |direction| t.move_all(memory.range(), direction).map(|_| ());
    expect_events(PAGES, 0, || move_to(Direction::ToDevice))?;
    // They are there, so nothing moves.
    expect_events(0, 0, || move_to(Direction::ToDevice))?;
    expect_events(0, PAGES, || move_to(Direction::ToSystem))?;
    // Two pins hold two pages; the rest goes.
    let pinned = Registered::new(&memory, 10..12)?;
    expect_events(PAGES - 2, 0, || {
        let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
        ensure!(migration.pinned == 2, "{migration:?}");
        Ok(())
    })?;
    pinned.unregister()?;
    memory.check_pattern(5)?;
    // What is given back did not migrate.
    expect_events(0, 0, || {
        drop(memory);
        Ok(())
    })
}

fn vmstat_counts_a_block_as_its_pages(t: &Fixture) -> Result<()> {
    t.allow_huge()?;
    let memory = t.huge_memory(2, 6)?;
    let pages = 2 * HUGE_PAGES;
    expect_events(pages, 0, || {
        t.move_all(memory.range(), Direction::ToDevice)?;
        t.expect_blocks_in_device(memory.range())
    })?;
    expect_events(0, pages, || {
        t.move_all(memory.range(), Direction::ToSystem).map(|_| ())
    })?;
    memory.check_pattern(6)?;
    Ok(())
}

fn vmstat_counts_a_move_between_devices_both_ways(t: &Fixture) -> Result<()> {
    if !Device::numbers()?.contains(&1) {
        return skip("needs a second device");
    }
    let second = Device::open(1)?;
    let memory = small_pages(7)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    expect_events(PAGES, PAGES, || {
        let (migration, _) = move_patiently(&second, 0, memory.range(), Direction::ToDevice)?;
        ensure!(migration.moved == PAGES as u64, "{migration:?}");
        Ok(())
    })?;
    memory.check_pattern(7)?;
    Ok(())
}

fn vmstat_counts_pages_that_a_pin_or_an_eviction_brings_home(t: &Fixture) -> Result<()> {
    let memory = small_pages(8)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    let mut pinned = None;
    expect_events(0, 8, || {
        pinned = Some(Registered::new(&memory, 16..24)?);
        Ok(())
    })?;
    expect_events(0, PAGES - 8, || {
        let evicted = t.device.evict(Evicted::All, 0)?;
        ensure!(evicted.moved == PAGES as u64 - 8, "{evicted:?}");
        Ok(())
    })?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern(8)?;
    pinned.context("pinned above")?.unregister()
}

/// What numa_maps says of the mapping at an address: names with their numbers.
fn numa_maps(address: u64) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string("/proc/self/numa_maps").context("no numa_maps")?;
    let start = format!("{address:08x} ");
    let line = text
        .lines()
        .find(|line| line.starts_with(&start))
        .with_context(|| format!("no mapping begins at {start}in {text}"))?;
    let numbers = line.split(' ').filter_map(|word| {
        let (name, number) = word.split_once('=')?;
        Some((name.to_owned(), number.parse().ok()?))
    });
    Ok(numbers.collect())
}

fn numa_maps_counts_device_pages_under_their_node(t: &Fixture) -> Result<()> {
    let node = format!("N{}", t.start.numa_node.max(0));
    let small = small_pages(9)?;
    t.move_all(small.page_range(0, PAGES / 2), Direction::ToDevice)?;
    let huge = t.resident_huge_memory(1, 10)?;
    for (memory, pages) in [(&small, PAGES as u64), (&huge, HUGE_PAGES as u64)] {
        let told = numa_maps(memory.address())?;
        let get = |name: &str| told.get(name).copied().unwrap_or(0);
        // The machine has one node, which is the device's too.
        ensure!(
            [get("anon"), get("dirty"), get(&node)] == [pages; 3],
            "of {pages} pages numa_maps tells {told:?}"
        );
    }
    small.check_pattern(9)?;
    huge.check_pattern(10)?;
    Ok(())
}

fn move_pages_tells_the_node_of_device_pages(t: &Fixture) -> Result<()> {
    let node = t.start.numa_node.max(0);
    let small = small_pages(11)?;
    t.move_all(small.page_range(0, PAGES / 2), Direction::ToDevice)?;
    let huge = t.resident_huge_memory(1, 12)?;
    for memory in [&small, &huge] {
        let physical = physical_addresses(memory.range())?;
        let told = move_pages(memory, None)?;
        let other = told.iter().position(|status| *status != node);
        ensure!(
            other.is_none(),
            "page {other:?} is said to be at {:?}, not on node {node}",
            other.map(|page| told[page])
        );
        ensure!(
            physical_addresses(memory.range())? == physical,
            "to be asked moved the pages"
        );
    }
    small.check_pattern(11)?;
    huge.check_pattern(12)?;
    Ok(())
}
