// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How much memory goes there and back in a second: the figures of all groups that move
//! memory, by the size of its pages, how much it is and how many threads move it.

use std::time::Duration;

use anyhow::{Result, bail};
use cdm_guest_tools::memory::HUGE_PAGE_BYTES;

use crate::contest::{Contest, Setting, Turn};
use crate::memory::{Backing, PageSize};
use crate::movers::{Make, bare};
use crate::sample::{Measured, Unit};
use crate::timing::mebibytes_per_second;
use crate::trips::{Case, Trip, round_trips};

/// Bytes that are moved in a turn, each way, or one round trip if that is more.
const BYTES: usize = 16 << 20;
const QUICK_BYTES: usize = 4 << 20;
/// Most round trips of a turn.
const TRIPS_MAX: usize = 32;
/// Least memory that more than one thread moves, in a quick run.
const QUICK_SHARED_MIN: usize = 16 << 20;

/// Figures of a group.
pub struct Figures<'a> {
    /// What all their names begin with.
    pub name: &'static str,
    /// What the memory is.
    pub backing: Backing,
    /// What it is in.
    pub pages: &'a [PageSize],
    /// How much it is.
    pub sizes: &'a [usize],
    /// Whether all CPUs move it, too.
    pub shared: bool,
    /// The way there, and the way back.
    pub ways: [&'static str; 2],
    /// Who moves it.
    pub movers: &'a [(&'static str, Make)],
}

impl Figures<'_> {
    /// All cases.
    pub fn cases(&self, setting: &Setting) -> Vec<Case> {
        let wanted = match setting.quick {
            true => QUICK_BYTES,
            false => BYTES,
        };
        let mut cases = Vec::new();
        for &pages in self.pages {
            // No size but that of a folio is between two of four times each other.
            let least = (pages == PageSize::Huge).then_some(HUGE_PAGE_BYTES);
            let larger = self
                .sizes
                .iter()
                .copied()
                .filter(|bytes| *bytes > pages.bytes());
            for bytes in least.into_iter().chain(larger) {
                let case = |threads| Case {
                    backing: self.backing,
                    pages,
                    bytes,
                    threads,
                    trips: (wanted / bytes).clamp(1, TRIPS_MAX),
                };
                cases.push(case(1));
                // Each thread has whole folios of its own, in a page table of its own.
                let is_large = bytes / setting.cpus >= HUGE_PAGE_BYTES;
                let is_wanted = self.shared && (!setting.quick || bytes >= QUICK_SHARED_MIN);
                if setting.cpus > 1 && is_large && is_wanted {
                    cases.push(case(setting.cpus));
                }
            }
        }
        cases
    }

    /// Their contests.
    pub fn contests(&self, setting: &Setting) -> Vec<Contest> {
        let contest = |case: Case| {
            let (group, ways) = (self.name, self.ways);
            let turn = |&(by, make): &(&'static str, Make)| Turn {
                by,
                measure: Box::new(move || measure(group, ways, case, by, make)),
            };
            Contest {
                name: name(group, case, "both-ways"),
                turns: self.movers.iter().map(turn).collect(),
            }
        };
        self.cases(setting).into_iter().map(contest).collect()
    }
}

/// The name of a figure.
pub fn name(group: &str, case: Case, way: &str) -> String {
    let Case {
        pages,
        bytes,
        threads,
        ..
    } = case;
    format!("{group}/{pages}/{}/{way}/{threads}-thread", size(bytes))
}

/// A size in a name.
fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{}KiB", bytes >> 10),
        mebibytes => format!("{mebibytes}MiB"),
    }
}

/// How often a turn is made that says nothing.
const TURNS_MAX: usize = 5;

fn measure(
    group: &str,
    ways: [&str; 2],
    case: Case,
    by: &'static str,
    make: Make,
) -> Result<Vec<Measured>> {
    for _ in 0..TURNS_MAX {
        let trips = round_trips(case, make)?;
        if let Some(values) = values(group, ways, case, by, &trips) {
            return Ok(values);
        }
    }
    bail!(
        "what {by} does besides moving took longer than all of it, {TURNS_MAX} times: measure on a \
         host with less other work"
    )
}

/// Throughput over all trips; and without what the mover does besides moving, if it does.
/// Nothing if that alone took longer than all of it, as on a host that was busy only then.
fn values(
    group: &str,
    [to, from]: [&str; 2],
    case: Case,
    by: &'static str,
    trips: &[Trip],
) -> Option<Vec<Measured>> {
    let bytes = case.bytes * trips.len();
    let value = |by, way, time| Measured {
        name: name(group, case, way),
        by,
        unit: Unit::MebibytesPerSecond,
        value: mebibytes_per_second(bytes, time),
    };
    let there: Duration = trips.iter().map(|trip| trip.there).sum();
    let back: Duration = trips.iter().map(|trip| trip.back).sum();
    // A busy host adds to some of them, and only ever adds.
    let least: Option<Duration> = trips.iter().filter_map(|trip| trip.besides).min();
    let besides = least.map(|time| time * trips.len() as u32);
    let mut values = vec![value(by, to, there), value(by, from, back)];
    if let (Some(besides), Some(bare)) = (besides, bare(by)) {
        let moving = there.checked_sub(besides).filter(|time| !time.is_zero())?;
        values.push(value(bare, to, moving));
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAYS: [&str; 2] = ["to-device", "to-system"];
    const CASE: Case = Case {
        backing: Backing::Anonymous,
        pages: PageSize::Huge,
        bytes: 16 << 20,
        threads: 2,
        trips: 1,
    };

    fn figures() -> Figures<'static> {
        Figures {
            name: "g",
            backing: Backing::Anonymous,
            pages: &[PageSize::Small, PageSize::Huge],
            sizes: &[64 << 10, 4 << 20, 256 << 20],
            shared: true,
            ways: WAYS,
            movers: &[],
        }
    }

    fn setting(quick: bool, cpus: usize) -> Setting {
        Setting { quick, cpus }
    }

    #[test]
    fn cases_are_all_sizes_in_both_pages_with_one_thread_and_with_all() {
        let cases = figures().cases(&setting(false, 2));
        let of = |pages, threads| -> Vec<usize> {
            let has = |case: &&Case| case.pages == pages && case.threads == threads;
            let found = cases.iter().filter(has);
            found.map(|case| case.bytes >> 10).collect()
        };
        assert_eq!(of(PageSize::Small, 1), [64, 4096, 262_144]);
        assert_eq!(of(PageSize::Huge, 1), [2048, 4096, 262_144]);
        // A thread has 2 MiB or more.
        assert_eq!(of(PageSize::Huge, 2), [4096, 262_144]);
        assert_eq!(of(PageSize::Small, 2), of(PageSize::Huge, 2));
    }

    #[test]
    fn one_thread_is_enough_on_one_cpu_and_where_nobody_shares() {
        let is_single =
            |cases: Vec<Case>| cases.len() == 6 && cases.iter().all(|case| case.threads == 1);
        assert!(is_single(figures().cases(&setting(false, 1))));
        let alone = Figures {
            shared: false,
            ..figures()
        };
        assert!(is_single(alone.cases(&setting(false, 2))));
    }

    #[test]
    fn small_sizes_are_moved_more_often_but_not_for_ever() {
        let trips = |quick, bytes| {
            let cases = figures().cases(&setting(quick, 1));
            cases.iter().find(|case| case.bytes == bytes).unwrap().trips
        };
        assert_eq!(trips(false, 64 << 10), TRIPS_MAX);
        assert_eq!(trips(false, 4 << 20), 4);
        assert_eq!(trips(true, 4 << 20), 1);
        assert_eq!(trips(false, 256 << 20), 1);
    }

    #[test]
    fn name_tells_pages_size_way_and_threads() {
        assert_eq!(
            name("migrate", CASE, "to-device"),
            "migrate/2MiB/16MiB/to-device/2-thread"
        );
        assert_eq!(size(64 << 10), "64KiB");
    }

    #[test]
    fn what_is_done_besides_is_taken_off_the_way_there_alone() {
        let trip = |there, besides| Trip {
            there: Duration::from_secs(there),
            back: Duration::from_secs(2),
            besides,
        };
        let told = |by, trips: &[Trip]| -> Vec<(&str, f64)> {
            let values = values("g", WAYS, CASE, by, trips).unwrap();
            values.iter().map(|one| (one.by, one.value)).collect()
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(
            told("test_hmm-private", &[trip(4, second), trip(4, second)]),
            [
                ("test_hmm-private", 4.0),
                ("test_hmm-private", 8.0),
                ("test_hmm-private-bare", 32.0 / 6.0)
            ]
        );
        assert_eq!(told("cdm", &[trip(2, None)]), [("cdm", 8.0), ("cdm", 8.0)]);
        // One that took longer by chance does not come off the others.
        let trips = [trip(4, Some(Duration::from_secs(9))), trip(4, second)];
        assert_eq!(told("test_hmm-private", &trips)[2].1, 32.0 / 6.0);
        let nothing_left = [trip(1, second), trip(1, second)];
        assert!(values("g", WAYS, CASE, "test_hmm-private", &nothing_left).is_none());
    }
}
