// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the CPUs use much in the device comes back, where the administrator asks for that and the
//! kernel tells.

use std::fs;
use std::io::{Read, Seek};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Bound, Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::uapi::CDM_CAN_RETURN_HOT;

use crate::fixture::{Fixture, figure, skip};
use crate::hot::{GRANULE_PAGES, UNLIMITED, granules, use_until};
use crate::stores::memory_file;

crate::tests!("cpu_hot":
    pages_that_the_cpu_uses_come_back_and_those_that_the_device_uses_stay,
    huge_page_that_the_cpu_uses_comes_back_as_a_whole,
    pages_of_a_file_that_is_read_come_back,
    nothing_comes_back_or_is_looked_at_without_the_switch,
    looks_and_pages_keep_to_their_rates,
    pages_that_came_back_do_not_go_again_for_being_hot,
    pages_that_have_just_come_to_the_device_stay_for_a_while,
);

/// Longest wait for something that takes a second on a quiet machine.
const LIMIT: Duration = Duration::from_secs(40);

/// The settings while they are on; switched off on drop.
struct Scan;

impl Scan {
    fn on(t: &Fixture, ms: u32, folios: u32, pages_per_second: u32) -> Result<Self> {
        if t.start.capabilities & CDM_CAN_RETURN_HOT == 0 {
            return skip("the kernel does not tell what the CPUs use");
        }
        set("cpu_scan_folios", folios)?;
        set("cpu_pages_per_second", pages_per_second)?;
        set("cpu_scan_ms", ms)?;
        Ok(Self)
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        // Gone with the device, if that is.
        let _ = set("cpu_scan_ms", 0);
    }
}

fn set(name: &str, value: u32) -> Result<()> {
    let file = format!("/sys/class/misc/cdm0/{name}");
    fs::write(&file, value.to_string()).with_context(|| format!("cannot set {file}"))
}

/// Has the CPUs read a word of each page again and again, until something is so.
fn touch_until(memory: &Mapping, what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        touch(memory);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn touch(memory: &Mapping) {
    for page in 0..memory.pages() {
        memory.word(page * PAGE_BYTES).load(Relaxed);
    }
}

/// Granules in the device.
fn resident(t: &Fixture, count: usize, seed: u64) -> Result<Mapping> {
    let memory = granules(count, seed)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    Ok(memory)
}

fn is_back(t: &Fixture, memory: &Mapping) -> Result<bool> {
    Ok(t.device.residency(0, memory.range())?.system == memory.pages() as u64)
}

fn pages_that_the_cpu_uses_come_back_and_those_that_the_device_uses_stay(
    t: &Fixture,
) -> Result<()> {
    let bound = Bound::open(0)?;
    let (hot, cold, idle) = (resident(t, 4, 1)?, resident(t, 4, 2)?, resident(t, 4, 3)?);
    let crc = cold.crc32c(cold.bytes());
    let returned = figure("cpu_returned")?;
    let _scan = Scan::on(t, 20, 4096, 100_000)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let device = scope.spawn(|| -> Result<u64> {
            let mut rounds = 0;
            while !is_over.load(Acquire) {
                let found = bound.checksum(&cold, Span::all(&cold), 0)?;
                ensure!(found == crc, "CRC {found:#x}, not {crc:#x}");
                rounds += 1;
            }
            Ok(rounds)
        });
        let back = touch_until(&hot, "it is back", || is_back(t, &hot));
        is_over.store(true, Release);
        let rounds = device.join().expect("the thread panics nowhere")?;
        ensure!(rounds > 0, "the device did nothing");
        back
    })?;
    t.expect_in_system(hot.range())?;
    t.expect_in_device(cold.range())?;
    t.expect_in_device(idle.range())?;
    let came = figure("cpu_returned")? - returned;
    ensure!(came == hot.pages() as u64, "{came} pages came back");
    for (memory, seed) in [(&hot, 1), (&cold, 2), (&idle, 3)] {
        memory.check_pattern(seed)?;
    }
    Ok(())
}

fn huge_page_that_the_cpu_uses_comes_back_as_a_whole(t: &Fixture) -> Result<()> {
    let memory = t.resident_huge_memory(1, 4)?;
    let _scan = Scan::on(t, 20, 4096, 100_000)?;
    touch_until(&memory, "it is back", || is_back(t, &memory))?;
    crate::fixture::expect_huge_mapped(memory.range(), memory.bytes() as u64)?;
    memory.check_pattern(4)?;
    Ok(())
}

fn pages_of_a_file_that_is_read_come_back(t: &Fixture) -> Result<()> {
    t.need_files()?;
    const PAGES: usize = 24;
    let mut file = memory_file(PAGES * PAGE_BYTES)?;
    let memory = Mapping::shared_file(&file, PAGES * PAGE_BYTES)?;
    memory.fill_pattern(5);
    let expected = memory.read_bytes(memory.bytes());
    t.move_all(memory.range(), Direction::ToDevice)?;
    let _scan = Scan::on(t, 20, 4096, 100_000)?;
    let deadline = Instant::now() + LIMIT;
    while !is_back(t, &memory)? {
        ensure!(Instant::now() < deadline, "it does not come back");
        let mut contents = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut contents)?;
        ensure!(contents == expected, "the file has other contents");
    }
    memory.check_pattern(5)?;
    Ok(())
}

fn nothing_comes_back_or_is_looked_at_without_the_switch(t: &Fixture) -> Result<()> {
    let memory = resident(t, 2, 6)?;
    // To be sure that it was on, and is off again.
    drop(Scan::on(t, 1, 4096, 100_000)?);
    // A look that is under way.
    thread::sleep(Duration::from_millis(200));
    let (looks, returned) = (figure("cpu_looks")?, figure("cpu_returned")?);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        touch(&memory);
    }
    ensure!(figure("cpu_looks")? == looks, "it is looked at");
    ensure!(figure("cpu_returned")? == returned, "it comes back");
    t.expect_in_device(memory.range())?;
    memory.check_pattern(6)?;
    Ok(())
}

fn looks_and_pages_keep_to_their_rates(t: &Fixture) -> Result<()> {
    const FOLIOS: u64 = 7;
    const PERIOD: Duration = Duration::from_millis(100);
    let memory = resident(t, 4, 7)?;
    let (looks, start) = (figure("cpu_looks")?, Instant::now());
    let scan = Scan::on(t, PERIOD.as_millis() as u32, FOLIOS as u32, 0)?;
    let done = || -> Result<u64> { Ok(figure("cpu_looks")? - looks) };
    touch_until(&memory, "there were looks", || Ok(done()? >= 8 * FOLIOS))?;
    let most = FOLIOS * (1 + (start.elapsed().as_millis() / PERIOD.as_millis()) as u64);
    let made = done()?;
    ensure!(made <= most, "{made} looks, and at most {most} were due");
    drop(scan);
    // A rate of zero: nothing comes back, and each page that should have is counted.
    let (over_rate, returned) = (figure("cpu_over_rate")?, figure("cpu_returned")?);
    let scan = Scan::on(t, 10, 4096, 0)?;
    touch_until(&memory, "pages are over the rate", || {
        Ok(figure("cpu_over_rate")? > over_rate)
    })?;
    ensure!(
        figure("cpu_returned")? == returned,
        "pages came back all the same"
    );
    t.expect_in_device(memory.range())?;
    drop(scan);
    // One page a second, and as many as a huge page has at once.
    let more = resident(t, 40, 8)?;
    let start = Instant::now();
    let _scan = Scan::on(t, 10, 4096, 1)?;
    let over_rate = figure("cpu_over_rate")?;
    touch_until(
        &more,
        "pages come back, and others are over the rate",
        || Ok(figure("cpu_returned")? >= returned + 512 && figure("cpu_over_rate")? > over_rate),
    )?;
    let came = figure("cpu_returned")? - returned;
    let most = 512 + start.elapsed().as_secs() + 1;
    ensure!(came <= most, "{came} pages came back, at most {most} may");
    more.check_pattern(8)?;
    Ok(())
}

fn pages_that_came_back_do_not_go_again_for_being_hot(t: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    let memory = resident(t, 2, 9)?;
    let scan = Scan::on(t, 20, 4096, 100_000)?;
    touch_until(&memory, "it is back", || is_back(t, &memory))?;
    let start = Instant::now();
    bound.move_hot(UNLIMITED)?;
    use_until(&bound, &memory, "the device is refused", || {
        Ok(bound.hot_counters()?.pages_recent >= 2 * GRANULE_PAGES as u64)
    })?;
    let (counters, took) = (bound.hot_counters()?, start.elapsed());
    ensure!(
        counters.pages_moved == 0 || took > Duration::from_secs(8),
        "after {took:?}: {counters:?}"
    );
    drop(scan);
    // Later it may.
    use_until(&bound, &memory, "it moves", || {
        let found = t.device.residency(0, memory.range())?;
        Ok(found.this_device == memory.pages() as u64)
    })?;
    memory.check_pattern(9)?;
    Ok(())
}

fn pages_that_have_just_come_to_the_device_stay_for_a_while(t: &Fixture) -> Result<()> {
    // The driver may not know when this came; then it counts as just come, too.
    let spared = figure("cpu_spared")?;
    let start = Instant::now();
    let memory = resident(t, 1, 10)?;
    let _scan = Scan::on(t, 10, 4096, 100_000)?;
    touch_until(&memory, "it is back", || is_back(t, &memory))?;
    let took = start.elapsed();
    ensure!(
        took > Duration::from_millis(1500),
        "it came back after {took:?}"
    );
    ensure!(
        figure("cpu_spared")? > spared,
        "nobody wanted it back before"
    );
    memory.check_pattern(10)?;
    Ok(())
}
