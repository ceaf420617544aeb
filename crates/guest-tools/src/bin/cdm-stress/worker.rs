// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One thread that works on memory of its own.

use std::fs::File;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Migration, Options};
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::random::Random;

use crate::contents::Region;
use crate::counts::{Count, Counts};
use crate::directory::{Directory, Slots};
use crate::pin::Pin;
use crate::steps::{self, Step};

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// At the deadline, which counts from here and is not known from the beginning.
    At(Instant),
    /// After so many operations of all workers.
    After(u64),
}

impl End {
    /// Whether it has come.
    pub fn has_come(self, counts: &Counts) -> bool {
        let is_over = match self {
            Self::At(origin) => counts
                .deadline()
                .is_some_and(|end| origin.elapsed().as_millis() as u64 >= end),
            Self::After(operations) => counts.get(Count::Operations) >= operations,
        };
        is_over || counts.is_stopped()
    }
}

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
    pub counts: &'a Counts,
    slots: Slots<'a>,
}

impl<'a> Worker<'a> {
    /// A worker whose part of the common file is `own`.
    pub fn new(
        seed: u64,
        counts: &'a Counts,
        directory: &'a Directory,
        common: &File,
        own: Range<usize>,
    ) -> Result<Self> {
        let devices = Device::numbers()?
            .into_iter()
            .map(|number| Device::open(number).with_context(|| format!("device {number}")))
            .collect::<Result<_>>()?;
        let regions = vec![
            Region::small(SMALL_PAGES)?,
            Region::huge(HUGE_COUNT)?,
            Region::file(SMALL_PAGES)?,
            Region::huge_file(1)?,
            Region::common(common, own)?,
        ];
        let slots = directory.claim(regions.len())?;
        Ok(Self {
            devices,
            random: Random::new(seed),
            regions,
            pin: None,
            counts,
            slots,
        })
    }

    /// Works until the end, checks everything once more, and tells how much it did.
    pub fn run(&mut self, end: End) -> Result<()> {
        let mut deck: Vec<&Step> = Vec::new();
        let mut trail: Vec<&str> = Vec::new();
        let mut number = 0;
        while !end.has_come(self.counts) {
            self.publish();
            if deck.is_empty() {
                deck = steps::shuffled(&mut self.random);
            }
            let step = deck.pop().context("there are steps")?;
            trail.push(step.name);
            let done = (step.run)(self).and_then(|()| {
                number += 1;
                self.counts.add(Count::Operations, 1);
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
        let migration = match self.devices[device].migrate_with(0, range, direction, options) {
            Ok(migration) => migration,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Migration::default(),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot move {range} {direction:?}, {options:?}"));
            }
        };
        count_moved(self.counts, direction, options, &migration)?;
        if region.backing().is_some() && direction == Direction::ToDevice {
            self.counts.add(Count::FilePagesToDevice, migration.moved);
        }
        Ok(migration)
    }

    /// Compares the pages of a region.
    pub fn verify(&self, region: usize, pages: Range<usize>) -> Result<()> {
        self.counts.add(Count::Verified, pages.len() as u64);
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

/// Some way to migrate.
pub fn any_options(random: &mut Random, direction: Direction) -> Options {
    Options {
        populate: random.one_in(3),
        // Only a device can be full.
        make_room: random.one_in(3) && direction == Direction::ToDevice,
        small: random.one_in(4),
    }
}

/// Adds up what a migration did, which must add up itself.
pub fn count_moved(
    counts: &Counts,
    direction: Direction,
    options: Options,
    migration: &Migration,
) -> Result<()> {
    ensure!(
        migration.adds_up(),
        "the counts of a migration do not add up: {migration:?}"
    );
    ensure!(
        !options.small || migration.large == 0,
        "2 MiB folios moved whole that should be taken apart: {migration:?}"
    );
    let count = match direction {
        Direction::ToDevice => Count::PagesToDevice,
        Direction::ToSystem => Count::PagesToSystem,
    };
    counts.add(count, migration.moved);
    for (count, number) in [
        (Count::Populate, u64::from(options.populate)),
        (Count::MakeRoom, u64::from(options.make_room)),
        (Count::Small, u64::from(options.small)),
        (Count::PagesLarge, migration.large),
        (Count::PagesNoRoom, migration.no_memory),
        (Count::PagesMadeRoom, migration.evicted),
        (Count::PagesHeld, migration.busy + migration.pinned),
    ] {
        counts.add(count, number);
    }
    Ok(())
}

/// Bytes of the common file that a worker has as its own.
pub const COMMON_BYTES: usize = 64 * PAGE_BYTES;
