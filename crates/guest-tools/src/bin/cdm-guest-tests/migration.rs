// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages go into the device and come back; the CPU and the device see the same bytes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Direction, Migration, Options, Place, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES, pattern};
use cdm_guest_tools::process;
use cdm_guest_tools::uapi::{CDM_CAN_MOVE_FILES, CDM_CAN_MOVE_LARGE};
use nix::sys::mman::{MmapAdvise, ProtFlags};
use nix::sys::resource::{UsageWho, getrusage};

use crate::fixture::{Fixture, move_patiently, physical_addresses};
use crate::stores::memory_file;

crate::tests!("migration":
    pages_lie_inside_the_bar_after_migration,
    contents_read_back_by_plain_loads,
    device_checksum_equals_the_cpus,
    device_rewrite_reaches_the_cpu_without_a_call,
    contents_are_equal_after_a_round_trip,
    what_the_device_wrote_survives_the_way_back,
    access_to_device_pages_takes_no_fault,
    second_migration_finds_the_pages_there,
    untouched_pages_are_counted_and_stay_untouched,
    hole_in_the_range_is_counted_and_the_rest_moves,
    pages_of_a_shared_file_move_where_the_kernel_can_and_are_counted_elsewhere,
    read_only_memory_migrates_and_stays_read_only,
    huge_pages_move_whole_where_the_kernel_can_and_in_parts_elsewhere,
    huge_pages_move_in_parts_on_request,
    places_tell_each_page_of_a_mixed_range,
    concurrent_migrations_and_stores_lose_nothing,
);

/// 16 MiB: several batches of any size that the driver may choose, several page tables.
const PAGES: usize = 4096;

fn pages_lie_inside_the_bar_after_migration(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 1)?;
    t.expect_in_system(memory.range())?;
    let free = t.free_pages()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    t.expect_free_pages(free - PAGES as u64)?;
    let mut addresses = physical_addresses(memory.range())?;
    addresses.sort_unstable();
    addresses.dedup();
    ensure!(
        addresses.len() == PAGES,
        "{} of {PAGES} pages are distinct",
        addresses.len()
    );
    Ok(())
}

fn contents_read_back_by_plain_loads(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 2)?;
    memory.check_pattern(2)?;
    // Stores by the CPU, too, go where the device reads.
    memory.fill_pattern(3);
    memory.check_pattern(3)?;
    t.expect_in_device(memory.range())
}

fn device_checksum_equals_the_cpus(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 4)?;
    let by_cpu = memory.crc32c(memory.bytes());
    let by_device = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        by_device == by_cpu,
        "device {by_device:#010x}, CPU {by_cpu:#010x}"
    );
    // One bit makes a difference, so the equality above says something.
    memory.word(PAGES / 2 * PAGE_BYTES).fetch_xor(1, Relaxed);
    let changed = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        changed != by_cpu,
        "the device's checksum does not see a store of the CPU"
    );
    t.expect_in_device(memory.range())
}

fn device_rewrite_reaches_the_cpu_without_a_call(t: &Fixture) -> Result<()> {
    const NEW: u64 = 0x5eed_0000_cafe_f00d;
    const PATIENCE: Duration = Duration::from_secs(30);
    let memory = t.resident_memory(256, 5)?;
    let last = memory.bytes() - 8;
    let watching = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let deadline = Instant::now() + PATIENCE;
            watching.store(true, SeqCst);
            // Loads and nothing else: no system call, no fence that could fetch the bytes. The
            // clock is read through the vDSO, and rarely.
            loop {
                for _ in 0..100_000 {
                    if memory.word(last).load(Relaxed) == NEW {
                        return true;
                    }
                    std::hint::spin_loop();
                }
                if Instant::now() > deadline {
                    return false;
                }
            }
        });
        while !watching.load(SeqCst) {
            thread::yield_now();
        }
        t.device.fill(&memory, Span::all(&memory), 8, NEW)?.ok()?;
        let seen = watcher
            .join()
            .map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        ensure!(seen, "a CPU that only loads never saw the device's store");
        Ok(())
    })?;
    memory.check_fill(NEW)?;
    t.expect_in_device(memory.range())
}

fn contents_are_equal_after_a_round_trip(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 6)?;
    let free = t.free_pages()?;
    for _ in 0..3 {
        t.move_all(memory.range(), Direction::ToDevice)?;
        t.move_all(memory.range(), Direction::ToSystem)?;
    }
    t.expect_in_system(memory.range())?;
    memory.check_pattern(6)?;
    t.expect_free_pages(free)
}

fn what_the_device_wrote_survives_the_way_back(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 7)?;
    let half = memory.bytes() / 2;
    let upper = Span {
        offset: half,
        bytes: half,
    };
    t.device.fill(&memory, upper, 4, 0xdead_beef)?.ok()?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern_pages(7, 0..PAGES / 2)?;
    for offset in (half..memory.bytes()).step_by(8) {
        let found = memory.word(offset).load(Relaxed);
        ensure!(
            found == 0xdead_beef_dead_beef,
            "offset {offset:#x} holds {found:#x}"
        );
    }
    Ok(())
}

fn faults() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("getrusage")?;
    Ok(usage.minor_page_faults() + usage.major_page_faults())
}

fn access_to_device_pages_takes_no_fault(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(512, 8)?;
    let access = || {
        for page in 0..memory.pages() {
            memory.word(page * PAGE_BYTES).fetch_add(1, Relaxed);
            memory
                .word(page * PAGE_BYTES + 8)
                .store(page as u64, Relaxed);
        }
    };
    // What the loop itself needs (its code, the stack) is faulted in by a run on other memory.
    t.system_memory(1, 0)?;
    faults()?;
    let before = faults()?;
    access();
    let taken = faults()? - before;
    ensure!(
        taken == 0,
        "{taken} faults on {} resident pages",
        memory.pages()
    );
    t.expect_in_device(memory.range())
}

fn second_migration_finds_the_pages_there(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(64, 9)?;
    let physical = physical_addresses(memory.range())?;
    let again = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    let expected = Migration {
        asked: 64,
        there: 64,
        ..Default::default()
    };
    ensure!(again == expected, "{again:?}");
    ensure!(
        physical == physical_addresses(memory.range())?,
        "the pages moved all the same"
    );
    t.move_all(memory.range(), Direction::ToSystem)?;
    let back = t.device.migrate(0, memory.range(), Direction::ToSystem)?;
    ensure!(back == expected, "{back:?}");
    Ok(())
}

fn untouched_pages_are_counted_and_stay_untouched(t: &Fixture) -> Result<()> {
    let memory = Mapping::anonymous(64 * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    for page in 0..16 {
        memory
            .word(page * 4 * PAGE_BYTES)
            .store(page as u64 + 1, Relaxed);
    }
    let free = t.free_pages()?;
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    let expected = Migration {
        asked: 64,
        moved: 16,
        not_present: 48,
        ..Default::default()
    };
    ensure!(migration == expected, "{migration:?}");
    t.expect_free_pages(free - 16)?;
    let residency = t.device.residency(0, memory.range())?;
    ensure!(
        residency.absent == 48 && residency.this_device == 16,
        "{residency:?}"
    );
    for page in 0..16 {
        let found = memory.word(page * 4 * PAGE_BYTES).load(Relaxed);
        ensure!(found == page as u64 + 1, "page {page} holds {found}");
    }
    Ok(())
}

fn hole_in_the_range_is_counted_and_the_rest_moves(t: &Fixture) -> Result<()> {
    // One mapping is cut in three; the middle is given back.
    let low = t.system_memory(96, 10)?;
    let range = low.range();
    let hole = low.page_range(32, 32);
    // SAFETY: the range is the middle of `low`; nothing reads it any more, and unmapping the hole
    // again with the rest does no harm.
    let result = unsafe { libc::munmap(hole.start() as *mut libc::c_void, hole.bytes() as usize) };
    ensure!(result == 0, "munmap failed");
    let (migration, _) = move_patiently(&t.device, 0, range, Direction::ToDevice)?;
    let expected = Migration {
        asked: 96,
        moved: 64,
        not_present: 32,
        ..Default::default()
    };
    ensure!(migration == expected, "{migration:?}");
    low.check_pattern_pages(10, 0..32)?;
    low.check_pattern_pages(10, 64..96)?;
    Ok(())
}

fn pages_of_a_shared_file_move_where_the_kernel_can_and_are_counted_elsewhere(
    t: &Fixture,
) -> Result<()> {
    const FILE_PAGES: usize = 16;
    let file = memory_file(FILE_PAGES * PAGE_BYTES)?;
    let memory = Mapping::shared_file(&file, FILE_PAGES * PAGE_BYTES)?;
    memory.fill_pattern(11);
    let free = t.free_pages()?;
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    let can_move = t.start.capabilities & CDM_CAN_MOVE_FILES != 0;
    let (moved, unsupported) = if can_move { (16, 0) } else { (0, 16) };
    let expected = Migration {
        asked: 16,
        moved,
        unsupported,
        ..Default::default()
    };
    ensure!(migration == expected, "{migration:?}");
    t.expect_free_pages(free - moved)?;
    memory.check_pattern(11)?;
    drop(memory);
    drop(file);
    t.expect_free_pages(free)
}

fn read_only_memory_migrates_and_stays_read_only(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(32, 12)?;
    memory.protect_pages(0, 32, ProtFlags::PROT_READ)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(12)?;
    // A device may not write what its process may not.
    match t.device.fill(&memory, Span::all(&memory), 8, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {}
        other => bail!("the device wrote to read-only memory: {other:?}"),
    }
    memory.check_pattern(12)?;
    Ok(())
}

/// Two huge pages go to the device and back; how many bytes of them stay mapped as such there.
fn move_huge_pages(t: &Fixture, seed: u64, options: Options, in_device: u64) -> Result<()> {
    let memory = Mapping::huge_aligned(2 * HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    memory.fill_pattern(seed);
    let all = memory.bytes() as u64;
    let huge = || process::smaps_bytes(0, memory.range(), "AnonHugePages");
    let before = huge()?;
    ensure!(
        before == all,
        "only {before} bytes are in huge pages to begin with"
    );
    let free = t.free_pages()?;
    let migration = t
        .device
        .migrate_with(0, memory.range(), Direction::ToDevice, options)?;
    let pages = memory.pages() as u64;
    ensure!(migration.moved == pages, "{migration:?}");
    ensure!(
        migration.large * PAGE_BYTES as u64 == in_device,
        "{migration:?}"
    );
    t.expect_in_device(memory.range())?;
    t.expect_free_pages(free - pages)?;
    memory.check_pattern(seed)?;
    let found = huge()?;
    ensure!(
        found == in_device,
        "{found} bytes are mapped by huge pages in the device"
    );
    let residency = t.device.residency(0, memory.range())?;
    ensure!(
        residency.large * PAGE_BYTES as u64 == in_device,
        "{residency:?}"
    );
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.expect_in_system(memory.range())?;
    memory.check_pattern(seed)?;
    t.expect_free_pages(free)
}

fn huge_pages_move_whole_where_the_kernel_can_and_in_parts_elsewhere(t: &Fixture) -> Result<()> {
    let can_move = t.start.capabilities & CDM_CAN_MOVE_LARGE != 0;
    let in_device = if can_move { 2 * HUGE_PAGE_BYTES } else { 0 };
    move_huge_pages(t, 13, Options::default(), in_device as u64)
}

fn huge_pages_move_in_parts_on_request(t: &Fixture) -> Result<()> {
    let options = Options {
        small: true,
        ..Default::default()
    };
    move_huge_pages(t, 15, options, 0)
}

fn places_tell_each_page_of_a_mixed_range(t: &Fixture) -> Result<()> {
    let memory = Mapping::anonymous(12 * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let touch = |page: usize| memory.word(page * PAGE_BYTES).store(1, Relaxed);
    (0..8).for_each(touch);
    t.move_all(memory.page_range(0, 4), Direction::ToDevice)?;
    let mut expected = vec![Place::ThisDevice; 4];
    expected.extend([Place::System; 4]);
    expected.extend([Place::Absent; 4]);
    let places = t.device.places(0, memory.range())?;
    ensure!(places == expected, "{places:?}");
    Ok(())
}

/// Two threads move the same memory to and fro while a third one counts in it.
fn concurrent_migrations_and_stores_lose_nothing(t: &Fixture) -> Result<()> {
    /// Counting goes on until so many pages moved meanwhile.
    const ENOUGH_MOVED: u64 = 2048;
    const PATIENCE: Duration = Duration::from_secs(60);
    let memory = t.system_memory(256, 14)?;
    for page in 0..memory.pages() {
        memory.word(page * PAGE_BYTES).store(0, Relaxed);
    }
    let done = AtomicBool::new(false);
    let moved = AtomicU64::new(0);
    let mover = |first: Direction, second: Direction| -> Result<()> {
        while !done.load(SeqCst) {
            for direction in [first, second] {
                let migration = t.device.migrate(0, memory.range(), direction)?;
                moved.fetch_add(migration.moved, SeqCst);
            }
        }
        Ok(())
    };
    let deadline = Instant::now() + PATIENCE;
    let mut rounds = 0;
    let (a, b) = thread::scope(|scope| {
        let a = scope.spawn(|| mover(Direction::ToDevice, Direction::ToSystem));
        let b = scope.spawn(|| mover(Direction::ToSystem, Direction::ToDevice));
        while moved.load(SeqCst) < ENOUGH_MOVED && Instant::now() < deadline {
            for page in 0..memory.pages() {
                memory.word(page * PAGE_BYTES).fetch_add(1, Relaxed);
            }
            rounds += 1;
        }
        done.store(true, SeqCst);
        (a.join(), b.join())
    });
    let panicked = |_| anyhow::anyhow!("a mover panicked");
    a.map_err(panicked)??;
    b.map_err(panicked)??;
    let moved = moved.load(SeqCst);
    t.note(format!("{moved} pages moved in {rounds} rounds"));
    ensure!(
        moved >= ENOUGH_MOVED,
        "only {moved} pages moved in {} s",
        PATIENCE.as_secs()
    );
    for page in 0..memory.pages() {
        let count = memory.word(page * PAGE_BYTES).load(Relaxed);
        ensure!(count == rounds, "page {page} counts {count}, not {rounds}");
        let index = page * PAGE_BYTES / 8 + 1;
        let found = memory.words()[index].load(Relaxed);
        ensure!(
            found == pattern(14, index),
            "page {page} lost its contents: {found:#x}"
        );
    }
    Ok(())
}
