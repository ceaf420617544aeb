// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Move storms: many move the same memory at once, both ways and between devices, while it is
//! written and while devices work on it.

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::uapi::CDM_CAN_MOVE_FILES;
use nix::sys::mman::MmapAdvise;

use crate::contents::memory_file;
use crate::counts::Count;
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::{Stage, any_options};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "moves::overlapping_ranges_both_ways",
    property: "Memory that threads move in overlapping pieces, in and out at once, holds what each \
               of them stored last.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 200,
    least: &[
        Least::PerThousand(Count::ToDevice, 300),
        Least::PerThousand(Count::ToSystem, 300),
        Least::PerThousand(Count::PagesToDevice, 5000),
        Least::PerThousand(Count::PagesToSystem, 5000),
        Least::PerThousand(Count::Rewrite, 4000),
        Least::PerThousand(Count::Verified, 4000),
    ],
    body: overlapping_ranges_both_ways,
}];

/// Threads of a process.
const THREADS: usize = 3;
/// Processes, of which each moves its own memory.
const PROCESSES: usize = 2;
/// Pages in small folios, in front of those in large ones.
const SMALL_PAGES: usize = 512;
/// Folios of 2 MiB behind them.
const HUGE_COUNT: usize = 2;

/// Memory in small folios with large ones behind: that of a file every other time, where files can
/// move.
fn of_both_sizes(stage: &Stage, index: usize) -> Result<Mapping> {
    let bytes = SMALL_PAGES * PAGE_BYTES + HUGE_COUNT * HUGE_PAGE_BYTES;
    let is_file = !index.is_multiple_of(2) && stage.capabilities() & CDM_CAN_MOVE_FILES != 0;
    let memory = match is_file {
        true => Mapping::huge_aligned_file(&memory_file(bytes)?, bytes)?,
        false => Mapping::huge_aligned(bytes)?,
    };
    memory.advise_pages(0, SMALL_PAGES, MmapAdvise::MADV_NOHUGEPAGE)?;
    let large = memory.pages() - SMALL_PAGES;
    memory.advise_pages(SMALL_PAGES, large, MmapAdvise::MADV_HUGEPAGE)?;
    Ok(memory)
}

/// Every so many pages of a mapping, which one thread alone writes to: neighbours are others', also
/// in one folio.
struct Share<'a> {
    memory: &'a Mapping,
    /// The pages, and the seed of what is in each.
    pages: Vec<(usize, u64)>,
}

impl<'a> Share<'a> {
    /// The share of thread `index` of `count`, with contents.
    fn new(memory: &'a Mapping, index: usize, count: usize, seed: u64) -> Self {
        let pages = (index..memory.pages()).step_by(count);
        let share = Self {
            memory,
            pages: pages.map(|page| (page, seed)).collect(),
        };
        for (page, seed) in &share.pages {
            memory.fill_pattern_pages(*seed, *page..page + 1);
        }
        share
    }

    fn check(&self, stage: &Stage, place: usize) -> Result<()> {
        let (page, seed) = self.pages[place];
        stage.add(Count::Verified, 1);
        let checked = self.memory.check_pattern_pages(seed, page..page + 1);
        checked.context("wrong contents")
    }

    /// Compares some pages and stores something new in them.
    fn rewrite_some(&mut self, stage: &Stage, random: &mut Random, count: usize) -> Result<()> {
        for _ in 0..count {
            let place = random.below(self.pages.len());
            self.check(stage, place)?;
            let seed = random.number();
            let (page, now) = &mut self.pages[place];
            self.memory.fill_pattern_pages(seed, *page..*page + 1);
            *now = seed;
        }
        stage.add(Count::Rewrite, count as u64);
        Ok(())
    }

    fn check_all(&self, stage: &Stage) -> Result<()> {
        (0..self.pages.len()).try_for_each(|place| self.check(stage, place))
    }
}

/// Moves some piece of a mapping, in or out.
fn move_some(
    stage: &Stage,
    devices: &[Device],
    memory: &Mapping,
    random: &mut Random,
) -> Result<()> {
    let piece = random.piece(memory.pages());
    let range = memory.page_range(piece.start, piece.len());
    let direction = match random.one_in(2) {
        true => Direction::ToDevice,
        false => Direction::ToSystem,
    };
    let options = any_options(random, direction);
    let device = &devices[random.below(devices.len())];
    stage
        .migrate(device, 0, range, direction, options)
        .map(drop)
}

fn overlapping_ranges_both_ways(stage: &Stage) -> Result<()> {
    /// Pages that a thread writes between two moves.
    const REWRITTEN: usize = 8;
    stage.processes(PROCESSES, |process| {
        let memory = of_both_sizes(stage, process)?;
        stage.threads(THREADS, |thread| {
            let mut random = stage.random(process * THREADS + thread);
            let devices = stage.devices()?;
            ensure!(!devices.is_empty(), "there is no device");
            let mut share = Share::new(&memory, thread, THREADS, random.number());
            while stage.round() {
                move_some(stage, &devices, &memory, &mut random)?;
                share.rewrite_some(stage, &mut random, REWRITTEN)?;
            }
            share.check_all(stage)
        })
    })
}
