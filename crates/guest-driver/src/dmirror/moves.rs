// SPDX-License-Identifier: GPL-2.0-only

//! Migration as the suite means it.
//!
//! Facility: none of its own; policy over [`crate::migrate`]. Contexts: process context,
//! inside the device's gate. Lock order: mmap lock for reading, for one batch at a time.
//! Invariant: every destination is either given to a source or returned.
//!
//! It differs from [`crate::mover`], which serves the driver's own ioctl: only system
//! memory moves to a device, never another device's; what was never touched gets a zeroed
//! page in the device; a range that is not all readable memory is refused; and the process
//! can ask for an allocation to fail.

use kernel::prelude::*;

use super::Client;
use crate::ages::Stamp;
use crate::alloc::ORDER_MAX;
use crate::batch::{PageRange, BATCH_PAGES, PAGE_BYTES};
use crate::evict;
use crate::fault::{Area, Areas, Want};
use crate::migrate::{self, Arrays, Collected, Select, Source};
use crate::pagemap::Region;
use crate::plan::Segment;
use crate::sys;
use crate::table::Access;
use crate::transfer::{BadMemory, Item, Transfer};
use crate::wire::Space;

/// Tries until everything is in the device; pauses of 1, 2, 4 and 8 milliseconds lie between,
/// as the kernel takes short references to pages all the time.
const TRIES: u32 = 5;

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToDevice,
    ToSystem,
}

/// Moves `range` to the device, and lets the device access it there.
///
/// ENOENT if a page is not in the device in the end, EINVAL if a part of the range is no
/// readable memory.
pub(super) fn to_device(client: &Client, range: PageRange) -> Result {
    let region = client.device.region();
    for tries in 0..TRIES {
        if tries > 0 {
            // SAFETY: Process context, no lock held.
            unsafe { sys::cdm_drain() };
            // SAFETY: As above.
            unsafe { sys::msleep(1 << (tries - 1)) };
        }
        each_batch(client, range, Way::ToDevice)?;
        client.space.map(region, range, Want::Look, false)?;
        if is_all_in_device(client, range) {
            return Ok(());
        }
    }
    Err(ENOENT)
}

/// Moves what is in the device back to system memory; pages that moved.
pub(super) fn to_system(client: &Client, range: PageRange) -> Result<u64> {
    each_batch(client, range, Way::ToSystem)
}

fn is_all_in_device(client: &Client, range: PageRange) -> bool {
    let table = client.space.mirror().lock();
    (0..range.pages()).all(|index| {
        let address = range.start() + index as u64 * PAGE_BYTES;
        let place = table.get(address, Access::Read);
        place.is_some_and(|Segment { space, .. }| space == Space::DEVICE)
    })
}

/// Brings everything that is in the device back to system memory, whoever's it is.
///
/// EBUSY if a page cannot leave.
pub(super) fn release(client: &Client) -> Result {
    let device = &client.device;
    let tally = evict::pages(device, 0..device.region().pages(), u64::MAX)?;
    if tally.failed().iter().any(|pages| *pages != 0) {
        return Err(EBUSY);
    }
    Ok(())
}

fn each_batch(client: &Client, range: PageRange, way: Way) -> Result<u64> {
    let mm = client.space.mm()?;
    let region = client.device.region();
    let mut buffers = Buffers {
        arrays: Arrays::new()?,
        transfer: Transfer::new()?,
        slots: KVec::from_elem(0, BATCH_PAGES, GFP_KERNEL)?,
    };
    let owner = region.owner();
    let mut select = Select {
        flags: match way {
            Way::ToDevice => sys::CDM_SELECT_SYSTEM,
            Way::ToSystem => owner.select,
        },
        owner: owner.owner,
    };
    if region.layout().memory_type.has_large_folios() {
        select.flags |= sys::CDM_SELECT_COMPOUND;
    }
    let stamp = region.stamp();
    let mut moved = 0;
    for batch in range.batches() {
        if kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        let locked = mm.mmap_read_lock();
        let mut next = batch.start();
        for area in Areas::new(&mm, batch, &locked) {
            if area.range.start() != next || !area.is_readable() {
                return Err(EINVAL);
            }
            next = area.range.end();
            let Buffers {
                arrays,
                transfer,
                slots,
            } = &mut buffers;
            let collected = Collected::of_area(&area, select, arrays, &locked).ok_or(EINVAL)?;
            let mut pass = Pass {
                client,
                region,
                area: &area,
                way,
                stamp,
                transfer,
                slots,
            };
            pass.place(&collected);
            moved += pass.finish(collected);
        }
        if next != batch.end() {
            return Err(EINVAL);
        }
    }
    Ok(moved)
}

/// What a batch needs, for reuse.
struct Buffers {
    arrays: Arrays,
    transfer: Transfer,
    slots: KVec<u32>,
}

/// What was collected in an area, on its way.
struct Pass<'a, 'b> {
    client: &'a Client,
    region: &'a Region,
    area: &'a Area<'b>,
    way: Way,
    stamp: Stamp,
    transfer: &'a mut Transfer,
    slots: &'a mut [u32],
}

impl Pass<'_, '_> {
    /// Finds destinations.
    fn place(&mut self, collected: &Collected<'_>) {
        self.transfer.clear();
        if !collected.is_compound(0) {
            self.place_parts(collected.pages(), |index| {
                self::from(collected.source(index))
            });
            return;
        }
        let Some(from) = self::from(collected.source(0)) else {
            return;
        };
        if let Some(to) = self.destination_whole() {
            // SAFETY: The new folio is known to nobody else; the source is locked and
            // unmapped. Both stay so until the batch is committed.
            unsafe { self.transfer.add(0, to, from, ORDER_MAX) };
            return;
        }
        self.place_parts(BATCH_PAGES, |index| {
            Some(if from.is_null() {
                from
            } else {
                // SAFETY: The pages of a large folio follow each other.
                unsafe { from.add(index) }
            })
        });
        if from.is_null() && self.transfer.items().len() < BATCH_PAGES {
            // The kernel fills a hole of that size to the end or not at all.
            self.transfer.discard();
        }
    }

    /// Finds single destinations for the pages that `source` names, or holes, if null.
    fn place_parts(&mut self, pages: usize, source: impl Fn(usize) -> Option<*mut sys::page>) {
        let is_wanted = |from: *mut sys::page| self.way == Way::ToDevice || !from.is_null();
        let source = |index| source(index).filter(|from| is_wanted(*from));
        let reserved = match self.way {
            Way::ToDevice => {
                let wanted = (0..pages).filter(|index| source(*index).is_some()).count();
                self.region.reserve(&mut self.slots[..wanted])
            }
            Way::ToSystem => 0,
        };
        let mut slots = self.slots[..reserved].iter().copied();
        for index in 0..pages {
            let Some(from) = source(index) else { continue };
            if self.client.takes_failure() {
                continue;
            }
            let to = match self.way {
                // A page with a memory error is passed over.
                Way::ToDevice => slots.find_map(|slot| self.region.hand_out(slot, 0, self.stamp)),
                Way::ToSystem => migrate::system_page(self.area, index, 0),
            };
            if let Some(to) = to {
                // SAFETY: As for whole folios.
                unsafe { self.transfer.add(index, to, from, 0) };
            }
        }
        for slot in slots {
            self.region.give_back(slot);
        }
    }

    /// A large folio where the pages shall go.
    fn destination_whole(&self) -> Option<*mut sys::page> {
        if self.client.takes_failure() {
            return None;
        }
        match self.way {
            Way::ToDevice => {
                let slot = self.region.reserve_large()?;
                self.region.hand_out(slot, ORDER_MAX, self.stamp)
            }
            Way::ToSystem => migrate::system_page(self.area, 0, ORDER_MAX),
        }
    }

    /// Fills the destinations and lets the kernel put them in place; pages that moved.
    fn finish(&mut self, mut collected: Collected<'_>) -> u64 {
        self.transfer.deliver(&mut collected, BadMemory::Stays);
        let committed = collected.commit();
        let moved = |item: &&Item| committed.is_moved(item.index) == Some(true);
        let items = self.transfer.items().iter();
        items.filter(moved).map(|item| 1 << item.order).sum()
    }
}

/// The page that was collected, or null for a hole; `None` if neither was.
fn from(source: Source) -> Option<*mut sys::page> {
    match source {
        Source::Skipped => None,
        Source::Empty => Some(core::ptr::null_mut()),
        Source::Page(page) => Some(page),
    }
}
