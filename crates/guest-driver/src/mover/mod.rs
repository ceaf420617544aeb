// SPDX-License-Identifier: GPL-2.0-only

//! Moves a range of an address space to the device or back, page by page accounted.
//!
//! Facility: none of its own; policy over [`crate::migrate`] and [`crate::fault`].
//! Contexts: process context, inside the device's gate. Lock order: mmap lock for
//! reading, for one batch at a time; eviction in between, under no lock. Invariant:
//! each page of a batch ends with exactly one outcome.
//!
//! A batch is looked at first, then the pages that are somewhere else are collected:
//! one pass for system memory, and one for each other device that has pages there.
//! Pages that are already where they belong are not touched. What is busy is tried
//! again a few times: the kernel takes short references to pages all the time, for
//! LRU batches, for a racing migration, for /proc.
//!
//! A batch lies inside 2 MiB, so it is either one large folio as a whole or single pages.
//! A large folio moves whole where source, destination and request allow it. Otherwise it
//! is split: anonymous memory on its way, by the kernel; page cache where it is, which
//! unmaps it, so that it is faulted in again before the next try.

mod pass;

use kernel::mm::{MmWithUser, MmapReadGuard};
use kernel::prelude::*;

use crate::ages::Stamp;
use crate::batch::{PageRange, BATCH_PAGES, PAGE_BYTES};
use crate::choice::Way;
use crate::device::Device;
use crate::evict;
use crate::fault::{Area, Areas, Mapped, Snapshot, Traits};
use crate::migrate::{Arrays, Collected, Select};
use crate::notifier::Mirror;
use crate::pagemap::{Home, Owner, Region};
use crate::sys;
use crate::tally::{Outcome, Reason, Tally};
use crate::transfer::Transfer;

use pass::{Pass, Placed};

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

/// How pages shall go there.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// Fault in what is not present first.
    pub(crate) populate: bool,
    /// Evict the least recently migrated pages if the device is full.
    pub(crate) make_room: bool,
    /// Large folios go as single pages.
    pub(crate) small: bool,
}

/// What a migration did.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) tally: Tally,
    /// Pages that left the device to make room.
    pub(crate) evicted: u64,
}

/// Tries for a batch with busy pages; pauses of 1, 2, 4 and 8 milliseconds lie between.
const TRIES: u32 = 5;
/// How often room is made for one batch: others may take what one eviction gained.
const ROOM_TRIES: u32 = 4;

/// A page of another device of this driver, or of system memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    System,
    Device(Owner),
}

impl From {
    /// Whether that is where a page is.
    fn is_home(self, home: Home) -> bool {
        match self {
            From::System => home == Home::System,
            From::Device(owner) => home == Home::Cdm(owner),
        }
    }
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
    options: Options,
) -> Result<Done> {
    let region = device.region();
    let mut mover = Mover {
        device,
        region,
        direction,
        options,
        stamp: region.stamp(),
        arrays: Arrays::new()?,
        snapshot: Snapshot::new(region)?,
        transfer: Transfer::new()?,
        outcomes: KVec::from_elem(Outcome::Failed(Reason::Busy), BATCH_PAGES, GFP_KERNEL)?,
        was_mapped: KVec::from_elem(false, BATCH_PAGES, GFP_KERNEL)?,
        is_taken: KVec::from_elem(false, BATCH_PAGES, GFP_KERNEL)?,
        slots: KVec::from_elem(0, BATCH_PAGES, GFP_KERNEL)?,
        is_whole: false,
        must_split: false,
        can_wait: false,
        has_split: false,
        large: 0,
        evicted: 0,
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
        return Ok(Done {
            tally: sum,
            evicted: mover.evicted,
        });
    }
    Err(if device.gate().is_shut() {
        ENODEV
    } else {
        EINTR
    })
}

struct Mover<'a> {
    device: &'a Device,
    region: &'a Region,
    direction: Direction,
    options: Options,
    /// Stamp of the pages that this call moves to the device.
    stamp: Stamp,
    arrays: Arrays,
    snapshot: Snapshot,
    transfer: Transfer,
    /// Outcome of each page of the batch.
    outcomes: KVec<Outcome>,
    /// Whether each page of the batch was mapped at an earlier try.
    was_mapped: KVec<bool>,
    /// Whether the device has each page of the batch for itself, so that it seems not to be there.
    is_taken: KVec<bool>,
    /// Pages of the allocator for a pass.
    slots: KVec<u32>,
    /// Whether large folios of the batch move whole.
    is_whole: bool,
    /// A try found that they cannot.
    must_split: bool,
    /// Room will be made if there is none.
    can_wait: bool,
    /// Folios of the device were split to get at what nobody maps any more.
    has_split: bool,
    /// Pages of the batch that moved as large folios.
    large: u64,
    /// Pages that left the device to make room.
    evicted: u64,
}

impl Mover<'_> {
    /// Moves a batch; its account and the tries it took, or `None` if a signal came, or the
    /// device went away, before anything was done.
    fn batch(
        &mut self,
        mirror: &Mirror,
        mm: &MmWithUser,
        batch: PageRange,
    ) -> Result<Option<(Tally, u32)>> {
        // What the first tries moved is no longer there to move, but it counts as moved.
        let mut moved = [false; BATCH_PAGES];
        self.was_mapped.fill(false);
        self.large = 0;
        self.is_whole = !self.options.small && self.region.layout().memory_type.has_large_folios();
        let mut tries = 0;
        let mut room_tries = 0;
        let mut is_pause_due = false;
        let mut is_faulted = false;
        while tries < TRIES {
            if self.device.gate().is_shut() || kernel::current!().signal_pending() {
                if tries == 0 {
                    return Ok(None);
                }
                break;
            }
            if is_pause_due {
                is_pause_due = false;
                // SAFETY: Process context, no lock held.
                unsafe { sys::cdm_drain() };
                // SAFETY: As above.
                unsafe { sys::msleep(1 << (tries - 1)) };
            }
            if self.device.engine().has_exclusive_atomics() && !is_faulted {
                let spaces = self.device.spaces();
                spaces.mark_exclusive(mm, batch, &mut self.is_taken);
            }
            let ticket = mirror.read_begin();
            let locked = mm.mmap_read_lock();
            if !self.snapshot.take(mirror, ticket, mm, batch, &locked)? {
                // The range changes all the time; it is not a try if nothing was tried.
                drop(locked);
                continue;
            }
            if !is_faulted && self.fault_in(mm, batch, &locked, tries == 0) {
                // Once for each try; then the range looks different.
                is_faulted = true;
                drop(locked);
                continue;
            }
            is_faulted = false;
            tries += 1;
            self.must_split = false;
            self.can_wait = self.options.make_room && room_tries < ROOM_TRIES;
            self.attempt(mm, batch, &locked, tries == TRIES);
            drop(locked);

            let outcomes = &mut self.outcomes[..batch.pages()];
            for (outcome, moved) in outcomes.iter_mut().zip(&mut moved) {
                *moved |= *outcome == Outcome::Moved;
                if *moved {
                    *outcome = Outcome::Moved;
                }
            }
            if self.must_split && self.is_whole {
                // The next try finds single pages. It is not one for busy ones.
                self.is_whole = false;
                tries -= 1;
                continue;
            }
            let homeless = Outcome::Failed(Reason::NoMemory);
            let wanted = outcomes.iter().filter(|o| **o == homeless).count() as u64;
            if wanted != 0 && self.direction == Direction::ToDevice && !self.has_split {
                // Once a call: every folio of the device is looked at.
                self.has_split = true;
                if evict::split_partly_mapped(self.device)? != 0 {
                    tries -= 1;
                    continue;
                }
            }
            if wanted != 0 && self.can_wait {
                room_tries += 1;
                let evicted = evict::make_room(self.device, wanted, self.stamp)?;
                self.evicted += evicted;
                if evicted != 0 {
                    tries -= 1;
                    continue;
                }
            }
            if !outcomes.iter().any(|outcome| outcome.is_transient()) {
                break;
            }
            is_pause_due = true;
        }
        let mut tally = Tally::default();
        for outcome in &self.outcomes[..batch.pages()] {
            tally.add(*outcome);
        }
        tally.add_large(self.large);
        Ok(Some((tally, tries)))
    }

    /// Faults in what shall be there: everything the first time if the caller asks for
    /// it, what the device has for itself, and pages of files that were there when they were
    /// tried before, because the split of a large folio unmaps them. Whether anything was.
    fn fault_in(
        &self,
        mm: &MmWithUser,
        batch: PageRange,
        locked: &MmapReadGuard<'_>,
        is_first: bool,
    ) -> bool {
        let is_populate = self.options.populate && is_first;
        let mut any = false;
        for area in Areas::new(mm, batch, locked) {
            if !area.is_faultable() {
                continue;
            }
            let first = ((area.range.start() - batch.start()) / PAGE_BYTES) as usize;
            for index in 0..area.range.pages() {
                let was_mapped = self.was_mapped[first + index] && !area.is_anonymous();
                if self.snapshot.mapped(first + index) == Mapped::Nothing
                    && (is_populate || was_mapped || self.is_taken[first + index])
                {
                    any |= area.fault_in(index);
                }
            }
        }
        any
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
            let mapped = self.snapshot.mapped(index);
            self.outcomes[index] = match mapped {
                // The device has it again.
                Mapped::Nothing if self.is_taken[index] => Outcome::Failed(Reason::Busy),
                mapped => self.outlook(mapped),
            };
            self.was_mapped[index] |= mapped != Mapped::Nothing;
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
        let Mapped::Page { home, traits, .. } = mapped else {
            return Outcome::Failed(Reason::NotPresent);
        };
        let here = Home::Cdm(self.region.owner());
        match (self.direction, home) {
            (Direction::ToDevice, home) if home == here => return Outcome::There,
            (Direction::ToSystem, Home::System) => return Outcome::There,
            // Another device's page; that device brings it to the system.
            (Direction::ToSystem, home) if home != here => {
                return Outcome::Failed(Reason::Unsupported)
            }
            _ => {}
        }
        Outcome::Failed(if !self.is_kind_movable(traits) {
            // The zero page gets there, too, and moves all the same.
            Reason::Unsupported
        } else if traits.is_pinned() {
            Reason::Pinned
        } else if traits.is_compound() && !(self.is_whole && traits.is_large()) {
            Reason::Split
        } else {
            Reason::Busy
        })
    }

    /// Whether pages of that kind go where they shall.
    ///
    /// What KSM has merged stays: the kernel finds the mappings of such a page by what KSM knows of
    /// them, and KSM forgets those of ZONE_DEVICE pages at its next scan. Nobody would replace the
    /// migration entries when the page comes back, and whoever touches it would fault for ever.
    fn is_kind_movable(&self, traits: Traits) -> bool {
        if traits.is_merged() {
            return false;
        }
        traits.is_anon()
            || match self.direction {
                Direction::ToDevice => self.region.layout().memory_type.takes_files(),
                Direction::ToSystem => sys::CDM_FILES_MIGRATE,
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

    /// What to collect of one origin.
    fn select(&self, from: From) -> Select {
        let (mut flags, owner) = match from {
            From::System => (sys::CDM_SELECT_SYSTEM, core::ptr::null_mut()),
            From::Device(owner) => (owner.select, owner.owner),
        };
        if self.is_whole {
            flags |= sys::CDM_SELECT_COMPOUND;
        }
        if from == From::System && self.region.layout().memory_type.takes_files() {
            flags |= sys::CDM_SELECT_FILE;
        }
        Select { flags, owner }
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
        let select = self.select(from);
        let Self {
            region,
            direction,
            stamp,
            arrays,
            snapshot,
            transfer,
            outcomes,
            was_mapped,
            slots,
            must_split,
            can_wait,
            large,
            ..
        } = self;
        let Some(collected) = Collected::of_area(area, select, arrays, locked) else {
            return false;
        };
        let pages = collected.pages();
        let mut pass = Pass {
            region,
            direction: *direction,
            way: match (*direction, from) {
                (Direction::ToSystem, _) => Way::Out,
                (Direction::ToDevice, From::System) => Way::In,
                (Direction::ToDevice, From::Device(_)) => Way::Across,
            },
            stamp: *stamp,
            area,
            mapped: snapshot.part(first, pages),
            outcomes: &mut outcomes[first..first + pages],
            transfer,
            slots,
        };
        pass.explain(&collected, from, &was_mapped[first..first + pages], is_last);
        pass.transfer.clear();
        let is_scattered = if pages == BATCH_PAGES && collected.is_compound(0) {
            match pass.place_whole(&collected, *can_wait) {
                Placed::Whole => false,
                Placed::InParts => true,
                Placed::Nowhere => {
                    *must_split = true;
                    return true;
                }
            }
        } else {
            pass.place_single(&collected);
            false
        };
        *large += pass.finish(collected, is_scattered);
        true
    }
}
