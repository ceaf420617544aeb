// SPDX-License-Identifier: GPL-2.0

//! Fills the destinations of a batch with the contents of their sources.
//!
//! Facility: none of its own. Contexts: process context; the folios of the batch are
//! locked. Lock order: none. Invariant: after [`Transfer::run`] each destination is
//! either filled as a whole or said not to be.
//!
//! All copies of a batch are known before the first one is made, so that they can be
//! made together.

use kernel::prelude::*;

use crate::batch::BATCH_PAGES;
use crate::sys;

/// What to do about a source that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadMemory {
    /// Its contents stay where they are.
    Stays,
    /// They are lost, zeroes in their place: the memory goes away, and whoever had it
    /// mapped was told.
    IsGivenUp,
}

/// One destination.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    /// Place in the batch.
    pub(crate) index: usize,
    /// First page of the destination.
    pub(crate) to: *mut sys::page,
    /// First page of the source; null for zeroes.
    from: *mut sys::page,
    /// `1 << order` pages.
    pub(crate) order: u32,
    pub(crate) is_filled: bool,
}

/// The copies of a batch; reusable.
pub(crate) struct Transfer {
    items: KVec<Item>,
}

impl Transfer {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            items: KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?,
        })
    }

    /// Starts a batch.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
    }

    /// Adds a destination, of at most a batch in all; `from` is null for zeroes.
    ///
    /// # Safety
    ///
    /// Until the end of [`run`](Self::run) both are `1 << order` pages that are locked,
    /// the source is unmapped, and nobody else knows the destination.
    pub(crate) unsafe fn add(
        &mut self,
        index: usize,
        to: *mut sys::page,
        from: *mut sys::page,
        order: u32,
    ) {
        let item = Item {
            index,
            to,
            from,
            order,
            is_filled: false,
        };
        // There is room for a batch.
        let _ = self.items.push_within_capacity(item);
    }

    /// Fills the destinations.
    pub(crate) fn run(&mut self, bad: BadMemory) {
        for item in &mut self.items {
            let pages = 1 << item.order;
            // SAFETY: By the contract of `add`.
            item.is_filled = unsafe {
                if item.from.is_null() {
                    sys::cdm_pages_clear(item.to, pages);
                    true
                } else {
                    let give_up = bad == BadMemory::IsGivenUp;
                    sys::cdm_pages_copy(item.to, item.from, pages, give_up) == 0
                }
            };
        }
    }

    /// The destinations, in the order in which they were added.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }
}
