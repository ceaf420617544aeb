// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A process of a scenario that works on memory of its own, while another one
//! moves what it publishes.

use std::io;

use anyhow::{Context, Result};
use cdm_guest_tools::device::{Device, Direction, Migration};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::range::AddressRange;

use crate::contents::Region;
use crate::counts::Count;
use crate::directory::{Directory, Slots};
use crate::stage::{Stage, any_options};

/// Such a process.
pub struct Hand<'a> {
    pub stage: &'a Stage,
    pub index: usize,
    pub random: Random,
    pub devices: Vec<Device>,
    slots: Slots<'a>,
}

/// Runs `work` in `workers` processes, each with `slots` ranges to publish, and one process more
/// that moves what they publish until the scenario is over.
pub fn while_moved(
    stage: &Stage,
    workers: usize,
    slots: usize,
    work: impl Fn(&mut Hand) -> Result<()>,
) -> Result<()> {
    let directory = Directory::new()?;
    stage.processes(workers + 1, |index| {
        let mut hand = Hand {
            stage,
            index,
            random: stage.random(index),
            devices: stage.devices()?,
            slots: directory.claim(if index < workers { slots } else { 0 })?,
        };
        if index < workers {
            return work(&mut hand);
        }
        while !stage.is_over() {
            match directory.pick(&mut hand.random) {
                Some((pid, whole)) => hand.move_other(pid, whole)?,
                None => std::thread::yield_now(),
            }
        }
        Ok(())
    })
}

impl Hand<'_> {
    /// Says where memory of this process is, for the one that moves it.
    pub fn publish(&self, slot: usize, range: AddressRange) {
        self.slots.publish(slot, range);
    }

    /// The same for each of some regions.
    pub fn publish_all(&self, regions: &[Region]) {
        for (slot, region) in regions.iter().enumerate() {
            self.publish(slot, region.memory.range());
        }
    }

    /// A direction. More often in than out: where everything is at home there is nothing to test.
    pub fn direction(&mut self) -> Direction {
        match self.random.one_in(3) {
            true => Direction::ToSystem,
            false => Direction::ToDevice,
        }
    }

    /// Moves a range of this process to or from any device, in any way.
    pub fn migrate(&mut self, range: AddressRange, direction: Direction) -> Result<Migration> {
        let device = self.random.below(self.devices.len());
        let options = any_options(&mut self.random, direction);
        self.stage
            .migrate(&self.devices[device], 0, range, direction, options)
    }

    /// Moves some pages of this process somewhere.
    pub fn move_some(&mut self, memory: &Mapping) -> Result<Migration> {
        let pages = self.random.piece(memory.pages());
        let direction = self.direction();
        self.migrate(memory.page_range(pages.start, pages.len()), direction)
    }

    /// Moves a part of what another process has, which may be at its end or not have it any more.
    pub fn move_other(&mut self, pid: i32, whole: AddressRange) -> Result<()> {
        /// A range that is made of two entries of the directory may be very long.
        const PAGES_MAX: u64 = 4096;
        let pages = whole.pages().clamp(1, PAGES_MAX) as usize;
        let piece = self.random.piece(pages);
        let start = whole.start() + (piece.start * PAGE_BYTES) as u64;
        let end = start + (piece.len() * PAGE_BYTES) as u64;
        let range = AddressRange::new(start, end).unwrap_or(whole);
        let direction = self.direction();
        let options = any_options(&mut self.random, direction);
        let device = &self.devices[self.random.below(self.devices.len())];
        match device.migrate_with(pid, range, direction, options) {
            Ok(migration) => {
                self.stage.add(Count::Foreign, 1);
                self.stage.count_moved(direction, options, &migration)
            }
            Err(error) if is_of_an_end(&error) => Ok(()),
            Err(error) => Err(error).with_context(|| {
                format!("cannot move {range} of {pid} {direction:?}, {options:?}")
            }),
        }
    }

    /// Stores new contents into some pages of a region.
    pub fn rewrite_some(&mut self, region: &mut Region) {
        let own = region.own.clone();
        let piece = self.random.piece(own.len());
        let pages = own.start + piece.start..own.start + piece.end;
        self.stage.add(Count::Rewrite, pages.len() as u64);
        region.rewrite(pages, self.random.number());
    }

    /// Compares all pages of some regions with what must be in them.
    pub fn verify(&self, regions: &[Region]) -> Result<()> {
        for (index, region) in regions.iter().enumerate() {
            self.stage.add(Count::Verified, region.own.len() as u64);
            for page in region.own.clone() {
                region
                    .verify(page)
                    .with_context(|| format!("region {index}, page {page}: wrong contents"))?;
            }
        }
        Ok(())
    }
}

/// Whether a process that has come to its end, or whose memory has changed, explains an error.
pub fn is_of_an_end(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::EINTR | libc::EINVAL)
    )
}
