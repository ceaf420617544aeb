// SPDX-License-Identifier: GPL-2.0-only

//! What a device is told of the pages that it asked for. Pure logic.
//!
//! An answer is a row of entries, each for the addresses behind those of the one before. An
//! entry for 2 MiB stands for all of the large page that holds the address it is for, and a
//! refusal ends the row. A row never leaves the 2 MiB that it begins in, so that it fits one
//! leaf of the [`crate::table`].

use core::ops::Range;

use crate::batch::{BATCH_PAGES, PAGE_BYTES};
use crate::plan::Segment;
use crate::table::Access;
use crate::wire::{self, PageEntry, Space, Status};

/// What a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// First page.
    pub address: u64,
    /// How many pages, at least one.
    pub pages: u64,
    /// Whether it will store to them.
    pub is_written: bool,
    /// Whether it will do atomic operations on them, and its link carries none.
    pub is_atomic: bool,
}

impl Asked {
    /// The addresses to look at, in an area that ends at `area_end` and holds the first of
    /// them: all that were asked for as far as the area and the leaf go, or the first page
    /// alone.
    pub fn within(&self, area_end: u64, is_alone: bool) -> Range<u64> {
        // Each page costs the CPUs something that the device has to itself.
        let is_alone = is_alone || self.is_atomic;
        let pages = if is_alone { 1 } else { self.pages.max(1) };
        let wanted = self
            .address
            .saturating_add(pages.saturating_mul(PAGE_BYTES));
        let leaf_bytes = BATCH_PAGES as u64 * PAGE_BYTES;
        let leaf_end = (self.address / leaf_bytes + 1).saturating_mul(leaf_bytes);
        self.address..wanted.min(area_end).min(leaf_end)
    }
}

fn flags(space: Space, access: Access) -> u64 {
    let mut flags = 0;
    if space == Space::DEVICE {
        flags |= PageEntry::DEVICE;
    }
    if access >= Access::Write {
        flags |= PageEntry::WRITABLE;
    }
    if access >= Access::Exclusive {
        flags |= PageEntry::EXCLUSIVE;
    }
    flags
}

/// The entry for one page.
pub fn small(page: &Segment, access: Access) -> PageEntry {
    PageEntry((page.address | flags(page.space, access)).into())
}

/// The large page that a page is a part of, if it is mapped as one.
pub fn large_page(page: &Segment) -> Segment {
    Segment {
        space: page.space,
        address: page.address & !(wire::PAGE_BYTES_LARGE - 1),
        bytes: wire::PAGE_BYTES_LARGE,
    }
}

/// The entry for a large page.
pub fn large(page: &Segment, access: Access) -> PageEntry {
    PageEntry((page.address | flags(page.space, access) | PageEntry::LARGE).into())
}

/// The entry that ends a row because there is no page for the device.
pub fn refusal(status: Status) -> PageEntry {
    let status = u64::from(status.get()) << PageEntry::STATUS_SHIFT;
    PageEntry((status | PageEntry::REFUSED).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: u64 = wire::PAGE_BYTES_LARGE;

    fn asked(address: u64, pages: u64) -> Asked {
        Asked {
            address,
            pages,
            is_written: false,
            is_atomic: false,
        }
    }

    #[test]
    fn pages_beyond_area_or_leaf_are_not_looked_at() {
        let at = 5 * LEAF + 0x3000;
        assert_eq!(asked(at, 4).within(u64::MAX, false), at..at + 0x4000);
        assert_eq!(asked(at, 4).within(at + 0x2000, false), at..at + 0x2000);
        assert_eq!(asked(at, 512).within(u64::MAX, false), at..6 * LEAF);
        assert_eq!(asked(at, 512).within(u64::MAX, true), at..at + 0x1000);
        let atomic = Asked {
            is_atomic: true,
            ..asked(at, 512)
        };
        assert_eq!(atomic.within(u64::MAX, false), at..at + 0x1000);
    }

    #[test]
    fn a_request_of_no_pages_or_of_all_of_them_is_for_the_first_at_least() {
        let last = u64::MAX - 0xfff;
        assert_eq!(asked(0, 0).within(LEAF, false), 0..0x1000);
        assert_eq!(
            asked(last, u64::MAX).within(u64::MAX, false),
            last..u64::MAX
        );
    }

    #[test]
    fn entries_say_where_a_page_is_and_what_may_be_done() {
        let page = |space| Segment {
            space,
            address: 3 * LEAF + 0x5000,
            bytes: PAGE_BYTES,
        };
        let raw = |entry: PageEntry| entry.0.get();
        let guest = page(Space::GUEST);
        assert_eq!(raw(small(&guest, Access::Read)), guest.address);
        assert_eq!(
            raw(small(&page(Space::DEVICE), Access::Write)),
            guest.address | PageEntry::DEVICE | PageEntry::WRITABLE
        );
        assert_eq!(
            raw(small(&guest, Access::Exclusive)),
            guest.address | PageEntry::WRITABLE | PageEntry::EXCLUSIVE
        );
        let whole = large_page(&guest);
        assert_eq!((whole.address, whole.bytes), (3 * LEAF, LEAF));
        assert_eq!(
            raw(large(&whole, Access::Read)),
            (3 * LEAF) | PageEntry::LARGE
        );
    }

    #[test]
    fn a_refusal_carries_its_status() {
        let raw = refusal(Status::NO_ACCESS).0.get();
        assert_eq!(raw & 0xfff, PageEntry::REFUSED);
        assert_eq!(
            raw >> PageEntry::STATUS_SHIFT,
            Status::NO_ACCESS.get().into()
        );
    }
}
