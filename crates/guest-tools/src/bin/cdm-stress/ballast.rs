// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes that keep the devices full, so that whoever wants room has to fight for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Options, Span};
use cdm_guest_tools::memory::{
    HUGE_PAGE_BYTES, Mapping, Mismatch, PAGE_BYTES, WORD_BYTES, pattern,
};
use cdm_guest_tools::random::Random;
use nix::sys::mman::MmapAdvise;

use crate::counts::Count;
use crate::crew::Crew;
use crate::stage::{Stage, caught};

/// What it leaves free of a device: less than the others want to have there.
const ROOM_BYTES: usize = HUGE_PAGE_BYTES;
/// Pages that it moves at once, at most, into a device that is almost full.
const PIECE_PAGES: usize = 4096;
/// Pages that it compares after each.
const SAMPLES: usize = 16;
/// How long it rests after a piece that lies in the device as a whole: it is there to be in the way,
/// not to take the processors.
const PAUSE: Duration = Duration::from_millis(10);
/// How long filling the devices may take before the others start all the same.
const FILL_LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(20);

/// Who keeps the devices full. Scenarios that run at once share one ballast: more than that has no
/// room in the guest.
#[derive(Clone)]
pub struct Ballast(Arc<Mapping>);

impl Ballast {
    /// Nobody does.
    pub fn new() -> Result<Self> {
        let memory = Mapping::shared(PAGE_BYTES).context("cannot share a page")?;
        // Who touches it first is charged for it, which must not be a scenario.
        memory.fill(0);
        Ok(Self(Arc::new(memory)))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    /// Whether somebody has it.
    fn owned(&self) -> &AtomicU64 {
        self.word(0)
    }

    /// Devices that have been full.
    fn full(&self) -> &AtomicU64 {
        self.word(1)
    }

    /// Scenarios that need it.
    fn users(&self) -> &AtomicU64 {
        self.word(2)
    }

    /// Whether nobody needs it any more.
    fn is_done(&self) -> bool {
        self.users().load(SeqCst) == 0
    }
}

/// Runs `body` beside a process for each device that keeps it full; the time of the scenario begins
/// when all of them are. Where another scenario has such processes already, they serve both.
pub fn beside(stage: &Stage, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let ballast = stage.ballast();
    ballast.users().fetch_add(1, SeqCst);
    let mut crew = Crew::new(stage);
    let devices = Device::numbers()?;
    stage.hold_clock();
    if ballast.owned().swap(1, SeqCst) == 0 {
        for number in &devices {
            crew.start(&format!("ballast of device {number}"), || {
                keep_full(stage, *number)
            })?;
        }
    }
    // A slow machine takes long to fill the devices, and only then is there something to fight for.
    let started = Instant::now();
    while ballast.full().load(SeqCst) < devices.len() as u64
        && !stage.counts().is_stopped()
        && started.elapsed() < FILL_LIMIT
    {
        thread::sleep(POLL);
    }
    stage.start_clock();
    let result = caught(body);
    stage.counts().stop();
    ballast.users().fetch_sub(1, SeqCst);
    // What the ballast found is the reason where it failed first and stopped the others.
    result.and(crew.finish())
}

/// Fills a device with memory whose contents it knows, and does it again until nobody needs it. What
/// it moves is no part of what the scenario does, and is not counted.
fn keep_full(stage: &Stage, number: u32) -> Result<()> {
    let ballast = stage.ballast();
    let seed = stage.seed().wrapping_add(number.into());
    let device = Device::open(number).with_context(|| format!("device {number}"))?;
    let mut random = Random::new(seed);
    let total = device.query()?.bytes_total as usize;
    ensure!(total > ROOM_BYTES, "a device of {total} bytes has no room");
    let contents = Contents::new(&device, total - ROOM_BYTES, seed)?;
    let memory = &contents.memory;
    let mut is_first = true;
    let mut next = 0;
    while !ballast.is_done() {
        let pages = match device.query()?.bytes_free as usize > ROOM_BYTES {
            true => 0..memory.pages(),
            // What was driven out lies together, so pieces are taken in turn.
            false => next..memory.pages().min(next + PIECE_PAGES),
        };
        next = pages.end % memory.pages();
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
            ballast.full().fetch_add(1, SeqCst);
            is_first = false;
        }
        for _ in 0..SAMPLES {
            let page = pages.start + random.below(pages.len());
            contents.check(page, stage)?;
        }
        if migration.moved == 0 {
            thread::sleep(PAUSE);
        }
    }
    contents.check_all(stage)
}

/// Memory that is quickly filled on a slow machine: the device stores one value all over each 2 MiB,
/// the CPU another at the beginning of each page.
struct Contents {
    memory: Mapping,
    seed: u64,
}

impl Contents {
    fn new(device: &Device, bytes: usize, seed: u64) -> Result<Self> {
        let memory = Mapping::huge_aligned(bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)?;
        memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
        let contents = Self { memory, seed };
        let memory = &contents.memory;
        for block in 0..memory.bytes() / HUGE_PAGE_BYTES {
            let span = Span {
                offset: block * HUGE_PAGE_BYTES,
                bytes: HUGE_PAGE_BYTES,
            };
            let value = contents.of_block(block);
            device.fill(memory, span, 8, value)?.ok()?;
        }
        for page in 0..memory.pages() {
            let word = memory.word(page * PAGE_BYTES);
            word.store(contents.of_page(page), Relaxed);
        }
        Ok(contents)
    }

    fn of_block(&self, block: usize) -> u64 {
        pattern(!self.seed, block)
    }

    fn of_page(&self, page: usize) -> u64 {
        pattern(self.seed, page)
    }

    /// Compares every `step`th word of a page.
    fn compare(&self, page: usize, step: usize) -> Result<()> {
        let block = self.of_block(page * PAGE_BYTES / HUGE_PAGE_BYTES);
        for index in (0..PAGE_BYTES / WORD_BYTES).step_by(step) {
            let offset = page * PAGE_BYTES + index * WORD_BYTES;
            let found = self.memory.word(offset).load(Relaxed);
            let expected = match index {
                0 => self.of_page(page),
                _ => block,
            };
            if found != expected {
                let mismatch = Mismatch {
                    offset,
                    expected,
                    found,
                };
                return Err(mismatch).context("wrong contents");
            }
        }
        Ok(())
    }

    fn check(&self, page: usize, stage: &Stage) -> Result<()> {
        stage.add(Count::Verified, 1);
        self.compare(page, 1)
    }

    /// Compares a word of each 512 bytes of all pages, and all of some.
    fn check_all(&self, stage: &Stage) -> Result<()> {
        const WORDS_APART: usize = 64;
        const PAGES_APART: usize = 61;
        let pages = self.memory.pages();
        (0..pages).try_for_each(|page| self.compare(page, WORDS_APART))?;
        (0..pages)
            .step_by(PAGES_APART)
            .try_for_each(|page| self.check(page, stage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_of_another_page_or_block_is_found() {
        let contents = Contents {
            memory: Mapping::anonymous(2 * PAGE_BYTES).unwrap(),
            seed: 3,
        };
        contents.memory.fill(contents.of_block(0));
        for page in 0..2 {
            let word = contents.memory.word(page * PAGE_BYTES);
            word.store(contents.of_page(page), Relaxed);
        }
        (0..2).for_each(|page| contents.compare(page, 1).unwrap());
        contents.memory.word(PAGE_BYTES + 512).fetch_xor(4, Relaxed);
        assert!(contents.compare(1, 64).is_err());
        contents.memory.word(0).store(contents.of_page(1), Relaxed);
        assert!(contents.compare(0, 64).is_err());
    }
}
