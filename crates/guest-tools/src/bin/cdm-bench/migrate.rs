// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory to the device and back, and from one device to another.

use crate::contest::{Contest, Setting};
use crate::memory::{Backing, PageSize};
use crate::movers::{BETWEEN, BY_COPIER, FILES, Make, UNPATCHED};
use crate::throughput::Figures;

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

/// What most of a group is like, if fewer sizes tell enough.
const FEW_SIZES: [usize; 4] = [64 << 10, 1 << 20, 16 << 20, 64 << 20];

const BOTH: [PageSize; 2] = [PageSize::Small, PageSize::Huge];
const DEVICE: [&str; 2] = ["to-device", "to-system"];

fn sizes<'a>(setting: &Setting, all: &'a [usize]) -> &'a [usize] {
    match setting.quick {
        true => &QUICK_SIZES,
        false => all,
    }
}

/// Anonymous memory.
pub fn anonymous(setting: &Setting) -> Vec<Contest> {
    anonymous_by(&BY_COPIER, &BOTH, setting)
}

/// Its small pages, by who moves them on a kernel without the series. Of a folio of 2 MiB, test_hmm
/// brings one page back there and says so.
pub fn unpatched(setting: &Setting) -> Vec<Contest> {
    anonymous_by(&UNPATCHED, &[PageSize::Small], setting)
}

fn anonymous_by(
    movers: &[(&'static str, Make)],
    pages: &[PageSize],
    setting: &Setting,
) -> Vec<Contest> {
    let figures = Figures {
        name: "migrate",
        backing: Backing::Anonymous,
        pages,
        sizes: sizes(setting, &SIZES),
        shared: true,
        ways: DEVICE,
        movers,
    };
    figures.contests(setting)
}

/// Shared memory, and page cache of a file system that keeps nothing else.
pub fn files(setting: &Setting) -> Vec<Contest> {
    let figures = |name, backing| Figures {
        name,
        backing,
        pages: &BOTH[..1],
        sizes: sizes(setting, &FEW_SIZES),
        shared: false,
        ways: DEVICE,
        movers: &FILES,
    };
    [
        figures("files/shmem", Backing::Shmem),
        figures("files/page-cache", Backing::PageCache),
    ]
    .iter()
    .flat_map(|figures| figures.contests(setting))
    .collect()
}

/// From one device to another.
pub fn between(setting: &Setting) -> Vec<Contest> {
    let figures = Figures {
        name: "device-to-device",
        backing: Backing::Anonymous,
        pages: &BOTH,
        sizes: sizes(setting, &FEW_SIZES),
        shared: false,
        ways: ["there", "back"],
        movers: &BETWEEN,
    };
    figures.contests(setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_run_measures_nothing_that_a_whole_one_does_not() {
        for group in [anonymous, files, between] {
            let names = |quick| -> Vec<String> {
                let contests = group(&Setting { quick, cpus: 2 });
                contests.into_iter().map(|contest| contest.name).collect()
            };
            let (quick, whole) = (names(true), names(false));
            assert!(quick.len() < whole.len(), "{quick:?}");
            assert!(quick.iter().all(|name| whole.contains(name)), "{quick:?}");
        }
    }

    #[test]
    fn kernel_without_the_series_has_its_turns_at_figures_of_the_others() {
        let names = |contests: Vec<Contest>| -> Vec<String> {
            contests.into_iter().map(|contest| contest.name).collect()
        };
        for quick in [false, true] {
            let setting = Setting { quick, cpus: 2 };
            let (others, own) = (names(anonymous(&setting)), names(unpatched(&setting)));
            let small: Vec<_> = others
                .into_iter()
                .filter(|name| name.contains("/4KiB/"))
                .collect();
            assert_eq!(own, small);
        }
    }

    #[test]
    fn everything_is_compared_with_something() {
        for group in [anonymous, files, between] {
            for contest in group(&Setting {
                quick: false,
                cpus: 2,
            }) {
                let by: Vec<_> = contest.turns.iter().map(|turn| turn.by).collect();
                assert!(by[0] == "cdm" && by.len() > 1, "{by:?}");
            }
        }
    }
}
