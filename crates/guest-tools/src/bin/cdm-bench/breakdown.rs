// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where the time of a migration goes, by what the kernel is found at.
//!
//! A sample counts for the innermost function of its call chain that tells what is being done.
//! The time of a phase is its share of the samples, of the time that the migration took; less
//! than one sample counts as half of one, since that is all that is known then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::contest::{Contest, Setting, Turn};
use crate::memory::{self, Backing, PageSize};
use crate::movers::{ANONYMOUS, Make, Task};
use crate::profile::{Profiler, Symbols};
use crate::sample::{Measured, Unit};

const BYTES: usize = 16 << 20;
const TRIPS: usize = 10;
const QUICK_TRIPS: usize = 3;

/// What is done at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Collect,
    Unmap,
    Allocate,
    Copy,
    Replace,
    Remap,
    Tlb,
    Other,
}

impl Phase {
    const ALL: [(Self, &str); 8] = [
        (Self::Collect, "collect"),
        (Self::Unmap, "unmap"),
        (Self::Allocate, "allocate"),
        (Self::Copy, "copy"),
        (Self::Replace, "replace"),
        (Self::Remap, "remap"),
        (Self::Tlb, "tlb"),
        (Self::Other, "other"),
    ];

    /// By the functions of a call chain, the innermost one first.
    fn of(chain: &[&str]) -> Self {
        let told = chain.iter().find_map(|name| {
            let phase = SIGNS.iter().find(|(sign, _)| name.contains(sign));
            phase.map(|(_, phase)| *phase)
        });
        told.unwrap_or(Self::Other)
    }
}

/// Parts of names of functions, and what they do. What migrate_vma_setup() does besides collecting
/// is to lock, isolate and unmap.
const SIGNS: &[(&str, Phase)] = &[
    ("copy_page", Phase::Copy),
    ("copy_highpage", Phase::Copy),
    ("copy_mc", Phase::Copy),
    ("folio_copy", Phase::Copy),
    ("memcpy", Phase::Copy),
    ("flush_tlb", Phase::Tlb),
    ("tlb_flush", Phase::Tlb),
    ("tlb_gather", Phase::Tlb),
    ("smp_call_function", Phase::Tlb),
    ("alloc_pages", Phase::Allocate),
    ("alloc_frozen_pages", Phase::Allocate),
    ("folio_alloc", Phase::Allocate),
    ("alloc_folio", Phase::Allocate),
    ("devmem_alloc", Phase::Allocate),
    ("zone_device_page_init", Phase::Allocate),
    ("mem_cgroup_charge", Phase::Allocate),
    ("migrate_vma_collect", Phase::Collect),
    ("migrate_device_unmap", Phase::Unmap),
    ("migrate_vma_setup", Phase::Unmap),
    ("migrate_device_pages", Phase::Replace),
    ("migrate_vma_pages", Phase::Replace),
    ("migrate_device_finalize", Phase::Remap),
    ("migrate_vma_finalize", Phase::Remap),
];

/// The contests of the group.
pub fn contests(setting: &Setting) -> Vec<Contest> {
    let trips = match setting.quick {
        true => QUICK_TRIPS,
        false => TRIPS,
    };
    // The subject, and test_hmm with memory like it.
    let movers = [ANONYMOUS[0], ANONYMOUS[2]];
    let contest = |pages: PageSize| {
        let turn = |(by, make): (&'static str, Make)| Turn {
            by,
            measure: Box::new(move || measure(pages, trips, by, make)),
        };
        Contest {
            name: format!("breakdown/{pages}"),
            turns: movers.into_iter().map(turn).collect(),
        }
    };
    [PageSize::Small, PageSize::Huge].map(contest).into()
}

/// Samples of one way.
#[derive(Default)]
struct Way {
    took: Duration,
    counts: [u32; Phase::ALL.len()],
}

impl Way {
    fn measure(
        &mut self,
        profiler: &mut Profiler,
        symbols: &Symbols,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        profiler.during(work)?;
        self.took += start.elapsed();
        profiler.take(symbols, |chain| self.count(Phase::of(chain)))
    }

    fn count(&mut self, phase: Phase) {
        self.counts[phase as usize] += 1;
    }

    /// Microseconds of each phase for each MiB.
    fn values(&self, name: &str, by: &'static str, bytes: usize) -> Result<Vec<Measured>> {
        let all: u32 = self.counts.iter().sum();
        ensure!(all > 0, "no sample was taken in {:?}", self.took);
        let mebibytes = bytes as f64 / f64::from(1 << 20);
        let time = self.took.as_secs_f64() * 1e6 / mebibytes;
        let value = |(phase, word): (Phase, &str)| {
            let count = f64::from(self.counts[phase as usize]).max(0.5);
            Measured {
                name: format!("{name}/{word}"),
                by,
                unit: Unit::Microseconds,
                value: time * count / f64::from(all),
            }
        };
        Ok(Phase::ALL.into_iter().map(value).collect())
    }
}

fn measure(pages: PageSize, trips: usize, by: &'static str, make: Make) -> Result<Vec<Measured>> {
    let memory = memory::map(Backing::Anonymous, BYTES, pages)?;
    let mover = make(&Task {
        memory: &memory,
        pages,
        threads: 1,
    })?;
    let symbols = Symbols::of_kernel()?;
    let mut profiler = Profiler::new()?;
    mover.there(0).context("there, to warm up")?;
    mover.back(0).context("back, to warm up")?;
    let (mut there, mut back) = (Way::default(), Way::default());
    for _ in 0..trips {
        there.measure(&mut profiler, &symbols, || mover.there(0))?;
        mover.expect_there()?;
        back.measure(&mut profiler, &symbols, || mover.back(0))?;
        mover.expect_back(&memory, pages)?;
    }
    let name = |way| format!("breakdown/{pages}/{way}");
    let mut values = there.values(&name("to-device"), by, BYTES * trips)?;
    values.extend(back.values(&name("to-system"), by, BYTES * trips)?);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn innermost_function_that_tells_something_counts() {
        for (chain, phase) in [
            (&["copy_page", "dmirror_migrate", "ioctl"][..], Phase::Copy),
            (
                &["spin_lock", "migrate_vma_collect_pmd", "migrate_vma_setup"],
                Phase::Collect,
            ),
            (
                &[
                    "flush_tlb_mm_range",
                    "migrate_vma_collect_pmd",
                    "migrate_vma_setup",
                ],
                Phase::Tlb,
            ),
            (&["folio_lock", "migrate_vma_setup", "ioctl"], Phase::Unmap),
            (&["rmap_walk", "migrate_vma_finalize"], Phase::Remap),
            (
                &["__folio_migrate_mapping", "migrate_vma_pages"],
                Phase::Replace,
            ),
            (
                &["clear_page", "__alloc_pages_noprof", "mover"],
                Phase::Allocate,
            ),
            (&["ioctl", "do_syscall_64"], Phase::Other),
            (&[], Phase::Other),
        ] {
            assert_eq!(Phase::of(chain), phase, "{chain:?}");
        }
    }

    #[test]
    fn phases_are_all_of_the_time_and_none_of_them_is_nothing() {
        let mut way = Way {
            took: Duration::from_millis(8),
            ..Way::default()
        };
        (0..3).for_each(|_| way.count(Phase::Copy));
        way.count(Phase::Tlb);
        let values = way.values("b", "cdm", 4 << 20).unwrap();
        let of = |name: &str| values.iter().find(|one| one.name == name).unwrap().value;
        // Two milliseconds for each MiB.
        assert_eq!((of("b/copy"), of("b/tlb")), (1500.0, 500.0));
        assert_eq!(of("b/remap"), 250.0);
        assert!(Way::default().values("b", "cdm", 1).is_err());
    }

    #[test]
    fn each_phase_has_its_place() {
        for (place, (phase, _)) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, place);
        }
    }
}
