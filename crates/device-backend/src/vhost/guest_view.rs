// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as one vhost-user memory table describes it.

use crate::model::{FileIdentity, GuestMemory};
use std::sync::Arc;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};

/// One memory table, and which of its regions are the device's own memory come back.
///
/// A table stays mapped while a view of it is in use, so a command that runs when the
/// guest's memory changes finishes on the memory that it was given.
#[derive(Debug)]
pub struct GuestView {
    memory: Arc<GuestMemoryMmap>,
    /// First addresses of the regions that are windows onto the device memory.
    own_windows: Vec<GuestAddress>,
}

impl GuestView {
    /// Takes in a table. `own` is the file of the device memory.
    pub fn new(memory: Arc<GuestMemoryMmap>, own: FileIdentity) -> Self {
        let own_windows = memory
            .iter()
            .filter(|region| {
                region.file_offset().is_some_and(|offset| {
                    // A file that cannot be asked is not trusted to be ordinary memory.
                    FileIdentity::of(offset.file()).map_or(true, |identity| identity == own)
                })
            })
            .map(GuestMemoryRegion::start_addr)
            .collect();
        Self {
            memory,
            own_windows,
        }
    }

    /// Whether the guest sees the device memory through this table.
    pub fn has_own_window(&self) -> bool {
        !self.own_windows.is_empty()
    }

    /// Whether there is no memory at all, as before a guest comes and after it went.
    pub fn is_gone(&self) -> bool {
        self.memory.num_regions() == 0
    }

    /// The table itself, for the rings.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }
}

impl GuestMemory for GuestView {
    fn stretch(&self, address: u64, bytes: u64) -> Option<VolatileSlice<'_>> {
        let address = GuestAddress(address);
        let region = self.memory.find_region(address)?;
        if self.own_windows.contains(&region.start_addr()) {
            return None;
        }
        let offset = region.to_region_addr(address)?;
        let left = region.len() - offset.raw_value();
        let count = usize::try_from(left.min(bytes)).ok()?;
        region.get_slice(offset, count).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pool;
    use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};

    fn region(address: u64, file: &std::fs::File, bytes: usize) -> GuestRegionMmap {
        let file = FileOffset::new(file.try_clone().unwrap(), 0);
        GuestRegionMmap::new(
            MmapRegion::from_file(file, bytes).unwrap(),
            GuestAddress(address),
        )
        .unwrap()
    }

    fn view() -> (Pool, GuestView) {
        let pool = Pool::new("256M".parse().unwrap()).unwrap();
        let ram = tempfile::tempfile().unwrap();
        ram.set_len(0x4000).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![
            region(0x0000, &ram, 0x2000),
            region(0x2000, &ram, 0x2000),
            region(0x10000, pool.file(), 0x4000),
        ])
        .unwrap();
        let view = GuestView::new(Arc::new(memory), pool.identity());
        (pool, view)
    }

    #[test]
    fn a_stretch_ends_with_its_region() {
        let (_pool, view) = view();
        assert_eq!(view.stretch(0x1ff0, 0x100).unwrap().len(), 0x10);
        assert_eq!(view.stretch(0x2000, 0x100).unwrap().len(), 0x100);
        assert!(view.stretch(0x4000, 1).is_none());
    }

    #[test]
    fn the_devices_own_memory_is_no_guest_memory() {
        let (_pool, view) = view();
        assert!(view.has_own_window());
        assert!(view.stretch(0x10000, 8).is_none());
        assert!(view.stretch(0x13ff8, 8).is_none());
    }
}
