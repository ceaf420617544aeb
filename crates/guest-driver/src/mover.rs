// SPDX-License-Identifier: GPL-2.0

//! Moves a range of an address space to the device or back, page by page accounted.
//!
//! Facility: none of its own; policy over [`crate::migrate`] and [`crate::fault`].
//! Contexts: process context, inside the device's gate. Lock order: mmap lock for
//! reading, for one batch at a time. Invariant: each page of a batch ends with exactly
//! one outcome.
//!
//! A batch is looked at first, then the pages that are somewhere else are collected:
//! one pass for system memory, and one for each other device that has pages there.
//! Pages that are already where they belong are not touched. What is busy is tried
//! again a few times: the kernel takes short references to pages all the time, for
//! LRU batches, for a racing migration, for /proc.

use kernel::mm::{MmWithUser, MmapReadGuard};
use kernel::prelude::*;

use crate::batch::{PageRange, BATCH_PAGES, PAGE_BYTES};
use crate::device::Device;
use crate::fault::{Area, Areas, Mapped, Snapshot};
use crate::migrate::{self, Arrays, Collected, Select, Source};
use crate::notifier::Mirror;
use crate::pagemap::{Home, Owner, Region};
use crate::sys;
use crate::tally::{Outcome, Reason, Tally};

/// Where pages shall go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToDevice,
    ToSystem,
}

impl Direction {
    /// Its number on the ioctl interface.
    pub(crate) fn uapi(self) -> u32 {
        match self {
            Self::ToDevice => sys::cdm_direction_CDM_TO_DEVICE,
            Self::ToSystem => sys::cdm_direction_CDM_TO_SYSTEM,
        }
    }
}

/// Tries for a batch with busy pages; pauses of 1, 2, 4 and 8 milliseconds lie between.
const TRIES: u32 = 5;

/// A page of another device of this driver, or of system memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    System,
    Device(Owner),
}

/// Moves the pages of `range`.
///
/// A signal, or the end of the device, stops it between batches; then it returns what
/// it got to, or EINTR or ENODEV if that is nothing.
pub(crate) fn run(
    device: &Device,
    mm: &MmWithUser,
    range: PageRange,
    direction: Direction,
) -> Result<Tally> {
    let mut mover = Mover {
        region: device.region(),
        direction,
        arrays: Arrays::new()?,
        snapshot: Snapshot::new()?,
        outcomes: KVec::from_elem(Outcome::Failed(Reason::Busy), BATCH_PAGES, GFP_KERNEL)?,
        slots: KVec::from_elem(0, BATCH_PAGES, GFP_KERNEL)?,
    };
    let mirror = Mirror::watch(mm, range)?;
    let mut sum = Tally::default();
    for batch in range.batches() {
        if device.gate().is_shut() {
            break;
        }
        let (tally, tries) = match mover.batch(&mirror, mm, batch) {
            Ok(Some(done)) => done,
            Ok(None) => break,
            // What moved before has moved, so the account of it comes first.
            Err(_) if sum.asked() != 0 => break,
            Err(err) => return Err(err),
        };
        device.counters().moved(direction, &tally);
        let failed = tally.failed().iter().sum();
        // SAFETY: Takes values only.
        unsafe {
            sys::cdm_trace_migrate_batch(
                device.number(),
                direction.uapi(),
                batch.start(),
                batch.pages() as u64,
                tally.moved(),
                tally.there(),
                failed,
                tries,
            )
        };
        sum.merge(&tally);
    }
    if sum.asked() != 0 {
        return Ok(sum);
    }
    Err(if device.gate().is_shut() {
        ENODEV
    } else {
        EINTR
    })
}

struct Mover<'a> {
    region: &'a Region,
    direction: Direction,
    arrays: Arrays,
    snapshot: Snapshot,
    /// Outcome of each page of the batch.
    outcomes: KVec<Outcome>,
    /// Pages of the allocator for a pass.
    slots: KVec<u32>,
}

impl Mover<'_> {
    /// Moves a batch; its account and the tries it took, or `None` if a signal came
    /// before anything was done.
    fn batch(
        &mut self,
        mirror: &Mirror,
        mm: &MmWithUser,
        batch: PageRange,
    ) -> Result<Option<(Tally, u32)>> {
        // What the first tries moved is no longer there to move, but it counts as moved.
        let mut moved = [false; BATCH_PAGES];
        let mut tries = 0;
        while tries < TRIES {
            if kernel::current!().signal_pending() {
                if tries == 0 {
                    return Ok(None);
                }
                break;
            }
            if tries > 0 {
                // SAFETY: Process context, no lock held.
                unsafe { sys::cdm_drain() };
                // SAFETY: As above.
                unsafe { sys::msleep(1 << (tries - 1)) };
            }
            let ticket = mirror.read_begin();
            let locked = mm.mmap_read_lock();
            if !self.snapshot.take(mirror, ticket, mm, batch, &locked)? {
                // The range changes all the time; it is not a try if nothing was tried.
                drop(locked);
                continue;
            }
            tries += 1;
            self.attempt(mm, batch, &locked, tries == TRIES);
            drop(locked);

            let outcomes = &mut self.outcomes[..batch.pages()];
            for (outcome, moved) in outcomes.iter_mut().zip(&mut moved) {
                *moved |= *outcome == Outcome::Moved;
                if *moved {
                    *outcome = Outcome::Moved;
                }
            }
            if !outcomes.iter().any(|outcome| outcome.is_transient()) {
                break;
            }
        }
        let mut tally = Tally::default();
        for outcome in &self.outcomes[..batch.pages()] {
            tally.add(*outcome);
        }
        Ok(Some((tally, tries)))
    }

    /// One try: sets the outcome of every page of the batch.
    fn attempt(
        &mut self,
        mm: &MmWithUser,
        batch: PageRange,
        locked: &MmapReadGuard<'_>,
        is_last: bool,
    ) {
        for index in 0..batch.pages() {
            self.outcomes[index] = self.outlook(self.snapshot.mapped(index));
        }
        for area in Areas::new(mm, batch, locked) {
            let first = ((area.range.start() - batch.start()) / PAGE_BYTES) as usize;
            let mut from = match self.direction {
                Direction::ToDevice => From::System,
                Direction::ToSystem => From::Device(self.region.owner()),
            };
            loop {
                if !self.pass(&area, first, from, locked, is_last) {
                    self.refuse(first, area.range.pages());
                    break;
                }
                match self.next_source(from, first, area.range.pages()) {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
    }

    /// What becomes of a page that no pass touches.
    fn outlook(&self, mapped: Mapped) -> Outcome {
        let Mapped::Page { home, is_anon } = mapped else {
            return Outcome::Failed(Reason::NotPresent);
        };
        let here = Home::Cdm(self.region.owner());
        match (self.direction, home) {
            (Direction::ToDevice, home) if home == here => Outcome::There,
            (Direction::ToSystem, Home::System) => Outcome::There,
            // Another device's page; that device brings it to the system.
            (Direction::ToSystem, home) if home != here => Outcome::Failed(Reason::Unsupported),
            _ if is_anon => Outcome::Failed(Reason::Busy),
            _ => Outcome::Failed(Reason::Unsupported),
        }
    }

    /// The next other device that has pages in this part of the batch, in a fixed order.
    fn next_source(&self, after: From, first: usize, pages: usize) -> Option<From> {
        if self.direction == Direction::ToSystem {
            return None;
        }
        let here = From::Device(self.region.owner());
        let key = |from: From| match from {
            From::System => 0,
            From::Device(owner) => owner.owner as usize,
        };
        (first..first + pages)
            .filter_map(|index| match self.snapshot.mapped(index) {
                Mapped::Page {
                    home: Home::Cdm(owner),
                    ..
                } => Some(From::Device(owner)),
                _ => None,
            })
            .filter(|from| *from != here && key(*from) > key(after))
            .min_by_key(|from| key(*from))
    }

    /// Every page there is of a kind that does not move.
    fn refuse(&mut self, first: usize, pages: usize) {
        for index in first..first + pages {
            let outcome = &mut self.outcomes[index];
            if outcome.is_transient() {
                *outcome = Outcome::Failed(Reason::Unsupported);
            }
        }
    }

    /// Moves the pages of one origin in an area; false if the kernel refuses the area.
    fn pass(
        &mut self,
        area: &Area<'_>,
        first: usize,
        from: From,
        locked: &MmapReadGuard<'_>,
        is_last: bool,
    ) -> bool {
        if !area.is_migratable() {
            return false;
        }
        let select = match from {
            From::System => Select {
                flags: sys::CDM_SELECT_SYSTEM,
                owner: core::ptr::null_mut(),
            },
            From::Device(owner) => Select {
                flags: owner.select,
                owner: owner.owner,
            },
        };
        let Self {
            region,
            direction,
            arrays,
            snapshot,
            outcomes,
            slots,
        } = self;
        let Some(mut collected) = Collected::of_area(area, select, arrays, locked) else {
            return false;
        };

        let pages = collected.pages();
        let outcomes = &mut outcomes[first..first + pages];
        let mut wanted = 0;
        for (index, outcome) in outcomes.iter_mut().enumerate() {
            let source = collected.source(index);
            let mapped = snapshot.mapped(first + index);
            wanted += usize::from(is_movable(source, mapped));
            // Neither a page nor a hole: a page that somebody else is moving, or one
            // that is swapped out. Time tells them apart.
            if source == Source::Skipped
                && mapped == Mapped::Nothing
                && *outcome == Outcome::Failed(Reason::NotPresent)
                && area.is_anonymous()
                && !is_last
            {
                *outcome = Outcome::Failed(Reason::Busy);
            }
        }
        let mut slots = match direction {
            Direction::ToDevice => {
                let got = region.reserve(&mut slots[..wanted]);
                &slots[..got]
            }
            Direction::ToSystem => &[],
        };

        for (index, outcome) in outcomes.iter_mut().enumerate() {
            let source = collected.source(index);
            if !is_movable(source, snapshot.mapped(first + index)) {
                if let Source::Page(_) = source {
                    *outcome = Outcome::Failed(Reason::Unsupported);
                }
                continue;
            }
            let page = match direction {
                Direction::ToDevice => slots.split_first().map(|(slot, rest)| {
                    slots = rest;
                    region.hand_out(*slot)
                }),
                Direction::ToSystem => migrate::system_page(area, index),
            };
            let Some(page) = page else {
                *outcome = Outcome::Failed(Reason::NoMemory);
                continue;
            };
            let is_filled = match source {
                // SAFETY: Source and new page are locked; the source is unmapped.
                Source::Page(from) => unsafe { migrate::copy(page, from) },
                _ => {
                    // SAFETY: Nobody else knows the page.
                    unsafe { sys::cdm_page_clear(page) };
                    true
                }
            };
            if !is_filled {
                // SAFETY: The page is locked, with a reference that is ours.
                unsafe { sys::cdm_page_unlock_put(page) };
                *outcome = Outcome::Failed(Reason::Unsupported);
                continue;
            }
            // SAFETY: The page is locked, and its reference goes along.
            unsafe { collected.give(index, page) };
            *outcome = Outcome::Moved;
        }

        for slot in slots {
            region.give_back(*slot);
        }

        let committed = collected.commit();
        for (index, outcome) in outcomes.iter_mut().enumerate() {
            if committed.is_moved(index) == Some(false) {
                *outcome = Outcome::Failed(Reason::Busy);
            }
        }
        true
    }
}

/// Whether a collected entry is something that moves: anonymous memory, which the zero
/// page stands for where memory was only read.
fn is_movable(source: Source, mapped: Mapped) -> bool {
    match source {
        Source::Skipped => false,
        Source::Empty => matches!(
            mapped,
            Mapped::Page {
                home: Home::System,
                ..
            }
        ),
        // SAFETY: The kernel locked the page for us, so it is valid.
        Source::Page(page) => unsafe { sys::cdm_page_is_anon(page) },
    }
}
