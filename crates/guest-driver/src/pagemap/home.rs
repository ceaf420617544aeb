// SPDX-License-Identifier: GPL-2.0-only

//! Where a page is: in system memory, or in which region.
//!
//! Facility: `dev_pagemap`. C header: `linux/memremap.h`. Contexts: any. Lock order: none.
//! Invariant: a pagemap is taken for this driver's if and only if it has its methods.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

use super::{folio_free, Region};
use crate::number::NUMBERS;
use crate::sys;

/// Owners of the private memory of each device, by its number; null where there is none.
///
/// The kernel shows private memory to its own owner only. They are compared, never followed.
pub(super) static PRIVATE_OWNERS: [Atomic<*mut c_void>; NUMBERS] =
    [const { Atomic::new(core::ptr::null_mut()) }; NUMBERS];

/// The owners of all private memory of this driver.
pub(crate) fn private_owners() -> impl Iterator<Item = *mut c_void> {
    let owners = PRIVATE_OWNERS.iter().map(|owner| owner.load(Relaxed));
    owners.filter(|owner| !owner.is_null())
}

/// Names a region towards `migrate_vma`, also a region of another device.
///
/// Only compared and passed to the kernel, never followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) owner: *mut c_void,
    pub(crate) select: u64,
}

/// The method by which the driver knows its own pagemaps.
const FOLIO_FREE: unsafe extern "C" fn(*mut sys::folio) = folio_free;

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// System memory, or a kind of device memory that is not ours.
    System,
    /// The region of some device of this driver.
    Cdm(Owner),
}

/// Finds where a page is.
///
/// # Safety
///
/// The page is mapped or referenced, and stays so during the call.
pub(crate) unsafe fn home_of(page: *mut sys::page) -> Home {
    // SAFETY: By the function's contract.
    match unsafe { region_of(page) } {
        Some(region) => Home::Cdm(region.owner()),
        None => Home::System,
    }
}

/// The region that a page is in, whichever device of this driver it belongs to.
///
/// # Safety
///
/// The page is mapped or referenced, and stays so as long as the region is used.
pub(crate) unsafe fn region_of<'a>(page: *mut sys::page) -> Option<&'a Region> {
    // SAFETY: The page is valid, and so is its pagemap, which its reference holds. The
    // owner of a pagemap with these methods is a region, which is there as long as any of
    // its pages is in use.
    unsafe {
        let pgmap = sys::cdm_page_pgmap(page);
        if pgmap.is_null() || (*pgmap).ops.is_null() {
            return None;
        }
        let is_ours = (*(*pgmap).ops)
            .folio_free
            .is_some_and(|method| core::ptr::fn_addr_eq(method, FOLIO_FREE));
        is_ours.then(|| &*(*pgmap).owner.cast::<Region>())
    }
}
