// SPDX-License-Identifier: GPL-2.0-only

//! Pages that were collected, on their way to where they shall go.
//!
//! Facility: none of its own; policy over [`crate::migrate`] and [`crate::transfer`].
//! Contexts and lock order: as for [`crate::mover`]. Invariant: each page that was collected
//! has its outcome when its pass is finished, and each destination is used or freed.

use super::{Direction, From};
use crate::ages::Stamp;
use crate::alloc::ORDER_MAX;
use crate::batch::BATCH_PAGES;
use crate::choice::Way;
use crate::fault::{Area, Mapped};
use crate::migrate::{self, Collected, Source};
use crate::pagemap::{Home, Region};
use crate::sys;
use crate::tally::{Outcome, Reason};
use crate::transfer::{is_unreadable, BadMemory, Helper, Transfer};

/// What became of a large folio's wish for a destination.
pub(super) enum Placed {
    /// It has one of its size, or it does not move at all.
    Whole,
    /// Its pages have one each, or some of them.
    InParts,
    /// It has none, and cannot be split as it is now.
    Nowhere,
}

/// The pages of one origin in an area, on their way.
pub(super) struct Pass<'a, 'b> {
    pub(super) region: &'a Region,
    pub(super) direction: Direction,
    pub(super) way: Way,
    pub(super) stamp: Stamp,
    pub(super) area: &'a Area<'b>,
    pub(super) mapped: &'a [Mapped],
    pub(super) outcomes: &'a mut [Outcome],
    pub(super) transfer: &'a mut Transfer,
    pub(super) slots: &'a mut [u32],
}

impl Pass<'_, '_> {
    /// Says why pages were not collected.
    pub(super) fn explain(
        &mut self,
        collected: &Collected<'_>,
        from: From,
        was_mapped: &[bool],
        is_last: bool,
    ) {
        if collected.is_compound(0) {
            return;
        }
        for (index, outcome) in self.outcomes.iter_mut().enumerate() {
            if collected.source(index) != Source::Skipped {
                continue;
            }
            match self.mapped[index] {
                // The first of its addresses has it, and does not want it.
                Mapped::Page { traits, .. } if traits.is_merged() => {}
                Mapped::Page { home, .. } if from.is_home(home) => {
                    if let Some(reason) = collected.reason(index) {
                        *outcome = Outcome::Failed(match reason {
                            // It was there a moment ago, so somebody is at it.
                            Reason::NotPresent => Reason::Busy,
                            reason => reason,
                        });
                    }
                }
                // Neither a page nor a hole: a page that somebody else is moving, or one
                // that is swapped out. Time tells them apart.
                Mapped::Nothing if *outcome == Outcome::Failed(Reason::NotPresent) => {
                    if !is_last && (self.area.is_anonymous() || was_mapped[index]) {
                        *outcome = Outcome::Failed(Reason::Busy);
                    }
                }
                _ => {}
            }
        }
    }

    /// Finds a place for a folio that was collected whole, or for a hole of its size.
    ///
    /// With `can_wait` a full device gets nothing of it: room is made, and it comes again.
    pub(super) fn place_whole(&mut self, collected: &Collected<'_>, can_wait: bool) -> Placed {
        let from = match collected.source(0) {
            Source::Page(page) => page,
            Source::Empty if self.is_zero_page(0) => core::ptr::null_mut(),
            _ => return Placed::Whole,
        };
        // SAFETY: The kernel locked the pages for us, if there are any.
        let is_sound = unsafe { !is_unreadable(from, ORDER_MAX) };
        if let Some(to) = is_sound.then(|| self.destination_whole()).flatten() {
            // SAFETY: Source and new folio are locked; the source is unmapped.
            unsafe { self.transfer.add(0, to, from, ORDER_MAX) };
            return Placed::Whole;
        }
        if can_wait && (self.region.free_pages() as usize) < BATCH_PAGES {
            self.outcomes.fill(Outcome::Failed(Reason::NoMemory));
            return Placed::Whole;
        }
        // SAFETY: The kernel locked the page for us, so it is valid.
        let is_anon =
            !from.is_null() && unsafe { sys::cdm_page_traits(from) } & sys::CDM_TRAIT_ANON != 0;
        if !is_anon {
            // Page cache does not split once it is unmapped, and a hole only if it can be
            // filled to the end.
            self.outcomes.fill(Outcome::Failed(Reason::Split));
            return Placed::Nowhere;
        }
        self.outcomes.fill(Outcome::Failed(Reason::NoMemory));
        self.place(BATCH_PAGES, |index| {
            // SAFETY: The pages of a large folio follow each other.
            Some(unsafe { from.add(index) })
        });
        Placed::InParts
    }

    /// Finds places for what was collected page by page.
    pub(super) fn place_single(&mut self, collected: &Collected<'_>) {
        let mut wanted = 0;
        let mut is_wanted = [false; BATCH_PAGES];
        for (index, is_wanted) in is_wanted[..self.outcomes.len()].iter_mut().enumerate() {
            match collected.source(index) {
                Source::Empty if self.is_zero_page(index) => {}
                Source::Page(page) if self.is_movable(page) => {}
                Source::Page(_) => {
                    self.outcomes[index] = Outcome::Failed(Reason::Unsupported);
                    continue;
                }
                _ => continue,
            }
            wanted += 1;
            *is_wanted = true;
            self.outcomes[index] = Outcome::Failed(Reason::NoMemory);
        }
        self.place(wanted, |index| {
            if !is_wanted[index] {
                return None;
            }
            match collected.source(index) {
                Source::Page(page) => Some(page),
                _ => Some(core::ptr::null_mut()),
            }
        });
    }

    /// Gives the pages that `source` names single destinations as far as there are any.
    fn place(&mut self, wanted: usize, source: impl Fn(usize) -> Option<*mut sys::page>) {
        let got = match self.direction {
            Direction::ToDevice => self.region.reserve(&mut self.slots[..wanted]),
            Direction::ToSystem => 0,
        };
        let mut next = 0;
        for index in 0..self.outcomes.len() {
            let Some(from) = source(index) else { continue };
            let to = match self.direction {
                Direction::ToDevice => loop {
                    if next == got {
                        break None;
                    }
                    next += 1;
                    // A page with a memory error is passed over.
                    let slot = self.slots[next - 1];
                    if let Some(page) = self.region.hand_out(slot, 0, self.stamp) {
                        break Some(page);
                    }
                },
                Direction::ToSystem => migrate::system_page(self.area, index, 0),
            };
            if let Some(to) = to {
                // SAFETY: Source and new page are locked; the source is unmapped.
                unsafe { self.transfer.add(index, to, from, 0) };
            }
        }
        for slot in &self.slots[next..got] {
            self.region.give_back(*slot);
        }
    }

    /// A large folio where the pages shall go.
    fn destination_whole(&self) -> Option<*mut sys::page> {
        match self.direction {
            Direction::ToDevice => {
                let slot = self.region.reserve_large()?;
                self.region.hand_out(slot, ORDER_MAX, self.stamp)
            }
            Direction::ToSystem => migrate::system_page(self.area, 0, ORDER_MAX),
        }
    }

    /// Fills the destinations, lets the kernel put them in place, and sets the outcomes.
    /// How many pages moved as large folios.
    pub(super) fn finish(&mut self, mut collected: Collected<'_>, is_scattered: bool) -> u64 {
        if self.area.is_executable() {
            self.transfer.deliver(&mut collected, BadMemory::Stays);
        } else {
            let helper = Helper {
                region: self.region,
                way: self.way,
            };
            self.transfer.deliver_with(&mut collected, helper);
        }
        let committed = collected.commit();
        let mut large = 0;
        for item in self.transfer.items() {
            let pages = 1 << item.order;
            let outcome = if !item.is_filled {
                Outcome::Failed(self.transfer.failure())
            } else if committed.is_moved(item.index) == Some(true) {
                large += if item.order == 0 { 0 } else { pages as u64 };
                Outcome::Moved
            } else {
                Outcome::Failed(match committed.reason(item.index) {
                    Some(Reason::Busy) | None if is_scattered => Reason::Split,
                    Some(reason) => reason,
                    None => Reason::Busy,
                })
            };
            self.outcomes[item.index..item.index + pages].fill(outcome);
        }
        large
    }

    /// Whether the entry is a hole where the zero page was mapped, which stands for
    /// anonymous memory that was only read.
    fn is_zero_page(&self, index: usize) -> bool {
        matches!(
            self.mapped[index],
            Mapped::Page {
                home: Home::System,
                ..
            }
        )
    }

    /// Whether a collected page is of a kind that moves.
    fn is_movable(&self, page: *mut sys::page) -> bool {
        // SAFETY: The kernel locked the page for us, so it is valid.
        let traits = unsafe { sys::cdm_page_traits(page) };
        if traits & sys::CDM_TRAIT_MERGED != 0 {
            // As `Mover::is_kind_movable` says.
            return false;
        }
        traits & sys::CDM_TRAIT_ANON != 0
            || match self.direction {
                Direction::ToDevice => self.region.layout().memory_type.takes_files(),
                Direction::ToSystem => sys::CDM_FILES_MIGRATE,
            }
    }
}
