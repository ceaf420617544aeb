// SPDX-License-Identifier: GPL-2.0-only

//! Pages of a region that are in use, found by their frames, and their ages.
//!
//! Facility: none of its own. Contexts: process context, also in the middle of reclaim; no
//! page is referenced, so what is found may be gone by the time that somebody acts on it.
//! Lock order: `alloc` or `ages`, never both, with interrupts off. Invariant: no page in use
//! has an older stamp than `ages` has for its block.

use core::ops::Range;

use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;

use super::Region;
use crate::ages::{self, Candidate, Stamp, Turn};
use crate::batch::BATCH_PAGES;
use crate::sys;

impl Region {
    /// Adds to `frames` those of the folios in use from page `from` up to `end` that were
    /// migrated before `before`; the page to go on from if there is no room for a batch
    /// and more, or `None` at the end.
    ///
    /// The frames of a folio follow each other and are all there, also if only its end is
    /// in the range; a folio that does not fit any more is left to the next call.
    pub(crate) fn used_frames(
        &self,
        from: u32,
        end: u32,
        before: Stamp,
        frames: &mut KVec<usize>,
    ) -> Option<u32> {
        let mut next = from;
        while let Some(folio) = self.next_folio(next, end) {
            let pages = 1 << folio.order;
            if folio.stamp < before {
                if frames.len() + pages > BATCH_PAGES {
                    return Some(folio.page.max(from));
                }
                for page in folio.page..folio.page + pages as u32 {
                    let _ = frames.push_within_capacity(self.frame(page));
                }
            }
            next = folio.page + pages as u32;
        }
        None
    }

    /// The folios in use in a range of at most a block.
    pub(crate) fn used_folios(&self, pages: Range<u32>, folios: &mut KVec<Candidate>) {
        folios.clear();
        let mut next = pages.start;
        while let Some(folio) = self.next_folio(next, pages.end) {
            next = folio.page + (1 << folio.order);
            let _ = folios.push_within_capacity(folio);
        }
    }

    /// The first folio in use that has a page in `from..end`.
    pub(crate) fn next_folio(&self, from: u32, end: u32) -> Option<Candidate> {
        let mut next = from;
        loop {
            // Most of a memory that is looked through is free.
            let used = self.alloc.lock().next_used(next);
            next = used.filter(|page| *page < end)?;
            if let Some(folio) = self.look(next) {
                return Some(folio);
            }
            next += 1;
        }
    }

    /// The folio in use that `page` is part of, if there is one at this moment.
    fn look(&self, page: u32) -> Option<Candidate> {
        let (mut head, mut order, mut stamp) = (0, 0, 0);
        // SAFETY: The frame is in the mapped region.
        let is_used =
            unsafe { sys::cdm_frame_look(self.frame(page), &mut head, &mut order, &mut stamp) };
        let page = (head as u64).checked_sub(self.first_pfn)? as u32;
        is_used.then_some(Candidate { stamp, page, order })
    }

    /// As [`note_age`](Self::note_age), if the page is in use at this moment.
    pub(crate) fn note_age_if_used(&self, page: u32, stamp: Stamp) {
        if self.look(page).is_some() {
            self.note_age(page, stamp);
        }
    }

    /// The lowest frame in use.
    pub(crate) fn first_used(&self) -> Option<usize> {
        self.empty_stashes();
        let mut next = 0;
        loop {
            let page = self.alloc.lock().next_used(next)?;
            if self.poisoned_in(page, 0) == 0 {
                return Some(self.frame(page));
            }
            next = page + 1;
        }
    }

    /// Page frame of a page of the allocator.
    pub(crate) fn frame(&self, page: u32) -> usize {
        (self.first_pfn + u64::from(page)) as usize
    }

    /// A stamp for what migrates now.
    pub(crate) fn stamp(&self) -> Stamp {
        self.clock.fetch_add(1, Relaxed) + 1
    }

    /// Blocks of 2 MiB, the last of which may be shorter.
    pub(crate) fn blocks(&self) -> u32 {
        self.pages.div_ceil(BATCH_PAGES as u32)
    }

    /// Pages of a block.
    pub(crate) fn block(&self, block: u32) -> Range<u32> {
        let first = block * BATCH_PAGES as u32;
        first..(first + BATCH_PAGES as u32).min(self.pages)
    }

    /// The blocks with pages in use, oldest first; `blocks` has room for all there are.
    pub(crate) fn blocks_by_age(&self, blocks: &mut KVVec<(Stamp, u32)>) {
        blocks.clear();
        for block in self.ages.lock().blocks() {
            let _ = blocks.push_within_capacity(block);
        }
        ages::sort_by_key(blocks, |block| *block);
    }

    /// Pages that left because a memory cgroup was at its limit.
    pub(crate) fn relieved_pages(&self) -> u64 {
        self.relieved.load(Relaxed)
    }

    /// The block with the pages that were migrated longest ago, if that was before
    /// `before`: its folios in use. Those that stay are to be noted again.
    pub(crate) fn oldest_block(&self, before: Stamp, folios: &mut KVec<Candidate>) -> Option<Turn> {
        let turn = self.ages.lock().next(before)?;
        self.used_folios(self.block(turn.block as u32), folios);
        Some(turn)
    }

    /// A folio with that stamp stays in its block.
    pub(crate) fn note_age(&self, page: u32, stamp: Stamp) {
        self.ages.lock().note(page as usize / BATCH_PAGES, stamp);
    }
}
