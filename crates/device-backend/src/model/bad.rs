// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device memory that has failed: which, and what the driver has not been told of yet.
//!
//! The memory itself stays as it is. A CPU that loads from it reads what was there, since nobody
//! asks the device; it is commands that the device refuses ([`MemoryErrors::good_bytes`]), and
//! drivers that it tells.

use cdm_protocol::ERROR_BYTES;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A set of page numbers, as stretches of pages that follow each other.
///
/// # Invariants
///
/// No stretch is empty, and between two of them lies a page that is not in the set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    /// First page of each stretch, and the page behind it.
    stretches: BTreeMap<u64, u64>,
    pages: u64,
}

impl PageSet {
    /// Pages in it.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Its stretches, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.stretches.iter().map(|(&first, &end)| first..end)
    }

    /// The part of the first stretch that reaches beyond `page`, from `page` on.
    pub fn next(&self, page: u64) -> Option<Range<u64>> {
        let before = self.stretches.range(..=page).next_back();
        if let Some((_, &end)) = before.filter(|&(_, &end)| page < end) {
            return Some(page..end);
        }
        let (&first, &end) = self.stretches.range(page..).next()?;
        Some(first..end)
    }

    /// Adds a page, and says whether it was not there before.
    pub fn insert(&mut self, page: u64) -> bool {
        let before = self.stretches.range(..=page).next_back();
        let before = before.map(|(&first, &end)| first..end);
        if before.as_ref().is_some_and(|before| page < before.end) {
            return false;
        }
        let first = before
            .filter(|before| before.end == page)
            .map_or(page, |before| before.start);
        let end = self.stretches.remove(&(page + 1)).unwrap_or(page + 1);
        self.stretches.insert(first, end);
        self.pages += 1;
        true
    }

    fn pop_first(&mut self) -> Option<Range<u64>> {
        let (first, end) = self.stretches.pop_first()?;
        self.pages -= end - first;
        Some(first..end)
    }
}

/// The failed memory of a device.
#[derive(Debug, Default)]
pub struct MemoryErrors {
    bad: PageSet,
    /// What failed since the driver has asked, and it was not told of.
    untold: PageSet,
    /// Whether the driver has asked what is bad since its virtio reset, and so is told of the rest.
    is_heard: bool,
}

impl MemoryErrors {
    /// All that has failed.
    pub fn bad(&self) -> &PageSet {
        &self.bad
    }

    /// Pages fail; how many of them had not before.
    pub fn add(&mut self, pages: Range<u64>) -> u64 {
        let mut added = 0;
        for page in pages {
            if self.bad.insert(page) {
                added += 1;
                if self.is_heard {
                    self.untold.insert(page);
                }
            }
        }
        added
    }

    /// How many of the `bytes` from `address` on, which do not wrap, come before what has failed.
    pub fn good_bytes(&self, address: u64, bytes: u64) -> u64 {
        match self.bad.next(address / ERROR_BYTES) {
            Some(bad) => bytes.min((bad.start * ERROR_BYTES).saturating_sub(address)),
            None => bytes,
        }
    }

    /// The driver asks what has failed from the page on. It is told of all that comes.
    pub fn ask(&mut self, page: u64) -> Option<Range<u64>> {
        self.is_heard = true;
        self.bad.next(page)
    }

    /// Whether there is a stretch to tell the driver of.
    pub fn has_untold(&self) -> bool {
        self.untold.pages > 0
    }

    /// The next stretch to tell the driver of; it counts as told.
    pub fn take_untold(&mut self) -> Option<Range<u64>> {
        self.untold.pop_first()
    }

    /// The driver could not be told.
    pub fn keep_untold(&mut self, pages: Range<u64>) {
        if self.is_heard {
            for page in pages {
                self.untold.insert(page);
            }
        }
    }

    /// Another driver comes, and will ask.
    pub fn forget_driver(&mut self) {
        self.is_heard = false;
        self.untold = PageSet::default();
    }
}

/// The failed memory of a device, to be asked for by all threads.
#[derive(Debug, Default)]
pub struct FailedMemory {
    errors: Mutex<MemoryErrors>,
    /// Whether there is any: else commands pass for a load.
    is_any: AtomicBool,
}

impl FailedMemory {
    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.is_any.load(Ordering::Relaxed)
    }

    /// Which there is.
    pub fn errors(&self) -> MutexGuard<'_, MemoryErrors> {
        // Nothing panics while it is locked.
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`MemoryErrors::add`].
    pub fn add(&self, pages: Range<u64>) -> u64 {
        let mut errors = self.errors();
        let added = errors.add(pages);
        self.is_any
            .store(errors.bad().pages() > 0, Ordering::Relaxed);
        added
    }

    /// See [`MemoryErrors::good_bytes`].
    pub fn good_bytes(&self, address: u64, bytes: u64) -> u64 {
        match self.is_any() {
            true => self.errors().good_bytes(address, bytes),
            false => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_of_stretches_agrees_with_a_set_of_pages(
            pages in prop::collection::vec(0u64..60, 0..60),
            from in 0u64..70,
        ) {
            let mut set = PageSet::default();
            let mut model = BTreeSet::new();
            for &page in &pages {
                prop_assert_eq!(set.insert(page), model.insert(page));
            }
            prop_assert_eq!(set.pages(), model.len() as u64);
            let stretches: Vec<_> = set.iter().collect();
            prop_assert!(stretches.windows(2).all(|pair| pair[0].end < pair[1].start));
            let listed: Vec<u64> = stretches.into_iter().flatten().collect();
            prop_assert_eq!(listed, model.iter().copied().collect::<Vec<_>>());
            let next = set.next(from);
            prop_assert_eq!(
                next.as_ref().map(|next| next.start),
                model.range(from..).next().copied()
            );
            if let Some(next) = next {
                prop_assert!(next.clone().all(|page| model.contains(&page)));
                prop_assert!(!model.contains(&next.end));
            }
        }

        #[test]
        fn what_comes_before_a_bad_page_is_good_to_the_byte(
            page in 1u64..5,
            address in 0u64..6 * ERROR_BYTES,
            bytes in 1u64..3 * ERROR_BYTES,
        ) {
            let mut errors = MemoryErrors::default();
            errors.add(page..page + 1);
            let bad = page * ERROR_BYTES..(page + 1) * ERROR_BYTES;
            let good = (address..address + bytes).take_while(|byte| !bad.contains(byte));
            prop_assert_eq!(errors.good_bytes(address, bytes), good.count() as u64);
        }
    }

    #[test]
    fn errors_before_the_driver_asks_are_its_to_find_and_later_ones_are_told() {
        let mut errors = MemoryErrors::default();
        assert_eq!(errors.add(3..5), 2);
        assert_eq!(errors.take_untold(), None);
        assert_eq!(errors.ask(0), Some(3..5));
        assert_eq!(errors.ask(5), None);
        assert_eq!(errors.add(4..7), 2);
        assert_eq!(errors.take_untold(), Some(5..7));
        assert_eq!(errors.take_untold(), None);
    }

    #[test]
    fn what_could_not_be_told_is_told_together_with_what_follows() {
        let mut errors = MemoryErrors::default();
        assert_eq!(errors.ask(0), None);
        errors.add(8..9);
        let kept = errors.take_untold().unwrap();
        errors.keep_untold(kept);
        errors.add(9..10);
        assert_eq!(errors.take_untold(), Some(8..10));
    }

    #[test]
    fn the_next_driver_asks_for_itself() {
        let mut errors = MemoryErrors::default();
        errors.ask(0);
        errors.add(1..2);
        let late = errors.take_untold().unwrap();
        errors.forget_driver();
        errors.keep_untold(late);
        errors.add(2..3);
        assert_eq!(errors.take_untold(), None);
        assert_eq!(errors.ask(0), Some(1..3));
    }
}
