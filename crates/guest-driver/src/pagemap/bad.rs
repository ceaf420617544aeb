// SPDX-License-Identifier: GPL-2.0-only

//! Pages that the device says have failed.
//!
//! Facility: none of its own. Contexts: pages fail in process context; whether one has is
//! asked wherever pages come and go. Lock order: `pages` is innermost, with interrupts off.
//! Invariant: a page is noted before it is looked for among the free ones, so one that is not
//! found there is not handed out either.
//!
//! The kernel's own mark, PG_hwpoison, is for `memory_failure()` to set, which does so for
//! public memory alone: on a page of another type that is in use, nothing expects it.

use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};
use kernel::sync::{new_spinlock_irq, SpinLockIrq};

use super::{MemoryType, Region};
use crate::batch::PAGE_BYTES;
use crate::sys;

/// Which pages have failed.
#[pin_data]
pub(super) struct BadPages {
    /// Whether there are any: else pages come and go without the lock.
    is_any: Atomic<bool>,
    /// A bit for each page of the region.
    #[pin]
    pages: SpinLockIrq<KVVec<u64>>,
}

impl BadPages {
    pub(super) fn new(pages: u32) -> Result<impl PinInit<Self>> {
        let words = KVVec::zeroed(pages.div_ceil(64) as usize, GFP_KERNEL)?;
        Ok(pin_init!(Self {
            is_any: Atomic::new(false),
            pages <- new_spinlock_irq!(words),
        }))
    }

    /// Notes a page; false if it was noted before.
    fn insert(&self, page: u32) -> bool {
        let mut words = self.pages.lock();
        let word = &mut words[page as usize / 64];
        let bit = 1 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        drop(words);
        self.is_any.store(true, Release);
        is_new
    }

    pub(super) fn contains(&self, page: u32) -> bool {
        self.is_any.load(Acquire) && self.pages.lock()[page as usize / 64] & (1 << (page % 64)) != 0
    }
}

/// How pages that have failed are taken from their users.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// By `memory_failure()`, which does all there is to do.
    MemoryFailure,
    /// By markers in the place of private pages, which a CPU does not map anyway.
    Markers,
}

/// What became of a page that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It holds struct pages, which the kernel cannot do without.
    Metadata,
    /// That it failed was known.
    Known,
    /// Nobody used it, and nobody will.
    Retired,
    /// It is in use. Once it is not, it stays free for good.
    InUse {
        /// Its number.
        page: u32,
    },
}

impl Region {
    /// The page at an offset into the device memory has failed.
    pub(crate) fn fail(&self, offset: u64) -> Failure {
        let Some(offset) = offset.checked_sub(self.layout.metadata_bytes) else {
            return Failure::Metadata;
        };
        let page = (offset / PAGE_BYTES) as u32;
        if page >= self.pages || !self.bad.insert(page) {
            return Failure::Known;
        }
        // SAFETY: The page is in the mapped region.
        let is_known = unsafe { sys::cdm_page_poisoned(sys::cdm_pfn_to_page(self.frame(page))) };
        if is_known {
            return Failure::Known;
        }
        self.empty_stashes();
        if self.alloc.lock().alloc_page(page) {
            self.poisoned.add(1, Relaxed);
            return Failure::Retired;
        }
        Failure::InUse { page }
    }

    /// How the kernel takes a page of this memory that has failed from its users, if it can.
    pub(crate) fn remedy(&self) -> Option<Remedy> {
        match self.layout.memory_type {
            MemoryType::Public if sys::CDM_HANDLES_MEMORY_FAILURE => Some(Remedy::MemoryFailure),
            MemoryType::Private if sys::CDM_CAN_POISON => Some(Remedy::Markers),
            _ => None,
        }
    }

    /// Splits the folio of a page in use, where the kernel lets drivers do so; whether the page is a
    /// folio of its own now. It is not if somebody is at it, or if it has come free.
    pub(crate) fn separate(&self, page: u32) -> bool {
        self.next_folio(page, page + 1).is_some_and(|folio| {
            // SAFETY: The frame is in the mapped region; no lock is held.
            folio.order == 0 || unsafe { sys::cdm_frame_split(self.frame(folio.page)) }
        })
    }

    /// The device may yet write to these pages, whatever becomes of them: once they are free,
    /// nobody gets them any more.
    ///
    /// # Safety
    ///
    /// The pages are in the region, and held.
    pub(crate) unsafe fn forsake(&self, page: *mut sys::page, order: u32) {
        // SAFETY: By the function's contract.
        let frame = unsafe { sys::cdm_page_to_pfn(page) } as u64;
        let first = (frame - self.first_pfn) as u32;
        for page in first..first + (1 << order) {
            self.bad.insert(page);
        }
    }

    /// Pages that have failed among those of a block of this region, given by its first page.
    ///
    /// # Safety
    ///
    /// The pages are in the region, and held.
    pub(crate) unsafe fn failed_in(&self, page: *mut sys::page, order: u32) -> u32 {
        // SAFETY: By the function's contract.
        let frame = unsafe { sys::cdm_page_to_pfn(page) } as u64;
        self.poisoned_in((frame - self.first_pfn) as u32, order)
    }
}
