// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes that keep the devices full, so that whoever wants room has to fight for it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Options};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use nix::sys::mman::MmapAdvise;

use crate::counts::Count;
use crate::crew::Crew;
use crate::stage::Stage;

/// What it leaves free of a device: less than the others want to have there.
const ROOM_BYTES: usize = HUGE_PAGE_BYTES;
/// Pages that it moves at once, at most, into a device that is almost full.
const PIECE_PAGES: usize = 4096;
/// Pages that it compares after each.
const SAMPLES: usize = 16;
/// It is there to be in the way, not to take the processors.
const PAUSE: Duration = Duration::from_millis(50);
/// How long filling the devices may take before the others start all the same.
const FILL_LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(20);

/// Whether somebody keeps the devices full. Scenarios that run at once share one.
#[derive(Clone)]
pub struct Ballast(Arc<Mapping>);

impl Ballast {
    /// Nobody does.
    pub fn new() -> Result<Self> {
        let memory = Mapping::shared(PAGE_BYTES).context("cannot share a word")?;
        // Who touches it first is charged for it, which must not be a scenario.
        memory.fill(0);
        Ok(Self(Arc::new(memory)))
    }

    /// Takes it over, unless somebody else has it.
    fn claim(&self) -> bool {
        self.0.word(0).swap(1, SeqCst) == 0
    }

    fn release(&self) {
        self.0.word(0).store(0, SeqCst);
    }
}

/// Runs `body` beside a process for each device that keeps it full; the time of the scenario begins
/// when all of them are. Where somebody keeps the devices full already, it is left to them.
pub fn beside(stage: &Stage, body: impl FnOnce() -> Result<()>) -> Result<()> {
    if !stage.ballast().claim() {
        return body();
    }
    let full = Mapping::shared(PAGE_BYTES)?;
    stage.hold_clock();
    let mut crew = Crew::new(stage);
    let devices = Device::numbers()?;
    for number in &devices {
        crew.start(&format!("ballast of device {number}"), || {
            keep_full(stage, *number, full.word(0))
        })?;
    }
    // A slow machine takes long to fill the devices, and only then is there something to fight for.
    let started = Instant::now();
    while full.word(0).load(SeqCst) < devices.len() as u64
        && !stage.counts().is_stopped()
        && started.elapsed() < FILL_LIMIT
    {
        thread::sleep(POLL);
    }
    stage.start_clock();
    let result = body();
    stage.counts().stop();
    // What the ballast found is the reason where it failed first and stopped the others.
    let ballast = crew.finish();
    stage.ballast().release();
    result.and(ballast)
}

/// Fills a device with memory whose contents it knows, adds to `full`, and does it again until the
/// end. What it moves is no part of what the scenario does, and is not counted.
fn keep_full(stage: &Stage, number: u32, full: &AtomicU64) -> Result<()> {
    let seed = stage.seed().wrapping_add(number.into());
    let device = Device::open(number).with_context(|| format!("device {number}"))?;
    let mut random = Random::new(seed);
    let total = device.query()?.bytes_total as usize;
    ensure!(total > ROOM_BYTES, "a device of {total} bytes has no room");
    let memory = Mapping::huge_aligned((total - ROOM_BYTES) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    memory.fill_pattern(seed);
    let mut is_first = true;
    while !stage.is_over() {
        let pages = match device.query()?.bytes_free as usize > ROOM_BYTES {
            true => 0..memory.pages(),
            false => some_pages(&mut random, memory.pages()),
        };
        let range = memory.page_range(pages.start, pages.len());
        let options = Options {
            make_room: random.one_in(2),
            ..Options::default()
        };
        let migration = device
            .migrate_with(0, range, Direction::ToDevice, options)
            .with_context(|| format!("cannot move {range} to device {number}, {options:?}"))?;
        ensure!(
            migration.adds_up(),
            "the counts of a migration do not add up: {migration:?}"
        );
        if is_first {
            full.fetch_add(1, SeqCst);
            is_first = false;
        }
        for _ in 0..SAMPLES {
            let page = pages.start + random.below(pages.len());
            check(&memory, seed, page, stage)?;
        }
        thread::sleep(PAUSE);
    }
    (0..memory.pages()).try_for_each(|page| check(&memory, seed, page, stage))
}

/// Not too many of `total` pages.
fn some_pages(random: &mut Random, total: usize) -> Range<usize> {
    let piece = random.piece(total);
    piece.start..piece.end.min(piece.start + PIECE_PAGES)
}

fn check(memory: &Mapping, seed: u64, page: usize, stage: &Stage) -> Result<()> {
    stage.add(Count::Verified, 1);
    memory
        .check_pattern_pages(seed, page..page + 1)
        .with_context(|| format!("page {page} of {}: wrong contents", memory.pages()))
}
