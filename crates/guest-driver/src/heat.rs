// SPDX-License-Identifier: GPL-2.0-only

//! What is used much, how much of it may be moved, and what waits to be. Pure logic: no kernel
//! facility, no unsafe.
//!
//! A [`Bucket`] of pages limits how many pages move for being hot: it begins full, each page
//! that moves is taken from it, and it fills up again at a fixed rate. A [`Backlog`] holds what
//! the device reported and nobody has looked at yet.
//!
//! The other way round, what the CPUs use in the device is looked for: [`visit`] goes round the
//! memory, so many folios at a time, and [`Streaks`] tell which of them were used at each of the
//! last looks. That a page does not go to and fro is the matter of [`Grace`], for what has just
//! come to the device, and [`Recent`], for what has just left it.

use core::ops::DerefMut;

use crate::ages::{Candidate, Stamp};

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// Pages that may move now. Exact: what was taken from the beginning of time until now is never
/// more than the burst and what the rate adds meanwhile, to the page.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// What it holds when it is full, in pages.
    burst: u32,
    /// Pages that it gains in a second.
    pages_per_second: u32,
    /// What it holds, in pages of a thousand-millionth each.
    content: u64,
    /// When that was, in nanoseconds.
    as_of: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn new(burst: u32, pages_per_second: u32, now_ns: u64) -> Self {
        let mut bucket = Self {
            burst,
            pages_per_second,
            content: 0,
            as_of: now_ns,
        };
        bucket.content = bucket.room();
        bucket
    }

    /// What it holds when it is full: `u32::MAX` pages fit.
    fn room(&self) -> u64 {
        u64::from(self.burst) * SECOND_NS
    }

    /// Takes up to `pages`; how many it had.
    pub fn take(&mut self, pages: u64, now_ns: u64) -> u64 {
        let elapsed = now_ns.saturating_sub(self.as_of);
        // A nanosecond adds as many thousand-millionths as a second adds pages.
        let gained = elapsed.saturating_mul(self.pages_per_second.into());
        self.content = self.content.saturating_add(gained).min(self.room());
        self.as_of = self.as_of.max(now_ns);
        let taken = pages.min(self.content / SECOND_NS);
        self.content -= taken * SECOND_NS;
        taken
    }

    /// Puts pages back that were taken and did not move.
    pub fn put_back(&mut self, pages: u64) {
        let content = self.content.saturating_add(pages.saturating_mul(SECOND_NS));
        self.content = content.min(self.room());
    }
}

/// What a device reported: a granule of an address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The address space.
    pub pasid: u32,
    /// First byte of the granule.
    pub address: u64,
    /// Accesses that the device counted.
    pub accesses: u64,
}

/// Reports that wait, the longest waiting first; as many as the memory has room for.
pub struct Backlog<S> {
    ring: S,
    first: usize,
    count: usize,
}

impl<S: DerefMut<Target = [Report]>> Backlog<S> {
    /// None yet; `ring` is the room.
    pub fn new(ring: S) -> Self {
        Self {
            ring,
            first: 0,
            count: 0,
        }
    }

    /// Takes a report in; one of a granule that waits already is added to that. False if there
    /// is no room.
    pub fn push(&mut self, report: Report) -> bool {
        for index in 0..self.count {
            let place = self.place(index);
            let waiting = &mut self.ring[place];
            if (waiting.pasid, waiting.address) == (report.pasid, report.address) {
                waiting.accesses = waiting.accesses.saturating_add(report.accesses);
                return true;
            }
        }
        if self.count == self.ring.len() {
            return false;
        }
        let place = self.place(self.count);
        self.ring[place] = report;
        self.count += 1;
        true
    }

    /// The report that waits longest.
    pub fn pop(&mut self) -> Option<Report> {
        if self.count == 0 {
            return None;
        }
        let report = self.ring[self.first];
        self.first = self.place(1);
        self.count -= 1;
        Some(report)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    fn place(&self, index: usize) -> usize {
        let place = self.first + index;
        if place < self.ring.len() {
            place
        } else {
            place - self.ring.len()
        }
    }
}

/// Looks at folios in use from page `from` on, round a memory of so many pages: at `limit` of them
/// at most, and at none twice. `next` finds the first folio in use in a range of pages. The page
/// to go on from.
pub fn visit(
    from: u32,
    pages: u32,
    limit: u32,
    mut next: impl FnMut(u32, u32) -> Option<Candidate>,
    mut look: impl FnMut(Candidate),
) -> u32 {
    let from = if from < pages { from } else { 0 };
    let (mut at, mut end) = (from, pages);
    let mut left = limit;
    while left > 0 {
        let found = if at < end { next(at, end) } else { None };
        match found {
            // What it is part of was looked at when that began.
            Some(folio) if folio.page < at => at += 1,
            Some(folio) => {
                at = folio.page.saturating_add(1 << folio.order);
                left -= 1;
                look(folio);
            }
            None if end == pages && from > 0 => (at, end) = (0, from),
            None => return from,
        }
    }
    match at < pages {
        true => at,
        false => 0,
    }
}

/// For each page of a memory at which a folio may begin, at how many looks in a row the folio
/// there was found used; a folio that came since the last look begins anew.
///
/// An entry is the low bits of the folio's stamp, and above them one more than the looks, or zero
/// for none: what is found used at the first look was used no one knows when.
pub struct Streaks<S> {
    entries: S,
}

/// Bits of a stamp in an entry.
const STAMP_BITS: u32 = 13;
const STAMP_MASK: u16 = (1 << STAMP_BITS) - 1;
/// Looks in a row that can be told apart.
pub const STREAK_MAX: u16 = (1 << (16 - STAMP_BITS)) - 2;

impl<S: DerefMut<Target = [u16]>> Streaks<S> {
    /// Of a memory that nobody has looked at; one entry a page.
    pub fn new(mut entries: S) -> Self {
        entries.fill(0);
        Self { entries }
    }

    /// A folio was looked at; at how many looks in a row it was used, this one included.
    pub fn note(&mut self, folio: Candidate, is_used: bool) -> u16 {
        let Some(entry) = self.entries.get_mut(folio.page as usize) else {
            return 0;
        };
        // The low bits are what is kept.
        let stamp = folio.stamp as u16 & STAMP_MASK;
        let seen = *entry >> STAMP_BITS;
        let is_known = seen != 0 && *entry & STAMP_MASK == stamp;
        let looks = match (is_known, is_used) {
            (true, true) => seen.min(STREAK_MAX),
            _ => 0,
        };
        *entry = (looks + 1) << STAMP_BITS | stamp;
        looks
    }
}

/// Which folios came to the device so lately that they are to stay.
#[derive(Clone, Copy, Debug)]
pub struct Grace {
    /// How long they stay at least, in nanoseconds.
    period_ns: u64,
    /// Times, and the last stamp that was given until then; the first is the older one.
    marks: [(u64, Stamp); 2],
}

impl Grace {
    /// `last` is the last stamp that was given. When the folios before that came is not known, so
    /// each stays for the period, as if it had just come; later ones up to twice as long.
    pub fn new(period_ns: u64, now_ns: u64, last: Stamp) -> Self {
        Self {
            period_ns,
            marks: [(now_ns, 0), (now_ns, last)],
        }
    }

    /// It is later now, and `last` the last stamp that was given. Until the next call, folios
    /// with later stamps than the one returned stay.
    pub fn at(&mut self, now_ns: u64, last: Stamp) -> Stamp {
        let [_, newer] = self.marks;
        if now_ns.saturating_sub(newer.0) >= self.period_ns {
            self.marks = [newer, (now_ns, last)];
        }
        self.marks[0].1
    }
}

/// Frames of system memory that pages came back to a short time ago. One that there is no room
/// for is forgotten.
pub struct Recent<S> {
    /// Frames and when, by the low bits of the frame.
    places: S,
    period_ns: u64,
}

impl<S: DerefMut<Target = [(usize, u64)]>> Recent<S> {
    /// None yet. `places` is the room, and a frame is recent for so many nanoseconds.
    pub fn new(mut places: S, period_ns: u64) -> Self {
        places.fill((0, 0));
        Self { places, period_ns }
    }

    /// A page came to that frame.
    pub fn note(&mut self, frame: usize, now_ns: u64) {
        let count = self.places.len();
        if let Some(place) = frame.checked_rem(count) {
            self.places[place] = (frame, now_ns);
        }
    }

    /// Whether a page came there lately.
    pub fn has(&self, frame: usize, now_ns: u64) -> bool {
        let place = frame.checked_rem(self.places.len());
        let found = place.map(|place| self.places[place]);
        found.is_some_and(|(known, then)| {
            known == frame && frame != 0 && now_ns.saturating_sub(then) < self.period_ns
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bucket_that_never_fills_up_again_gives_what_it_began_with() {
        let mut bucket = Bucket::new(10, 0, 5);
        assert_eq!(bucket.take(7, 5), 7);
        assert_eq!(bucket.take(7, u64::MAX), 3);
        assert_eq!(bucket.take(1, u64::MAX), 0);
        bucket.put_back(2);
        assert_eq!(bucket.take(9, u64::MAX), 2);
    }

    #[test]
    fn bucket_fills_up_by_the_page_and_not_above_its_burst() {
        let mut bucket = Bucket::new(4, 2, 0);
        assert_eq!(bucket.take(4, 0), 4);
        assert_eq!(bucket.take(4, SECOND_NS / 2 - 1), 0);
        assert_eq!(bucket.take(4, SECOND_NS / 2), 1);
        assert_eq!(bucket.take(9, 1000 * SECOND_NS), 4);
        // A clock that goes back adds nothing, now or when it comes to where it was.
        assert_eq!(bucket.take(9, 0), 0);
        assert_eq!(bucket.take(9, 1000 * SECOND_NS), 0);
        let mut full = Bucket::new(u32::MAX, u32::MAX, 0);
        full.put_back(u64::MAX);
        assert_eq!(full.take(u64::MAX, u64::MAX), u32::MAX.into());
    }

    fn folio(page: u32, order: u32, stamp: Stamp) -> Candidate {
        Candidate { stamp, page, order }
    }

    #[test]
    fn folio_is_hot_only_after_looks_in_a_row_and_the_first_tells_nothing() {
        let mut streaks = Streaks::new(vec![0; 4]);
        let one = folio(2, 0, 7);
        let looks = [true, true, true, false, true, true];
        assert_eq!(
            looks.map(|used| streaks.note(one, used)),
            [0, 1, 2, 0, 1, 2]
        );
        // Another folio in the same place.
        assert_eq!(streaks.note(folio(2, 0, 8), true), 0);
        assert_eq!(streaks.note(folio(2, 0, 8), true), 1);
        // The place of no page.
        assert_eq!(streaks.note(folio(4, 0, 1), true), 0);
        for _ in 0..20 {
            streaks.note(one, true);
        }
        assert_eq!(streaks.note(one, true), STREAK_MAX);
        assert_eq!(streaks.note(folio(1, 0, 0), true), 0);
    }

    #[test]
    fn folio_that_came_lately_stays_for_a_period_at_least_and_two_at_most() {
        let mut grace = Grace::new(100, 0, 5);
        // What was there before may have come just then.
        assert_eq!(grace.at(0, 5), 0);
        assert_eq!(grace.at(99, 9), 0);
        assert_eq!(grace.at(100, 9), 5);
        assert_eq!(grace.at(199, 12), 5);
        assert_eq!(grace.at(200, 12), 9);
        assert_eq!(grace.at(1000, 20), 12);
    }

    #[test]
    fn frame_is_recent_for_its_time_unless_another_takes_its_place() {
        let mut recent = Recent::new(vec![(9, 9); 4], 10);
        assert!(!recent.has(9, 9));
        recent.note(5, 100);
        assert!(recent.has(5, 109) && !recent.has(5, 110) && !recent.has(1, 105));
        recent.note(9, 101);
        assert!(recent.has(9, 101) && !recent.has(5, 101));
        assert!(!recent.has(0, 0));
        let mut none = Recent::new(vec![], 10);
        none.note(3, 1);
        assert!(!none.has(3, 1));
    }

    proptest! {
        /// Whoever asks for whatever and gives back what he likes of it, the bucket holds what a
        /// count in whole numbers says.
        #[test]
        fn bucket_is_exact(
            burst in 1..1000u32,
            rate in 0..5000u32,
            steps in prop::collection::vec((0..3 * SECOND_NS, 0..2000u64, 0..100u64), 1..100),
        ) {
            let mut bucket = Bucket::new(burst, rate, 0);
            let (mut now, mut used) = (0u64, 0u128);
            // In parts of a page: all that came in, as far as there was room for it.
            let full = u128::from(burst) * u128::from(SECOND_NS);
            let mut content = full;
            for (pause, wanted, share) in steps {
                now += pause;
                content = (content + u128::from(pause) * u128::from(rate)).min(full);
                let taken = bucket.take(wanted, now);
                prop_assert_eq!(
                    u128::from(taken),
                    u128::from(wanted).min(content / u128::from(SECOND_NS))
                );
                let back = taken * share / 100;
                bucket.put_back(back);
                content -= u128::from(taken - back) * u128::from(SECOND_NS);
                used += u128::from(taken - back);
                let most = full + u128::from(now) * u128::from(rate);
                prop_assert!(used * u128::from(SECOND_NS) <= most);
            }
        }

        /// The backlog does what a queue does in which nobody stands twice.
        #[test]
        fn backlog_is_a_queue_in_which_nobody_stands_twice(
            room in 1..6usize,
            steps in prop::collection::vec((0..3u8, 0..2u32, 0..4u64, 1..9u64), 0..200),
        ) {
            let mut backlog = Backlog::new(vec![Report::default(); room]);
            let mut plain: Vec<Report> = Vec::new();
            for (step, pasid, address, accesses) in steps {
                if step == 0 {
                    let first = (!plain.is_empty()).then(|| plain.remove(0));
                    prop_assert_eq!(backlog.pop(), first);
                    continue;
                }
                let report = Report { pasid, address, accesses };
                let waits = plain
                    .iter()
                    .position(|known| (known.pasid, known.address) == (pasid, address));
                let is_taken = match waits {
                    Some(index) => {
                        plain[index].accesses += accesses;
                        true
                    }
                    None if plain.len() < room => {
                        plain.push(report);
                        true
                    }
                    None => false,
                };
                prop_assert_eq!(backlog.push(report), is_taken);
            }
            backlog.clear();
            prop_assert_eq!(backlog.pop(), None);
        }

        /// However large the folios are and wherever one begins, a visit looks at as many as it
        /// may, at none twice, and visits one after another look at all of them in turn.
        #[test]
        fn visits_go_round_all_folios_in_turn(
            orders in prop::collection::vec((0..4u32, any::<bool>()), 1..40),
            from in 0..200u32,
            limit in 1..20u32,
        ) {
            let mut folios = Vec::new();
            let mut end = 0;
            for (order, is_used) in orders {
                if is_used {
                    folios.push(folio(end, order, 1));
                }
                end += 1 << order;
            }
            let next = |at: u32, end: u32| {
                let mut found = folios.iter().filter(|folio| folio.page + (1 << folio.order) > at);
                found.next().filter(|folio| folio.page < end).copied()
            };
            // A look from the middle of a folio finds the next one first.
            let mut at = visit(from, end, 1, next, |_| ());
            let mut seen = Vec::new();
            for _ in 0..=folios.len() {
                let before = seen.len();
                at = visit(at, end, limit, next, |folio| seen.push(folio.page));
                let looked = &seen[before..];
                prop_assert_eq!(looked.len(), folios.len().min(limit as usize));
                let mut once = looked.to_vec();
                once.sort_unstable();
                once.dedup();
                prop_assert_eq!(once.len(), looked.len());
            }
            // Each as often as any other, give or take one.
            for folio in &folios {
                let times = seen.iter().filter(|page| **page == folio.page).count();
                let all = seen.len() / folios.len();
                prop_assert!(times == all || times == all + 1, "{} of {}", times, all);
            }
        }
    }
}
