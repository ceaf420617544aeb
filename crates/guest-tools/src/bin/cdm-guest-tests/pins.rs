// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Nobody may pin device memory for long: a long-term pin moves the page out
//! first, or fails; and what is pinned does not move.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::gup_test::{self, Pinner};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::registered::Registered;
use cdm_guest_tools::udmabuf::dma_buffer;

use crate::fixture::Fixture;
use crate::huge_files;
use crate::stores::{MEMFD, RAMFS};

crate::tests!("pins":
    io_uring_buffer_moves_its_pages_out,
    io_uring_buffer_of_part_of_the_memory_leaves_the_rest,
    pinned_pages_are_refused_and_move_after_the_pin,
    gup_test_long_term_pin_moves_the_pages_out,
    gup_test_fast_long_term_pin_moves_the_pages_out,
    reader_of_a_file_gets_its_contents_while_a_pin_moves_them_out,
    dma_buffer_of_a_file_moves_its_pages_out,
    dma_buffer_of_a_part_of_a_huge_page_moves_that_block_out,
);

const PAGES: usize = 64;

fn io_uring_buffer_moves_its_pages_out(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_memory(PAGES, 1)?;
    let registered = Registered::new(&memory, 0..PAGES)?;
    t.expect_in_system(memory.range())?;
    t.expect_free_pages(free)?;
    memory.check_pattern(1)?;
    registered.unregister()?;
    memory.check_pattern(1)?;
    Ok(())
}

fn io_uring_buffer_of_part_of_the_memory_leaves_the_rest(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 2)?;
    let registered = Registered::new(&memory, 16..24)?;
    t.expect_in_system(memory.page_range(16, 8))?;
    t.expect_in_device(memory.page_range(0, 16))?;
    t.expect_in_device(memory.page_range(24, PAGES - 24))?;
    memory.check_pattern(2)?;
    registered.unregister()
}

fn pinned_pages_are_refused_and_move_after_the_pin(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.system_memory(PAGES, 3)?;
    let registered = Registered::new(&memory, 8..24)?;
    let migration = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    ensure!(migration.pinned == 16, "16 pages are pinned: {migration:?}");
    t.expect_in_system(memory.page_range(8, 16))?;
    memory.check_pattern(3)?;
    // The rest moves; and asking again does not wear the pin out.
    for _ in 0..3 {
        t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    }
    t.expect_in_system(memory.page_range(8, 16))?;
    t.expect_in_device(memory.page_range(24, PAGES - 24))?;
    t.expect_free_pages(free - (PAGES as u64 - 16))?;
    registered.unregister()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(3)?;
    Ok(())
}

fn pin_by_gup_test(t: &Fixture, flags: u32) -> Result<()> {
    let pinner = Pinner::open()?;
    let free = t.free_pages()?;
    let memory = t.resident_memory(PAGES, 4)?;
    pinner
        .pin(memory.range(), flags)
        .context("gup_test cannot pin")?;
    // The ioctl fails unless every page is pinned, so that the pages are where the pin put them.
    t.expect_in_system(memory.range())?;
    t.expect_free_pages(free)?;
    memory.check_pattern(4)?;
    let migration = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.pinned == PAGES as u64,
        "pinned pages: {migration:?}"
    );
    pinner.unpin()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.check_pattern(4)?;
    Ok(())
}

fn gup_test_long_term_pin_moves_the_pages_out(t: &Fixture) -> Result<()> {
    pin_by_gup_test(t, gup_test::USE_WRITE)
}

fn gup_test_fast_long_term_pin_moves_the_pages_out(t: &Fixture) -> Result<()> {
    pin_by_gup_test(t, gup_test::USE_WRITE | gup_test::USE_FAST)
}

fn reader_of_a_file_gets_its_contents_while_a_pin_moves_them_out(t: &Fixture) -> Result<()> {
    const ROUNDS: usize = 100;
    t.need_files()?;
    let pinner = Pinner::open()?;
    // In the page cache of ramfs a reader waits for nobody's lock.
    let stored = RAMFS.file(PAGES * PAGE_BYTES)?;
    let memory = Mapping::shared_file(&stored.file, PAGES * PAGE_BYTES)?;
    memory.fill_pattern(8);
    let expected = memory.read_bytes(memory.bytes());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            // One page at a time, so that the pin finds most of them free.
            let mut found = vec![0; PAGE_BYTES];
            for page in (0..PAGES).cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let offset = page * PAGE_BYTES;
                stored.file.read_exact_at(&mut found, offset as u64)?;
                ensure!(
                    found == expected[offset..offset + PAGE_BYTES],
                    "read() gives something else for page {page}"
                );
            }
            Ok(())
        });
        // The reader holds what it reads, so some pins and some moves find it busy.
        let pinned = (0..ROUNDS).try_fold(0, |pinned, _| -> Result<u64> {
            let there = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
            // To read only: a pin to write of a file that is no shared memory is refused.
            if pinner.pin(memory.range(), 0).is_err() {
                return Ok(pinned);
            }
            t.expect_in_system(memory.range())?;
            pinner.unpin()?;
            Ok(pinned + there.moved)
        });
        is_over.store(true, Ordering::Relaxed);
        reader.join().expect("the reader does not panic")?;
        ensure!(pinned? > 0, "no pin ever moved a page out");
        Ok(())
    })?;
    memory.check_pattern(8)?;
    Ok(())
}

fn dma_buffer_of_a_file_moves_its_pages_out(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let free = t.free_pages()?;
    let stored = MEMFD.file(PAGES * PAGE_BYTES)?;
    let memory = Mapping::shared_file(&stored.file, PAGES * PAGE_BYTES)?;
    memory.fill_pattern(5);
    t.move_all(memory.range(), Direction::ToDevice)?;
    let pinned = memory.page_range(16, 24);
    let buffer = dma_buffer(&stored.file, 16..40)?;
    t.expect_in_system(pinned)?;
    t.expect_in_device(memory.page_range(0, 16))?;
    t.expect_in_device(memory.page_range(40, PAGES - 40))?;
    t.expect_free_pages(free - (PAGES as u64 - 24))?;
    memory.check_pattern(5)?;
    // A store by one way is seen by the other: both have the same pages.
    let seen = Mapping::shared_file(&buffer, pinned.bytes() as usize)?;
    memory.fill_pattern(6);
    let expected = memory.read_bytes(memory.bytes());
    ensure!(
        seen.read_bytes(seen.bytes()) == expected[16 * PAGE_BYTES..40 * PAGE_BYTES],
        "the buffer holds something else"
    );
    let migration = t.device.migrate(0, pinned, Direction::ToDevice)?;
    ensure!(migration.pinned == 24, "pinned pages: {migration:?}");
    drop((seen, buffer));
    t.move_all(pinned, Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(6)?;
    Ok(())
}

fn dma_buffer_of_a_part_of_a_huge_page_moves_that_block_out(t: &Fixture) -> Result<()> {
    let (file, memory) = huge_files::resident(t, 7)?;
    let block = HUGE_PAGE_BYTES / PAGE_BYTES;
    let buffer = dma_buffer(&file, 3..5)?;
    t.expect_in_system(memory.page_range(0, block))?;
    t.expect_blocks_in_device(memory.page_range(block, block))?;
    memory.check_pattern(7)?;
    drop(buffer);
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.check_pattern(7)?;
    Ok(())
}
