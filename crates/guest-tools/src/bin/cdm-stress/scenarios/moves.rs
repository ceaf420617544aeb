// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Move storms: many move the same memory at once, both ways and between devices, while it is
//! written and while devices work on it.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use cdm_guest_tools::device::{
    Bound, Comparison, Device, Direction, Evicted, Migration, Options, Span,
};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::uapi::{CDM_CAN_BIND, CDM_CAN_MOVE_FILES};
use nix::sys::mman::MmapAdvise;

use crate::ballast;
use crate::contents::{Contents, memory_file};
use crate::counts::Count;
use crate::scenario::{Least, Needs, Scenario};
use crate::share::Share;
use crate::stage::{Stage, any_options};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "moves::overlapping_ranges_both_ways",
        property: "Memory that threads move in overlapping pieces, in and out at once, holds what \
                   each of them stored last.",
        needs: Needs::DEVICE,
        alone: false,
        operations: 100,
        least: &[
            Least::PerThousand(Count::ToDevice, 300),
            Least::PerThousand(Count::ToSystem, 300),
            Least::PerThousand(Count::PagesToDevice, 5000),
            Least::PerThousand(Count::PagesToSystem, 5000),
            Least::PerThousand(Count::Rewrite, 4000),
            Least::PerThousand(Count::Verified, 4000),
        ],
        body: overlapping_ranges_both_ways,
    },
    Scenario {
        name: "moves::ranges_that_devices_work_on",
        property: "A device that fills, copies, sums up and compares memory which is moved under \
                   its hands sees what was stored last, and so does who looks at its work.",
        needs: Needs::DEVICE,
        alone: false,
        operations: 100,
        least: WORK,
        body: |stage| work_of_devices(stage, false),
    },
    Scenario {
        name: "moves::ranges_that_devices_work_on_by_address",
        property: "The same holds of a device that uses the addresses of a process, from which \
                   every move takes its translations away.",
        needs: Needs {
            capabilities: CDM_CAN_BIND,
            ..Needs::DEVICE
        },
        alone: false,
        operations: 100,
        least: WORK,
        body: |stage| work_of_devices(stage, true),
    },
    Scenario {
        name: "moves::from_device_to_device",
        property: "Memory that goes from device to device while others write to it holds what was \
                   stored last, and each device reads that.",
        needs: Needs {
            devices: 2,
            ..Needs::DEVICE
        },
        alone: false,
        operations: 100,
        least: &[
            Least::PerThousand(Count::ToDevice, 800),
            Least::PerThousand(Count::PagesToDevice, 5000),
            Least::PerThousand(Count::PagesBetween, 2000),
            Least::PerThousand(Count::DeviceRead, 800),
            Least::PerThousand(Count::Rewrite, 3000),
            Least::PerThousand(Count::Verified, 3000),
        ],
        body: from_device_to_device,
    },
    Scenario {
        name: "moves::against_evictions",
        property: "Memory that some move in by address holds what was stored last while others \
                   bring it out by frame and by age.",
        needs: Needs::DEVICE,
        alone: false,
        operations: 100,
        least: &[
            Least::PerThousand(Count::ToDevice, 300),
            Least::PerThousand(Count::Evict, 200),
            Least::PerThousand(Count::PagesToDevice, 3000),
            Least::PerThousand(Count::PagesEvicted, 1000),
            Least::PerThousand(Count::Rewrite, 4000),
            Least::PerThousand(Count::Verified, 4000),
        ],
        body: against_evictions,
    },
    Scenario {
        name: "moves::into_full_devices",
        property: "Memory that has to drive others out of devices without room, and is driven out \
                   itself, holds what was stored last.",
        needs: Needs::DEVICE,
        alone: false,
        operations: 100,
        least: &[
            Least::PerThousand(Count::ToDevice, 600),
            Least::PerThousand(Count::MakeRoom, 200),
            Least::PerThousand(Count::PagesMadeRoom, 200),
            Least::PerThousand(Count::PagesToDevice, 2000),
            Least::PerThousand(Count::Rewrite, 4000),
            Least::PerThousand(Count::Verified, 4000),
        ],
        body: into_full_devices,
    },
];

/// What makes a storm under the hands of devices count.
const WORK: &[Least] = &[
    Least::PerThousand(Count::ToDevice, 300),
    Least::PerThousand(Count::ToSystem, 300),
    Least::PerThousand(Count::PagesToDevice, 5000),
    Least::PerThousand(Count::DeviceStore, 200),
    Least::PerThousand(Count::DeviceRead, 100),
    Least::PerThousand(Count::DeviceCompare, 100),
    Least::PerThousand(Count::Verified, 4000),
];

/// Threads of a process.
const THREADS: usize = 3;
/// Processes, of which each moves its own memory.
const PROCESSES: usize = 2;
/// Pages in small folios, in front of those in large ones.
const SMALL_PAGES: usize = 512;
/// Folios of 2 MiB behind them.
const HUGE_COUNT: usize = 2;
/// Pages that a thread writes between two moves.
const REWRITTEN: usize = 8;

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

/// A thread of a storm.
struct Mover<'a> {
    stage: &'a Stage,
    devices: Vec<Device>,
    memory: &'a Mapping,
    random: Random,
}

impl Mover<'_> {
    fn any_device(&mut self) -> usize {
        self.random.below(self.devices.len())
    }

    /// Moves some piece of the memory, which may be anybody's.
    fn move_some(&mut self, direction: Direction) -> Result<Migration> {
        let piece = self.random.piece(self.memory.pages());
        let range = self.memory.page_range(piece.start, piece.len());
        let options = any_options(&mut self.random, direction);
        let device = self.any_device();
        let device = &self.devices[device];
        self.stage.migrate(device, 0, range, direction, options)
    }

    /// Moves some piece into a device; whoever has his memory there waits to be driven out.
    fn move_in_or_wait(&mut self) -> Result<()> {
        /// What drives him out gets on meanwhile.
        const PAUSE: Duration = Duration::from_millis(100);
        let migration = self.move_some(Direction::ToDevice)?;
        if migration.moved == 0 && migration.no_memory == 0 {
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn move_either_way(&mut self) -> Result<()> {
        let direction = match self.random.one_in(2) {
            true => Direction::ToDevice,
            false => Direction::ToSystem,
        };
        self.move_some(direction).map(drop)
    }

    /// Brings pages out of a device by age or by frame, whoever they belong to.
    fn evict_some(&mut self) -> Result<()> {
        /// Few enough to leave the others something to move.
        const PAGES_MAX: usize = 1024;
        let device = self.any_device();
        let query = self.devices[device].query()?;
        let which = match self.random.one_in(2) {
            true => Evicted::Oldest,
            false => {
                let start = query.base + query.bytes_metadata;
                let piece = self.random.piece(query.bytes_total as usize / PAGE_BYTES);
                let frame = |page: usize| start + (page * PAGE_BYTES) as u64;
                Evicted::Frames(frame(piece.start), frame(piece.end))
            }
        };
        let limit = 1 + self.random.below(PAGES_MAX) as u64;
        self.stage
            .evict(&self.devices[device], which, limit)
            .map(drop)
    }
}

/// Runs threads of several processes, the threads of each on the same memory.
fn storm(
    stage: &Stage,
    open: impl Fn() -> Result<Vec<Device>> + Sync,
    body: impl Fn(Mover<'_>, usize) -> Result<()> + Sync,
) -> Result<()> {
    stage.processes(PROCESSES, |process| {
        let memory = of_both_sizes(stage, process)?;
        stage.threads(THREADS, |thread| {
            let devices = open()?;
            ensure!(!devices.is_empty(), "there is no device");
            let mover = Mover {
                stage,
                devices,
                memory: &memory,
                random: stage.random(process * THREADS + thread),
            };
            body(mover, thread)
        })
    })
}

/// A storm whose threads write to pages that lie between those of the others.
fn storm_of_writers(
    stage: &Stage,
    step: impl Fn(&mut Mover<'_>) -> Result<()> + Sync,
) -> Result<()> {
    storm(
        stage,
        || stage.devices(),
        |mut mover, thread| {
            let mut share = Share::interleaved(mover.memory, thread, THREADS);
            while stage.round() {
                step(&mut mover)?;
                share.work(stage, &mut mover.random, REWRITTEN)?;
            }
            share.check_all(stage)
        },
    )
}

fn overlapping_ranges_both_ways(stage: &Stage) -> Result<()> {
    storm_of_writers(stage, |mover| mover.move_either_way())
}

fn against_evictions(stage: &Stage) -> Result<()> {
    storm_of_writers(stage, |mover| match mover.random.one_in(2) {
        true => mover.move_some(Direction::ToDevice).map(drop),
        false => mover.evict_some(),
    })
}

fn into_full_devices(stage: &Stage) -> Result<()> {
    ballast::beside(stage, || {
        storm_of_writers(stage, |mover| mover.move_in_or_wait())
    })
}

/// Pages that a device works on at once.
const BLOCK_PAGES: usize = 64;

fn work_of_devices(stage: &Stage, by_address: bool) -> Result<()> {
    let open = || match by_address {
        false => stage.devices(),
        true => Device::numbers()?
            .into_iter()
            .map(|number| Ok(Bound::open(number)?.into_device()))
            .collect(),
    };
    storm(stage, open, |mut mover, thread| {
        // Of the small folios for one thread, of the large ones for another, and between both.
        let middle = SMALL_PAGES - BLOCK_PAGES / 2;
        let start = middle + thread * BLOCK_PAGES - BLOCK_PAGES;
        let mut block = Block {
            start,
            share: Share::block(mover.memory, start..start + BLOCK_PAGES),
        };
        while stage.round() {
            mover.move_either_way()?;
            block.work(&mut mover)?;
            let place = mover.random.below(BLOCK_PAGES - REWRITTEN);
            (place..place + REWRITTEN).try_for_each(|place| block.share.check(stage, place))?;
        }
        block.share.check_all(stage)
    })
}

/// Pages in a row that one thread has devices work on.
struct Block<'a> {
    start: usize,
    share: Share<'a>,
}

impl Block<'_> {
    /// Pages of the block, as commands name them.
    fn span(&self, first: usize, count: usize) -> Span {
        Span {
            offset: (self.start + first) * PAGE_BYTES,
            bytes: count * PAGE_BYTES,
        }
    }

    /// One thing that a device can do, and that the CPU can tell the outcome of.
    fn work(&mut self, mover: &mut Mover<'_>) -> Result<()> {
        const HALF: usize = BLOCK_PAGES / 2;
        let device = mover.any_device();
        let (stage, memory) = (mover.stage, mover.memory);
        let (device, random) = (&mover.devices[device], &mut mover.random);
        let halves = [self.span(0, HALF), self.span(HALF, HALF)];
        match random.below(4) {
            0 => {
                let value = random.number();
                let piece = random.piece(BLOCK_PAGES);
                let span = self.span(piece.start, piece.len());
                device.fill(memory, span, 8, value)?.ok()?;
                self.share.set(piece, |_| Contents::Fill(value));
                stage.add(Count::DeviceStore, 1);
            }
            1 => {
                device
                    .copy((memory, halves[0]), (memory, halves[1]))?
                    .ok()?;
                let copied: Vec<_> = (0..HALF).map(|place| self.share.contents(place)).collect();
                self.share
                    .set(HALF..BLOCK_PAGES, |place| copied[place - HALF]);
                stage.add(Count::DeviceStore, 1);
            }
            2 => {
                let piece = random.piece(BLOCK_PAGES);
                piece
                    .clone()
                    .for_each(|place| self.share.rewrite(stage, place, random.number()));
                let span = self.span(piece.start, piece.len());
                let by_device = device.checksum(memory, span, 0)?;
                let by_cpu = piece.fold(0, |crc, place| {
                    crc32c::crc32c_append(crc, &self.share.contents(place).bytes())
                });
                ensure!(
                    by_device == by_cpu,
                    "the device computes {by_device:#010x}, the CPU {by_cpu:#010x}"
                );
                stage.add(Count::DeviceRead, 1);
            }
            _ => {
                let told = device.compare((memory, halves[0]), (memory, halves[1]))?;
                let expected = self.first_difference(HALF);
                ensure!(
                    told == expected,
                    "the device compares and finds {told:?}, not {expected:?}"
                );
                stage.add(Count::DeviceCompare, 1);
            }
        }
        Ok(())
    }

    /// Where the two halves of the block differ first.
    fn first_difference(&self, half: usize) -> Comparison {
        let differs = (0..half).find_map(|place| {
            let bytes = |place: usize| self.share.contents(place).bytes();
            let (left, right) = (bytes(place), bytes(half + place));
            let byte = left.iter().zip(&right).position(|(l, r)| l != r)?;
            Some((place * PAGE_BYTES + byte) as u64)
        });
        differs.map_or(Comparison::Equal, Comparison::DiffersAt)
    }
}

fn from_device_to_device(stage: &Stage) -> Result<()> {
    storm(
        stage,
        || stage.devices(),
        |mut mover, thread| {
            let memory = mover.memory;
            let mut share = Share::interleaved(memory, thread, THREADS);
            // A third of the memory for each thread to move, of which all of them write some pages.
            let third = memory.pages() / THREADS;
            let mut at = mover.any_device();
            while stage.round() {
                at = (at + 1) % mover.devices.len();
                let device = &mover.devices[at];
                let piece = mover.random.piece(third);
                let range = memory.page_range(thread * third + piece.start, piece.len());
                let elsewhere = device.residency(0, range)?.other_device;
                let options = Options {
                    make_room: true,
                    ..any_options(&mut mover.random, Direction::ToDevice)
                };
                let moved = stage.migrate(device, 0, range, Direction::ToDevice, options)?;
                stage.add(Count::PagesBetween, elsewhere.min(moved.moved));
                share.work(stage, &mut mover.random, REWRITTEN)?;
                read_by_device(stage, device, &share, memory, thread)?;
            }
            share.check_all(stage)
        },
    )
}

/// Has a device read a page of a share, wherever that is now.
fn read_by_device(
    stage: &Stage,
    device: &Device,
    share: &Share<'_>,
    memory: &Mapping,
    index: usize,
) -> Result<()> {
    let place = stage.counts().get(Count::Operations) as usize % share.len();
    let span = Span {
        offset: (index + place * THREADS) * PAGE_BYTES,
        bytes: PAGE_BYTES,
    };
    let by_device = device.checksum(memory, span, 0)?;
    let by_cpu = crc32c::crc32c(&share.contents(place).bytes());
    ensure!(
        by_device == by_cpu,
        "device {} computes {by_device:#010x} of page {place}, the CPU {by_cpu:#010x}",
        device.number()
    );
    stage.add(Count::DeviceRead, 1);
    Ok(())
}
