// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What it costs that the device translates addresses of a process: until it has a page that it
//! did not know, until it has forgotten one, and what memory that it is working on all the time
//! takes to move.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Bound, Device, Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use nix::sys::mman::MmapAdvise;

use crate::contest::{Contest, Setting, Turn};
use crate::memory::{self, PageSize};
use crate::sample::{Measured, SUBJECT, Unit};
use crate::timing::mebibytes_per_second;

/// Pages that are asked for or forgotten in a turn, one after the other.
const PAGES: usize = 400;
const QUICK_PAGES: usize = 100;

/// What moves while the device works on it.
const MOVED: usize = 4 << 20;
const TRIPS: usize = 5;
const QUICK_TRIPS: usize = 2;
/// How often what did not move is asked for again.
const TRIES: usize = 200;

/// What the device touches of a page.
const TOUCHED: usize = 64;

/// The contests of the group.
pub fn contests(setting: &Setting) -> Vec<Contest> {
    let (pages, trips) = match setting.quick {
        true => (QUICK_PAGES, QUICK_TRIPS),
        false => (PAGES, TRIPS),
    };
    let turn = |by, measure: Box<dyn Fn() -> Result<Vec<Measured>>>| Turn { by, measure };
    let contest = |name: &str, turns| Contest {
        name: format!("translation/{name}"),
        turns,
    };
    vec![
        contest(
            "page-request",
            vec![
                turn(SUBJECT, Box::new(move || page_requests(pages))),
                turn("known-page", Box::new(move || known_pages(pages))),
                turn("cpu-fault", Box::new(move || cpu_faults(pages))),
            ],
        ),
        contest(
            "invalidation",
            vec![
                turn(SUBJECT, Box::new(move || invalidations(pages, true))),
                turn("not-bound", Box::new(move || invalidations(pages, false))),
            ],
        ),
        contest(
            "moved-at-work",
            vec![
                turn(SUBJECT, Box::new(move || moves(trips, true))),
                turn("not-at-work", Box::new(move || moves(trips, false))),
            ],
        ),
    ]
}

fn bind() -> Result<Bound> {
    Bound::open(0).context("cannot bind to /dev/cdm0: is the driver loaded?")
}

/// Memory that is all there, of which the device knows nothing.
fn small_pages(pages: usize) -> Result<Mapping> {
    memory::anonymous(pages * PAGE_BYTES, PageSize::Small)
}

/// The first bytes of a page.
fn head_of(page: usize) -> Span {
    Span {
        offset: page * PAGE_BYTES,
        bytes: TOUCHED,
    }
}

/// Times of something that is done for each page but the first one, which is to warm up.
fn each(
    name: &str,
    by: &'static str,
    pages: usize,
    mut work: impl FnMut(usize) -> Result<Duration>,
) -> Result<Vec<Measured>> {
    work(0)?;
    (1..pages)
        .map(|page| {
            Ok(Measured {
                name: format!("translation/{name}"),
                by,
                unit: Unit::Microseconds,
                value: work(page)?.as_secs_f64() * 1e6,
            })
        })
        .collect()
}

/// How long something takes.
fn time<T>(work: impl FnOnce() -> std::io::Result<T>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// The device works on a page that it does not know.
fn page_requests(pages: usize) -> Result<Vec<Measured>> {
    let (memory, bound) = (small_pages(pages)?, bind()?);
    each("page-request", SUBJECT, pages, |page| {
        time(|| bound.checksum(&memory, head_of(page), 0))
    })
}

/// The device works on a page that it knows.
fn known_pages(pages: usize) -> Result<Vec<Measured>> {
    let (memory, bound) = (small_pages(pages)?, bind()?);
    for page in 0..pages {
        bound.checksum(&memory, head_of(page), 0)?;
    }
    each("page-request", "known-page", pages, |page| {
        time(|| bound.checksum(&memory, head_of(page), 0))
    })
}

/// A CPU touches a page that is not there.
fn cpu_faults(pages: usize) -> Result<Vec<Measured>> {
    let memory = small_pages(pages)?;
    memory.advise(MmapAdvise::MADV_DONTNEED)?;
    each("page-request", "cpu-fault", pages, |page| {
        time(|| {
            memory.word(page * PAGE_BYTES).store(1, Relaxed);
            Ok(())
        })
    })
}

/// The process gives a page up, which the device knows if it is bound.
fn invalidations(pages: usize, is_bound: bool) -> Result<Vec<Measured>> {
    let memory = small_pages(pages)?;
    let bound = is_bound.then(bind).transpose()?;
    if let Some(bound) = &bound {
        for page in 0..pages {
            bound.checksum(&memory, head_of(page), 0)?;
        }
    }
    let by = if is_bound { SUBJECT } else { "not-bound" };
    each("invalidation", by, pages, |page| {
        time(|| memory.advise_pages(page, 1, MmapAdvise::MADV_DONTNEED))
    })
}

/// Memory moves there and back, and the device works on all of it meanwhile, or on nothing.
fn moves(trips: usize, is_at_work: bool) -> Result<Vec<Measured>> {
    let memory = memory::anonymous(MOVED, PageSize::Small)?;
    memory.fill_pattern(1);
    let crc = memory.crc32c(MOVED);
    let device = Device::open(0).context("cannot open /dev/cdm0: is the driver loaded?")?;
    let bound = is_at_work.then(bind).transpose()?;
    let is_over = AtomicBool::new(false);
    let times = thread::scope(|scope| {
        let work = bound.as_ref().map(|bound| {
            let (memory, is_over) = (&memory, &is_over);
            scope.spawn(move || work_on(bound, memory, crc, is_over))
        });
        let times = (0..=trips)
            .map(|_| {
                let there = time(|| move_all(&device, &memory, Direction::ToDevice))?;
                let back = time(|| move_all(&device, &memory, Direction::ToSystem))?;
                Ok([there, back])
            })
            .collect::<Result<Vec<_>>>();
        is_over.store(true, Relaxed);
        let rounds = work.map(|work| work.join().unwrap_or_else(|_| bail!("a thread panicked")));
        let rounds = rounds.transpose()?;
        ensure!(rounds != Some(0), "the device came to nothing meanwhile");
        times
    })?;
    memory.check_pattern(1)?;
    let by = if is_at_work { SUBJECT } else { "not-at-work" };
    let value = |(place, way): (usize, &str)| Measured {
        name: format!("translation/moved-at-work/{way}"),
        by,
        unit: Unit::MebibytesPerSecond,
        // The first trip is to warm up.
        value: mebibytes_per_second(
            MOVED * trips,
            times[1..].iter().map(|time| time[place]).sum(),
        ),
    };
    Ok(["to-device", "to-system"]
        .into_iter()
        .enumerate()
        .map(value)
        .collect())
}

/// Has the device read all of the memory again and again; how often it did.
fn work_on(bound: &Bound, memory: &Mapping, crc: u32, is_over: &AtomicBool) -> Result<u32> {
    let mut rounds = 0;
    while !is_over.load(Relaxed) {
        let found = bound.checksum(memory, Span::all(memory), 0)?;
        ensure!(
            found == crc,
            "the CRC of the device is {found:#x}, not {crc:#x}"
        );
        rounds += 1;
    }
    Ok(rounds)
}

/// Moves all of it; a page that the device has just asked for is busy for a moment.
fn move_all(device: &Device, memory: &Mapping, direction: Direction) -> std::io::Result<()> {
    for _ in 0..TRIES {
        let done = device.migrate(0, memory.range(), direction)?;
        if done.moved + done.there == done.asked && done.asked == memory.range().pages() {
            return Ok(());
        }
    }
    Err(std::io::Error::other(format!(
        "pages are left after {TRIES} migrations"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_of_a_cpu_is_a_sample_of_each_page_but_the_first() {
        let values = cpu_faults(5).unwrap();
        assert_eq!(values.len(), 4);
        let is_good = |one: &Measured| one.name == "translation/page-request" && one.value > 0.0;
        assert!(values.iter().all(is_good));
    }

    #[test]
    fn page_that_nobody_is_bound_to_is_given_up() {
        let values = invalidations(5, false).unwrap();
        assert!(values.len() == 4 && values.iter().all(|one| one.by == "not-bound"));
    }
}
