// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The simulated clock of a device.
//!
//! ```text
//!   begin           account                    until
//!     |---- work of the host ----|---- waiting ----|
//!     |<------------- simulated duration --------->|
//! ```
//!
//! It passes while a command that the host is done with waits for its time to come, as fast
//! as the host's clock, and stands still otherwise: while nothing is outstanding, and while
//! the host is behind. So a command that follows another one begins when that one ends, to
//! the picosecond, however slow the host was with either.
//!
//! Both directions of the link and the device's own memory are resources that serve what is
//! accounted first; who comes later waits.

use super::timing::{Costs, away_from_device, in_own_memory, towards_device};
use super::traffic::Traffic;

/// A time, or a span of it.
pub type Picoseconds = u128;

/// What is in use.
#[derive(Debug, Default)]
struct Resource {
    /// When it has done what it was given.
    free: Picoseconds,
}

impl Resource {
    /// Takes on work of so many picoseconds that is there from `from` on; when it is done, if
    /// there is any.
    fn serve(&mut self, from: Picoseconds, work: Picoseconds) -> Picoseconds {
        if work == 0 {
            return from;
        }
        self.free = self.free.max(from) + work;
        self.free
    }
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    simulated: Picoseconds,
    host: Picoseconds,
}

/// The clock of a device, and its resources.
#[derive(Debug)]
pub struct Clock {
    costs: Costs,
    towards: Resource,
    away: Resource,
    memory: Resource,
    /// The least that it shows.
    now: Picoseconds,
    /// The end that is furthest ahead, and when the host may tell of it.
    latest: Moment,
}

/// A command's time on the device.
#[derive(Clone, Debug, Default)]
pub struct Visit {
    begin: Moment,
    /// When the resources have done what they were given for it.
    served: Picoseconds,
    traffic: Traffic,
    /// When it ends, by what is known so far.
    end: Picoseconds,
}

impl Clock {
    /// At zero.
    pub fn new(costs: Costs) -> Self {
        Self {
            costs,
            towards: Resource::default(),
            away: Resource::default(),
            memory: Resource::default(),
            now: 0,
            latest: Moment::default(),
        }
    }

    /// Begins a command when the host's clock shows `host`.
    pub fn begin(&mut self, host: Picoseconds) -> Visit {
        let begin = Moment {
            simulated: self.now(host),
            host,
        };
        Visit {
            begin,
            served: begin.simulated,
            traffic: Traffic::default(),
            end: begin.simulated,
        }
    }

    /// Accounts a piece of a command's work.
    pub fn account(&mut self, visit: &mut Visit, traffic: &Traffic, host: Picoseconds) {
        self.now(host);
        visit.traffic += *traffic;
        let begin = visit.begin.simulated;
        let costs = &self.costs;
        let served = [
            self.towards
                .serve(begin, costs.on_link(towards_device(&traffic.link))),
            self.away
                .serve(begin, costs.on_link(away_from_device(&traffic.link))),
            self.memory
                .serve(begin, costs.in_memory(in_own_memory(&traffic.own))),
        ];
        visit.served = served.into_iter().fold(visit.served, Picoseconds::max);
        let alone = begin + costs.singles(&visit.traffic);
        visit.end = alone.max(visit.served) + costs.streams(&visit.traffic);
        if visit.end > self.latest.simulated {
            self.latest = Moment {
                simulated: visit.end,
                host: visit.until(),
            };
        }
    }

    /// What it shows when the host's clock shows `host`.
    fn now(&mut self, host: Picoseconds) -> Picoseconds {
        let ahead = self.latest.host.saturating_sub(host);
        self.now = self.now.max(self.latest.simulated.saturating_sub(ahead));
        self.now
    }
}

impl Visit {
    /// All that was accounted.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Notes traffic that takes no time.
    pub fn count(&mut self, traffic: &Traffic) {
        self.traffic += *traffic;
    }

    /// When it began, on the simulated clock.
    #[cfg(test)]
    pub fn simulated(&self) -> Picoseconds {
        self.begin.simulated
    }

    /// How long it takes.
    pub fn duration(&self) -> Picoseconds {
        self.end - self.begin.simulated
    }

    /// Before the host's clock shows this, nobody may hear of its end.
    pub fn until(&self) -> Picoseconds {
        self.begin.host + self.duration()
    }
}
