// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages of files go into the device and stay what they are: everybody's who
//! maps, reads, writes, cuts or lends them.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::process;
use io_uring::IoUring;
use nix::errno::Errno;
use nix::fcntl::{
    FallocateFlags, FcntlArg, PosixFadviseAdvice, SealFlag, SpliceFFlags, fallocate, fcntl,
    posix_fadvise, splice,
};
use nix::sys::mman::MmapAdvise;
use nix::unistd::pipe;

use crate::fixture::{Fixture, Test, move_patiently, physical_addresses};
use crate::isolate::Child;
use crate::module;
use crate::stores::{MEMFD, RAMFS, Store, Stored, TMPFS, XFS};
use crate::unload::without_node;

/// Names the tests of files on one store: the function is the name, the store is the group.
macro_rules! tests_on {
    ($group:literal, $store:ident: $($name:ident),+ $(,)?) => {
        &[$(Test {
            group: $group,
            name: stringify!($name),
            run: |t| $name(t, &$store),
        }),+]
    };
}

pub const MEMFD_TESTS: &[Test] = tests_on!("memfd", MEMFD:
    round_trip_keeps_contents_and_page_counts,
    stores_to_device_pages_take_no_fault,
    read_and_write_calls_reach_device_pages,
    every_process_that_maps_the_file_sees_the_device_pages,
    private_mapping_shares_device_pages_until_it_writes,
    page_that_a_pipe_holds_stays_and_moves_later,
    truncation_gives_the_pages_back,
    punched_hole_gives_the_pages_back,
    dropped_mapping_leaves_the_pages_to_the_file,
    unmapped_pages_come_home_at_unload,
    long_term_pin_moves_the_pages_out_first,
    fork_shares_device_pages_of_a_file_for_good,
    readers_and_writers_lose_nothing_to_migration,
    sealed_file_keeps_its_pages_in_the_device,
    last_close_gives_the_pages_back,
);

pub const TMPFS_TESTS: &[Test] = tests_on!("tmpfs", TMPFS:
    round_trip_keeps_contents_and_page_counts,
    stores_to_device_pages_take_no_fault,
    read_and_write_calls_reach_device_pages,
    every_process_that_maps_the_file_sees_the_device_pages,
    private_mapping_shares_device_pages_until_it_writes,
    page_that_a_pipe_holds_stays_and_moves_later,
    truncation_gives_the_pages_back,
    punched_hole_gives_the_pages_back,
    dropped_caches_and_invalidation_leave_the_contents,
    long_term_pin_moves_the_pages_out_first,
    readers_and_writers_lose_nothing_to_migration,
    last_close_gives_the_pages_back,
);

pub const RAMFS_TESTS: &[Test] = tests_on!("ramfs", RAMFS:
    round_trip_keeps_contents_and_page_counts,
    stores_to_device_pages_take_no_fault,
    read_and_write_calls_reach_device_pages,
    every_process_that_maps_the_file_sees_the_device_pages,
    private_mapping_shares_device_pages_until_it_writes,
    page_that_a_pipe_holds_stays_and_moves_later,
    truncation_gives_the_pages_back,
    dropped_caches_and_invalidation_leave_the_contents,
    readers_and_writers_lose_nothing_to_migration,
    last_close_gives_the_pages_back,
);

pub const XFS_TESTS: &[Test] = tests_on!("xfs", XFS:
    round_trip_keeps_contents_and_page_counts,
    read_and_write_calls_reach_device_pages,
    every_process_that_maps_the_file_sees_the_device_pages,
    private_mapping_shares_device_pages_until_it_writes,
    page_that_a_pipe_holds_stays_and_moves_later,
    truncation_gives_the_pages_back,
    punched_hole_gives_the_pages_back,
    dropped_caches_and_invalidation_leave_the_contents,
    dirty_device_pages_are_written_to_the_disk,
    readers_and_writers_lose_nothing_to_migration,
    last_close_gives_the_pages_back,
);

const PAGES: usize = 96;
const BYTES: usize = PAGES * PAGE_BYTES;

/// A file with the pattern of `seed`, and all of it mapped.
fn mapped(t: &Fixture, store: &Store, seed: u64) -> Result<(Stored, Mapping)> {
    t.need_files()?;
    let stored = store.file(BYTES)?;
    let memory = Mapping::shared_file(&stored.file, BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(seed);
    Ok((stored, memory))
}

/// The same, in the device.
fn resident(t: &Fixture, store: &Store, seed: u64) -> Result<(Stored, Mapping)> {
    let (stored, memory) = mapped(t, store, seed)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    Ok((stored, memory))
}

/// The bytes that the pattern of `seed` has in a file of this size.
fn pattern_bytes(seed: u64) -> Result<Vec<u8>> {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill_pattern(seed);
    Ok(memory.read_bytes(BYTES))
}

fn round_trip_keeps_contents_and_page_counts(t: &Fixture, store: &Store) -> Result<()> {
    let free = t.free_pages()?;
    let (stored, memory) = mapped(t, store, 1)?;
    let expect_resident = || -> Result<()> {
        let rss = process::smaps_bytes(0, memory.range(), "Rss")?;
        ensure!(rss == BYTES as u64, "Rss of the mapping is {rss}");
        Ok(())
    };
    expect_resident()?;
    for round in 0..3 {
        t.move_all(memory.range(), Direction::ToDevice)?;
        t.expect_in_device(memory.range())?;
        t.expect_free_pages(free - PAGES as u64)?;
        memory.check_pattern(1 + round)?;
        expect_resident()?;
        let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
        ensure!(crc == memory.crc32c(BYTES), "the device reads {crc:#010x}");
        memory.fill_pattern(2 + round);
        t.move_all(memory.range(), Direction::ToSystem)?;
        t.expect_in_system(memory.range())?;
        t.expect_free_pages(free)?;
        memory.check_pattern(2 + round)?;
        expect_resident()?;
    }
    drop(memory);
    let mut found = vec![0; BYTES];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(found == pattern_bytes(4)?, "the file holds something else");
    Ok(())
}

fn minor_faults() -> Result<i64> {
    use nix::sys::resource::{UsageWho, getrusage};
    Ok(getrusage(UsageWho::RUSAGE_SELF)?.minor_page_faults())
}

fn stores_to_device_pages_take_no_fault(t: &Fixture, store: &Store) -> Result<()> {
    let (_stored, memory) = resident(t, store, 2)?;
    let touch = |memory: &Mapping| {
        for page in 0..memory.pages() {
            memory.word(page * PAGE_BYTES).fetch_add(1, Relaxed);
        }
    };
    // What the loop itself needs is faulted in by a run on other memory.
    touch(&t.system_memory(PAGES, 3)?);
    minor_faults()?;
    let before = minor_faults()?;
    touch(&memory);
    let taken = minor_faults()? - before;
    ensure!(taken == 0, "{taken} faults on {PAGES} resident pages");
    t.expect_in_device(memory.range())
}

fn read_and_write_calls_reach_device_pages(t: &Fixture, store: &Store) -> Result<()> {
    let (stored, memory) = resident(t, store, 4)?;
    let mut found = vec![0; BYTES];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(found == pattern_bytes(4)?, "pread gives wrong contents");
    // Written by the device, read by the call.
    let half = BYTES / 2;
    let upper = Span {
        offset: half,
        bytes: half,
    };
    t.device.fill(&memory, upper, 8, 0x0f11)?.ok()?;
    stored.file.read_exact_at(&mut found, 0)?;
    let words = found[half..].as_chunks::<8>().0;
    ensure!(
        words.iter().all(|word| u64::from_le_bytes(*word) == 0x0f11),
        "pread does not see what the device wrote"
    );
    ensure!(found[..half] == pattern_bytes(4)?[..half], "the lower half");
    // Written by the call, across page borders, read by mapping and device.
    stored.file.write_all_at(&pattern_bytes(5)?, 0)?;
    memory.check_pattern(5)?;
    let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(crc == memory.crc32c(BYTES), "the device reads {crc:#010x}");
    t.expect_in_device(memory.range())
}

fn every_process_that_maps_the_file_sees_the_device_pages(
    t: &Fixture,
    store: &Store,
) -> Result<()> {
    let (stored, memory) = mapped(t, store, 6)?;
    let watch = |seed: u64| {
        let file = &stored.file;
        let own = memory.range();
        Child::spawn(move |parent| {
            // A mapping of its own, elsewhere.
            let mine = Mapping::shared_file(file, BYTES)?;
            ensure!(mine.range() != own, "two mappings at one address");
            mine.check_pattern(6)?;
            parent.meet()?;
            // The parent moved the pages in; the other child may have written to its page already.
            mine.check_pattern_pages(6, 0..7)?;
            mine.check_pattern_pages(6, 9..PAGES)?;
            t.expect_in_device(mine.range())?;
            mine.fill_pattern_pages(seed, seed as usize..seed as usize + 1);
            parent.meet()?;
            // And out again.
            t.expect_in_system(mine.range())?;
            mine.check_pattern_pages(seed, seed as usize..seed as usize + 1)?;
            Ok(())
        })
    };
    let mut children = [watch(7)?, watch(8)?];
    for child in &mut children {
        child.wait_for_arrival()?;
    }
    t.move_all(memory.range(), Direction::ToDevice)?;
    for child in &mut children {
        child.release()?;
        child.wait_for_arrival()?;
    }
    for page in 0..PAGES {
        let seed = match page {
            7 | 8 => page as u64,
            _ => 6,
        };
        memory.check_pattern_pages(seed, page..page + 1)?;
    }
    t.expect_in_device(memory.range())?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    for mut child in children {
        child.release()?;
        child.finish()?;
    }
    Ok(())
}

fn private_mapping_shares_device_pages_until_it_writes(t: &Fixture, store: &Store) -> Result<()> {
    let (stored, memory) = resident(t, store, 9)?;
    let physical = physical_addresses(memory.range())?;
    let private = Mapping::private_file(&stored.file, BYTES)?;
    private.check_pattern(9)?;
    ensure!(
        physical_addresses(private.range())? == physical,
        "the private mapping has other pages"
    );
    private.fill_pattern_pages(10, 0..PAGES / 2);
    private.check_pattern_pages(10, 0..PAGES / 2)?;
    private.check_pattern_pages(9, PAGES / 2..PAGES)?;
    memory.check_pattern(9)?;
    t.expect_in_system(private.page_range(0, PAGES / 2))?;
    t.expect_in_device(memory.range())?;
    // What is the process's own moves as any anonymous page, beside the file's.
    t.move_all(private.range(), Direction::ToDevice)?;
    t.expect_in_device(private.range())?;
    private.check_pattern_pages(10, 0..PAGES / 2)?;
    memory.check_pattern(9)?;
    Ok(())
}

fn page_that_a_pipe_holds_stays_and_moves_later(t: &Fixture, store: &Store) -> Result<()> {
    const LENT: usize = 4;
    let (stored, memory) = mapped(t, store, 11)?;
    let (from, to) = pipe().context("cannot make a pipe")?;
    let mut offset = 0;
    let mut left = LENT * PAGE_BYTES;
    while left > 0 {
        let flags = SpliceFFlags::empty();
        let lent = splice(&stored.file, Some(&mut offset), &to, None, left, flags)?;
        ensure!(lent > 0, "splice finds the end of the file");
        left -= lent;
    }
    let held = memory.page_range(0, LENT);
    let migration = t.device.migrate(0, held, Direction::ToDevice)?;
    ensure!(migration.moved == 0, "held pages moved: {migration:?}");
    t.expect_in_system(held)?;
    // The others do move.
    t.move_all(memory.page_range(LENT, PAGES - LENT), Direction::ToDevice)?;
    memory.check_pattern(11)?;
    let mut found = vec![0; LENT * PAGE_BYTES];
    File::from(from).read_exact(&mut found)?;
    ensure!(
        found == pattern_bytes(11)?[..found.len()],
        "the pipe holds something else"
    );
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(11)?;
    // The same from the device: lent pages do not leave it either.
    let (from, to) = pipe().context("cannot make a pipe")?;
    let mut offset = 0;
    let flags = SpliceFFlags::empty();
    let lent = splice(
        &stored.file,
        Some(&mut offset),
        &to,
        None,
        PAGE_BYTES,
        flags,
    )?;
    ensure!(lent == PAGE_BYTES, "splice lends {lent} bytes");
    let migration = t
        .device
        .migrate(0, memory.page_range(0, 1), Direction::ToSystem)?;
    ensure!(migration.moved == 0, "a held page left: {migration:?}");
    let mut found = vec![0; PAGE_BYTES];
    File::from(from).read_exact(&mut found)?;
    ensure!(
        found == pattern_bytes(11)?[..PAGE_BYTES],
        "the pipe holds something else than the device page"
    );
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(11)?;
    Ok(())
}

fn truncation_gives_the_pages_back(t: &Fixture, store: &Store) -> Result<()> {
    const KEPT: usize = PAGES / 3;
    let free = t.free_pages()?;
    let (stored, memory) = resident(t, store, 12)?;
    // Into the middle of a page: the rest of that one is zeroed in place.
    let kept_bytes = KEPT * PAGE_BYTES + PAGE_BYTES / 2;
    stored.file.set_len(kept_bytes as u64)?;
    t.expect_free_pages(free - KEPT as u64 - 1)?;
    stored.file.set_len(BYTES as u64)?;
    memory.check_pattern_pages(12, 0..KEPT)?;
    let mut expected = pattern_bytes(12)?;
    expected[kept_bytes..].fill(0);
    ensure!(
        memory.read_bytes(BYTES) == expected,
        "what was cut off is not zero"
    );
    stored.file.set_len(0)?;
    t.expect_free_pages(free)
}

fn punched_hole_gives_the_pages_back(t: &Fixture, store: &Store) -> Result<()> {
    const HOLE: std::ops::Range<usize> = 10..42;
    let free = t.free_pages()?;
    let (stored, memory) = resident(t, store, 13)?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (HOLE.start * PAGE_BYTES, HOLE.len() * PAGE_BYTES);
    fallocate(&stored.file, flags, offset as i64, length as i64).context("cannot punch")?;
    t.expect_free_pages(free - (PAGES - HOLE.len()) as u64)?;
    let mut expected = pattern_bytes(13)?;
    expected[offset..offset + length].fill(0);
    ensure!(
        memory.read_bytes(BYTES) == expected,
        "the hole is not zero, or the rest is not as it was"
    );
    memory.fill_pattern(14);
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.check_pattern(14)?;
    Ok(())
}

fn dropped_mapping_leaves_the_pages_to_the_file(t: &Fixture, store: &Store) -> Result<()> {
    let free = t.free_pages()?;
    let (stored, memory) = resident(t, store, 15)?;
    let physical = physical_addresses(memory.range())?;
    drop(memory);
    t.expect_free_pages(free - PAGES as u64)?;
    let mut found = vec![0; BYTES];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(found == pattern_bytes(15)?, "the file holds something else");
    let memory = Mapping::shared_file(&stored.file, BYTES)?;
    memory.check_pattern(15)?;
    ensure!(
        physical_addresses(memory.range())? == physical,
        "the file has other pages now"
    );
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(15)?;
    t.expect_free_pages(free)
}

fn unmapped_pages_come_home_at_unload(t: &Fixture, store: &Store) -> Result<()> {
    let (stored, memory) = resident(t, store, 16)?;
    drop(memory);
    without_node(t, || {
        let unloaded = module::unload()?;
        let mut found = vec![0; BYTES];
        stored.file.read_exact_at(&mut found, 0)?;
        ensure!(found == pattern_bytes(16)?, "the file holds something else");
        unloaded.reload()
    })
}

fn dropped_caches_and_invalidation_leave_the_contents(t: &Fixture, store: &Store) -> Result<()> {
    let free = t.free_pages()?;
    let (stored, memory) = resident(t, store, 17)?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches")?;
    posix_fadvise(
        &stored.file,
        0,
        BYTES as i64,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?;
    memory.check_pattern(17)?;
    drop(memory);
    stored.file.sync_all().context("fsync")?;
    posix_fadvise(
        &stored.file,
        0,
        BYTES as i64,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?;
    fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop caches")?;
    if store.is_disk {
        // Clean and unmapped: nothing keeps them in memory, of whichever kind.
        t.expect_free_pages(free)?;
    } else {
        t.expect_free_pages(free - PAGES as u64)?;
    }
    let mut found = vec![0; BYTES];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(found == pattern_bytes(17)?, "the file holds something else");
    Ok(())
}

fn long_term_pin_moves_the_pages_out_first(t: &Fixture, store: &Store) -> Result<()> {
    let free = t.free_pages()?;
    let (_stored, memory) = resident(t, store, 18)?;
    let pinned = memory.page_range(8, 24);
    let ring = IoUring::new(2).context("io_uring_setup")?;
    let buffer = libc::iovec {
        iov_base: pinned.start() as *mut libc::c_void,
        iov_len: pinned.bytes() as usize,
    };
    // SAFETY: no request ever uses the buffer, so it does not matter when the memory goes.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.context("cannot pin")?;
    t.expect_in_system(pinned)?;
    t.expect_in_device(memory.page_range(0, 8))?;
    t.expect_free_pages(free - (PAGES as u64 - 24))?;
    memory.check_pattern(18)?;
    let migration = t.device.migrate(0, pinned, Direction::ToDevice)?;
    ensure!(migration.moved == 0, "pinned pages moved: {migration:?}");
    ring.submitter().unregister_buffers()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.check_pattern(18)?;
    Ok(())
}

fn fork_shares_device_pages_of_a_file_for_good(t: &Fixture, store: &Store) -> Result<()> {
    let (_stored, memory) = resident(t, store, 19)?;
    let physical = physical_addresses(memory.range())?;
    let child = Child::spawn(|_| {
        memory.check_pattern(19)?;
        memory.fill_pattern(20);
        ensure!(
            physical_addresses(memory.range())? == physical,
            "a store to a shared mapping copied the page"
        );
        Ok(())
    })?;
    child.finish()?;
    memory.check_pattern(20)?;
    t.expect_in_device(memory.range())
}

/// One thread writes and reads the file by calls, another through the mapping, and a third moves
/// it to and fro.
fn readers_and_writers_lose_nothing_to_migration(t: &Fixture, store: &Store) -> Result<()> {
    const ROUNDS: u64 = 12;
    let (stored, memory) = mapped(t, store, 21)?;
    let done = AtomicBool::new(false);
    let moved = thread::scope(|scope| -> Result<u64> {
        let mover = scope.spawn(|| -> Result<u64> {
            let mut moved = 0;
            while !done.load(SeqCst) {
                for direction in [Direction::ToDevice, Direction::ToSystem] {
                    let migration = t.device.migrate(0, memory.range(), direction)?;
                    ensure!(migration.adds_up(), "{migration:?}");
                    moved += migration.moved;
                }
            }
            Ok(moved)
        });
        let mut worked = Ok(());
        for round in 0..ROUNDS {
            worked = read_and_write(&stored.file, &memory, round);
            if worked.is_err() {
                break;
            }
        }
        done.store(true, SeqCst);
        let moved = match mover.join() {
            Ok(moved) => moved?,
            Err(_) => bail!("the mover panicked"),
        };
        worked.map(|()| moved)
    })?;
    t.note(format!("{moved} pages moved meanwhile"));
    ensure!(
        moved >= PAGES as u64,
        "only {moved} pages moved, so nothing was tried"
    );
    Ok(())
}

fn read_and_write(file: &File, memory: &Mapping, round: u64) -> Result<()> {
    let seed = 100 + round;
    let expected = pattern_bytes(seed)?;
    // The lower half by calls, the upper through the mapping; then each is read the other way.
    let half = BYTES / 2;
    for (index, page) in expected[..half].chunks(PAGE_BYTES).enumerate() {
        file.write_all_at(page, (index * PAGE_BYTES) as u64)?;
    }
    memory.fill_pattern_pages(seed, PAGES / 2..PAGES);
    memory.check_pattern(seed)?;
    let mut found = vec![0; BYTES];
    file.read_exact_at(&mut found, 0)?;
    ensure!(
        found == expected,
        "round {round}: the calls read something else"
    );
    Ok(())
}

fn sealed_file_keeps_its_pages_in_the_device(t: &Fixture, store: &Store) -> Result<()> {
    let (stored, memory) = resident(t, store, 22)?;
    let seal = |seals| fcntl(&stored.file, FcntlArg::F_ADD_SEALS(seals));
    // As long as somebody may write, it cannot be sealed.
    ensure!(
        seal(SealFlag::F_SEAL_WRITE) == Err(Errno::EBUSY),
        "sealed with a writable mapping"
    );
    drop(memory);
    seal(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)
        .context("cannot seal a file whose pages are in the device")?;
    let refused = stored.file.write_all_at(&[1], 0);
    ensure!(refused.is_err(), "a sealed file was written");
    let mut found = vec![0; BYTES];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(found == pattern_bytes(22)?, "the file holds something else");
    Ok(())
}

fn last_close_gives_the_pages_back(t: &Fixture, store: &Store) -> Result<()> {
    let free = t.free_pages()?;
    let (mut stored, memory) = resident(t, store, 23)?;
    stored.unlink()?;
    drop(memory);
    t.expect_free_pages(free - PAGES as u64)?;
    drop(stored);
    t.expect_free_pages(free)
}

fn dirty_device_pages_are_written_to_the_disk(t: &Fixture, store: &Store) -> Result<()> {
    let (stored, memory) = resident(t, store, 24)?;
    // Stored while they are in the device, and by the device.
    memory.fill_pattern_pages(25, 0..PAGES / 2);
    let upper = Span {
        offset: BYTES / 2,
        bytes: BYTES / 2,
    };
    t.device.fill(&memory, upper, 8, 0xd157)?.ok()?;
    stored.file.sync_all().context("fsync of device pages")?;
    t.expect_in_device(memory.range())?;
    let expected = memory.read_bytes(BYTES);
    drop(memory);
    // Nothing is dirty, so everything can go; what is read then comes from the disk.
    let free = t.free_pages()?;
    fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop caches")?;
    t.expect_free_pages(free + PAGES as u64)?;
    let mut found = vec![0; BYTES];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(found == expected, "the disk holds something else");
    // What was clean and comes back in goes to the device as well as what is dirty.
    let memory = Mapping::shared_file(&stored.file, BYTES)?;
    let check = |memory: &Mapping| -> Result<()> {
        memory.check_pattern_pages(25, 0..PAGES / 2)?;
        ensure!(memory.read_bytes(BYTES) == expected, "wrong contents");
        Ok(())
    };
    check(&memory)?;
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.moved == PAGES as u64,
        "clean pages: {migration:?}"
    );
    check(&memory)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    check(&memory)
}
