// SPDX-License-Identifier: GPL-2.0-only

//! The account of a migration, in pages. Pure logic.
//!
//! Each page of a request ends with one [`Outcome`], and a [`Tally`] is the sum of
//! outcomes: what was asked is what moved, what was there, and what failed for some
//! reason. There is no other way to add to it, so the sum always holds.

/// Why a page did not move; the order is that of `enum cdm_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is mapped there, or the page was never touched, or it is swapped out.
    NotPresent,
    /// No free page where it should go.
    NoMemory,
    /// Locked, or referenced by somebody for a moment, or being moved already.
    Busy,
    /// Pinned for DMA.
    Pinned,
    /// Being written to its file or to swap.
    Writeback,
    /// Page cache with private data of its file system.
    PrivateData,
    /// Page cache of a mapping that cannot move.
    Mapping,
    /// Part of a larger folio that had to be split and could not be.
    Split,
    /// Any other kind of page that does not move to this memory.
    Unsupported,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Reason; 9] = [
        Reason::NotPresent,
        Reason::NoMemory,
        Reason::Busy,
        Reason::Pinned,
        Reason::Writeback,
        Reason::PrivateData,
        Reason::Mapping,
        Reason::Split,
        Reason::Unsupported,
    ];

    /// Number of the reason on the ioctl interface.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason that the C side names: its number plus one; zero is none.
    pub fn of_raw(raw: u32) -> Option<Self> {
        Self::ALL.get((raw as usize).wrapping_sub(1)).copied()
    }

    /// Whether it passes by itself: the kernel takes short references to pages all the
    /// time, and a folio that somebody refers to does not split either.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Reason::Busy | Reason::Pinned | Reason::Writeback | Reason::Split
        )
    }
}

/// What became of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This request moved it.
    Moved,
    /// It was where it should be.
    There,
    /// It did not move.
    Failed(Reason),
}

impl Outcome {
    /// Whether it is worth another try.
    pub fn is_transient(self) -> bool {
        matches!(self, Outcome::Failed(reason) if reason.is_transient())
    }
}

/// Sum of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    moved: u64,
    there: u64,
    failed: [u64; Reason::ALL.len()],
    large: u64,
}

impl Tally {
    /// Counts one page.
    pub fn add(&mut self, outcome: Outcome) {
        self.add_pages(outcome, 1);
    }

    /// Counts the pages of a folio.
    pub fn add_pages(&mut self, outcome: Outcome, pages: u64) {
        match outcome {
            Outcome::Moved => self.moved += pages,
            Outcome::There => self.there += pages,
            Outcome::Failed(reason) => self.failed[reason.index()] += pages,
        }
    }

    /// Takes the account of the same pages after another try: what moved before has moved,
    /// and what did not move is what did not move now.
    pub fn try_again(&mut self, next: &Tally) {
        self.failed = [0; Reason::ALL.len()];
        self.merge(next);
    }

    /// Whether some page is worth another try.
    pub fn is_transient(&self) -> bool {
        Reason::ALL
            .iter()
            .any(|reason| reason.is_transient() && self.failed[reason.index()] != 0)
    }

    /// Notes that `pages` of those that moved did so as part of 2 MiB folios.
    pub fn add_large(&mut self, pages: u64) {
        self.large += pages;
    }

    /// Adds the pages of another account.
    pub fn merge(&mut self, other: &Tally) {
        self.moved += other.moved;
        self.there += other.there;
        self.large += other.large;
        for (sum, more) in self.failed.iter_mut().zip(other.failed) {
            *sum += more;
        }
    }

    /// Pages that the request got to.
    pub fn asked(&self) -> u64 {
        self.moved + self.there + self.failed.iter().sum::<u64>()
    }

    /// Pages that moved.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Of the pages that moved, those of 2 MiB folios.
    pub fn large(&self) -> u64 {
        self.large
    }

    /// Pages that were there before.
    pub fn there(&self) -> u64 {
        self.there
    }

    /// Pages that did not move, by [`Reason::index`].
    pub fn failed(&self) -> [u64; Reason::ALL.len()] {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Moved),
            Just(Outcome::There),
            (0..Reason::ALL.len()).prop_map(|index| Outcome::Failed(Reason::ALL[index])),
        ]
    }

    #[test]
    fn reasons_are_numbered_in_their_order() {
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), number);
        }
    }

    #[test]
    fn another_try_replaces_what_failed_and_keeps_what_moved() {
        let mut sum = Tally::default();
        sum.add_pages(Outcome::Moved, 512);
        sum.add_pages(Outcome::Failed(Reason::Busy), 3);
        assert!(sum.is_transient());
        let mut next = Tally::default();
        next.add(Outcome::Moved);
        next.add_pages(Outcome::Failed(Reason::NoMemory), 2);
        sum.try_again(&next);
        assert_eq!((sum.moved(), sum.asked()), (513, 515));
        assert!(!sum.is_transient());
    }

    #[test]
    fn the_c_sides_numbers_are_one_higher() {
        assert_eq!(Reason::of_raw(0), None);
        assert_eq!(Reason::of_raw(1), Some(Reason::NotPresent));
        assert_eq!(Reason::of_raw(9), Some(Reason::Unsupported));
        assert_eq!(Reason::of_raw(10), None);
    }

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        assert!(!Outcome::Moved.is_transient() && !Outcome::There.is_transient());
        let transient: Vec<_> = Reason::ALL
            .into_iter()
            .filter(|reason| Outcome::Failed(*reason).is_transient())
            .collect();
        assert_eq!(
            transient,
            [
                Reason::Busy,
                Reason::Pinned,
                Reason::Writeback,
                Reason::Split
            ]
        );
    }

    proptest! {
        #[test]
        fn every_page_is_counted_once(
            pages in prop::collection::vec(outcome(), 0..500),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut whole = Tally::default();
            for page in &pages {
                whole.add(*page);
            }
            prop_assert_eq!(whole.asked(), pages.len() as u64);
            let moved = pages.iter().filter(|page| **page == Outcome::Moved).count();
            prop_assert_eq!(whole.moved(), moved as u64);

            let cut = if pages.is_empty() { 0 } else { cut.index(pages.len()) };
            let mut first = Tally::default();
            let mut second = Tally::default();
            pages[..cut].iter().for_each(|page| first.add(*page));
            pages[cut..].iter().for_each(|page| second.add(*page));
            first.merge(&second);
            prop_assert_eq!(first, whole);
        }
    }
}
