// SPDX-License-Identifier: GPL-2.0-only

//! Address ranges and the batches that they are worked on in. Pure logic.
//!
//! A batch never crosses a 2 MiB boundary: a transparent huge page is then split once
//! or not at all, and the arrays of a batch have a fixed size.

/// Bytes of a base page.
pub const PAGE_BYTES: u64 = 4096;
/// Most pages of a batch.
pub const BATCH_PAGES: usize = 512;
const BATCH_BYTES: u64 = BATCH_PAGES as u64 * PAGE_BYTES;

/// A range of whole pages of an address space: not empty, no overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    start: u64,
    end: u64,
}

impl PageRange {
    /// `length` bytes from `address` on; `None` if unaligned, empty, or wrapping.
    pub fn new(address: u64, length: u64) -> Option<Self> {
        if length == 0 || !address.is_multiple_of(PAGE_BYTES) || !length.is_multiple_of(PAGE_BYTES)
        {
            return None;
        }
        let end = address.checked_add(length)?;
        Some(Self {
            start: address,
            end,
        })
    }

    /// First byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Byte after the last one.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Length in pages.
    pub fn pages(&self) -> usize {
        ((self.end - self.start) / PAGE_BYTES) as usize
    }

    /// The range in batches, lowest address first.
    pub fn batches(self) -> impl Iterator<Item = PageRange> {
        let mut next = self.start;
        core::iter::from_fn(move || {
            if next == self.end {
                return None;
            }
            let boundary = (next / BATCH_BYTES + 1).checked_mul(BATCH_BYTES);
            let end = boundary.map_or(self.end, |boundary| boundary.min(self.end));
            let batch = PageRange { start: next, end };
            next = end;
            Some(batch)
        })
    }

    /// The part of the range that lies in `[start, end)`; `None` if there is none.
    pub fn within(&self, start: u64, end: u64) -> Option<PageRange> {
        let start = self.start.max(start);
        let end = self.end.min(end);
        (start < end).then_some(PageRange { start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unaligned_empty_and_wrapping_ranges_are_refused() {
        assert_eq!(PageRange::new(0x1001, 0x1000), None);
        assert_eq!(PageRange::new(0x1000, 0x0fff), None);
        assert_eq!(PageRange::new(0x1000, 0), None);
        assert_eq!(PageRange::new(u64::MAX - 0xfff, 0x2000), None);
        assert_eq!(PageRange::new(u64::MAX - 0xfff, 0x1000), None);
        assert!(PageRange::new(0, 0x1000).is_some());
    }

    #[test]
    fn the_last_batch_below_the_end_of_the_address_space_ends_there() {
        let end = u64::MAX - 0xfff;
        let range = PageRange::new(end - 0x3000, 0x3000).expect("valid range");
        let batches: Vec<_> = range.batches().collect();
        assert_eq!(batches, [range]);
    }

    #[test]
    fn within_keeps_the_common_part() {
        let range = PageRange::new(0x10000, 0x10000).expect("valid range");
        assert_eq!(range.within(0, 0x10000), None);
        assert_eq!(range.within(0x20000, 0x30000), None);
        assert_eq!(range.within(0, 0x18000), PageRange::new(0x10000, 0x8000));
        assert_eq!(
            range.within(0x18000, 0x99000),
            PageRange::new(0x18000, 0x8000)
        );
        assert_eq!(range.within(0, u64::MAX), Some(range));
    }

    proptest! {
        #[test]
        fn batches_tile_the_range(first in 0..1u64 << 40, pages in 1..5000u64) {
            let range = PageRange::new(first * PAGE_BYTES, pages * PAGE_BYTES).expect("valid range");
            let mut at = range.start();
            let mut sum = 0;
            for batch in range.batches() {
                prop_assert_eq!(batch.start(), at);
                prop_assert!(batch.pages() >= 1 && batch.pages() <= BATCH_PAGES);
                prop_assert_eq!(batch.start() / BATCH_BYTES, (batch.end() - 1) / BATCH_BYTES);
                at = batch.end();
                sum += batch.pages();
            }
            prop_assert_eq!(at, range.end());
            prop_assert_eq!(sum, range.pages());
        }
    }
}
