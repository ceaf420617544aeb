// SPDX-License-Identifier: GPL-2.0-only

//! A leaf of a device's page table: what the device may access in 2 MiB of an address
//! space. Pure logic: no kernel facility, no unsafe.
//!
//! A leaf holds no references. It is filled in when a mapping was seen, and emptied before
//! the mapping changes.

use core::ops::Range;

use crate::batch::PAGE_BYTES;
use crate::plan::Segment;
use crate::wire::Space;

/// Pages of a leaf.
pub const LEAF_PAGES: usize = 512;
/// Bytes of address space that a leaf covers.
pub const LEAF_BYTES: u64 = LEAF_PAGES as u64 * PAGE_BYTES;

/// What a device may do with a page; each step includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Load.
    Read,
    /// Load and store.
    Write,
    /// The same, and no CPU can do either meanwhile.
    Exclusive,
}

/// A page that a device may access, or none.
///
/// A word: the page's address, which leaves 12 bits. Bit 0: there is a page. Bit 1: it is in
/// the device's own memory. Bits 2 and 3: the access.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    const NONE: Self = Self(0);
    const PRESENT: u64 = 1 << 0;
    const DEVICE: u64 = 1 << 1;
    const WRITE: u64 = 1 << 2;
    const EXCLUSIVE: u64 = 1 << 3;

    fn new(space: Space, address: u64, access: Access) -> Self {
        let mut word = address | Self::PRESENT;
        if space == Space::DEVICE {
            word |= Self::DEVICE;
        }
        if access >= Access::Write {
            word |= Self::WRITE;
        }
        if access >= Access::Exclusive {
            word |= Self::EXCLUSIVE;
        }
        Self(word)
    }

    fn access(self) -> Option<Access> {
        if self.0 & Self::PRESENT == 0 {
            None
        } else if self.0 & Self::EXCLUSIVE != 0 {
            Some(Access::Exclusive)
        } else if self.0 & Self::WRITE != 0 {
            Some(Access::Write)
        } else {
            Some(Access::Read)
        }
    }

    fn segment(self) -> Segment {
        Segment {
            space: if self.0 & Self::DEVICE != 0 {
                Space::DEVICE
            } else {
                Space::GUEST
            },
            address: self.0 & !(PAGE_BYTES - 1),
            bytes: PAGE_BYTES,
        }
    }
}

/// Entries for the pages of a leaf, by their index in it.
pub struct Leaf {
    slots: [Slot; LEAF_PAGES],
}

impl Leaf {
    /// Number of the leaf that an address belongs to.
    pub fn number_of(address: u64) -> u64 {
        address / LEAF_BYTES
    }

    /// Index of a page in its leaf.
    pub fn index_of(address: u64) -> usize {
        (address / PAGE_BYTES) as usize % LEAF_PAGES
    }

    /// A leaf without entries.
    pub const fn new() -> Self {
        Self {
            slots: [Slot::NONE; LEAF_PAGES],
        }
    }

    /// Lets the device access a page, whose address is a multiple of the page size.
    pub fn set(&mut self, index: usize, page: &Segment, access: Access) {
        self.slots[index] = Slot::new(page.space, page.address, access);
    }

    /// Where the device finds a page, if it may access it in that way.
    pub fn get(&self, index: usize, access: Access) -> Option<Segment> {
        let slot = self.slots[index];
        (slot.access()? >= access).then(|| slot.segment())
    }

    /// Takes away what the device may access in some pages.
    pub fn forget(&mut self, pages: Range<usize>) {
        self.slots[pages].fill(Slot::NONE);
    }

    /// The pages from the first to the last that the device may access, of some pages; `None` if
    /// it may access none of them.
    pub fn hull(&self, pages: Range<usize>) -> Option<Range<usize>> {
        let slots = &self.slots[pages.clone()];
        let first = slots.iter().position(|slot| *slot != Slot::NONE)?;
        let last = slots.iter().rposition(|slot| *slot != Slot::NONE)?;
        Some(pages.start + first..pages.start + last + 1)
    }

    /// Whether the device may access nothing.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| *slot == Slot::NONE)
    }
}

impl Default for Leaf {
    fn default() -> Self {
        Self::new()
    }
}

/// The pages of leaf `number` that lie in `addresses`, all of a page that is touched.
pub fn pages_of(number: u64, addresses: &Range<u64>) -> Range<usize> {
    let base = number * LEAF_BYTES;
    let clamp = |offset: u64| offset.min(LEAF_BYTES);
    let start = clamp(addresses.start.saturating_sub(base)) / PAGE_BYTES;
    let end = clamp(addresses.end.saturating_sub(base)).div_ceil(PAGE_BYTES);
    start as usize..(end as usize).max(start as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn page(space: Space, number: u64) -> Segment {
        Segment {
            space,
            address: number * PAGE_BYTES,
            bytes: PAGE_BYTES,
        }
    }

    #[test]
    fn an_entry_gives_its_page_for_its_access_and_weaker_ones_only() {
        let mut leaf = Leaf::new();
        let guest = page(Space::GUEST, 0x12345);
        let device = page(Space::DEVICE, 0);
        leaf.set(0, &guest, Access::Read);
        leaf.set(1, &device, Access::Write);
        leaf.set(511, &guest, Access::Exclusive);
        assert_eq!(leaf.get(0, Access::Read), Some(guest));
        assert_eq!(leaf.get(0, Access::Write), None);
        assert_eq!(leaf.get(1, Access::Write), Some(device));
        assert_eq!(leaf.get(1, Access::Exclusive), None);
        assert_eq!(leaf.get(511, Access::Read), Some(guest));
        assert_eq!(leaf.get(511, Access::Exclusive), Some(guest));
        assert_eq!(leaf.get(2, Access::Read), None);
    }

    #[test]
    fn the_pages_of_a_leaf_are_those_that_the_addresses_touch() {
        let base = 3 * LEAF_BYTES;
        assert_eq!(pages_of(3, &(base..base + PAGE_BYTES)), 0..1);
        assert_eq!(pages_of(3, &(base + 1..base + PAGE_BYTES + 1)), 0..2);
        assert_eq!(pages_of(3, &(0..u64::MAX)), 0..LEAF_PAGES);
        assert!(pages_of(3, &(0..base)).is_empty());
        assert!(pages_of(3, &(base + LEAF_BYTES..u64::MAX)).is_empty());
        let last = base + LEAF_BYTES - PAGE_BYTES;
        assert_eq!(pages_of(3, &(last..u64::MAX)), 511..512);
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_of_pages(
            steps in prop::collection::vec((0..LEAF_PAGES, 0..LEAF_PAGES, 0..5u8, 0..1u64 << 40), 1..60)
        ) {
            let mut leaf = Leaf::new();
            let mut map: BTreeMap<usize, (Segment, Access)> = BTreeMap::new();
            for (from, length, kind, number) in steps {
                let access = match kind {
                    0 => Access::Read,
                    1 => Access::Write,
                    2 => Access::Exclusive,
                    _ => {
                        let pages = from..(from + length).min(LEAF_PAGES);
                        let mut inside = map.keys().filter(|index| pages.contains(*index));
                        let expected = inside.next().map(|first| {
                            let last = inside.next_back().unwrap_or(first);
                            *first..*last + 1
                        });
                        prop_assert_eq!(leaf.hull(pages.clone()), expected);
                        leaf.forget(pages.clone());
                        prop_assert_eq!(leaf.hull(pages.clone()), None);
                        map.retain(|index, _| !pages.contains(index));
                        continue;
                    }
                };
                let space = if number % 2 == 0 { Space::GUEST } else { Space::DEVICE };
                let segment = page(space, number);
                leaf.set(from, &segment, access);
                map.insert(from, (segment, access));
            }
            prop_assert_eq!(leaf.is_empty(), map.is_empty());
            for index in 0..LEAF_PAGES {
                for access in [Access::Read, Access::Write, Access::Exclusive] {
                    let expected = map
                        .get(&index)
                        .filter(|(_, has)| *has >= access)
                        .map(|(segment, _)| *segment);
                    prop_assert_eq!(leaf.get(index, access), expected);
                }
            }
        }
    }
}
