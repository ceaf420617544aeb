// SPDX-License-Identifier: GPL-2.0-only

//! What a device was told of an address space, and how it forgets.
//!
//! Facility: none of its own; what [`crate::notifier`] keeps true. Contexts: the notifier's
//! callback, which may come from reclaim with folios locked, and process context. Lock order: as
//! for [`crate::notifier`]; under its lock nothing is allocated, and the device is waited for.
//! Invariant: while the lock is free, the device may access what the table holds, and nothing
//! else of the address space.
//!
//! The device answers an INVALIDATE when it does not touch those pages any more, and it waits
//! for nobody to do so: not for pages, nor for the guest. So this wait ends, whatever locks the
//! callback's caller holds. A device that does not answer within the limit is reset, which has it
//! forget everything. One that does not answer that either is taken for dead, and what it may
//! still write to is given up (see [`Engine::forsake`]).

use core::ops::Range;

use kernel::prelude::*;
use kernel::sync::Arc;
use zerocopy::IntoBytes;

use crate::answer::{self, Asked};
use crate::batch::PAGE_BYTES;
use crate::command::{head, Control};
use crate::engine::Engine;
use crate::exclusive::Exclusive;
use crate::fault::Entry;
use crate::mirror::{page_of, PageTable, Room};
use crate::notifier::Follower;
use crate::pagemap::Region;
use crate::plan::Segment;
use crate::sys;
use crate::table::{Access, Leaf, LEAF_PAGES};
use crate::virtio::{Draft, Standing};
use crate::wire::{ControlOpcode, ControlRequest, PageEntry, Space, Status};

/// Order of what one entry of a page table of the second level maps.
const LARGE_ORDER: u32 = 9;
/// Every address there is.
const EVERYWHERE: Range<u64> = 0..u64::MAX;

/// What a device was told.
pub(super) struct Told {
    table: PageTable,
    engine: Arc<Engine>,
    control: Control,
    /// The request that makes the device forget; used under the lock.
    standing: Standing,
    pasid: u32,
    /// Whether the device may be told anything.
    is_open: bool,
}

/// A page that the device may be told of.
pub(super) struct Found {
    page: Segment,
    access: Access,
    /// Order of the page table entry that maps it.
    order: u32,
}

impl Found {
    /// What a process has mapped, if that is a page.
    ///
    /// # Safety
    ///
    /// The ticket for the entry holds, and does so until the device is kept away from the page.
    pub(super) unsafe fn mapped(region: &Region, entry: Entry) -> Option<Self> {
        // SAFETY: By the function's contract.
        let (page, access) = unsafe { page_of(region, entry) }?;
        Some(Self {
            page,
            access,
            order: entry.order(),
        })
    }

    /// A page that no CPU can access.
    pub(super) fn exclusive(region: &Region, taken: &Exclusive) -> Self {
        // SAFETY: The page is locked and referenced.
        let page = unsafe {
            // The kernel takes what the device writes from here on for clean.
            sys::cdm_page_mark_dirty(taken.page());
            region.segment_of(taken.page(), 0, PAGE_BYTES)
        };
        Self {
            page,
            access: Access::Exclusive,
            order: 0,
        }
    }

    /// Whether the device reaches it without its link.
    pub(super) fn is_on_device(&self) -> bool {
        self.page.space == Space::DEVICE
    }
}

/// Room for an answer, made before the lock is taken.
pub(super) struct Answering {
    pub(super) draft: Draft,
    pub(super) room: Option<Room>,
}

impl Answering {
    /// Room for so many entries.
    pub(super) fn new(entries: usize) -> Result<Self> {
        let bytes = size_of::<ControlRequest>() + entries * size_of::<PageEntry>();
        Ok(Self {
            draft: Draft::new(KVec::with_capacity(bytes, GFP_KERNEL)?, GFP_KERNEL)?,
            room: Some(Room::new()?),
        })
    }
}

impl Told {
    pub(super) fn new(engine: Arc<Engine>, pasid: u32) -> Result<Self> {
        Ok(Self {
            table: PageTable::new(),
            control: engine.control(),
            engine,
            standing: Standing::new(size_of::<ControlRequest>())?,
            pasid,
            is_open: false,
        })
    }

    /// The device knows the address space.
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    /// The device is told nothing more, and forgets the address space.
    pub(super) fn close(&mut self) {
        // What was told is before this in the queue, and behind it nothing is.
        self.is_open = false;
        let header = head(ControlOpcode::UNBIND, self.pasid, 0, 0);
        if !self.demand(&header) {
            self.forsake(&EVERYWHERE);
        }
        self.table.forget(EVERYWHERE);
    }

    /// Tells the device where pages are that it asked for, and remembers that; how many entries
    /// that took. They are for what lies from the first address on, as far as there are pages
    /// for the device; none if there is not even the first.
    ///
    /// EBUSY if the control queue has no room now, ENODEV if the device is not told any more.
    ///
    /// # Safety
    ///
    /// The pages were seen with a ticket that holds as long as the lock of `self` does, and
    /// are those from `asked.address` on, within one leaf.
    pub(super) unsafe fn tell(
        &mut self,
        id: u32,
        asked: &Asked,
        answering: Answering,
        pages: &mut dyn Iterator<Item = Found>,
    ) -> Result<u64> {
        if !self.is_open {
            return Err(ENODEV);
        }
        let Answering {
            mut draft,
            mut room,
        } = answering;
        let output = draft.output();
        output.extend_from_slice(&[0; size_of::<ControlRequest>()], GFP_NOWAIT)?;
        let leaf = self.table.leaf(asked.address, &mut room).ok_or(ENOMEM)?;
        let first = Leaf::index_of(asked.address);
        let mut count = 0;
        for (index, found) in pages.enumerate() {
            let Found {
                page,
                access,
                order,
            } = found;
            if index == 0 && order >= LARGE_ORDER {
                let whole = answer::large_page(&page);
                for (index, part) in parts(&whole).enumerate() {
                    leaf.set(index, &part, access);
                }
                output.extend_from_slice(answer::large(&whole, access).as_bytes(), GFP_NOWAIT)?;
                count = 1;
                // What is behind it lies in another leaf.
                break;
            }
            leaf.set(first + index, &page, access);
            output.extend_from_slice(answer::small(&page, access).as_bytes(), GFP_NOWAIT)?;
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let header = head(ControlOpcode::PAGE_RESPONSE, self.pasid, id.into(), count);
        output[..size_of::<ControlRequest>()].copy_from_slice(header.as_bytes());
        // What is in the table and not told after all costs an INVALIDATE, and no more.
        self.control.respond(&draft.finish())?;
        Ok(count)
    }

    /// The page at an address that the device has for itself.
    pub(super) fn exclusive_at(&self, address: u64) -> Option<Found> {
        let page = self.table.get(address, Access::Exclusive)?;
        Some(Found {
            page,
            access: Access::Exclusive,
            order: 0,
        })
    }

    /// Tells the device that it does not get a page; errors as for [`Told::tell`].
    pub(super) fn refuse(&mut self, id: u32, status: Status, answering: Answering) -> Result {
        if !self.is_open {
            return Err(ENODEV);
        }
        respond_with(&self.control, self.pasid, id, status, answering)
    }

    /// The device may access these pages for good: they are never used for anything else.
    fn forsake(&self, addresses: &Range<u64>) {
        self.table
            .each_page(addresses, |page| self.engine.forsake(&[page]));
    }

    /// Has the device forget something; whether it said that it has. One that does not is not
    /// asked for anything any more.
    fn demand(&mut self, header: &ControlRequest) -> bool {
        if self.engine.transport().is_gone() {
            return false;
        }
        let recovery = self.engine.recovery();
        let is_done = match self.control.demand(recovery, &mut self.standing, header) {
            // What it does not know it does not access.
            Ok(status) => status == Status::OK || status == Status::BAD_PASID,
            // A RESET after the request had it forget everything.
            Err(err) => err == ECANCELED,
        };
        if !is_done {
            self.engine.transport().declare_gone();
        }
        is_done
    }

    /// Has the device forget some addresses; whether it said that it has.
    fn invalidate(&mut self, addresses: &Range<u64>) -> bool {
        let last = addresses.end - 1;
        let header = head(ControlOpcode::INVALIDATE, self.pasid, addresses.start, last);
        let is_done = self.demand(&header);
        self.engine.counters().invalidated();
        // SAFETY: Takes values only.
        unsafe {
            sys::cdm_trace_invalidate(
                self.engine.number(),
                self.pasid,
                addresses.start,
                addresses.end,
                is_done,
            )
        };
        is_done
    }
}

impl Follower for Told {
    fn forgets_at_once(&self, addresses: &Range<u64>) -> bool {
        self.engine.transport().is_gone() || self.table.hull(addresses).is_none()
    }

    fn forget(&mut self, addresses: Range<u64>) {
        let Some(hull) = self.table.hull(&addresses) else {
            return;
        };
        if !self.invalidate(&hull) {
            self.forsake(&hull);
        }
        self.table.forget(hull);
    }
}

/// Answers a page request with a refusal; EBUSY if the control queue has no room now.
pub(super) fn respond_with(
    control: &Control,
    pasid: u32,
    id: u32,
    status: Status,
    answering: Answering,
) -> Result {
    let mut draft = answering.draft;
    let output = draft.output();
    let header = head(ControlOpcode::PAGE_RESPONSE, pasid, id.into(), 1);
    output.extend_from_slice(header.as_bytes(), GFP_NOWAIT)?;
    output.extend_from_slice(answer::refusal(status).as_bytes(), GFP_NOWAIT)?;
    control.respond(&draft.finish())
}

/// The pages of a large page.
fn parts(whole: &Segment) -> impl Iterator<Item = Segment> {
    let bytes = whole.bytes / LEAF_PAGES as u64;
    let (space, address) = (whole.space, whole.address);
    (0..LEAF_PAGES as u64).map(move |index| Segment {
        space,
        address: address + index * bytes,
        bytes,
    })
}
