// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Anonymous memory in pieces of 2 MiB: it goes into the device whole, is used
//! there like any other, and comes back however it was cut meanwhile.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Place, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::process;
use cdm_guest_tools::registered::Registered;
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::fixture::{
    Fixture, expect_errno, expect_huge_mapped, free_pages, move_patiently, physical_addresses, skip,
};
use crate::isolate::Child;
use crate::module;
use crate::unload::{expect_outside, without_node};

crate::tests!("huge":
    huge_pages_go_in_whole_and_stay_mapped_by_one_entry,
    huge_pages_come_back_whole_by_address,
    huge_page_takes_small_pages_where_no_block_is_free,
    huge_zero_page_becomes_a_zeroed_block,
    range_that_begins_and_ends_inside_huge_pages_moves_that_much,
    huge_and_small_pages_and_holes_move_in_one_call,
    second_migration_finds_the_blocks_there,
    block_of_one_device_moves_to_the_other_and_is_not_taken_for_system_memory,
    block_that_is_mapped_by_small_entries_comes_back,
    block_of_which_half_was_unmapped_comes_back,
    block_of_which_half_moved_away_by_mremap_comes_back,
    block_of_which_half_was_dropped_comes_back,
    block_that_is_half_unmapped_survives_the_shrinkers,
    aligned_mremap_keeps_the_block_in_one_piece,
    child_reads_the_block_and_takes_no_memory,
    writes_of_parent_and_child_copy_out_of_the_block,
    long_term_pin_of_one_page_moves_its_whole_block_out,
    long_term_pin_of_a_whole_block_moves_it_out,
    collapse_of_device_pages_is_refused_and_changes_nothing,
    unload_brings_blocks_home_whole_and_cut,
);

const HUGE_PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;
const HALF: usize = HUGE_PAGES / 2;

fn huge_pages_go_in_whole_and_stay_mapped_by_one_entry(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_huge_memory(4, 1)?;
    t.expect_free_pages(free - memory.pages() as u64)?;
    let bytes = memory.bytes() as u64;
    let counted = process::smaps_bytes(0, memory.range(), "AnonHugePages")?;
    ensure!(
        counted == bytes,
        "smaps counts {counted} bytes in huge pages"
    );
    memory.check_pattern(1)?;
    let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        crc == memory.crc32c(memory.bytes()),
        "the device reads {crc:#010x}"
    );
    // Stores of either side reach the other, and leave the block where it is.
    memory.fill_pattern(2);
    let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        crc == memory.crc32c(memory.bytes()),
        "after the CPU's stores the device reads {crc:#010x}"
    );
    t.device
        .fill(&memory, Span::all(&memory), 8, 0xb10c)?
        .ok()?;
    memory.check_fill(0xb10c)?;
    expect_huge_mapped(memory.range(), bytes)?;
    t.expect_blocks_in_device(memory.range())
}

fn huge_pages_come_back_whole_by_address(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_huge_memory(4, 3)?;
    for round in 0..3 {
        t.move_all(memory.range(), Direction::ToSystem)?;
        t.expect_in_system(memory.range())?;
        expect_huge_mapped(memory.range(), memory.bytes() as u64)
            .with_context(|| format!("back in system memory, round {round}"))?;
        memory.check_pattern(3 + round)?;
        t.expect_free_pages(free)?;
        memory.fill_pattern(4 + round);
        t.move_all(memory.range(), Direction::ToDevice)?;
        t.expect_blocks_in_device(memory.range())?;
        memory.check_pattern(4 + round)?;
    }
    drop(memory);
    t.expect_free_pages(free)
}

/// Takes all of the device in small pages, and gives some back so that no two of them are
/// neighbours in a block.
pub fn fragmented_device(t: &Fixture) -> Result<Mapping> {
    let free = t.free_pages()? as usize;
    let filler = Mapping::anonymous(free * PAGE_BYTES)?;
    filler.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    filler.fill(0xf111);
    t.move_all(filler.range(), Direction::ToDevice)?;
    t.expect_free_pages(0)?;
    /// One page in so many is given back: enough for a huge page and a half in 256 MiB.
    const STEP: usize = 64;
    for page in (0..free).step_by(STEP) {
        filler.advise_pages(page, 1, MmapAdvise::MADV_DONTNEED)?;
    }
    t.expect_free_pages(free.div_ceil(STEP) as u64)?;
    Ok(filler)
}

fn huge_page_takes_small_pages_where_no_block_is_free(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let filler = fragmented_device(t)?;
    let left = t.free_pages()?;
    ensure!(left >= HUGE_PAGES as u64, "only {left} pages are left");
    let memory = t.huge_memory(1, 5)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    expect_huge_mapped(memory.range(), 0)?;
    memory.check_pattern(5)?;
    t.expect_free_pages(left - HUGE_PAGES as u64)?;
    drop(filler);
    memory.check_pattern(5)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern(5)?;
    t.expect_free_pages(free)?;
    // The pieces have become blocks again.
    let whole = t.resident_huge_memory(4, 6)?;
    whole.check_pattern(6)?;
    Ok(())
}

fn huge_zero_page_becomes_a_zeroed_block(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    t.allow_huge()?;
    let memory = Mapping::huge_aligned(2 * HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    // Loads alone: the kernel maps its huge page of zeroes.
    memory.check_fill(0)?;
    let rss = process::smaps_bytes(0, memory.range(), "Rss")?;
    ensure!(rss == 0, "{rss} bytes are resident after loads alone");
    expect_huge_mapped(memory.range(), memory.bytes() as u64)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_fill(0)?;
    t.expect_free_pages(free - memory.pages() as u64)?;
    memory.fill_pattern(7);
    memory.check_pattern(7)?;
    t.expect_blocks_in_device(memory.range())?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(7)?;
    t.expect_free_pages(free)
}

fn range_that_begins_and_ends_inside_huge_pages_moves_that_much(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.huge_memory(3, 8)?;
    let (first, count) = (HALF + 3, 2 * HUGE_PAGES - 6);
    t.move_all(memory.page_range(first, count), Direction::ToDevice)?;
    t.expect_in_device(memory.page_range(first, count))?;
    t.expect_in_system(memory.page_range(0, first))?;
    let behind = first + count;
    t.expect_in_system(memory.page_range(behind, memory.pages() - behind))?;
    t.expect_free_pages(free - count as u64)?;
    memory.check_pattern(8)?;
    // And out again, cut elsewhere.
    t.move_all(memory.page_range(0, HUGE_PAGES + 1), Direction::ToSystem)?;
    t.expect_in_system(memory.page_range(0, HUGE_PAGES + 1))?;
    memory.check_pattern(8)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern(8)?;
    t.expect_free_pages(free)
}

fn huge_and_small_pages_and_holes_move_in_one_call(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    // Huge, small with every third one missing, huge.
    let memory = Mapping::huge_aligned(3 * HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    memory.advise_pages(HUGE_PAGES, HUGE_PAGES, MmapAdvise::MADV_NOHUGEPAGE)?;
    let is_there =
        |page: usize| !(HUGE_PAGES..2 * HUGE_PAGES).contains(&page) || !page.is_multiple_of(3);
    let value = |page: usize| 0x1000 + page as u64;
    let pages: Vec<usize> = (0..memory.pages()).filter(|page| is_there(*page)).collect();
    for page in &pages {
        memory.word(page * PAGE_BYTES).store(value(*page), Relaxed);
    }
    expect_huge_mapped(memory.range(), 2 * HUGE_PAGE_BYTES as u64)?;
    let expect_contents = || -> Result<()> {
        for page in &pages {
            let found = memory.word(page * PAGE_BYTES).load(Relaxed);
            ensure!(found == value(*page), "page {page} holds {found:#x}");
        }
        Ok(())
    };
    let missing = (memory.pages() - pages.len()) as u64;
    for (direction, place) in [
        (Direction::ToDevice, Place::ThisDevice),
        (Direction::ToSystem, Place::System),
    ] {
        let (migration, _) = move_patiently(&t.device, 0, memory.range(), direction)?;
        ensure!(
            (migration.moved, migration.not_present) == (pages.len() as u64, missing),
            "{direction:?}: {migration:?}"
        );
        let places = t.device.places(0, memory.range())?;
        for (page, found) in places.into_iter().enumerate() {
            let expected = if is_there(page) { place } else { Place::Absent };
            ensure!(found == expected, "page {page} is {found:?}");
        }
        expect_contents()?;
    }
    t.expect_free_pages(free)
}

fn second_migration_finds_the_blocks_there(t: &Fixture) -> Result<()> {
    let memory = t.resident_huge_memory(2, 9)?;
    let physical = physical_addresses(memory.range())?;
    for _ in 0..2 {
        let again = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
        ensure!(
            again.there == memory.pages() as u64 && again.moved == 0,
            "{again:?}"
        );
    }
    ensure!(
        physical == physical_addresses(memory.range())?,
        "the blocks moved all the same"
    );
    expect_huge_mapped(memory.range(), memory.bytes() as u64)?;
    memory.check_pattern(9)?;
    Ok(())
}

fn block_of_one_device_moves_to_the_other_and_is_not_taken_for_system_memory(
    t: &Fixture,
) -> Result<()> {
    if !Device::numbers()?.contains(&1) {
        return skip("needs a second device");
    }
    let second = Device::open(1)?;
    let (free_first, free_second) = (t.free_pages()?, free_pages(&second)?);
    let memory = t.resident_huge_memory(2, 10)?;
    let pages = memory.pages() as u64;
    // The other device does not bring home what is not its own.
    let others = second.migrate(0, memory.range(), Direction::ToSystem)?;
    ensure!(
        others.moved == 0,
        "device 1 moved pages of device 0: {others:?}"
    );
    t.expect_blocks_in_device(memory.range())?;
    let (migration, _) = move_patiently(&second, 0, memory.range(), Direction::ToDevice)?;
    ensure!(migration.moved == pages, "{migration:?}");
    let residency = second.residency(0, memory.range())?;
    ensure!(residency.this_device == pages, "{residency:?}");
    memory.check_pattern(10)?;
    t.expect_free_pages(free_first)?;
    let crc = second.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        crc == memory.crc32c(memory.bytes()),
        "the second device reads {crc:#010x}"
    );
    let (migration, _) = move_patiently(&second, 0, memory.range(), Direction::ToSystem)?;
    ensure!(migration.moved == pages, "{migration:?}");
    memory.check_pattern(10)?;
    crate::fixture::expect_free_pages(&second, free_second)
}

/// What every block that was cut must do: come back with its contents, and leave nothing behind.
fn expect_back(t: &Fixture, memory: &Mapping, seed: u64, free: u64) -> Result<()> {
    memory.check_pattern(seed)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern(seed)?;
    t.expect_free_pages(free)
}

fn block_that_is_mapped_by_small_entries_comes_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_huge_memory(2, 11)?;
    memory.protect_pages(0, HALF, ProtFlags::PROT_READ)?;
    memory.protect_pages(HUGE_PAGES + HALF, HALF, ProtFlags::PROT_READ)?;
    expect_huge_mapped(memory.range(), 0)?;
    t.expect_blocks_in_device(memory.range())?;
    expect_back(t, &memory, 11, free)
}

fn block_of_which_half_was_unmapped_comes_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = t.resident_huge_memory(2, 12)?;
    // The front half of one block and, with the rest gone too, the end of the other.
    memory.unmap_tail(HALF * PAGE_BYTES)?;
    t.expect_in_device(memory.range())?;
    expect_back(t, &memory, 12, free)
}

fn block_of_which_half_moved_away_by_mremap_comes_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = t.resident_huge_memory(2, 13)?;
    let physical = physical_addresses(memory.range())?;
    // To an address that is no multiple of 2 MiB, where no huge entry can be.
    let mut target = Mapping::huge_aligned(3 * HUGE_PAGE_BYTES)?;
    target.unmap_head(PAGE_BYTES)?;
    let excess = target.bytes() - memory.bytes();
    target.unmap_tail(excess)?;
    memory.move_over(target)?;
    expect_huge_mapped(memory.range(), 0)?;
    ensure!(
        physical_addresses(memory.range())? == physical,
        "mremap changed the pages"
    );
    t.expect_in_device(memory.range())?;
    expect_back(t, &memory, 13, free)
}

fn block_of_which_half_was_dropped_comes_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_huge_memory(2, 14)?;
    memory.advise_pages(0, HALF, MmapAdvise::MADV_DONTNEED)?;
    ensure!(
        memory.word(0).load(Relaxed) == 0,
        "dropped memory is not zero"
    );
    memory.check_pattern_pages(14, HALF..memory.pages())?;
    let rest = memory.page_range(HALF, memory.pages() - HALF);
    t.expect_in_device(rest)?;
    t.move_all(rest, Direction::ToSystem)?;
    t.expect_in_system(rest)?;
    memory.check_pattern_pages(14, HALF..memory.pages())?;
    t.expect_free_pages(free)
}

fn block_that_is_half_unmapped_survives_the_shrinkers(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = t.resident_huge_memory(2, 15)?;
    memory.unmap_tail(HALF * PAGE_BYTES)?;
    for _ in 0..2 {
        // Slab objects: the shrinkers, of which one splits what is partially mapped.
        fs::write("/proc/sys/vm/drop_caches", "2").context("cannot call the shrinkers")?;
    }
    t.expect_in_device(memory.range())?;
    expect_back(t, &memory, 15, free)
}

fn aligned_mremap_keeps_the_block_in_one_piece(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = t.resident_huge_memory(2, 16)?;
    let physical = physical_addresses(memory.range())?;
    let old = memory.address();
    memory.move_over(Mapping::huge_aligned(memory.bytes())?)?;
    ensure!(memory.address() != old, "mremap left the mapping there");
    ensure!(
        physical_addresses(memory.range())? == physical,
        "mremap changed the pages"
    );
    expect_huge_mapped(memory.range(), memory.bytes() as u64)?;
    expect_back(t, &memory, 16, free)
}

fn child_reads_the_block_and_takes_no_memory(t: &Fixture) -> Result<()> {
    let memory = t.resident_huge_memory(2, 17)?;
    let free = t.free_pages()?;
    let physical = physical_addresses(memory.range())?;
    let mut child = Child::spawn(|parent| {
        memory.check_pattern(17)?;
        ensure!(
            physical == physical_addresses(memory.range())?,
            "the child has other pages"
        );
        expect_huge_mapped(memory.range(), memory.bytes() as u64)?;
        parent.meet()
    })?;
    child.wait_for_arrival()?;
    t.expect_free_pages(free)?;
    child.release()?;
    child.finish()?;
    memory.check_pattern(17)?;
    t.expect_blocks_in_device(memory.range())
}

fn writes_of_parent_and_child_copy_out_of_the_block(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_huge_memory(2, 18)?;
    // Each side writes to every fourth page, not the same ones; the others stay shared.
    let write = |side: usize| {
        for page in (side..memory.pages()).step_by(4) {
            memory.fill_pattern_pages(180 + side as u64, page..page + 1);
        }
    };
    let check = |side: usize| -> Result<()> {
        for page in 0..memory.pages() {
            let seed = if page % 4 == side { 180 + side } else { 18 };
            memory.check_pattern_pages(seed as u64, page..page + 1)?;
        }
        Ok(())
    };
    let mut child = Child::spawn(|parent| {
        write(1);
        parent.meet()?;
        check(1)
    })?;
    child.wait_for_arrival()?;
    write(2);
    check(2)?;
    child.release()?;
    child.finish()?;
    check(2)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.expect_in_system(memory.range())?;
    check(2)?;
    t.expect_free_pages(free)
}

fn collapse_of_device_pages_is_refused_and_changes_nothing(t: &Fixture) -> Result<()> {
    let memory = Mapping::huge_aligned(HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(19);
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    let physical = physical_addresses(memory.range())?;
    expect_errno(memory.collapse(), Errno::EINVAL)?;
    ensure!(
        physical == physical_addresses(memory.range())?,
        "the pages moved all the same"
    );
    memory.check_pattern(19)?;
    // Home again, they collapse like any other.
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory
        .collapse()
        .context("cannot collapse pages that are back in system memory")?;
    expect_huge_mapped(memory.range(), memory.bytes() as u64)?;
    memory.check_pattern(19)?;
    Ok(())
}

/// Pins some pages of the first of two blocks.
fn pin_in_a_block(t: &Fixture, pages: std::ops::Range<usize>, seed: u64) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_huge_memory(2, seed)?;
    let registered = Registered::new(&memory, pages.clone())?;
    // The pinned pages must not be in the device; the block goes in one piece, so none of it is.
    t.expect_in_system(memory.page_range(0, HUGE_PAGES))?;
    t.expect_blocks_in_device(memory.page_range(HUGE_PAGES, HUGE_PAGES))?;
    t.expect_free_pages(free - HUGE_PAGES as u64)?;
    memory.check_pattern(seed)?;
    let migration = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.moved + migration.there < memory.pages() as u64,
        "pinned pages moved: {migration:?}"
    );
    t.expect_in_system(memory.page_range(pages.start, pages.len()))?;
    registered.unregister()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(seed)?;
    Ok(())
}

fn long_term_pin_of_one_page_moves_its_whole_block_out(t: &Fixture) -> Result<()> {
    pin_in_a_block(t, 77..78, 5)
}

fn long_term_pin_of_a_whole_block_moves_it_out(t: &Fixture) -> Result<()> {
    pin_in_a_block(t, 0..HUGE_PAGES, 6)
}

fn unload_brings_blocks_home_whole_and_cut(t: &Fixture) -> Result<()> {
    let inside = t.device_memory();
    let whole = t.resident_huge_memory(2, 7)?;
    // Mapped by small entries, and with half of it gone.
    let split = t.resident_huge_memory(1, 8)?;
    split.protect_pages(0, 1, ProtFlags::PROT_READ)?;
    let mut cut = t.resident_huge_memory(1, 9)?;
    cut.unmap_tail(cut.bytes() / 2)?;
    without_node(t, || {
        let unloaded = module::unload()?;
        for (memory, seed) in [(&whole, 7), (&split, 8), (&cut, 9)] {
            expect_outside(memory, &inside)?;
            memory.check_pattern(seed)?;
        }
        unloaded.reload()?;
        Ok(())
    })
}
