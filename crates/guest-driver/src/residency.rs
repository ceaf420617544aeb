// SPDX-License-Identifier: GPL-2.0-only

//! Tells where the pages of a range are.
//!
//! Facility: none of its own; policy over [`crate::fault`]. Contexts: process context,
//! inside the device's gate. Lock order: as for [`crate::fault`]; user memory is
//! written under no lock. Invariant: nothing is faulted in and nothing moves. A page
//! that is being moved at that moment counts as absent.

use kernel::mm::MmWithUser;
use kernel::prelude::*;
use kernel::uaccess::UserSliceWriter;

use crate::batch::{PageRange, BATCH_PAGES};
use crate::device::Device;
use crate::fault::{Mapped, Snapshot};
use crate::notifier::Mirror;
use crate::pagemap::Home;
use crate::sys;

/// Places that a page can be in.
pub(crate) const PLACES: usize = 4;

/// Pages by place, and those of this device that are part of large folios.
#[derive(Clone, Copy, Default)]
pub(crate) struct Found {
    pub(crate) pages: [u64; PLACES],
    pub(crate) large: u64,
}

/// Counts the pages of `range` by place; writes the place of each to `map`, if there is one.
pub(crate) fn run(
    device: &Device,
    mm: &MmWithUser,
    range: PageRange,
    mut map: Option<UserSliceWriter>,
) -> Result<Found> {
    let mut snapshot = Snapshot::new(device.region())?;
    let mut places: KVec<u8> = KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?;
    let mut found = Found::default();
    let mirror = Mirror::watch(mm, range)?;
    for batch in range.batches() {
        loop {
            if device.gate().is_shut() {
                return Err(ENODEV);
            }
            if kernel::current!().signal_pending() {
                return Err(EINTR);
            }
            let ticket = mirror.read_begin();
            let locked = mm.mmap_read_lock();
            if snapshot.take(&mirror, ticket, mm, batch, &locked)? {
                break;
            }
        }
        places.clear();
        for index in 0..batch.pages() {
            let mapped = snapshot.mapped(index);
            let place = place(device, mapped);
            found.pages[place as usize] += 1;
            if let Mapped::Page { traits, .. } = mapped {
                let is_here = place == sys::cdm_place_CDM_PLACE_THIS_DEVICE;
                found.large += u64::from(is_here && traits.is_large());
            }
            places.push(place as u8, GFP_KERNEL)?;
        }
        if let Some(map) = &mut map {
            map.write_slice(&places)?;
        }
    }
    Ok(found)
}

/// The place of a page, by its number on the ioctl interface.
fn place(device: &Device, mapped: Mapped) -> u32 {
    match mapped {
        Mapped::Nothing => sys::cdm_place_CDM_PLACE_ABSENT,
        Mapped::Page {
            home: Home::System, ..
        } => sys::cdm_place_CDM_PLACE_SYSTEM,
        Mapped::Page {
            home: Home::Cdm(owner),
            ..
        } if owner == device.region().owner() => sys::cdm_place_CDM_PLACE_THIS_DEVICE,
        Mapped::Page { .. } => sys::cdm_place_CDM_PLACE_OTHER_DEVICE,
    }
}
