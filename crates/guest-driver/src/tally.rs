// SPDX-License-Identifier: GPL-2.0

//! The account of a migration, in pages. Pure logic.
//!
//! Each page of a request ends with one [`Outcome`], and a [`Tally`] is the sum of
//! outcomes: what was asked is what moved, what was there, and what failed for some
//! reason. There is no other way to add to it, so the sum always holds.

/// Why a page did not move; the order is that of `enum cdm_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is mapped there, or the page was never touched.
    NotPresent,
    /// No free page where it should go.
    NoMemory,
    /// Pinned, locked or otherwise referenced by somebody else.
    Busy,
    /// A kind of page that does not move to this memory.
    Unsupported,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Reason; 4] = [
        Reason::NotPresent,
        Reason::NoMemory,
        Reason::Busy,
        Reason::Unsupported,
    ];

    /// Number of the reason on the ioctl interface.
    pub const fn index(self) -> usize {
        match self {
            Reason::NotPresent => 0,
            Reason::NoMemory => 1,
            Reason::Busy => 2,
            Reason::Unsupported => 3,
        }
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
    /// Whether it is worth another try: the kernel takes short references to pages all the time.
    pub fn is_transient(self) -> bool {
        self == Outcome::Failed(Reason::Busy)
    }
}

/// Sum of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    moved: u64,
    there: u64,
    failed: [u64; Reason::ALL.len()],
}

impl Tally {
    /// Counts one page.
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Moved => self.moved += 1,
            Outcome::There => self.there += 1,
            Outcome::Failed(reason) => self.failed[reason.index()] += 1,
        }
    }

    /// Adds the pages of another account.
    pub fn merge(&mut self, other: &Tally) {
        self.moved += other.moved;
        self.there += other.there;
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
    fn only_a_busy_page_is_tried_again() {
        assert!(Outcome::Failed(Reason::Busy).is_transient());
        for outcome in [
            Outcome::Moved,
            Outcome::There,
            Outcome::Failed(Reason::NotPresent),
            Outcome::Failed(Reason::NoMemory),
            Outcome::Failed(Reason::Unsupported),
        ] {
            assert!(!outcome.is_transient());
        }
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
