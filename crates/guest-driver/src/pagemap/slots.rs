// SPDX-License-Identifier: GPL-2.0-only

//! Free pages of a region: taken, handed out as folios, and taken back.
//!
//! Facility: none of its own; [`crate::alloc`] behind [`crate::stash`]. Contexts: pages come
//! back in any context, under any lock of the kernel. Lock order: a CPU's stash, then `alloc`,
//! both with interrupts off. Invariant: allocator and stashes have as free exactly the pages
//! that the kernel does not use and that have no memory error, by its word or the device's.

use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;

use super::{CpuStash, Region};
use crate::ages::Stamp;
use crate::alloc::{FreeError, ORDER_MAX};
use crate::stash::STASH_PAGES;
use crate::sys;

impl Region {
    /// Pages that nobody uses.
    pub(crate) fn free_pages(&self) -> u32 {
        // In this order a page on its way from a stash to the allocator is missed rather
        // than counted twice, so what is said to be free is.
        let mut free = self.alloc.lock().free_pages();
        for stash in &self.stashes {
            free += stash.pages.lock().len() as u32;
        }
        free.min(self.pages)
    }

    /// Pages that have a memory error and are never used again.
    pub(crate) fn poisoned_pages(&self) -> u32 {
        self.poisoned.load(Relaxed)
    }

    /// Free blocks of an order.
    pub(crate) fn free_blocks(&self, order: u32) -> u32 {
        self.empty_stashes();
        self.alloc.lock().free_blocks(order)
    }

    /// Pages in use.
    pub(crate) fn used_pages(&self) -> u32 {
        self.pages
            .saturating_sub(self.free_pages())
            .saturating_sub(self.poisoned_pages())
    }

    /// Takes free pages for as many as `slots` has room for; fewer if there are not so
    /// many. They are nobody's until [`Region::hand_out`] or [`Region::give_back`].
    pub(crate) fn reserve(&self, slots: &mut [u32]) -> usize {
        let mut got = {
            let mut stash = self.stash().pages.lock();
            if stash.is_empty() && slots.len() < STASH_PAGES / 2 {
                stash.refill(&mut self.alloc.lock());
            }
            stash.take(slots)
        };
        if got < slots.len() {
            got += self.alloc.lock().alloc_bulk(&mut slots[got..]);
        }
        if got < slots.len() {
            // The rest may be with other CPUs.
            self.empty_stashes();
            got += self.alloc.lock().alloc_bulk(&mut slots[got..]);
        }
        got
    }

    /// Takes a free block of 2 MiB.
    pub(crate) fn reserve_large(&self) -> Option<u32> {
        let block = self.alloc.lock().alloc(ORDER_MAX);
        if block.is_some() {
            return block;
        }
        self.empty_stashes();
        self.alloc.lock().alloc(ORDER_MAX)
    }

    /// Returns a reserved page that was not handed out.
    pub(crate) fn give_back(&self, slot: u32) {
        self.free(slot, 0);
    }

    /// Makes reserved pages a folio: locked, with one reference, the caller's. `None` if
    /// one of them has a memory error; then they are not reserved any more.
    pub(crate) fn hand_out(&self, slot: u32, order: u32, stamp: Stamp) -> Option<*mut sys::page> {
        // SAFETY: The pages are in the mapped region, free, and reserved for the caller;
        // the pagemap is live because the caller is inside the device's gate.
        let page = unsafe {
            let page = sys::cdm_pfn_to_page(self.frame(slot));
            sys::cdm_page_init(page, self.pgmap.get(), order, stamp);
            page
        };
        // After it is in use: who looks for old pages now either sees it, or this note.
        self.note_age(slot, stamp);
        if self.poisoned_in(slot, order) == 0 {
            return Some(page);
        }
        // SAFETY: The page is locked, with a reference that is ours. `folio_free` sorts
        // out which parts of it can be used.
        unsafe { sys::cdm_page_unlock_put(page) };
        None
    }

    /// Pages with a memory error among those of a block.
    pub(super) fn poisoned_in(&self, slot: u32, order: u32) -> u32 {
        (slot..slot + (1 << order))
            .filter(|slot| {
                // SAFETY: The page is in the mapped region.
                let is_marked =
                    unsafe { sys::cdm_page_poisoned(sys::cdm_pfn_to_page(self.frame(*slot))) };
                is_marked || self.bad.contains(*slot)
            })
            .count() as u32
    }

    /// The stash of this CPU. The caller may be on another one by the time it uses it.
    fn stash(&self) -> &CpuStash {
        // SAFETY: Returns a number below `nr_cpu_ids`.
        let cpu = unsafe { sys::cdm_cpu() } as usize;
        &self.stashes[cpu % self.stashes.len()]
    }

    /// Brings what is in the stashes back together with its buddies.
    pub(super) fn empty_stashes(&self) {
        for stash in &self.stashes {
            let mut stash = stash.pages.lock();
            if !stash.is_empty() {
                self.check(stash.spill(0, &mut self.alloc.lock()));
            }
        }
    }

    /// A folio comes back from the kernel.
    pub(super) fn take_back(&self, slot: u32, order: u32) {
        if self.poisoned_in(slot, order) == 0 {
            self.free(slot, order);
            return;
        }
        for slot in slot..slot + (1 << order) {
            if self.poisoned_in(slot, 0) == 0 {
                self.free(slot, 0);
            } else {
                self.poisoned.add(1, Relaxed);
            }
        }
    }

    fn free(&self, slot: u32, order: u32) {
        if order != 0 {
            let result = self.alloc.lock().free(slot, order);
            self.check(result.map_err(|err| (slot, err)));
            return;
        }
        let mut stash = self.stash().pages.lock();
        if !stash.put(slot) {
            self.check(stash.spill(STASH_PAGES / 2, &mut self.alloc.lock()));
            // There is room now.
            stash.put(slot);
        }
    }

    /// A page that comes back twice is a bug that must not spread: it stays in use.
    fn check(&self, result: core::result::Result<(), (u32, FreeError)>) {
        if let Err((slot, err)) = result {
            kernel::warn_on!(true);
            pr_err!("page {} came back: {:?}\n", slot, err);
        }
    }
}
