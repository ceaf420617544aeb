// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Huge folios: 2 MiB that move whole, are cut while they are in the device, and lie there among
//! pieces of other sizes.

use std::ops::Range;

use anyhow::{Context, Result, bail};
use cdm_guest_tools::device::{Device, Direction, Options};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::uapi::{CDM_CAN_MOVE_FILES, CDM_CAN_MOVE_LARGE};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::contents::{Contents, Kind, Region};
use crate::counts::Count;
use crate::crew::Member;
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "huge::whole_folios_both_ways",
        property: "Folios of 2 MiB that move whole, or are taken apart on the way and collapsed \
                   again, keep their contents.",
        needs: Needs {
            capabilities: CDM_CAN_MOVE_LARGE,
            ..Needs::DEVICE
        },
        alone: false,
        operations: 40,
        least: &[
            Least::PerThousand(Count::ToDevice, 900),
            Least::PerThousand(Count::ToSystem, 900),
            Least::PerThousand(Count::PagesLarge, 200_000),
            Least::PerThousand(Count::PagesToDevice, 200_000),
            Least::PerThousand(Count::Collapse, 50),
            Least::PerThousand(Count::Verified, 40_000),
        ],
        body: whole_folios_both_ways,
    },
    Scenario {
        name: "huge::cut_in_the_device",
        property: "A folio of 2 MiB in the device that is cut by munmap, mremap, mprotect, madvise \
                   or a write after fork gives up the pages that are gone, and all others keep \
                   their contents wherever they go.",
        needs: Needs::DEVICE,
        alone: false,
        operations: 60,
        least: &[
            Least::PerThousand(Count::PagesLarge, 50_000),
            Least::PerThousand(Count::UnmapPart, 60),
            Least::PerThousand(Count::Remap, 60),
            Least::PerThousand(Count::Protect, 60),
            Least::PerThousand(Count::Drop, 60),
            Least::PerThousand(Count::Fork, 60),
            Least::PerThousand(Count::PagesToSystem, 20_000),
            Least::PerThousand(Count::Verified, 40_000),
        ],
        body: cut_in_the_device,
    },
    Scenario {
        name: "huge::files_cut_in_the_device",
        property: "A folio of 2 MiB of a file that is truncated, punched or written in part while \
                   it is in the device reads as the file should.",
        needs: Needs {
            capabilities: CDM_CAN_MOVE_LARGE | CDM_CAN_MOVE_FILES,
            ..Needs::DEVICE
        },
        alone: false,
        operations: 60,
        least: &[
            Least::PerThousand(Count::FilePagesToDevice, 50_000),
            Least::PerThousand(Count::PagesLarge, 20_000),
            Least::PerThousand(Count::Truncate, 100),
            Least::PerThousand(Count::Punch, 100),
            Least::PerThousand(Count::Verified, 40_000),
        ],
        body: files_cut_in_the_device,
    },
    Scenario {
        name: "huge::among_other_sizes",
        property: "Folios of 2 MiB and single pages that come and go in one device, whose free \
                   blocks are cut and grow together, keep their contents.",
        needs: Needs::DEVICE,
        alone: false,
        operations: 60,
        least: &[
            Least::PerThousand(Count::PagesToDevice, 50_000),
            Least::PerThousand(Count::PagesLarge, 20_000),
            Least::PerThousand(Count::Small, 100),
            Least::PerThousand(Count::UnmapPart, 200),
            Least::PerThousand(Count::Verified, 40_000),
        ],
        body: among_other_sizes,
    },
];

const PROCESSES: usize = 3;
/// Pages of a folio of 2 MiB.
const FOLIO: usize = HUGE_PAGE_BYTES / PAGE_BYTES;

/// One process with memory of its own.
struct Worker<'a> {
    stage: &'a Stage,
    devices: Vec<Device>,
    random: Random,
}

impl<'a> Worker<'a> {
    fn new(stage: &'a Stage, index: usize) -> Result<Self> {
        Ok(Self {
            stage,
            devices: stage.devices()?,
            random: stage.random(index),
        })
    }

    /// Moves all of a region to or from some device.
    fn migrate(&mut self, region: &Region, direction: Direction, small: bool) -> Result<()> {
        // A device brings home its own pages only, so what is to come home is asked of all.
        let devices = match direction {
            Direction::ToDevice => {
                let device = self.random.below(self.devices.len());
                &self.devices[device..=device]
            }
            Direction::ToSystem => &self.devices[..],
        };
        let options = Options {
            make_room: direction == Direction::ToDevice,
            small,
            ..Options::default()
        };
        for device in devices {
            let range = region.memory.range();
            let moved = self.stage.migrate(device, 0, range, direction, options)?;
            if region.backing().is_some() && direction == Direction::ToDevice {
                self.stage.add(Count::FilePagesToDevice, moved.moved);
            }
        }
        Ok(())
    }

    /// Compares all of a region.
    fn verify_all(&self, region: &Region) -> Result<()> {
        self.verify_pages(region, region.own.clone())
    }

    /// Compares the ends of a region and some pages between, all of it now and then.
    fn verify(&mut self, region: &Region) -> Result<()> {
        const PAGES: usize = 32;
        const ALL_EVERY: usize = 8;
        if self.random.one_in(ALL_EVERY) {
            return self.verify_all(region);
        }
        let count = region.own.len();
        let some = (0..PAGES).map(|_| self.random.below(count));
        let pages: Vec<usize> = some.chain([0, count - 1]).collect();
        self.verify_pages(region, pages.into_iter())
    }

    fn verify_pages(&self, region: &Region, pages: impl Iterator<Item = usize>) -> Result<()> {
        for page in pages {
            self.stage.add(Count::Verified, 1);
            region.verify(page).context("wrong contents")?;
        }
        Ok(())
    }

    /// Stores something new in all of a region.
    fn rewrite(&mut self, region: &mut Region) {
        let pages = region.own.clone();
        self.rewrite_pages(region, pages);
    }

    fn rewrite_pages(&mut self, region: &mut Region, pages: Range<usize>) {
        self.stage.add(Count::Rewrite, pages.len() as u64);
        region.rewrite(pages, self.random.number());
    }

    /// Stores something new in a few pages of a region.
    fn rewrite_some(&mut self, region: &mut Region) {
        const PAGES_MAX: usize = 32;
        let piece = self.random.piece(region.own.len());
        let end = piece.end.min(piece.start + PAGES_MAX);
        self.rewrite_pages(region, piece.start..end);
    }

    /// A piece that cuts a folio: it neither begins nor ends with one.
    fn cut(&mut self, pages: usize) -> Range<usize> {
        let start = 1 + self.random.below(pages - 2);
        let end = start + 1 + self.random.below(pages - 1 - start);
        match end.is_multiple_of(FOLIO) {
            true => start..end - 1,
            false => start..end,
        }
    }
}

fn whole_folios_both_ways(stage: &Stage) -> Result<()> {
    const FOLIOS: usize = 2;
    /// Rounds, of which one takes the folios apart.
    const SMALL_EVERY: u64 = 4;
    stage.processes(PROCESSES, |index| {
        let mut worker = Worker::new(stage, index)?;
        let mut region = Region::huge(FOLIOS)?;
        worker.rewrite(&mut region);
        let mut round = 0;
        while stage.round() {
            worker.rewrite_some(&mut region);
            let small = round % SMALL_EVERY == SMALL_EVERY - 1;
            worker.migrate(&region, Direction::ToDevice, small)?;
            worker.verify(&region)?;
            worker.migrate(&region, Direction::ToSystem, small)?;
            if small {
                // Whether there is room for it is the kernel's to say.
                let _ = region.memory.collapse();
                stage.add(Count::Collapse, 1);
            }
            worker.verify(&region)?;
            round += 1;
        }
        worker.verify_all(&region)
    })
}

/// One way to cut a folio.
type Cut = fn(&mut Worker<'_>, &mut Region) -> Result<()>;

const CUTS: &[Cut] = &[
    unmap_tail,
    unmap_head_and_move,
    protect_middle,
    drop_middle,
    fork_and_write,
    split_by_small_move,
];

fn cut_in_the_device(stage: &Stage) -> Result<()> {
    const FOLIOS_MAX: usize = 2;
    stage.processes(PROCESSES, |index| {
        let mut worker = Worker::new(stage, index)?;
        let mut turn = index;
        while stage.round() {
            let mut region = Region::huge(1 + worker.random.below(FOLIOS_MAX))?;
            worker.rewrite(&mut region);
            worker.migrate(&region, Direction::ToDevice, false)?;
            // Each in its turn, so that there is some of each however few rounds there are.
            CUTS[turn % CUTS.len()](&mut worker, &mut region)?;
            worker.verify(&region)?;
            if worker.random.one_in(2) {
                worker.migrate(&region, Direction::ToSystem, false)?;
                worker.verify(&region)?;
                worker.migrate(&region, Direction::ToDevice, false)?;
            }
            worker.verify(&region)?;
            turn += 1;
        }
        Ok(())
    })
}

fn unmap_tail(worker: &mut Worker<'_>, region: &mut Region) -> Result<()> {
    let pages = 1 + worker.random.below(region.memory.pages() - 1);
    region.memory.unmap_tail(pages * PAGE_BYTES)?;
    region.forget_tail(pages);
    worker.stage.add(Count::UnmapPart, 1);
    Ok(())
}

/// Moves the mapping to where no huge page fits.
fn unmap_head_and_move(worker: &mut Worker<'_>, region: &mut Region) -> Result<()> {
    let bytes = region.memory.bytes();
    let mut target = Mapping::huge_aligned(bytes + HUGE_PAGE_BYTES)?;
    target.unmap_head((1 + worker.random.below(FOLIO - 1)) * PAGE_BYTES)?;
    target.unmap_tail(target.bytes() - bytes)?;
    region.memory.move_over(target)?;
    worker.stage.add(Count::Remap, 1);
    Ok(())
}

fn protect_middle(worker: &mut Worker<'_>, region: &mut Region) -> Result<()> {
    let pages = worker.cut(region.memory.pages());
    let protect = |protection| {
        region
            .memory
            .protect_pages(pages.start, pages.len(), protection)
    };
    protect(ProtFlags::PROT_READ)?;
    let read = region.verify(pages.start);
    protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    worker.stage.add(Count::Protect, 1);
    read.context("read-only memory: wrong contents")
}

fn drop_middle(worker: &mut Worker<'_>, region: &mut Region) -> Result<()> {
    let pages = worker.cut(region.memory.pages());
    let advice = MmapAdvise::MADV_DONTNEED;
    region
        .memory
        .advise_pages(pages.start, pages.len(), advice)?;
    region.set(pages, |_| Contents::Zeroes);
    worker.stage.add(Count::Drop, 1);
    Ok(())
}

/// A child writes to its copy, and the parent to its own.
fn fork_and_write(worker: &mut Worker<'_>, region: &mut Region) -> Result<()> {
    let (ours, theirs) = (worker.random.number(), worker.random.number());
    let pages = worker.cut(region.memory.pages());
    let stage = worker.stage;
    let child = Member::start("child", || {
        region
            .own
            .clone()
            .try_for_each(|page| region.verify(page))?;
        region.memory.fill_pattern_pages(theirs, pages.clone());
        region.memory.check_pattern_pages(theirs, pages.clone())?;
        Ok(())
    })?;
    region.rewrite(pages.clone(), ours);
    stage.add(Count::Fork, 1);
    child.wait()
}

/// The driver takes the folios apart on their way home.
fn split_by_small_move(worker: &mut Worker<'_>, region: &mut Region) -> Result<()> {
    worker.migrate(region, Direction::ToSystem, true)
}

fn files_cut_in_the_device(stage: &Stage) -> Result<()> {
    stage.processes(PROCESSES, |index| {
        let mut worker = Worker::new(stage, index)?;
        let mut region = Region::huge_file(2)?;
        worker.rewrite(&mut region);
        let mut turn = index;
        while stage.round() {
            worker.rewrite_some(&mut region);
            worker.migrate(&region, Direction::ToDevice, false)?;
            let pages = worker.cut(region.memory.pages());
            let Kind::File(file) = &region.kind else {
                bail!("the region has no file");
            };
            match turn % 3 {
                0 => {
                    file.set_len((pages.start * PAGE_BYTES) as u64)?;
                    file.set_len(region.memory.bytes() as u64)?;
                    region.set(pages.start..region.own.end, |_| Contents::Zeroes);
                    stage.add(Count::Truncate, 1);
                }
                1 => {
                    let flags =
                        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    let (offset, length) = (pages.start * PAGE_BYTES, pages.len() * PAGE_BYTES);
                    fallocate(file, flags, offset as i64, length as i64)
                        .context("cannot punch a hole")?;
                    region.set(pages, |_| Contents::Zeroes);
                    stage.add(Count::Punch, 1);
                }
                _ => {
                    let seed = worker.random.number();
                    region.rewrite(pages, seed);
                }
            }
            worker.verify(&region)?;
            worker.migrate(&region, Direction::ToSystem, false)?;
            worker.verify(&region)?;
            turn += 1;
        }
        worker.verify_all(&region)
    })
}

fn among_other_sizes(stage: &Stage) -> Result<()> {
    /// Regions that a process has at a time.
    const REGIONS: usize = 6;
    const SMALL_MAX: usize = 96;
    const HUGE_MAX: usize = 2;
    stage.processes(PROCESSES, |index| {
        let mut worker = Worker::new(stage, index)?;
        let mut regions: Vec<Region> = Vec::new();
        let mut turn = index;
        while stage.round() {
            if regions.len() == REGIONS {
                let region = regions.swap_remove(worker.random.below(REGIONS));
                worker.verify_all(&region)?;
            }
            let mut region = match turn % 2 {
                0 => Region::small(1 + worker.random.below(SMALL_MAX))?,
                _ => Region::huge(1 + worker.random.below(HUGE_MAX))?,
            };
            worker.rewrite(&mut region);
            worker.migrate(&region, Direction::ToDevice, turn % 4 == 3)?;
            if turn % 4 == 1 {
                unmap_tail(&mut worker, &mut region)?;
            }
            regions.push(region);
            let some = worker.random.below(regions.len());
            worker.verify(&regions[some])?;
            turn += 1;
        }
        regions
            .iter()
            .try_for_each(|region| worker.verify_all(region))
    })
}
