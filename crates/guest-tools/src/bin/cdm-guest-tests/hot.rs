// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device uses much moves to it, as far as somebody asked for that, and nothing else does.

use std::fs;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Bound, Hot, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES, WORD_BYTES};
use cdm_guest_tools::uapi::{
    CDM_CAN_MOVE_HOT, CDM_CAN_RETURN_HOT, CDM_HOT_MAKE_ROOM, CDM_REASON_NO_MEMORY, cdm_hot,
};
use cdm_protocol::{FEATURE_ACCESS_COUNTERS, GRANULE_BYTES};
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use crate::fixture::{Fixture, expect_errno, figure};
use crate::isolate::Child;
use crate::stores::memory_file;
use crate::trace::Tracing;

crate::tests!("hot":
    driver_says_that_it_moves_what_is_hot_where_the_device_counts,
    driver_says_whether_the_kernel_tells_what_the_cpus_use,
    memory_that_commands_use_moves_to_the_device_and_other_memory_stays,
    shared_memory_that_commands_use_moves_to_the_device,
    nothing_moves_that_nobody_asked_for_or_after_it_was_switched_off,
    rate_holds_to_the_page,
    additions_are_none_lost_while_their_pages_move_for_being_hot,
    full_device_takes_nothing_and_with_leave_to_evict_it_does,
    wishes_that_make_no_sense_are_refused,
    process_that_is_killed_while_its_memory_moves_leaves_nothing_behind,
    unbind_while_memory_moves_leaves_every_byte,
    reset_while_memory_moves_leaves_every_byte_and_the_rest_moves_after_it,
);

/// Longest wait for something that takes milliseconds on a quiet machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a granule.
const GRANULE: usize = GRANULE_BYTES as usize;
/// Pages of one.
pub const GRANULE_PAGES: usize = GRANULE / PAGE_BYTES;

/// No limit that a test would come to.
pub const UNLIMITED: Hot = Hot {
    threshold: 256,
    pages_per_second: 1_000_000,
    pages_burst: 1_000_000,
    make_room: false,
};

/// So many granules of single pages with the pattern of `seed`, in system memory.
pub fn granules(count: usize, seed: u64) -> Result<Mapping> {
    let bytes = (count * GRANULE).next_multiple_of(HUGE_PAGE_BYTES);
    let mut memory = Mapping::huge_aligned(bytes)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    if bytes > count * GRANULE {
        memory.unmap_tail(bytes - count * GRANULE)?;
    }
    memory.fill_pattern(seed);
    Ok(memory)
}

/// Has the device read all of some memory again and again, until something is so.
pub fn use_until(
    bound: &Bound,
    memory: &Mapping,
    what: &str,
    is_so: impl Fn() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let crc = memory.crc32c(memory.bytes());
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        let found = bound.checksum(memory, Span::all(memory), 0)?;
        ensure!(found == crc, "CRC {found:#x}, not {crc:#x}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Pages of some memory of this process that are in the device.
fn inside(t: &Fixture, memory: &Mapping) -> Result<u64> {
    Ok(t.device.residency(0, memory.range())?.this_device)
}

fn driver_says_that_it_moves_what_is_hot_where_the_device_counts(t: &Fixture) -> Result<()> {
    let (features, can) = (t.start.device_features, t.start.capabilities);
    ensure!(features & FEATURE_ACCESS_COUNTERS != 0, "{features:#x}");
    ensure!(can & CDM_CAN_MOVE_HOT != 0, "{can:#x}");
    Ok(())
}

fn driver_says_whether_the_kernel_tells_what_the_cpus_use(t: &Fixture) -> Result<()> {
    let file = "/sys/class/misc/cdm0/cpu_scan_ms";
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    ensure!(text == "0\n", "it is switched on from the start: {text:?}");
    if t.start.capabilities & CDM_CAN_RETURN_HOT == 0 {
        expect_errno(fs::write(file, "10"), Errno::EOPNOTSUPP)?;
    } else {
        fs::write(file, "0")?;
    }
    expect_errno(fs::write(file, "often"), Errno::EINVAL)
}

fn memory_that_commands_use_moves_to_the_device_and_other_memory_stays(t: &Fixture) -> Result<()> {
    const GRANULES: usize = 4;
    const PAGES: u64 = (GRANULES * GRANULE_PAGES) as u64;
    let bound = Bound::open(0)?;
    let used = granules(GRANULES, 1)?;
    let unused = granules(GRANULES, 2)?;
    let named = granules(1, 3)?;
    let tracing = Tracing::start(&["cdm/cdm_hot"])?;
    bound.move_hot(UNLIMITED)?;
    use_until(&bound, &used, "all of it is in the device", || {
        Ok(inside(t, &used)? == PAGES)
    })?;
    // What is named by a command without addresses is not counted.
    for _ in 0..20 {
        t.device.checksum(&named, Span::all(&named), 0)?;
    }
    t.expect_in_device(used.range())?;
    t.expect_in_system(unused.range())?;
    t.expect_in_system(named.range())?;
    used.check_pattern(1)?;
    unused.check_pattern(2)?;
    let counters = bound.hot_counters()?;
    ensure!(counters.pages_moved == PAGES, "{counters:?}");
    ensure!(counters.reports >= GRANULES as u64, "{counters:?}");
    ensure!(
        counters.accesses >= u64::from(UNLIMITED.threshold) * counters.reports,
        "{counters:?}"
    );
    ensure!(
        (counters.threshold, counters.pages_burst) == (UNLIMITED.threshold, UNLIMITED.pages_burst),
        "{counters:?}"
    );
    let lines = tracing.lines()?;
    let pasid = format!("pasid={} ", bound.pasid());
    for granule in 0..GRANULES {
        let place = format!(
            "address={:#x} ",
            used.address() + (granule * GRANULE) as u64
        );
        let is_told = |line: &String| line.contains(&pasid) && line.contains(&place);
        ensure!(lines.iter().any(is_told), "no trace of {place}: {lines:?}");
    }
    // In its own memory the device counts nothing.
    let reports = figure("access_reports")?;
    for _ in 0..20 {
        bound.checksum(&used, Span::all(&used), 0)?;
    }
    let after = figure("access_reports")?;
    ensure!(
        after == reports,
        "{} reports of its own memory",
        after - reports
    );
    Ok(())
}

fn shared_memory_that_commands_use_moves_to_the_device(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let bound = Bound::open(0)?;
    let file = memory_file(HUGE_PAGE_BYTES)?;
    let memory = Mapping::huge_aligned_file(&file, HUGE_PAGE_BYTES)?;
    memory.fill_pattern(4);
    bound.move_hot(UNLIMITED)?;
    let pages = memory.pages() as u64;
    use_until(&bound, &memory, "the file is in the device", || {
        Ok(inside(t, &memory)? == pages)
    })?;
    memory.check_pattern(4)?;
    Ok(())
}

fn nothing_moves_that_nobody_asked_for_or_after_it_was_switched_off(t: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    let memory = granules(2, 5)?;
    let reports = figure("access_reports")?;
    let use_often = || -> Result<()> {
        for _ in 0..30 {
            bound.checksum(&memory, Span::all(&memory), 0)?;
        }
        Ok(())
    };
    use_often()?;
    ensure!(
        figure("access_reports")? == reports,
        "the device counts by itself"
    );
    t.expect_in_system(memory.range())?;
    let first = granules(1, 6)?;
    bound.move_hot(UNLIMITED)?;
    use_until(&bound, &first, "the first granule is in the device", || {
        Ok(inside(t, &first)? == GRANULE_PAGES as u64)
    })?;
    bound.leave_hot()?;
    let (reports, counters) = (figure("access_reports")?, bound.hot_counters()?);
    use_often()?;
    ensure!(figure("access_reports")? == reports, "the device counts on");
    t.expect_in_system(memory.range())?;
    t.expect_in_device(first.range())?;
    let after = bound.hot_counters()?;
    ensure!(
        (after.threshold, after.pages_moved) == (0, counters.pages_moved),
        "{after:?}"
    );
    // Another binding of the same process asks for itself.
    let other = Bound::open(0)?;
    ensure!(other.hot_counters()?.reports == 0);
    Ok(())
}

fn rate_holds_to_the_page(t: &Fixture) -> Result<()> {
    const BURST: u64 = 21;
    let bound = Bound::open(0)?;
    let memory = granules(4, 7)?;
    bound.move_hot(Hot {
        pages_per_second: 0,
        pages_burst: BURST as u32,
        ..UNLIMITED
    })?;
    use_until(&bound, &memory, "each granule is over the rate", || {
        Ok(bound.hot_counters()?.pages_over_rate >= 4 * GRANULE_PAGES as u64)
    })?;
    let counters = bound.hot_counters()?;
    ensure!(counters.pages_moved == BURST, "{counters:?}");
    ensure!(
        inside(t, &memory)? == BURST,
        "{:?}",
        t.device.residency(0, memory.range())?
    );
    memory.check_pattern(7)?;
    // A new wish begins with a full burst.
    bound.move_hot(Hot {
        pages_per_second: 0,
        pages_burst: 5,
        ..UNLIMITED
    })?;
    use_until(&bound, &memory, "five more", || {
        Ok(bound.hot_counters()?.pages_moved >= BURST + 5)
    })?;
    for _ in 0..10 {
        bound.checksum(&memory, Span::all(&memory), 0)?;
    }
    ensure!(inside(t, &memory)? == BURST + 5);
    memory.check_pattern(7)?;
    Ok(())
}

fn additions_are_none_lost_while_their_pages_move_for_being_hot(t: &Fixture) -> Result<()> {
    const PAGES: usize = 4 * GRANULE_PAGES;
    const EACH: u32 = 50;
    let bound = Bound::open(0)?;
    let memory = granules(PAGES / GRANULE_PAGES, 0)?;
    memory.fill(0);
    bound.move_hot(UNLIMITED)?;
    let is_over = AtomicBool::new(false);
    let (rounds, added) = thread::scope(|scope| {
        let adder = scope.spawn(|| {
            let mut rounds = 0;
            while !is_over.load(Acquire) {
                for page in 0..PAGES {
                    memory.word(page * PAGE_BYTES).fetch_add(1, SeqCst);
                }
                rounds += 1;
            }
            rounds
        });
        let add = || -> Result<u64> {
            let deadline = Instant::now() + LIMIT;
            let mut rounds = 0;
            loop {
                for page in 0..PAGES {
                    let span = Span {
                        offset: page * PAGE_BYTES,
                        bytes: WORD_BYTES,
                    };
                    bound.fetch_add(&memory, span, 1, EACH)?.ok()?;
                }
                rounds += 1;
                if inside(t, &memory)? == PAGES as u64 {
                    return Ok(rounds);
                }
                ensure!(Instant::now() < deadline, "it does not move");
            }
        };
        let rounds = add();
        is_over.store(true, Release);
        (rounds, adder.join().expect("the thread panics nowhere"))
    });
    let expected = rounds? * u64::from(EACH) + added;
    for page in 0..PAGES {
        let found = memory.word(page * PAGE_BYTES).load(SeqCst);
        ensure!(found == expected, "page {page}: {found}, not {expected}");
    }
    Ok(())
}

fn full_device_takes_nothing_and_with_leave_to_evict_it_does(t: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    let memory = granules(2, 8)?;
    let ballast = t.resident_small_pages(t.free_pages()? as usize, 9)?;
    let before = t.device.query()?.pages_evicted;
    bound.move_hot(UNLIMITED)?;
    use_until(&bound, &memory, "there is no room", || {
        let failed = bound.hot_counters()?.failed;
        Ok(failed[CDM_REASON_NO_MEMORY as usize] >= GRANULE_PAGES as u64)
    })?;
    let counters = bound.hot_counters()?;
    ensure!(
        (counters.pages_moved, counters.pages_evicted) == (0, 0),
        "{counters:?}"
    );
    ensure!(
        t.device.query()?.pages_evicted == before,
        "others were evicted"
    );
    t.expect_in_device(ballast.range())?;
    bound.move_hot(Hot {
        make_room: true,
        ..UNLIMITED
    })?;
    let pages = memory.pages() as u64;
    use_until(&bound, &memory, "room is made", || {
        Ok(inside(t, &memory)? == pages)
    })?;
    let counters = bound.hot_counters()?;
    ensure!(counters.flags == CDM_HOT_MAKE_ROOM, "{counters:?}");
    ensure!(counters.pages_evicted >= pages, "{counters:?}");
    memory.check_pattern(8)?;
    ballast.check_pattern(9)?;
    Ok(())
}

fn wishes_that_make_no_sense_are_refused(_: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    let good = cdm_hot {
        threshold: 1,
        flags: 0,
        pages_per_second: 1,
        pages_burst: 1,
        reserved: 0,
    };
    let off = cdm_hot::default();
    for bad in [
        cdm_hot { flags: 2, ..good },
        cdm_hot {
            reserved: 1,
            ..good
        },
        cdm_hot {
            pages_burst: 0,
            ..good
        },
        cdm_hot {
            pages_burst: 1,
            ..off
        },
        cdm_hot {
            pages_per_second: 1,
            ..off
        },
        cdm_hot {
            flags: CDM_HOT_MAKE_ROOM,
            ..off
        },
    ] {
        expect_errno(bound.set_hot(bad), Errno::EINVAL).with_context(|| format!("{bad:?}"))?;
    }
    ensure!(
        bound.hot_counters()?.threshold == 0,
        "a refused wish counts"
    );
    bound.set_hot(good)?;
    let child = Child::spawn(|_| {
        expect_errno(bound.set_hot(good), Errno::EPERM)?;
        expect_errno(bound.hot_counters().map(drop), Errno::EPERM)
    })?;
    child.finish()?;
    bound.unbind()?;
    expect_errno(bound.set_hot(good), Errno::ENXIO)?;
    expect_errno(bound.hot_counters().map(drop), Errno::ENXIO)?;
    Ok(())
}

/// Binds this process, has its memory move for being hot, and uses it until it is killed.
pub fn use_for_ever() -> Result<()> {
    let bound = Bound::open(0)?;
    bound.move_hot(UNLIMITED)?;
    loop {
        // New memory all the time, so that there is always something to move.
        let memory = granules(8, 10)?;
        for _ in 0..3 {
            bound.checksum(&memory, Span::all(&memory), 0)?;
        }
    }
}

fn process_that_is_killed_while_its_memory_moves_leaves_nothing_behind(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let spaces = figure("address_spaces")?;
    for _ in 0..5 {
        let moved = figure("hot_moved")?;
        let child = Child::spawn(|_| use_for_ever())?;
        let deadline = Instant::now() + LIMIT;
        while figure("hot_moved")? < moved + GRANULE_PAGES as u64 {
            ensure!(Instant::now() < deadline, "nothing moves");
            thread::sleep(Duration::from_millis(1));
        }
        child.kill()?;
    }
    let deadline = Instant::now() + LIMIT;
    while figure("address_spaces")? != spaces {
        ensure!(Instant::now() < deadline, "an address space is still bound");
        thread::sleep(Duration::from_millis(5));
    }
    t.expect_free_pages(free)
}

fn unbind_while_memory_moves_leaves_every_byte(_: &Fixture) -> Result<()> {
    const ROUNDS: u64 = 15;
    for round in 0..ROUNDS {
        let bound = Bound::open(0)?;
        let memory = granules(8, round)?;
        let crc = memory.crc32c(memory.bytes());
        bound.move_hot(UNLIMITED)?;
        thread::scope(|scope| {
            let user = scope.spawn(|| -> io::Result<()> {
                // To the end of the binding.
                while let Ok(found) = bound.checksum(&memory, Span::all(&memory), 0) {
                    if found != crc {
                        return Err(io::Error::other(format!("CRC {found:#x}, not {crc:#x}")));
                    }
                }
                Ok(())
            });
            thread::sleep(Duration::from_millis(5 * round));
            let unbound = bound.unbind();
            user.join().expect("the thread panics nowhere")?;
            unbound
        })?;
        memory.check_pattern(round)?;
    }
    Ok(())
}

fn reset_while_memory_moves_leaves_every_byte_and_the_rest_moves_after_it(
    t: &Fixture,
) -> Result<()> {
    let bound = Bound::open(0)?;
    let memory = granules(16, 11)?;
    let crc = memory.crc32c(memory.bytes());
    bound.move_hot(UNLIMITED)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let user = scope.spawn(|| -> Result<()> {
            while !is_over.load(Acquire) {
                // A RESET fails it.
                if let Ok(found) = bound.checksum(&memory, Span::all(&memory), 0) {
                    ensure!(found == crc, "CRC {found:#x}, not {crc:#x}");
                }
            }
            Ok(())
        });
        let reset = (0..10).try_for_each(|_| {
            thread::sleep(Duration::from_millis(3));
            t.device.reset()
        });
        is_over.store(true, Release);
        user.join().expect("the thread panics nowhere")?;
        reset.context("cannot reset the device")
    })?;
    let pages = memory.pages() as u64;
    use_until(&bound, &memory, "all of it is in the device", || {
        Ok(inside(t, &memory)? == pages)
    })?;
    memory.check_pattern(11)?;
    Ok(())
}
