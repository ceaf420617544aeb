// SPDX-License-Identifier: GPL-2.0-only

//! Physical addresses for struct pages.
//!
//! Facility: resources. C header: `linux/ioport.h`. Contexts: process context. Lock order:
//! none. Invariant: addresses that were taken from what is free are given back, unless
//! somebody else does that.

use kernel::prelude::*;

use super::Layout;
use crate::sys;

/// Addresses that struct pages can be made for, given back unless they are kept.
pub(super) struct Addresses {
    pub(super) start: u64,
    /// Length, if they were taken from what is free.
    taken: Option<u64>,
}

impl Addresses {
    /// Those of the BAR, or, for memory that no CPU can reach, some that nothing has.
    pub(super) fn of(layout: &Layout) -> Result<Self> {
        if layout.memory_type.is_cpu_addressable() {
            return Ok(Self {
                start: layout.base,
                taken: None,
            });
        }
        let mut start = 0;
        // SAFETY: Process context; the pointer is valid for writing.
        kernel::error::to_result(unsafe { sys::cdm_private_range_get(layout.bytes, &mut start) })?;
        Ok(Self {
            start,
            taken: Some(layout.bytes),
        })
    }

    /// Somebody else gives them back.
    pub(super) fn keep(mut self) {
        self.taken = None;
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        if let Some(bytes) = self.taken {
            // SAFETY: Taken in `of`, and nothing has them.
            unsafe { sys::cdm_private_range_put(self.start, bytes) };
        }
    }
}
