// SPDX-License-Identifier: GPL-2.0-only

//! Tells how a process maps its memory, in the words of the suite.
//!
//! Facility: none of its own; policy over [`crate::fault`]. Contexts: process context,
//! inside the device's gate. Lock order: as for [`crate::fault`]; user memory is written
//! under no lock. Invariant: nothing is faulted in and nothing moves.

use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

use super::Client;
use crate::batch::{PageRange, BATCH_PAGES};
use crate::fault::{Entry, Snapshot, Want};
use crate::notifier::Mirror;
use crate::pagemap::{region_of, Region};
use crate::sys;

/// Orders of page table entries above the lowest level.
const PMD_ORDER: u32 = 9;
const PUD_ORDER: u32 = 18;

/// Writes a byte for each page of `range` to the process.
pub(super) fn run(client: &Client, range: PageRange, user: UserPtr) -> Result {
    let mm = client.space.mm()?;
    let region = client.device.region();
    let mut snapshot = Snapshot::new(region)?;
    let mut words: KVec<u8> = KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?;
    let mut user = UserSlice::new(user, range.pages()).writer();
    // One of its own, which changes elsewhere in the address space do not disturb.
    let mirror = Mirror::watch(&mm, range)?;
    for batch in range.batches() {
        loop {
            if kernel::current!().signal_pending() {
                return Err(EINTR);
            }
            words.clear();
            let ticket = mirror.read_begin();
            let locked = mm.mmap_read_lock();
            let look = |(): &mut (), entries: &mut dyn Iterator<Item = Entry>| -> Result {
                for entry in entries {
                    // SAFETY: The ticket holds, so the page is mapped until the lock is
                    // dropped.
                    words.push(unsafe { word(region, entry) }, GFP_NOWAIT)?;
                }
                Ok(())
            };
            let seen = snapshot.see(&mirror, ticket, batch, Want::Look, &locked, look)?;
            match seen {
                Some(Ok(())) => break,
                Some(Err(err)) => return Err(err),
                None => {}
            }
        }
        user.write_slice(&words)?;
    }
    Ok(())
}

/// # Safety
///
/// The mapping that the entry reports is still there.
unsafe fn word(region: &Region, entry: Entry) -> u8 {
    if entry.is_error() {
        return sys::CDM_DMIRROR_PROT_ERROR;
    }
    let Some(page) = entry.page() else {
        return sys::CDM_DMIRROR_PROT_NONE;
    };
    // SAFETY: By the function's contract.
    let place = match unsafe { region_of(page) } {
        Some(home) => {
            let is_local = core::ptr::eq(home, region);
            match (home.is_cpu_addressable(), is_local) {
                (false, true) => sys::CDM_DMIRROR_PROT_DEV_PRIVATE_LOCAL,
                (false, false) => sys::CDM_DMIRROR_PROT_DEV_PRIVATE_REMOTE,
                (true, true) => sys::CDM_DMIRROR_PROT_DEV_COHERENT_LOCAL,
                (true, false) => sys::CDM_DMIRROR_PROT_DEV_COHERENT_REMOTE,
            }
        }
        // SAFETY: By the function's contract.
        None if unsafe { sys::cdm_page_is_zero(page) } => sys::CDM_DMIRROR_PROT_ZERO,
        None => sys::CDM_DMIRROR_PROT_NONE,
    };
    let access = if entry.is_writable() {
        sys::CDM_DMIRROR_PROT_WRITE
    } else {
        sys::CDM_DMIRROR_PROT_READ
    };
    let size = match entry.order() {
        PMD_ORDER => sys::CDM_DMIRROR_PROT_PMD,
        PUD_ORDER => sys::CDM_DMIRROR_PROT_PUD,
        _ => 0,
    };
    place | access | size
}
