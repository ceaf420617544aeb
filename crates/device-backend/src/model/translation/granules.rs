// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How often the device uses memory of processes that lies across the link, by granule.
//!
//! Nothing is counted until somebody switches it on for an address space, and until then a use
//! costs a look at one atomic and no lock. What is counted has room for a bounded number of
//! granules: each address space has its share, so that none pushes out what is known of another,
//! and within its share the granule that was used longest ago is forgotten first.

use super::spaces::Space;
use super::tally::Count;
use cdm_protocol::{ACCESS_BYTES, GRANULE_BYTES, GRANULES_MAX, GRANULES_PER_SPACE_MAX};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A granule whose count reached the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hot {
    /// Its first byte.
    pub address: u64,
    /// Accesses since the count began.
    pub accesses: u64,
}

/// What was counted so far, and what is counted now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Address spaces whose accesses are counted.
    pub spaces: u64,
    /// Granules that have a count.
    pub granules: u64,
    /// Accesses that were counted.
    pub accesses: u64,
    /// Granules whose count reached the threshold.
    pub hot: u64,
    /// Granules that were forgotten for want of room.
    pub forgotten: u64,
}

/// The counts of all address spaces.
#[derive(Debug, Default)]
pub struct AccessCounts {
    /// Address spaces in the table, for a look without the lock.
    num_spaces: AtomicUsize,
    /// Held for a count or a change, and never while anybody waits.
    table: Mutex<BTreeMap<Space, Granules>>,
    accesses: Count,
    hot: Count,
    forgotten: Count,
}

/// The counts of one address space.
#[derive(Debug)]
struct Granules {
    threshold: u64,
    /// Most granules that have a count.
    capacity: usize,
    /// By number of the granule.
    counts: BTreeMap<u64, Entry>,
    /// Granules by their last use.
    order: BTreeMap<u64, u64>,
    next_use: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    accesses: u64,
    last_use: u64,
}

impl AccessCounts {
    /// Whether anything is counted.
    pub fn is_on(&self) -> bool {
        // Who has just switched it on may miss uses that are under way.
        self.num_spaces.load(Ordering::Relaxed) != 0
    }

    /// Counts accesses of an address space from zero on; of none any more, with a threshold of
    /// zero.
    pub(super) fn switch(&self, space: Space, threshold: u64) {
        let mut table = self.table();
        match threshold {
            0 => table.remove(&space),
            _ => table.insert(space, Granules::new(threshold)),
        };
        self.share_out(&mut table);
    }

    /// Counts nothing any more.
    pub(super) fn switch_all_off(&self) {
        let mut table = self.table();
        table.clear();
        self.share_out(&mut table);
    }

    /// Counts from zero on what is counted.
    pub(super) fn start_anew(&self) {
        for granules in self.table().values_mut() {
            granules.clear();
        }
    }

    /// Notes a use of `bytes` bytes in order; not zero, and none behind the last address. The
    /// granules that this made hot, mostly none.
    pub fn note_bytes(&self, space: Space, address: u64, bytes: u64) -> Vec<Hot> {
        let mut hot = Vec::new();
        if !self.is_on() {
            return hot;
        }
        let last = address + (bytes - 1);
        let mut table = self.table();
        let Some(granules) = table.get_mut(&space) else {
            return hot;
        };
        for granule in address / GRANULE_BYTES..=last / GRANULE_BYTES {
            let begin = granule * GRANULE_BYTES;
            let first = address.max(begin) / ACCESS_BYTES;
            let lines = last.min(begin + (GRANULE_BYTES - 1)) / ACCESS_BYTES - first + 1;
            hot.extend(self.add(granules, granule, lines));
        }
        hot
    }

    /// Notes so many accesses to a word; the granule, if this made it hot.
    pub fn note_word(&self, space: Space, address: u64, times: u64) -> Option<Hot> {
        if !self.is_on() || times == 0 {
            return None;
        }
        let mut table = self.table();
        let granules = table.get_mut(&space)?;
        self.add(granules, address / GRANULE_BYTES, times)
    }

    /// What it comes to.
    pub fn read(&self) -> Counted {
        let table = self.table();
        let granules = table.values().map(|granules| granules.counts.len() as u64);
        Counted {
            spaces: table.len() as u64,
            granules: granules.sum(),
            accesses: self.accesses.get(),
            hot: self.hot.get(),
            forgotten: self.forgotten.get(),
        }
    }

    fn add(&self, granules: &mut Granules, granule: u64, accesses: u64) -> Option<Hot> {
        self.accesses.add(accesses);
        let (reached, forgotten) = granules.add(granule, accesses);
        self.forgotten.add(forgotten);
        let accesses = reached?;
        self.hot.add(1);
        Some(Hot {
            address: granule * GRANULE_BYTES,
            accesses,
        })
    }

    /// Gives each address space its share of the room.
    fn share_out(&self, table: &mut BTreeMap<Space, Granules>) {
        let share = GRANULES_MAX / table.len().max(1);
        for granules in table.values_mut() {
            granules.capacity = share.min(GRANULES_PER_SPACE_MAX);
            self.forgotten.add(granules.trim());
        }
        self.num_spaces.store(table.len(), Ordering::Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Space, Granules>> {
        // Nothing panics while the table is locked.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Granules {
    fn new(threshold: u64) -> Self {
        Self {
            threshold,
            capacity: 0,
            counts: BTreeMap::new(),
            order: BTreeMap::new(),
            next_use: 0,
        }
    }

    /// Counts accesses to a granule: how many there were if they reach the threshold, and then
    /// its count is gone; and how many others were forgotten for it.
    fn add(&mut self, granule: u64, accesses: u64) -> (Option<u64>, u64) {
        let before = self.counts.remove(&granule);
        if let Some(entry) = before {
            self.order.remove(&entry.last_use);
        }
        let accesses = before.map_or(0, |entry| entry.accesses) + accesses;
        if accesses >= self.threshold {
            return (Some(accesses), 0);
        }
        let last_use = self.next_use;
        self.next_use += 1;
        self.order.insert(last_use, granule);
        let entry = Entry { accesses, last_use };
        self.counts.insert(granule, entry);
        (None, self.trim())
    }

    /// Forgets what there is no room for; how many granules.
    fn trim(&mut self) -> u64 {
        let mut forgotten = 0;
        while self.counts.len() > self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.counts.remove(&oldest);
            forgotten += 1;
        }
        forgotten
    }

    fn clear(&mut self) {
        self.counts.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRANULE: u64 = GRANULE_BYTES;

    fn counts(space: u64, threshold: u64) -> (AccessCounts, Space) {
        let counts = AccessCounts::default();
        let space = Space::numbered(space);
        counts.switch(space, threshold);
        (counts, space)
    }

    #[test]
    fn nothing_is_counted_of_an_address_space_that_is_not_switched_on() {
        let (counts, space) = counts(1, 1);
        let other = Space::numbered(2);
        assert_eq!(counts.note_bytes(other, 0, GRANULE), []);
        assert_eq!(counts.note_word(other, 0, 5), None);
        counts.switch(space, 0);
        assert!(!counts.is_on());
        assert_eq!(counts.note_word(space, 0, 5), None);
        assert_eq!(counts.read(), Counted::default());
    }

    #[test]
    fn lines_are_counted_where_they_lie_and_a_count_begins_anew_after_it_was_told() {
        let (counts, space) = counts(1, 1024);
        // One byte of the first granule's last line, and the next granule but its last byte.
        assert_eq!(
            counts.note_bytes(space, GRANULE - 1, GRANULE),
            [Hot {
                address: GRANULE,
                accesses: 1024,
            }]
        );
        let rest = counts.note_bytes(space, 0, GRANULE - 64);
        assert_eq!(
            rest,
            [Hot {
                address: 0,
                accesses: 1024,
            }]
        );
        assert_eq!(counts.note_word(space, 8, 1023), None);
        assert_eq!(counts.read().granules, 1);
        let hot = counts.note_word(space, 16, 1023);
        assert_eq!(hot.map(|hot| hot.accesses), Some(2046));
        assert_eq!(counts.read().granules, 0);
    }

    #[test]
    fn the_last_address_of_all_is_counted() {
        let (counts, space) = counts(1, 1);
        let hot = counts.note_bytes(space, u64::MAX, 1);
        assert_eq!(
            hot,
            [Hot {
                address: u64::MAX - (GRANULE - 1),
                accesses: 1,
            }]
        );
    }

    #[test]
    fn another_threshold_and_a_reset_count_from_zero_on() {
        let (counts, space) = counts(1, 10);
        assert_eq!(counts.note_word(space, 0, 9), None);
        counts.switch(space, 10);
        assert_eq!(counts.note_word(space, 0, 9), None);
        counts.start_anew();
        assert_eq!(counts.note_word(space, 0, 9), None);
        assert!(counts.note_word(space, 0, 1).is_some());
    }

    #[test]
    fn no_number_of_address_spaces_and_granules_takes_more_than_the_room_there_is() {
        let counts = AccessCounts::default();
        for number in 0..40 {
            let space = Space::numbered(number);
            counts.switch(space, u64::MAX);
            for granule in 0..GRANULES_PER_SPACE_MAX as u64 + 10 {
                counts.note_word(space, granule * GRANULE, 1);
            }
            let read = counts.read();
            assert!(read.granules <= GRANULES_MAX as u64, "{read:?}");
            let alone = number == 0;
            assert!(!alone || read.granules == GRANULES_PER_SPACE_MAX as u64);
        }
        let read = counts.read();
        assert_eq!(read.granules, 40 * (GRANULES_MAX as u64 / 40));
        assert_eq!(read.granules + read.forgotten, read.accesses);
    }

    /// A list of what is counted, the last used at its end.
    #[derive(Default)]
    struct Plain(Vec<(u64, u64)>);

    impl Plain {
        fn add(&mut self, granule: u64, accesses: u64, threshold: u64, room: usize) -> Option<u64> {
            let found = self.0.iter().position(|&(known, _)| known == granule);
            let before = found.map_or(0, |index| self.0.remove(index).1);
            if before + accesses >= threshold {
                return Some(before + accesses);
            }
            self.0.push((granule, before + accesses));
            if self.0.len() > room {
                self.0.remove(0);
            }
            None
        }
    }

    proptest! {
        /// Whatever is used in whatever order, the counts are those of a plain list.
        #[test]
        fn counts_are_exact_and_the_granule_used_longest_ago_is_forgotten(
            threshold in 1..50u64,
            room in 1..6usize,
            uses in prop::collection::vec((0..8u64, 1..20u64), 0..200),
        ) {
            let mut granules = Granules::new(threshold);
            granules.capacity = room;
            let mut plain = Plain::default();
            for (granule, accesses) in uses {
                let (told, _) = granules.add(granule, accesses);
                prop_assert_eq!(told, plain.add(granule, accesses, threshold, room));
                let mut known: Vec<_> =
                    granules.counts.iter().map(|(&number, entry)| (number, entry.accesses)).collect();
                let mut expected = plain.0.clone();
                known.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(known, expected);
                prop_assert_eq!(granules.order.len(), granules.counts.len());
            }
        }

        /// A use of any bytes is as many accesses as it touches lines, each in its granule.
        #[test]
        fn bytes_in_order_are_one_access_for_each_line(
            address in 0..3 * GRANULE,
            bytes in 1..3 * GRANULE,
        ) {
            let (counts, space) = counts(1, 1);
            let mut expected = BTreeMap::new();
            for line in address / ACCESS_BYTES..=(address + bytes - 1) / ACCESS_BYTES {
                *expected.entry(line * ACCESS_BYTES / GRANULE * GRANULE).or_default() += 1u64;
            }
            let hot = counts.note_bytes(space, address, bytes);
            let found: BTreeMap<u64, u64> = hot.iter().map(|hot| (hot.address, hot.accesses)).collect();
            prop_assert_eq!(found.len(), hot.len());
            prop_assert_eq!(found, expected);
        }
    }
}
