// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory in pages, and which of them a device may store to by what it was told.

use cdm_backend::model::GuestMemory;
use cdm_protocol::{PAGE_BYTES_LARGE, PAGE_BYTES_SMALL, PageEntry};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};

/// Bytes of a page.
pub const PAGE_BYTES: usize = PAGE_BYTES_SMALL as usize;
/// Pages of guest memory, from address 0 on.
pub const PAGES: usize = 16;

/// Guest memory, all zero at first.
pub struct Ram(GuestMemoryMmap);

impl Ram {
    /// New memory.
    #[allow(clippy::new_without_default, reason = "it is an allocation")]
    pub fn new() -> Self {
        let regions = [(GuestAddress(0), PAGES * PAGE_BYTES)];
        Self(GuestMemoryMmap::from_ranges(&regions).expect("memory"))
    }

    /// Writes bytes from the beginning of a page on, as far as there is memory.
    pub fn write(&self, page: usize, bytes: &[u8]) {
        let at = page % PAGES * PAGE_BYTES;
        let count = bytes.len().min(PAGES * PAGE_BYTES - at);
        let written = self.0.write_slice(&bytes[..count], GuestAddress(at as u64));
        written.expect("inside");
    }

    /// All of it.
    pub fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGES * PAGE_BYTES];
        let read = self.0.read_slice(&mut bytes, GuestAddress(0));
        read.expect("inside");
        bytes
    }
}

impl GuestMemory for Ram {
    fn stretch(&self, address: u64, bytes: u64) -> Option<VolatileSlice<'_>> {
        let region = self.0.find_region(GuestAddress(address))?;
        let left = region.len().checked_sub(address).filter(|&left| left > 0)?;
        let count = left.min(bytes) as usize;
        region
            .get_slice(vm_memory::MemoryRegionAddress(address), count)
            .ok()
    }
}

/// Guest pages that the device may store to, by PASID and number of the virtual page. A device
/// that forgets of itself knows less.
#[derive(Default)]
pub struct Known(BTreeMap<(u32, u64), usize>);

impl Known {
    /// A new address space, of which nothing is known.
    pub fn bind(&mut self, pasid: u32) {
        self.unbind(pasid);
    }

    /// Nothing is known of an address space any more.
    pub fn unbind(&mut self, pasid: u32) {
        self.0.retain(|&(whose, _), _| whose != pasid);
    }

    /// Nothing is known any more.
    pub fn forget_all(&mut self) {
        self.0.clear();
    }

    /// Nothing is known of some addresses any more.
    pub fn forget(&mut self, pasid: u32, addresses: RangeInclusive<u64>) {
        let number = |address: &u64| address / PAGE_BYTES_SMALL;
        let pages = number(addresses.start())..=number(addresses.end());
        self.0
            .retain(|(whose, page), _| *whose != pasid || !pages.contains(page));
    }

    /// The device was told of the pages from an address on.
    pub fn learn(&mut self, pasid: u32, mut address: u64, entries: &[PageEntry]) {
        for entry in entries {
            let bits = entry.0.get();
            if bits & PageEntry::REFUSED != 0 {
                return;
            }
            let bytes = match bits & PageEntry::LARGE {
                0 => PAGE_BYTES_SMALL,
                _ => PAGE_BYTES_LARGE,
            };
            let first = address - address % bytes;
            let frame = bits & PageEntry::ADDRESS_MASK;
            let is_storable =
                bits & (PageEntry::WRITABLE | PageEntry::DEVICE) == PageEntry::WRITABLE;
            for number in 0..bytes / PAGE_BYTES_SMALL {
                let key = (pasid, first / PAGE_BYTES_SMALL + number);
                let page = (frame / PAGE_BYTES_SMALL).saturating_add(number);
                match usize::try_from(page) {
                    Ok(page) if is_storable && page < PAGES => drop(self.0.insert(key, page)),
                    _ => drop(self.0.remove(&key)),
                }
            }
            let Some(next) = first.checked_add(bytes) else {
                return;
            };
            address = next;
        }
    }

    /// Whether a translation leads to a page that allows stores.
    pub fn can_store_to(&self, page: usize) -> bool {
        self.0.values().any(|&known| known == page)
    }
}
