// SPDX-License-Identifier: GPL-2.0-only

//! Brings a folio of private memory back because a CPU touches it.
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

use crate::alloc::ORDER_MAX;
use crate::batch::{PageRange, PAGE_BYTES};
use crate::migrate::{self, Arrays, Collected, Select, Source};
use crate::pagemap::{region_of, Region};
use crate::sys;
use crate::tally::Reason;
use crate::transfer::{is_unreadable, BadMemory, Item, Transfer};

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
    let (address, order, vma) = unsafe {
        (
            sys::cdm_fault_address(vmf) as u64,
            sys::cdm_fault_order(vmf),
            sys::cdm_fault_vma(vmf),
        )
    };
    let bytes = PAGE_BYTES << order;
    let range = PageRange::new(address & !(bytes - 1), bytes).ok_or(EFAULT)?;
    let mut arrays = Arrays::with_room(range.pages())?;
    let mut transfer = Transfer::with_room(range.pages())?;
    let owner = region.owner();
    let mut select = Select {
        flags: owner.select,
        owner: owner.owner,
    };
    if order != 0 {
        select.flags |= sys::CDM_SELECT_COMPOUND;
    }
    // SAFETY: By the function's contract; the folio is mapped as a whole, so the area
    // covers all of it.
    let Some(mut collected) = (unsafe { Collected::of_fault(vmf, range, select, &mut arrays) })
    else {
        return Err(EFAULT);
    };
    let Source::Page(from) = collected.source(0) else {
        // Somebody else is at it; the fault comes again.
        return Ok(());
    };
    // SAFETY: The area covers the range. Sources are locked and unmapped, destinations new.
    unsafe { place(vma, range, &collected, from, &mut transfer) }?;
    // Of a folio with a failed page the others come back all the same, if it can be split, which
    // the kernel does not do if it is the first one.
    let order = if collected.is_compound(0) {
        ORDER_MAX
    } else {
        0
    };
    // SAFETY: The source is locked.
    let is_torn = unsafe { is_unreadable(from, order) };
    let touched = ((address - range.start()) / PAGE_BYTES) as usize;
    let is_touched = |item: &Item| (item.index..item.index + (1 << item.order)).contains(&touched);
    transfer.deliver(&mut collected, BadMemory::Stays);
    let committed = collected.commit();
    let moved = |item: &&Item| committed.is_moved(item.index) == Some(true);
    let is_lost = transfer
        .items()
        .iter()
        .any(|item| is_touched(item) && !(item.is_filled && (!is_torn || moved(&item))));
    let pages = transfer
        .items()
        .iter()
        .filter(moved)
        .map(|item| 1 << item.order)
        .sum();
    drop(committed);
    region.engine().counters().faulted(pages);
    // SAFETY: Takes values only.
    unsafe { sys::cdm_trace_fault(region.engine().number(), range.start(), pages) };
    match transfer.failure() {
        _ if !is_lost => Ok(()),
        Reason::NoMemory => Err(ENOMEM),
        _ => Err(EIO),
    }
}

/// Finds a place for the folio: one of its size, or one for each page; ENOMEM if there is
/// none for the first.
///
/// # Safety
///
/// The area covers the range, under its mmap lock; `from` was collected.
unsafe fn place(
    vma: *mut sys::vm_area_struct,
    range: PageRange,
    collected: &Collected<'_>,
    from: *mut sys::page,
    transfer: &mut Transfer,
) -> Result {
    let is_whole = collected.is_compound(0);
    // SAFETY: By the function's contract.
    if is_whole && unsafe { !is_unreadable(from, ORDER_MAX) } {
        // SAFETY: By the function's contract.
        unsafe {
            if let Some(to) = migrate::system_page_at(vma, range.start(), ORDER_MAX) {
                transfer.add(0, to, from, ORDER_MAX);
                return Ok(());
            }
        }
    }
    for index in 0..range.pages() {
        let from = match collected.source(index) {
            // SAFETY: The pages of a folio follow each other.
            _ if is_whole => unsafe { from.add(index) },
            Source::Page(page) => page,
            _ => continue,
        };
        let address = range.start() + index as u64 * PAGE_BYTES;
        // SAFETY: By the function's contract.
        unsafe {
            if let Some(to) = migrate::system_page_at(vma, address, 0) {
                transfer.add(index, to, from, 0);
            }
        }
    }
    if transfer.items().is_empty() {
        return Err(ENOMEM);
    }
    Ok(())
}
