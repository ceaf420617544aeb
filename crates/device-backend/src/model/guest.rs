// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the model needs of guest memory.

use vm_memory::VolatileSlice;

/// Ordinary guest memory by guest-physical address.
///
/// The device's own memory is no part of it, even where the guest sees it in a BAR: a
/// command names that by [`Space::DEVICE`](cdm_protocol::Space::DEVICE), where the
/// metadata guard watches.
pub trait GuestMemory {
    /// The longest stretch from `address` on that lies in one piece, at most `bytes` long.
    ///
    /// `None` if `address` is not ordinary guest memory. The slice is not empty.
    fn stretch(&self, address: u64, bytes: u64) -> Option<VolatileSlice<'_>>;
}
