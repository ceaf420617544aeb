// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory there and back, by the loop of the kernel's own benchmark_thp_migration
//! (tools/testing/selftests/mm/hmm-tests.c): once to warm up, then some times, and the time of
//! each way by itself.
//!
//! Beyond that benchmark, each round trip is looked at: that all of the memory went, in folios of
//! the size in question, and that each word is what it was. Each trip has contents of its own, so
//! that what an earlier one has left somewhere is not taken for them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::memory::{self, Backing, PageSize};
use crate::movers::{Make, Mover, Task};
use crate::timing::timed;

/// What is moved, how often and by how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What the memory is.
    pub backing: Backing,
    /// What it is in.
    pub pages: PageSize,
    /// How much it is.
    pub bytes: usize,
    /// Who moves it, each a part.
    pub threads: usize,
    /// Round trips that are measured.
    pub trips: usize,
}

/// Times of a round trip.
#[derive(Clone, Copy, Debug)]
pub struct Trip {
    /// Of the way to the device, or to wherever it goes.
    pub there: Duration,
    /// Of the way back.
    pub back: Duration,
    /// What of the way there was spent on something else than moving, if the mover has that.
    pub besides: Option<Duration>,
}

/// Makes the round trips with memory and a mover of their own.
pub fn round_trips(case: Case, make: Make) -> Result<Vec<Trip>> {
    let memory = memory::map(case.backing, case.bytes, case.pages)?;
    let mover = make(&Task {
        memory: &memory,
        pages: case.pages,
        threads: case.threads,
    })?;
    let trip = |number: usize| {
        let seed = number as u64;
        memory.fill_pattern(seed);
        let there = timed(case.threads, |part| mover.there(part)).context("there")?;
        let besides = match case.threads {
            1 => besides(&*mover)?,
            _ => None,
        };
        mover.expect_there()?;
        let back = timed(case.threads, |part| mover.back(part)).context("back")?;
        let back_here = mover.expect_back(&memory, case.pages);
        back_here.context("after the way back")?;
        memory.check_pattern(seed).context("after the way back")?;
        Ok(Trip {
            there,
            back,
            besides,
        })
    };
    trip(0).context("to warm up")?;
    (1..=case.trips).map(trip).collect()
}

/// How often what a mover does besides moving is timed behind each way there: a busy host lets
/// some of these times pass for longer than the whole way was.
const BESIDES_TIMES: usize = 5;

/// How long it takes to do what a mover does besides moving: the least of some times.
fn besides(mover: &dyn Mover) -> Result<Option<Duration>> {
    let mut least = None;
    for _ in 0..BESIDES_TIMES {
        let start = Instant::now();
        let done = mover.besides();
        let time = start.elapsed();
        match done {
            None => return Ok(None),
            Some(done) => done?,
        }
        least = Some(least.map_or(time, |least: Duration| least.min(time)));
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::movers::{Copy, Mover};
    use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
    use std::sync::atomic::Ordering::Relaxed;

    fn case(threads: usize) -> Case {
        Case {
            backing: Backing::Anonymous,
            pages: PageSize::Small,
            bytes: 4 * PAGE_BYTES,
            threads,
            trips: 3,
        }
    }

    #[test]
    fn memory_that_is_copied_there_and_back_is_what_it_was() {
        let make: Make = |task| Ok(Box::new(Copy::new(task)?));
        assert_eq!(round_trips(case(1), make).unwrap().len(), 3);
        assert_eq!(round_trips(case(2), make).unwrap().len(), 3);
    }

    /// Changes a word on the way back, in the memory at this address.
    struct Changing(u64);

    impl Mover for Changing {
        fn there(&self, _part: usize) -> Result<()> {
            Ok(())
        }

        fn back(&self, _part: usize) -> Result<()> {
            let word = self.0 as *mut u64;
            // SAFETY: the memory is mapped as long as its mover lives, and accessed by this thread.
            unsafe { word.write(0) };
            Ok(())
        }

        fn expect_there(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn memory_that_comes_back_changed_is_found() {
        let make: Make = |task| Ok(Box::new(Changing(task.memory.address())));
        let error = round_trips(case(1), make).unwrap_err();
        assert!(format!("{error:#}").contains("offset 0x0"), "{error:#}");
    }

    #[test]
    fn copy_has_another_place() {
        let memory = Mapping::huge_aligned(4 * PAGE_BYTES).unwrap();
        let copy = Copy::new(&Task {
            memory: &memory,
            pages: PageSize::Small,
            threads: 1,
        })
        .unwrap();
        memory.fill(7);
        assert!(copy.expect_there().is_err());
        copy.there(0).unwrap();
        copy.expect_there().unwrap();
        memory.fill(8);
        copy.back(0).unwrap();
        assert_eq!(memory.word(0).load(Relaxed), 7);
    }
}
