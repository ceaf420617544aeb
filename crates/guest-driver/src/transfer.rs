// SPDX-License-Identifier: GPL-2.0-only

//! Fills the destinations of a batch with the contents of their sources.
//!
//! Facility: none of its own; the CPU's copy, and the device's COPY and FILL for memory
//! that the CPU cannot reach. Contexts: process context; the folios of the batch are
//! locked, and it sleeps until the device is done, which needs none of these locks to get
//! on. Lock order: as for a command. Invariant: a destination that [`Transfer::deliver`]
//! gives to its source is filled as a whole.
//!
//! All copies of a batch are known before the first one is made, so that they can be
//! made together: the device gets one command for all of them. It refuses the whole of a command
//! that touches memory that has failed, so it is not asked for such a source, which stays.

use kernel::prelude::*;

use crate::batch::{BATCH_PAGES, PAGE_BYTES};
use crate::command;
use crate::migrate::Collected;
use crate::pagemap::{region_of, Region};
use crate::plan::{Operands, Request, Segment};
use crate::sys;
use crate::tally::Reason;
use crate::wire::Opcode;

/// Bytes of an element that zeroes are written with.
const FILL_WIDTH: u32 = 8;

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
    /// The device has to fill it.
    is_beyond_cpu: bool,
}

/// The copies of a batch; reusable.
pub(crate) struct Transfer {
    items: KVec<Item>,
    /// Ranges of a device command, made when there is one.
    source: KVec<Segment>,
    destination: KVec<Segment>,
    /// Why there are items that are not filled.
    failure: Reason,
}

impl Transfer {
    pub(crate) fn new() -> Result<Self> {
        Self::with_room(BATCH_PAGES)
    }

    /// Room for so many destinations.
    pub(crate) fn with_room(items: usize) -> Result<Self> {
        Ok(Self {
            items: KVec::with_capacity(items, GFP_KERNEL)?,
            source: KVec::new(),
            destination: KVec::new(),
            failure: Reason::Unsupported,
        })
    }

    /// Starts a batch.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.failure = Reason::Unsupported;
    }

    /// Adds a destination, of at most a batch in all; `from` is null for zeroes.
    ///
    /// # Safety
    ///
    /// Both are `1 << order` pages that are locked, and the source is unmapped, until
    /// [`deliver`](Self::deliver) or [`discard`](Self::discard). Nobody else knows the
    /// destination, and the caller passes on its reference to it.
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
            is_beyond_cpu: false,
        };
        // There is room for a batch.
        let _ = self.items.push_within_capacity(item);
    }

    /// Fills the destinations and gives them to the sources of `collected`; frees those
    /// that could not be filled.
    pub(crate) fn deliver(&mut self, collected: &mut Collected<'_>, bad: BadMemory) {
        self.fill(bad);
        for item in &self.items {
            // SAFETY: By the contract of `add` the folio is locked, with a reference that
            // goes along or is dropped here.
            unsafe {
                if item.is_filled {
                    collected.give(item.index, item.to, item.order);
                } else {
                    sys::cdm_page_unlock_put(item.to);
                }
            }
        }
    }

    /// Frees the destinations.
    pub(crate) fn discard(&mut self) {
        for item in self.items.drain_all() {
            // SAFETY: By the contract of `add` the folio is locked, with a reference.
            unsafe { sys::cdm_page_unlock_put(item.to) };
        }
    }

    fn fill(&mut self, bad: BadMemory) {
        let mut worker = None;
        for item in &mut self.items {
            // SAFETY: The pages are held, by the contract of `add`.
            if let Some(region) = unsafe { item.region_beyond_cpu() } {
                // SAFETY: As above.
                item.is_beyond_cpu = unsafe { !is_unreadable(item.from, item.order) };
                worker = Some(region);
                continue;
            }
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
        // All pages of a batch that the CPU cannot reach are in one device, or they go from
        // one to another one; that of the destination does it then.
        let Some(region) = worker else { return };
        for is_copy in [true, false] {
            let done = self.run_on_device(region, is_copy);
            if done == Err(ENOMEM) {
                // For the request, not for the pages.
                self.failure = Reason::NoMemory;
            }
            let is_done = done.is_ok();
            for item in self.items.iter_mut().filter(|item| item.is_beyond_cpu) {
                if item.from.is_null() != is_copy {
                    item.is_filled = is_done;
                }
            }
        }
    }

    /// Why what is not filled is not: the memory has an error, or the device did not do it,
    /// or there was no memory to ask it.
    pub(crate) fn failure(&self) -> Reason {
        self.failure
    }

    /// The destinations, in the order in which they were added.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Has the device fill what the CPU cannot: the copies, or the zeroes.
    fn run_on_device(&mut self, region: &Region, is_copy: bool) -> Result {
        self.source.clear();
        self.destination.clear();
        for item in &self.items {
            if !item.is_beyond_cpu || item.from.is_null() == is_copy {
                continue;
            }
            let bytes = PAGE_BYTES << item.order;
            // SAFETY: The pages are held, by the contract of `add`.
            unsafe {
                append(&mut self.destination, region.segment_of(item.to, 0, bytes))?;
                if is_copy {
                    append(&mut self.source, region.segment_of(item.from, 0, bytes))?;
                }
            }
        }
        if self.destination.is_empty() {
            return Ok(());
        }
        let request = Request {
            opcode: if is_copy { Opcode::COPY } else { Opcode::FILL }
                .get()
                .into(),
            width: if is_copy { 0 } else { FILL_WIDTH },
            ..Request::default()
        };
        let operands = Operands {
            source: &self.source,
            destination: &self.destination,
        };
        let done = command::run_for_driver(region.engine(), &request, operands);
        if done == Err(ETIMEDOUT) {
            // The device may write yet to what it was given.
            region.engine().forsake(&self.destination);
        }
        done
    }
}

impl Item {
    /// The region whose device has to fill this, if the CPU cannot.
    ///
    /// # Safety
    ///
    /// Both pages are held.
    unsafe fn region_beyond_cpu<'a>(&self) -> Option<&'a Region> {
        let beyond_cpu = |page: *mut sys::page| {
            if page.is_null() {
                return None;
            }
            // SAFETY: By the function's contract.
            unsafe { region_of(page) }.filter(|region| !region.is_cpu_addressable())
        };
        beyond_cpu(self.to).or_else(|| beyond_cpu(self.from))
    }
}

/// Whether some of these pages have failed in memory that only a device can read, and will not.
///
/// # Safety
///
/// The pages are held, or the pointer is null.
pub(crate) unsafe fn is_unreadable(page: *mut sys::page, order: u32) -> bool {
    if page.is_null() {
        return false;
    }
    // SAFETY: By the function's contract.
    let region = unsafe { region_of(page) };
    region.is_some_and(|region| {
        // SAFETY: As above, and the pages are in that region.
        !region.is_cpu_addressable() && unsafe { region.failed_in(page, order) } != 0
    })
}

/// Appends a segment to a list.
fn append(list: &mut KVec<Segment>, next: Segment) -> Result {
    if list.last_mut().is_some_and(|last| last.absorb(&next)) {
        return Ok(());
    }
    Ok(list.push(next, GFP_KERNEL)?)
}
