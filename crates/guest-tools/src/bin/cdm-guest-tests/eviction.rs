// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages leave the device without their owners' doing: by frame, the least
//! recently migrated first, or to make room; and what is not present is faulted in
//! when asked for.

use std::os::unix::fs::FileExt;
use std::thread;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Direction, Evicted, Migration, Options};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::range::AddressRange;
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use crate::fixture::{Fixture, expect_errno, physical_addresses};
use crate::isolate::Child;
use crate::processes::become_user;
use crate::stores::memory_file;

crate::tests!("eviction":
    eviction_of_all_brings_the_pages_of_every_process_home,
    eviction_of_a_frame_takes_its_page_and_leaves_the_others,
    evictions_that_meet_move_each_page_once,
    eviction_by_frame_takes_a_block_whole,
    eviction_by_frame_finds_pages_of_a_file_that_nobody_maps,
    eviction_of_the_oldest_takes_them_in_the_order_of_their_migration,
    eviction_of_what_the_device_does_not_have_is_refused,
    eviction_needs_privilege,
    full_device_makes_room_by_eviction_of_the_oldest,
    full_device_makes_no_room_unless_asked,
    absent_pages_are_faulted_in_on_request_and_move,
    holes_of_a_file_are_faulted_in_on_request_and_move,
);

const PAGES: usize = 64;

/// Evicts until nothing is busy any more.
fn evict(t: &Fixture, which: Evicted, pages_max: u64) -> Result<Migration> {
    const TRIES: usize = 20;
    let mut moved = 0;
    for _ in 0..TRIES {
        let mut evicted = t.device.evict(which, pages_max)?;
        ensure!(evicted.adds_up(), "the counts do not add up: {evicted:?}");
        moved += evicted.moved;
        if evicted.failed() == 0 {
            evicted.moved = moved;
            return Ok(evicted);
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    anyhow::bail!("pages stay: {:?}", t.device.evict(which, pages_max)?)
}

fn eviction_of_all_brings_the_pages_of_every_process_home(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_small_pages(PAGES, 1)?;
    let mut child = Child::spawn(|parent| {
        let own = t.resident_small_pages(PAGES, 2)?;
        memory.fill_pattern_pages(3, 0..4);
        parent.meet()?;
        t.expect_in_system(own.range())?;
        own.check_pattern(2)?;
        memory.check_pattern_pages(3, 0..4)?;
        memory.check_pattern_pages(1, 4..PAGES)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    let evicted = evict(t, Evicted::All, 0)?;
    ensure!(evicted.moved == 2 * PAGES as u64, "{evicted:?}");
    t.expect_free_pages(free)?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern(1)?;
    child.release()?;
    child.finish()
}

fn eviction_of_a_frame_takes_its_page_and_leaves_the_others(t: &Fixture) -> Result<()> {
    const WHICH: usize = 7;
    let memory = t.resident_small_pages(PAGES, 4)?;
    let before = physical_addresses(memory.range())?;
    let frame = before[WHICH];
    let evicted = evict(t, Evicted::Frames(frame, frame + PAGE_BYTES as u64), 0)?;
    ensure!((evicted.asked, evicted.moved) == (1, 1), "{evicted:?}");
    let after = physical_addresses(memory.range())?;
    for page in 0..PAGES {
        ensure!(
            (after[page] == before[page]) == (page != WHICH),
            "page {page} went from {:#x} to {:#x}",
            before[page],
            after[page]
        );
    }
    t.expect_in_system(memory.page_range(WHICH, 1))?;
    memory.check_pattern(4)?;
    Ok(())
}

/// One eviction finds pages that another one has moved and is about to free.
fn evictions_that_meet_move_each_page_once(t: &Fixture) -> Result<()> {
    const ROUNDS: u64 = 100;
    const THREADS: usize = 3;
    t.need_relief("the kernel moves a page twice now and then")?;
    let memory = t.resident_small_pages(4 * PAGES, 6)?;
    for round in 0..ROUNDS {
        if round != 0 {
            t.move_all(memory.range(), Direction::ToDevice)?;
        }
        let evict_all = || -> Result<u64> {
            let mut moved = 0;
            loop {
                let evicted = t.device.evict(Evicted::All, 0)?;
                moved += evicted.moved;
                if evicted.asked == 0 {
                    return Ok(moved);
                }
            }
        };
        let moved = thread::scope(|scope| {
            let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(evict_all)).collect();
            let mut moved = evict_all()?;
            for other in others {
                moved += other.join().expect("no thread panics")?;
            }
            anyhow::Ok(moved)
        })?;
        ensure!(
            moved == memory.pages() as u64,
            "round {round}: {} pages moved {moved} times",
            memory.pages()
        );
    }
    t.expect_in_system(memory.range())?;
    memory.check_pattern(6)?;
    Ok(())
}

fn eviction_by_frame_takes_a_block_whole(t: &Fixture) -> Result<()> {
    let memory = t.resident_huge_memory(1, 5)?;
    // A frame in the middle of the block.
    let frame = physical_addresses(memory.page_range(100, 1))?[0];
    let evicted = evict(t, Evicted::Frames(frame, frame + PAGE_BYTES as u64), 0)?;
    ensure!(
        (evicted.moved, evicted.large) == (memory.pages() as u64, memory.pages() as u64),
        "{evicted:?}"
    );
    t.expect_in_system(memory.range())?;
    memory.check_pattern(5)?;
    Ok(())
}

fn eviction_by_frame_finds_pages_of_a_file_that_nobody_maps(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let free = t.free_pages()?;
    let file = memory_file(PAGES * PAGE_BYTES)?;
    let memory = Mapping::shared_file(&file, PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(6);
    t.move_all(memory.range(), Direction::ToDevice)?;
    let expected = memory.read_bytes(memory.bytes());
    let mut frames = physical_addresses(memory.range())?;
    drop(memory);
    t.expect_free_pages(free - PAGES as u64)?;
    frames.sort_unstable();
    // The lower half by its frames, the rest with all there is.
    let half = frames[PAGES / 2];
    let evicted = evict(t, Evicted::Frames(frames[0], half), 0)?;
    ensure!(evicted.moved == PAGES as u64 / 2, "{evicted:?}");
    t.expect_free_pages(free - PAGES as u64 / 2)?;
    evict(t, Evicted::All, 0)?;
    t.expect_free_pages(free)?;
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found == expected, "the file holds something else");
    Ok(())
}

fn eviction_of_the_oldest_takes_them_in_the_order_of_their_migration(t: &Fixture) -> Result<()> {
    let resident = |seed| t.resident_small_pages(PAGES, seed);
    let memories = [resident(7)?, resident(8)?, resident(9)?];
    // The first goes home and comes in again, which makes it the youngest.
    t.move_all(memories[0].range(), Direction::ToSystem)?;
    t.move_all(memories[0].range(), Direction::ToDevice)?;
    for (round, next) in [1, 2, 0].into_iter().enumerate() {
        let evicted = t.device.evict(Evicted::Oldest, PAGES as u64)?;
        ensure!(evicted.moved == PAGES as u64, "round {round}: {evicted:?}");
        t.expect_in_system(memories[next].range())
            .with_context(|| format!("round {round}: others left first"))?;
    }
    for (memory, seed) in memories.iter().zip(7..) {
        memory.check_pattern(seed)?;
    }
    Ok(())
}

fn eviction_of_what_the_device_does_not_have_is_refused(t: &Fixture) -> Result<()> {
    let memory = t.resident_small_pages(PAGES, 10)?;
    let inside = t.device_memory();
    let page = PAGE_BYTES as u64;
    for (start, end) in [
        (inside.start + 1, inside.start + page),
        (inside.start, inside.start + page + 1),
        (inside.start - page, inside.start + page),
        (inside.end - page, inside.end + page),
        (inside.start, inside.start),
        (0, page),
    ] {
        expect_errno(
            t.device.evict(Evicted::Frames(start, end), 0),
            Errno::EINVAL,
        )
        .with_context(|| format!("{start:#x} to {end:#x}"))?;
    }
    t.expect_in_device(memory.range())
}

fn eviction_needs_privilege(t: &Fixture) -> Result<()> {
    let memory = t.resident_small_pages(PAGES, 11)?;
    let child = Child::spawn(|_| {
        become_user(1000)?;
        expect_errno(t.device.evict(Evicted::All, 0), Errno::EPERM)?;
        expect_errno(t.device.evict(Evicted::Oldest, 1), Errno::EPERM)
    })?;
    child.finish()?;
    t.expect_in_device(memory.range())
}

fn migrate(t: &Fixture, range: AddressRange, options: Options) -> Result<Migration> {
    let migration = t
        .device
        .migrate_with(0, range, Direction::ToDevice, options)?;
    ensure!(migration.adds_up(), "{migration:?}");
    Ok(migration)
}

fn full_device_makes_room_by_eviction_of_the_oldest(t: &Fixture) -> Result<()> {
    let free = t.free_pages()? as usize;
    let old = t.resident_small_pages(PAGES, 12)?;
    let rest = t.resident_small_pages(free - PAGES, 13)?;
    t.expect_free_pages(0)?;
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(14);
    let options = Options {
        make_room: true,
        ..Default::default()
    };
    let migration = migrate(t, memory.range(), options)?;
    ensure!(migration.moved == PAGES as u64, "{migration:?}");
    ensure!(migration.evicted >= PAGES as u64, "{migration:?}");
    t.expect_in_device(memory.range())?;
    t.expect_in_system(old.range())?;
    for (memory, seed) in [(&old, 12), (&rest, 13), (&memory, 14)] {
        memory.check_pattern(seed)?;
    }
    Ok(())
}

fn full_device_makes_no_room_unless_asked(t: &Fixture) -> Result<()> {
    let free = t.free_pages()? as usize;
    let all = t.resident_small_pages(free, 15)?;
    let memory = t.system_memory(PAGES, 16)?;
    let migration = migrate(t, memory.range(), Options::default())?;
    ensure!(
        (migration.moved, migration.evicted) == (0, 0) && migration.no_memory == PAGES as u64,
        "{migration:?}"
    );
    t.expect_in_device(all.range())?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern(16)?;
    all.check_pattern(15)?;
    Ok(())
}

const POPULATE: Options = Options {
    populate: true,
    make_room: false,
    small: false,
};

fn absent_pages_are_faulted_in_on_request_and_move(t: &Fixture) -> Result<()> {
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern_pages(17, 3..9);
    let expected = memory_bytes(17, 3..9)?;
    let plain = migrate(t, memory.range(), Options::default())?;
    ensure!(
        (plain.moved, plain.not_present) == (6, PAGES as u64 - 6),
        "{plain:?}"
    );
    let populated = migrate(t, memory.range(), POPULATE)?;
    ensure!(
        (populated.moved, populated.there) == (PAGES as u64 - 6, 6),
        "{populated:?}"
    );
    t.expect_in_device(memory.range())?;
    ensure!(
        memory.read_bytes(memory.bytes()) == expected,
        "wrong contents"
    );
    // They are the process's own, and not the zero page of all.
    memory.fill_pattern(18);
    t.expect_in_device(memory.range())?;
    memory.check_pattern(18)?;
    Ok(())
}

/// The bytes of `PAGES` zeroed pages, of which some have the pattern of `seed`.
fn memory_bytes(seed: u64, pages: std::ops::Range<usize>) -> Result<Vec<u8>> {
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.fill_pattern_pages(seed, pages);
    Ok(memory.read_bytes(memory.bytes()))
}

fn holes_of_a_file_are_faulted_in_on_request_and_move(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let file = memory_file(PAGES * PAGE_BYTES)?;
    let expected = memory_bytes(19, 10..20)?;
    file.write_all_at(
        &expected[10 * PAGE_BYTES..20 * PAGE_BYTES],
        10 * PAGE_BYTES as u64,
    )?;
    let memory = Mapping::shared_file(&file, PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let plain = migrate(t, memory.range(), Options::default())?;
    ensure!(
        (plain.moved, plain.not_present) == (0, PAGES as u64),
        "{plain:?}"
    );
    let populated = migrate(t, memory.range(), POPULATE)?;
    ensure!(populated.moved == PAGES as u64, "{populated:?}");
    t.expect_in_device(memory.range())?;
    ensure!(
        memory.read_bytes(memory.bytes()) == expected,
        "wrong contents"
    );
    t.move_all(memory.range(), Direction::ToSystem)?;
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found == expected, "the file holds something else");
    Ok(())
}
