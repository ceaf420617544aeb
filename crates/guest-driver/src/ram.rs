// SPDX-License-Identifier: GPL-2.0

//! Brings a page of private memory back because a CPU touches it.
//!
//! Facility: `migrate_to_ram` of `dev_pagemap_ops`. C header: `linux/memremap.h`.
//!
//! Contexts: a page fault, also one that pinning or ptrace causes; the mmap lock is held
//! for reading, the page is locked and referenced. It sleeps until the device has copied.
//! No gate: the reference keeps the region mapped, and with it the device.
//!
//! Lock order: mmap lock and folio lock, then as for a command.
//!
//! Invariant: the page is in system memory afterwards, or the fault says why not: 0 to try
//! again, out of memory, or SIGBUS for data that the device does not give back.

use kernel::prelude::*;

use crate::batch::{PageRange, PAGE_BYTES};
use crate::migrate::{self, Arrays, Collected, Select, Source};
use crate::pagemap::{region_of, Region};
use crate::sys;
use crate::transfer::{BadMemory, Transfer};

/// A CPU touched a page of private memory.
///
/// # Safety
///
/// The kernel calls it with a fault on a page of a region of this driver, locked and
/// referenced, under the mmap lock of the fault's area.
pub(crate) unsafe extern "C" fn migrate_to_ram(vmf: *mut sys::vm_fault) -> sys::vm_fault_t {
    // SAFETY: The fault is valid, and its page is referenced.
    let region = unsafe { region_of(sys::cdm_fault_page(vmf)) };
    let Some(region) = region else {
        return sys::CDM_FAULT_SIGBUS;
    };
    // SAFETY: By the function's contract.
    match unsafe { bring_back(region, vmf) } {
        Ok(()) => 0,
        Err(err) if err == ENOMEM => sys::CDM_FAULT_OOM,
        Err(_) => sys::CDM_FAULT_SIGBUS,
    }
}

/// # Safety
///
/// As for [`migrate_to_ram`]; the page is in the region.
unsafe fn bring_back(region: &Region, vmf: *mut sys::vm_fault) -> Result {
    // SAFETY: The fault is valid.
    let address = unsafe { sys::cdm_fault_address(vmf) } as u64 & !(PAGE_BYTES - 1);
    let range = PageRange::new(address, PAGE_BYTES).ok_or(EFAULT)?;
    let mut arrays = Arrays::with_room(range.pages())?;
    let mut transfer = Transfer::with_room(1)?;
    let owner = region.owner();
    let select = Select {
        flags: owner.select,
        owner: owner.owner,
    };
    // SAFETY: By the function's contract.
    let Some(mut collected) = (unsafe { Collected::of_fault(vmf, range, select, &mut arrays) })
    else {
        return Err(EFAULT);
    };
    let Source::Page(from) = collected.source(0) else {
        // Somebody else is at it; the fault comes again.
        return Ok(());
    };
    // SAFETY: The fault is valid, and its area covers the address.
    let Some(to) = (unsafe { migrate::system_page_at(sys::cdm_fault_vma(vmf), address, 0) }) else {
        return Err(ENOMEM);
    };
    // SAFETY: Both pages are locked; the source is unmapped, the destination new.
    unsafe { transfer.add(0, to, from, 0) };
    transfer.run(BadMemory::Stays);
    if !transfer.items()[0].is_filled {
        // SAFETY: The page is locked, with a reference that is ours.
        unsafe { sys::cdm_page_unlock_put(to) };
        return Err(EIO);
    }
    // SAFETY: The page is locked, and its reference goes along.
    unsafe { collected.give(0, to, 0) };
    let committed = collected.commit();
    if committed.is_moved(0) == Some(true) {
        region.engine().counters().faulted(1);
        // SAFETY: Takes values only.
        unsafe { sys::cdm_trace_fault(region.engine().number(), address, 1) };
    }
    Ok(())
}
