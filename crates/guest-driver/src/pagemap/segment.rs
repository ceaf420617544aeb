// SPDX-License-Identifier: GPL-2.0-only

//! Where a device finds a page.
//!
//! Facility: none of its own. Contexts: any. Lock order: none. Invariant: the device's own
//! memory is named by its offset, all other by its place in guest memory.

use super::{region_of, Region};
use crate::batch::PAGE_BYTES;
use crate::plan::Segment;
use crate::sys;
use crate::wire::Space;

impl Region {
    /// Where this device finds `bytes` bytes at offset `offset` of a page.
    ///
    /// # Safety
    ///
    /// The page is mapped or referenced, and stays so during the call.
    pub(crate) unsafe fn segment_of(
        &self,
        page: *mut sys::page,
        offset: u64,
        bytes: u64,
    ) -> Segment {
        // SAFETY: By the function's contract.
        let physical = unsafe { sys::cdm_page_to_pfn(page) } as u64 * PAGE_BYTES + offset;
        if let Some(address) = self.offset_of(physical) {
            return Segment {
                space: Space::DEVICE,
                address,
                bytes,
            };
        }
        // Other devices' memory is ordinary guest memory for this one, at its place in the
        // other's BAR, also where the CPU is kept away from it.
        // SAFETY: By the function's contract.
        let address = match unsafe { region_of(page) } {
            Some(other) if !other.is_cpu_addressable() => {
                other.layout.base + (physical - other.start)
            }
            _ => physical,
        };
        Segment {
            space: Space::GUEST,
            address,
            bytes,
        }
    }

    /// Offset into the device memory of the address of a page; `None` if it is elsewhere.
    fn offset_of(&self, physical: u64) -> Option<u64> {
        let offset = physical.checked_sub(self.start)?;
        (offset < self.layout.bytes).then_some(offset)
    }
}
