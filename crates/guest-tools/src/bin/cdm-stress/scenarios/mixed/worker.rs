// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One thread that works on memory of its own.

use std::ops::Range;

use anyhow::{Context, Result};
use cdm_guest_tools::device::{Device, Direction, Migration};
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::random::Random;

use super::Shared;
use super::steps::{self, Step};
use crate::contents::Region;
use crate::counts::Count;
use crate::directory::Slots;
use crate::pin::Pin;
use crate::stage::{Stage, any_options};

/// Pages of a region of small pages.
pub const SMALL_PAGES: usize = 192;
/// Huge pages of a region of such.
pub const HUGE_COUNT: usize = 2;
/// Operations between two checks of everything.
const CHECK_INTERVAL: u64 = 16;
/// Operations that a failure tells.
const TRAIL: usize = 12;

/// A worker.
pub struct Worker<'a> {
    pub devices: Vec<Device>,
    pub random: Random,
    pub regions: Vec<Region>,
    pub pin: Option<Pin>,
    pub stage: &'a Stage,
    slots: Slots<'a>,
}

impl<'a> Worker<'a> {
    /// A worker whose part of the common file is `own`.
    pub fn new(shared: &'a Shared<'_>, seed: usize, own: Range<usize>) -> Result<Self> {
        let stage = shared.stage;
        let devices = stage.devices()?;
        let regions = vec![
            Region::small(SMALL_PAGES)?,
            Region::huge(HUGE_COUNT)?,
            Region::file(SMALL_PAGES)?,
            Region::huge_file(1)?,
            Region::common(&shared.common, own)?,
        ];
        let slots = shared.directory.claim(regions.len())?;
        Ok(Self {
            devices,
            random: stage.random(seed),
            regions,
            pin: None,
            stage,
            slots,
        })
    }

    /// Works until the end, checks everything once more, and tells how much it did.
    pub fn run(&mut self) -> Result<()> {
        let mut deck: Vec<&Step> = Vec::new();
        let mut trail: Vec<&str> = Vec::new();
        let mut number = 0;
        while !self.stage.is_over() {
            self.publish();
            if deck.is_empty() {
                deck = steps::shuffled(&mut self.random);
            }
            let step = deck.pop().context("there are steps")?;
            trail.push(step.name);
            let done = (step.run)(self).and_then(|()| {
                number += 1;
                self.stage.add(Count::Operations, 1);
                match number % CHECK_INTERVAL {
                    0 => self.verify_all(),
                    _ => self.verify_some(),
                }
            });
            done.with_context(|| {
                let recent = &trail[trail.len().saturating_sub(TRAIL)..];
                format!("operation {number}, after {recent:?}")
            })?;
        }
        self.pin = None;
        self.verify_all()
            .with_context(|| format!("at the end, after {number} operations"))
    }

    /// Lets the movers know where the memory is.
    fn publish(&self) {
        for (slot, region) in self.regions.iter().enumerate() {
            self.slots.publish(slot, region.memory.range());
        }
    }

    /// A region, by chance.
    pub fn any_region(&mut self) -> usize {
        self.random.below(self.regions.len())
    }

    /// Pages of a region that are the worker's own, by chance. Half of the time it is all of them.
    pub fn own_pages(&mut self, region: usize) -> Range<usize> {
        let own = self.regions[region].own.clone();
        if self.random.one_in(2) {
            return own;
        }
        let piece = self.random.piece(own.len());
        own.start + piece.start..own.start + piece.end
    }

    /// Moves pages of a region, which may be anybody's.
    pub fn migrate(
        &mut self,
        region: usize,
        pages: &Range<usize>,
        direction: Direction,
    ) -> Result<Migration> {
        let device = self.random.below(self.devices.len());
        let options = any_options(&mut self.random, direction);
        let region = &self.regions[region];
        let range = region.memory.page_range(pages.start, pages.len());
        let device = &self.devices[device];
        let migration = self.stage.migrate(device, 0, range, direction, options)?;
        if region.backing().is_some() && direction == Direction::ToDevice {
            self.stage.add(Count::FilePagesToDevice, migration.moved);
        }
        Ok(migration)
    }

    /// Compares the pages of a region.
    pub fn verify(&self, region: usize, pages: Range<usize>) -> Result<()> {
        self.stage.add(Count::Verified, pages.len() as u64);
        for page in pages {
            self.regions[region]
                .verify(page)
                .with_context(|| format!("region {region}, page {page}: wrong contents"))?;
        }
        Ok(())
    }

    fn verify_some(&mut self) -> Result<()> {
        const PAGES: usize = 16;
        let region = self.any_region();
        let own = self.regions[region].own.clone();
        let start = own.start + self.random.below(own.len());
        self.verify(region, start..own.end.min(start + PAGES))
    }

    /// Compares everything.
    pub fn verify_all(&self) -> Result<()> {
        (0..self.regions.len()).try_for_each(|region| {
            let own = self.regions[region].own.clone();
            self.verify(region, own)
        })
    }
}

/// Bytes of the common file that a worker has as its own.
pub const COMMON_BYTES: usize = 64 * PAGE_BYTES;
