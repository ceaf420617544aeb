// SPDX-License-Identifier: GPL-2.0-only

//! Which pages were migrated longest ago. Pure logic: no kernel facility, no unsafe.
//!
//! Time is a count of migrations, a [`Stamp`]. Every page in use carries its own (in its
//! struct page, which costs nothing); a table like that here would be large, and to look
//! at every page for each eviction slow. So [`Ages`] keeps one lower bound for each block
//! of 512 pages, and the pages of a block are looked at only when nothing older can be
//! anywhere else. The order of eviction is exact all the same.

use core::ops::DerefMut;

/// When something was migrated to the device.
pub type Stamp = u64;

/// Later than any migration: the bound of a block without pages in use.
pub const NEVER: Stamp = Stamp::MAX;

/// For each block, a stamp that no page in use there is older than.
pub struct Ages<S> {
    since: S,
}

/// A block to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The block.
    pub block: usize,
    /// Its pages up to this stamp are older than those of any other block, or as old.
    pub until: Stamp,
}

impl<S: DerefMut<Target = [Stamp]>> Ages<S> {
    /// A table of blocks without pages in use; one entry a block.
    pub fn new(mut since: S) -> Self {
        since.fill(NEVER);
        Self { since }
    }

    /// A page of `block` has that stamp.
    pub fn note(&mut self, block: usize, stamp: Stamp) {
        let since = &mut self.since[block];
        *since = stamp.min(*since);
    }

    /// Blocks that may have pages in use, each with its bound.
    pub fn blocks(&self) -> impl Iterator<Item = (Stamp, u32)> + '_ {
        let since = self.since.iter().enumerate();
        since
            .filter(|(_, since)| **since != NEVER)
            .map(|(block, since)| (*since, block as u32))
    }

    /// The block with the oldest pages, if there may be some older than `before`.
    ///
    /// The caller looks at all pages in use there and [`note`](Self::note)s those that
    /// stay: the bound is gone with this call.
    pub fn next(&mut self, before: Stamp) -> Option<Turn> {
        let mut oldest = (NEVER, 0);
        let mut until = NEVER;
        for (block, since) in self.since.iter().enumerate() {
            if *since < oldest.0 {
                until = oldest.0;
                oldest = (*since, block);
            } else {
                until = until.min(*since);
            }
        }
        let (since, block) = oldest;
        if since >= before {
            return None;
        }
        self.since[block] = NEVER;
        Some(Turn { block, until })
    }
}

/// A folio that may be evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// When it was migrated to the device.
    pub stamp: Stamp,
    /// Its first page.
    pub page: u32,
    /// It has `1 << order` pages.
    pub order: u32,
}

/// Sorts the folios of a block by age, and says how many of them are to go: those up to
/// the stamp of `turn` and older than `before`, until `limit` pages are reached.
pub fn choose(candidates: &mut [Candidate], turn: Turn, before: Stamp, limit: u64) -> usize {
    sort_by_key(candidates, |candidate| (candidate.stamp, candidate.page));
    let old = candidates
        .iter()
        .take_while(|candidate| candidate.stamp <= turn.until && candidate.stamp < before)
        .count();
    count_due(&candidates[..old], limit)
}

/// Sorts in place, in bounded time and without recursion: a heap sort, as elsewhere in the
/// kernel, whose objtool does not follow the panics of the one in `core`.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    let sift = |items: &mut [T], mut parent: usize| loop {
        let (left, right) = (2 * parent + 1, 2 * parent + 2);
        let mut child = left;
        if right < items.len() && key(&items[left]) < key(&items[right]) {
            child = right;
        }
        if child >= items.len() || key(&items[child]) <= key(&items[parent]) {
            return;
        }
        items.swap(child, parent);
        parent = child;
    };
    for parent in (0..items.len() / 2).rev() {
        sift(items, parent);
    }
    for end in (1..items.len()).rev() {
        items.swap(0, end);
        sift(&mut items[..end], 0);
    }
}

/// How many folios, in their order, are to go until `limit` pages are reached.
pub fn count_due(candidates: &[Candidate], limit: u64) -> usize {
    let mut pages = 0;
    candidates
        .iter()
        .take_while(|candidate| {
            let is_due = pages < limit;
            pages += 1 << candidate.order;
            is_due
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_without_pages_has_no_turn() {
        let mut ages = Ages::new(vec![0; 4]);
        assert_eq!(ages.next(NEVER), None);
        ages.note(2, 7);
        ages.note(2, 9);
        assert_eq!(ages.next(7), None);
        assert_eq!(ages.blocks().collect::<Vec<_>>(), [(7, 2)]);
        let turn = Turn {
            block: 2,
            until: NEVER,
        };
        assert_eq!(ages.next(8), Some(turn));
        assert_eq!(ages.next(NEVER), None);
    }

    #[test]
    fn a_limit_is_reached_by_whole_folios() {
        let folio = |stamp, page, order| Candidate { stamp, page, order };
        let mut candidates = [folio(3, 512, 9), folio(1, 0, 0), folio(2, 1, 0)];
        let turn = Turn { block: 0, until: 3 };
        assert_eq!(choose(&mut candidates, turn, NEVER, 2), 2);
        assert_eq!(choose(&mut candidates, turn, NEVER, 3), 3);
        assert_eq!(choose(&mut candidates, turn, 3, 600), 2);
        assert_eq!(
            choose(&mut candidates, Turn { until: 1, ..turn }, NEVER, 3),
            1
        );
        assert_eq!(choose(&mut candidates, turn, NEVER, 0), 0);
    }

    proptest! {
        #[test]
        fn sorting_is_what_the_standard_library_does(items in prop::collection::vec(0..50u32, 0..200)) {
            let mut sorted = items.clone();
            sort_by_key(&mut sorted, |item| *item);
            let mut expected = items;
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }

        /// Pages with stamps in blocks, some freed meanwhile; however many are evicted, they
        /// are the oldest ones.
        #[test]
        fn the_oldest_pages_go_first(
            stamps in prop::collection::vec((0..40u64, 0..8usize), 1..200),
            freed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            rounds in prop::collection::vec(1..60u64, 1..6),
        ) {
            let mut ages = Ages::new(vec![0; 8]);
            let mut live: Vec<(Stamp, usize, u32)> = Vec::new();
            for (page, (stamp, block)) in stamps.iter().enumerate() {
                ages.note(*block, *stamp);
                live.push((*stamp, *block, page as u32));
            }
            for which in freed {
                if !live.is_empty() {
                    live.swap_remove(which.index(live.len()));
                }
            }
            for limit in rounds {
                let mut gone: Vec<(Stamp, u32)> = Vec::new();
                while (gone.len() as u64) < limit {
                    let Some(turn) = ages.next(NEVER) else { break };
                    let mut candidates: Vec<Candidate> = live
                        .iter()
                        .filter(|(_, block, _)| *block == turn.block)
                        .map(|(stamp, _, page)| Candidate { stamp: *stamp, page: *page, order: 0 })
                        .collect();
                    let left = limit - gone.len() as u64;
                    let count = choose(&mut candidates, turn, NEVER, left);
                    for candidate in &candidates[..count] {
                        gone.push((candidate.stamp, candidate.page));
                        live.retain(|(_, _, page)| *page != candidate.page);
                    }
                    for candidate in &candidates[count..] {
                        ages.note(turn.block, candidate.stamp);
                    }
                }
                let oldest_left = live.iter().map(|(stamp, ..)| *stamp).min();
                let youngest_gone = gone.iter().map(|(stamp, _)| *stamp).max();
                if let (Some(left), Some(gone)) = (oldest_left, youngest_gone) {
                    prop_assert!(gone <= left, "{} left and {} gone", left, gone);
                }
                prop_assert!(gone.len() as u64 == limit || live.is_empty());
            }
        }
    }
}
