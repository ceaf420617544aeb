// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Keeping commands to the simulated clock.

use super::clock::{Clock, Picoseconds, Visit};
use super::timing::{Costs, Timing};
use super::traffic::Traffic;
use crate::model::Link;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Longest sleep: how late a cancellation may be heard.
const NAP: Duration = Duration::from_micros(200);
/// How late a sleep may end on a host that is not busy; what is shorter is not slept.
const SLACK: Duration = Duration::from_micros(60);

/// A device's simulated clock beside the host's; nothing takes time on a device without one.
#[derive(Debug)]
pub struct Pace(Option<Paced>);

#[derive(Debug)]
struct Paced {
    clock: Mutex<Clock>,
    /// When both clocks were zero.
    epoch: Instant,
}

impl Pace {
    /// That of a device on this link.
    pub fn new(link: &Link) -> Self {
        let paced = |timing: &Timing| Paced {
            clock: Mutex::new(Clock::new(Costs::new(link, timing))),
            epoch: Instant::now(),
        };
        Self(link.timing.as_ref().map(paced))
    }

    /// Whether anything takes time.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a command.
    pub fn begin(&self) -> Visit {
        self.0.as_ref().map(Paced::begin).unwrap_or_default()
    }

    /// Accounts a piece of a command's work.
    pub fn account(&self, visit: &Mutex<Visit>, traffic: &Traffic) {
        // Nothing panics while a visit is locked.
        let mut visit = visit.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.0 {
            Some(paced) => paced.account(&mut visit, traffic),
            None => visit.count(traffic),
        }
    }

    /// Waits until the time has come for all that was accounted, unless `hurry` says not to.
    pub fn wait(&self, visit: &Mutex<Visit>, hurry: &dyn Fn() -> bool) {
        let Some(paced) = &self.0 else { return };
        while let Some(left) = paced.left(visit).filter(|_| !hurry()) {
            match left.checked_sub(SLACK) {
                Some(sleep) => thread::sleep(sleep.min(NAP)),
                None => thread::yield_now(),
            }
        }
    }

    /// How long a command took, on a device where time is taken.
    pub fn duration(&self, visit: &Visit) -> Option<Picoseconds> {
        self.0.as_ref().map(|_| visit.duration())
    }
}

impl Paced {
    fn begin(&self) -> Visit {
        let host = self.host();
        // Nothing panics while the clock is locked.
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.begin(host)
    }

    fn account(&self, visit: &mut Visit, traffic: &Traffic) {
        let host = self.host();
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.account(visit, traffic, host);
    }

    /// What the host's clock shows.
    fn host(&self) -> Picoseconds {
        self.epoch.elapsed().as_nanos() * 1000
    }

    /// Time to wait, if there is any.
    fn left(&self, visit: &Mutex<Visit>) -> Option<Duration> {
        let visit = visit.lock().unwrap_or_else(PoisonError::into_inner);
        let left = visit.until().checked_sub(self.host())?;
        // Rounded up; a wait of centuries is cut, and taken up again.
        let nanoseconds = u64::try_from(left.div_ceil(1000)).unwrap_or(u64::MAX);
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }
}
