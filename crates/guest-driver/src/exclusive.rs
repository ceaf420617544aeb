// SPDX-License-Identifier: GPL-2.0-only

//! Keeping the CPUs away from a page while a device works on it.
//!
//! Facility: `make_device_exclusive()`. C header: `linux/rmap.h`. Contexts: process
//! context under the mmap lock for reading. Lock order: mmap lock, folio lock, then
//! `Mirror::follower`; the notifiers are called under the folio lock. Invariant: while an [`Exclusive`] lives, no CPU gets the page back,
//! because that takes the folio lock; what is entered into a page table meanwhile is taken
//! out again by the notifier before any CPU gets it.

use kernel::mm::{MmWithUser, MmapReadGuard};
use kernel::prelude::*;

use crate::sys;

/// A page that no CPU can access, locked and referenced.
pub(crate) struct Exclusive {
    page: *mut sys::page,
    folio: *mut sys::folio,
}

impl Exclusive {
    /// Takes the page at `address` away from the CPUs, after faulting it in for writing. Notifiers
    /// hear of it with `owner`, which may be null.
    ///
    /// EFAULT or EPERM if it cannot be written to, EOPNOTSUPP if it is not anonymous memory,
    /// EINTR, ENOMEM.
    pub(crate) fn take(
        mm: &MmWithUser,
        address: u64,
        owner: *mut c_void,
        _locked: &MmapReadGuard<'_>,
    ) -> Result<Self> {
        let mut folio = core::ptr::null_mut();
        // SAFETY: The address space is alive and its mmap lock is held; the pointer is valid
        // for writing. The owner is only compared.
        let page = kernel::error::from_err_ptr(unsafe {
            sys::make_device_exclusive(mm.as_raw(), address as usize, owner, &mut folio)
        })?;
        Ok(Self { page, folio })
    }

    pub(crate) fn page(&self) -> *mut sys::page {
        self.page
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        // SAFETY: `take` got the folio locked, with a reference that is ours.
        unsafe { sys::cdm_folio_unlock_put(self.folio) };
    }
}
