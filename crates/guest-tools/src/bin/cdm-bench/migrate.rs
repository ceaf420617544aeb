// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Anonymous memory to the device and back: how much of it in a second, by the size of its
//! pages, how much it is and how many threads move it.

use std::time::Duration;

use cdm_guest_tools::memory::HUGE_PAGE_BYTES;

use crate::contest::{Contest, Setting, Turn};
use crate::memory::PageSize;
use crate::movers::{MOVERS, Make, bare};
use crate::sample::{Measured, Unit};
use crate::timing::mebibytes_per_second;
use crate::trips::{Case, Trip, round_trips};

const SIZES: [usize; 7] = [
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
    256 << 20,
];
const QUICK_SIZES: [usize; 2] = [64 << 10, 16 << 20];

/// Bytes that are moved in a turn, each way, or one round trip if that is more.
const BYTES: usize = 16 << 20;
const QUICK_BYTES: usize = 4 << 20;
/// Most round trips of a turn.
const TRIPS_MAX: usize = 32;
/// Least memory that more than one thread moves, in a quick run.
const QUICK_SHARED_MIN: usize = 16 << 20;

/// All that is measured.
fn cases(setting: &Setting) -> Vec<Case> {
    let (sizes, wanted) = match setting.quick {
        true => (&QUICK_SIZES[..], QUICK_BYTES),
        false => (&SIZES[..], BYTES),
    };
    let small = sizes.iter().map(|bytes| (PageSize::Small, *bytes));
    let huge = sizes.iter().filter(|bytes| **bytes > HUGE_PAGE_BYTES);
    let huge = std::iter::once(&HUGE_PAGE_BYTES).chain(huge);
    let huge = huge.map(|bytes| (PageSize::Huge, *bytes));
    let mut cases = Vec::new();
    for (pages, bytes) in small.chain(huge) {
        let trips = (wanted / bytes).clamp(1, TRIPS_MAX);
        let case = |threads| Case {
            pages,
            bytes,
            threads,
            trips,
        };
        cases.push(case(1));
        // Each thread has whole folios of its own, in a page table of its own.
        let is_large = bytes / setting.cpus >= HUGE_PAGE_BYTES;
        let is_wanted = !setting.quick || bytes >= QUICK_SHARED_MIN;
        if setting.cpus > 1 && is_large && is_wanted {
            cases.push(case(setting.cpus));
        }
    }
    cases
}

/// The name of a figure.
fn name(case: Case, way: &str) -> String {
    let Case {
        pages,
        bytes,
        threads,
        ..
    } = case;
    format!("migrate/{pages}/{}/{way}/{threads}-thread", size(bytes))
}

/// A size in a name.
fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{}KiB", bytes >> 10),
        mebibytes => format!("{mebibytes}MiB"),
    }
}

/// The contests of the group.
pub fn contests(setting: &Setting) -> Vec<Contest> {
    let contest = |case: Case| {
        let turn = |(by, make): (&'static str, Make)| Turn {
            by,
            measure: Box::new(move || Ok(values(case, by, &round_trips(case, make)?))),
        };
        Contest {
            name: name(case, "both-ways"),
            turns: MOVERS.into_iter().map(turn).collect(),
        }
    };
    cases(setting).into_iter().map(contest).collect()
}

/// Throughput over all trips; and without what the mover does besides moving, if it does.
fn values(case: Case, by: &'static str, trips: &[Trip]) -> Vec<Measured> {
    let bytes = case.bytes * trips.len();
    let value = |by, way, time| Measured {
        name: name(case, way),
        by,
        unit: Unit::MebibytesPerSecond,
        value: mebibytes_per_second(bytes, time),
    };
    let there: Duration = trips.iter().map(|trip| trip.there).sum();
    let back: Duration = trips.iter().map(|trip| trip.back).sum();
    let besides: Option<Duration> = trips.iter().map(|trip| trip.besides).sum();
    let mut values = vec![value(by, "to-device", there), value(by, "to-system", back)];
    if let (Some(besides), Some(bare)) = (besides, bare(by)) {
        values.push(value(bare, "to-device", there.saturating_sub(besides)));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(quick: bool, cpus: usize) -> Setting {
        Setting { quick, cpus }
    }

    #[test]
    fn cases_are_all_sizes_in_both_pages_with_one_thread_and_with_all() {
        let cases = cases(&setting(false, 2));
        let of = |pages, threads| -> Vec<usize> {
            let has = |case: &&Case| case.pages == pages && case.threads == threads;
            let found = cases.iter().filter(has);
            found.map(|case| case.bytes >> 10).collect()
        };
        assert_eq!(
            of(PageSize::Small, 1),
            [64, 256, 1024, 4096, 16384, 65536, 262_144]
        );
        assert_eq!(of(PageSize::Huge, 1), [2048, 4096, 16384, 65536, 262_144]);
        // A thread has 2 MiB or more.
        assert_eq!(of(PageSize::Huge, 2), [4096, 16384, 65536, 262_144]);
        assert_eq!(of(PageSize::Small, 2), of(PageSize::Huge, 2));
    }

    #[test]
    fn machine_with_one_cpu_has_no_case_twice() {
        let cases = cases(&setting(false, 1));
        assert_eq!(cases.len(), 7 + 5);
        assert!(cases.iter().all(|case| case.threads == 1));
    }

    #[test]
    fn quick_run_measures_nothing_that_a_whole_one_does_not() {
        let name = |case: Case| name(case, "to-device");
        let whole: Vec<_> = cases(&setting(false, 2)).into_iter().map(name).collect();
        let quick = cases(&setting(true, 2));
        assert!(quick.len() * 3 <= whole.len());
        assert!(quick.into_iter().all(|case| whole.contains(&name(case))));
    }

    #[test]
    fn small_sizes_are_moved_more_often_but_not_for_ever() {
        let cases = cases(&setting(false, 1));
        let trips = |bytes| {
            let case = cases.iter().find(|case| case.bytes == bytes);
            case.unwrap().trips
        };
        assert_eq!(trips(64 << 10), TRIPS_MAX);
        assert_eq!(trips(4 << 20), 4);
        assert_eq!(trips(256 << 20), 1);
    }

    const CASE: Case = Case {
        pages: PageSize::Huge,
        bytes: 16 << 20,
        threads: 2,
        trips: 1,
    };

    #[test]
    fn name_tells_pages_size_way_and_threads() {
        assert_eq!(
            name(CASE, "to-device"),
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
            let values = values(CASE, by, trips);
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
    }
}
