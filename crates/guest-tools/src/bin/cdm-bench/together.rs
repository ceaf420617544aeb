// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Several processes that move memory of their own at once: all begin together, and what counts is
//! from when the first one begins to when the last one ends.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cdm_guest_tools::isolate::{Child, Parent};
use cdm_guest_tools::memory::Mapping;

use crate::memory::{self, Backing, PageSize};
use crate::movers::{Mover, Task};

/// Makes the mover of a process, by its number.
pub type MakeNth = fn(usize, &Task<'_>) -> Result<Box<dyn Mover>>;

/// Who moves how much.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Processes.
    pub processes: usize,
    /// Memory of each, in pages of 4 KiB.
    pub bytes_each: usize,
    /// Round trips that are measured.
    pub trips: usize,
}

/// Times of all round trips: of the ways there, and of those back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// To wherever the memory goes.
    pub there: Duration,
    /// And back.
    pub back: Duration,
}

/// Words of a process in the memory that all share: when it began and ended.
const WORDS: usize = 2;

/// Where a process tells when it began and ended, in nanoseconds since `base`.
struct Clock<'a> {
    words: &'a Mapping,
    base: Instant,
}

impl Clock<'_> {
    fn timed(&self, process: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let now = || self.base.elapsed().as_nanos() as u64;
        let start = now();
        work()?;
        let words = self.words.words();
        words[process * WORDS].store(start, Relaxed);
        words[process * WORDS + 1].store(now(), Relaxed);
        Ok(())
    }

    /// From the first beginning to the last end.
    fn span(&self, processes: usize) -> Duration {
        let of = |word: usize| {
            let words = self.words.words();
            (0..processes).map(move |process| words[process * WORDS + word].load(Relaxed))
        };
        let (first, last) = (of(0).min().unwrap_or(0), of(1).max().unwrap_or(0));
        Duration::from_nanos(last.saturating_sub(first))
    }
}

/// Has all processes make the round trips, once unmeasured to warm up.
pub fn round_trips(crowd: Crowd, make: MakeNth) -> Result<Times> {
    let words = Mapping::shared(crowd.processes * WORDS * size_of::<u64>())?;
    let clock = Clock {
        words: &words,
        base: Instant::now(),
    };
    let mut children = (0..crowd.processes)
        .map(|number| Child::spawn(|parent| one(number, crowd, make, &clock, parent)))
        .collect::<Result<Vec<_>>>()?;
    let mut times = Times::default();
    for trip in 0..=crowd.trips {
        let there = step(&mut children, &clock)?;
        let back = step(&mut children, &clock)?;
        if trip > 0 {
            times.there += there;
            times.back += back;
        }
    }
    for (number, child) in children.into_iter().enumerate() {
        child
            .finish()
            .with_context(|| format!("process {number}"))?;
    }
    Ok(times)
}

/// Lets all processes, which are ready, go one way; gives the time when all have.
fn step(children: &mut [Child], clock: &Clock<'_>) -> Result<Duration> {
    for child in &mut *children {
        child.wait_for_arrival()?;
    }
    for child in &mut *children {
        child.release()?;
    }
    for child in &mut *children {
        child.wait_for_arrival()?;
    }
    let span = clock.span(children.len());
    for child in &mut *children {
        child.release()?;
    }
    Ok(span)
}

/// What each process does.
fn one(
    number: usize,
    crowd: Crowd,
    make: MakeNth,
    clock: &Clock<'_>,
    parent: &mut Parent,
) -> Result<()> {
    let pages = PageSize::Small;
    let memory = memory::map(Backing::Anonymous, crowd.bytes_each, pages)?;
    let mover = make(
        number,
        &Task {
            memory: &memory,
            pages,
            threads: 1,
        },
    )?;
    for trip in 0..=crowd.trips {
        let seed = (number * (crowd.trips + 1) + trip) as u64;
        memory.fill_pattern(seed);
        // Ready; and done, before anybody looks at what has become of it.
        parent.meet()?;
        clock.timed(number, || mover.there(0)).context("there")?;
        parent.meet()?;
        mover.expect_there()?;
        parent.meet()?;
        clock.timed(number, || mover.back(0)).context("back")?;
        parent.meet()?;
        mover.expect_back(&memory, pages)?;
        memory.check_pattern(seed).context("after the way back")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::movers::Copy;
    use anyhow::ensure;
    use cdm_guest_tools::memory::PAGE_BYTES;
    use std::thread;

    const CROWD: Crowd = Crowd {
        processes: 3,
        bytes_each: 4 * PAGE_BYTES,
        trips: 2,
    };

    /// Takes longer the greater its number is.
    struct Sleeper(u64);

    impl Mover for Sleeper {
        fn there(&self, _part: usize) -> Result<()> {
            thread::sleep(Duration::from_millis(10 * self.0));
            Ok(())
        }

        fn back(&self, _part: usize) -> Result<()> {
            ensure!(self.0 != 7, "seven");
            Ok(())
        }

        fn expect_there(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn slowest_of_all_counts_in_each_trip() {
        cdm_guest_tools::testing::alone(|| {
            let make: MakeNth = |number, _| Ok(Box::new(Sleeper(number as u64)));
            let times = round_trips(CROWD, make).unwrap();
            assert!(times.there >= Duration::from_millis(40), "{times:?}");
            assert!(times.back > Duration::ZERO && times.back < times.there);
        });
    }

    #[test]
    fn everybody_copies_memory_of_its_own_and_finds_it_again() {
        cdm_guest_tools::testing::alone(|| {
            let make: MakeNth = |_, task| Ok(Box::new(Copy::new(task)?));
            assert!(round_trips(CROWD, make).unwrap().there > Duration::ZERO);
        });
    }

    #[test]
    fn failure_of_any_process_is_told() {
        cdm_guest_tools::testing::alone(|| {
            let make: MakeNth = |number, _| Ok(Box::new(Sleeper(number as u64 * 7 % 14)));
            let error = round_trips(CROWD, make).unwrap_err();
            assert!(format!("{error:#}").contains("seven"), "{error:#}");
        });
    }
}
