// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Scenarios of which the host does a part: it takes devices away and gives others, boots guests,
//! and has devices fail, while a scenario of `cdm-stress` runs in the guest and looks whether
//! everybody has what he should.

mod draw;
mod faults;
mod life;
mod playing;

use std::time::Instant;

use anyhow::{Result, bail};
use fastrand::Rng;

use super::said::Totals;
use super::scenarios::order::Length;
use crate::test::Session;
use playing::Playing;

/// A scenario with a part for the host; `cdm-stress` has one of the same name.
pub struct Driven {
    /// `family::what_happens`.
    pub name: &'static str,
    /// What must hold, in one sentence.
    pub property: &'static str,
    /// Rounds below which it does not end, however little time it was given.
    rounds: u64,
    /// What there must be at least for each thousand rounds of the host.
    least: &'static [(&'static str, u64)],
    /// The host's part.
    body: fn(&mut Play<'_, '_>) -> Result<()>,
}

/// All of them, in the order in which they run: what spoils a machine comes last.
pub const SCENARIOS: &[Driven] = &[
    Driven {
        name: "life::unplug_and_plug_under_load",
        property: "A device that is unplugged gives everybody his memory back as it was, and another \
                   one in its place serves.",
        rounds: 3,
        least: &[
            ("unplugged", 1000),
            ("plugged", 1000),
            ("commands_done", 15_000),
        ],
        body: life::unplug_and_plug,
    },
    Driven {
        name: "life::reboot_under_load",
        property: "A guest that reboots while its devices work finds them as if they were new.",
        rounds: 2,
        least: &[("reboots", 1000)],
        body: life::reboot,
    },
    Driven {
        name: "life::guest_after_guest",
        property: "A device whose process has served other guests serves the next as if it were new.",
        rounds: 2,
        least: &[("guests", 1000), ("commands_done", 60_000)],
        body: life::guest_after_guest,
    },
    Driven {
        name: "faults::late_and_reordered_answers",
        property: "Answers and accesses that come late or in another order cost time and nothing \
                   else.",
        rounds: 12,
        least: &[
            ("faults", 1000),
            ("faults_delay", 180),
            ("faults_reorder", 180),
            ("faults_late_invalidation", 180),
            ("faults_late_access", 180),
        ],
        body: faults::late,
    },
    Driven {
        name: "faults::refused_and_cut_answers",
        property: "A command that is refused, or whose answer is cut, is an error for its caller \
                   alone, and has stored nothing but a part of what it should.",
        rounds: 16,
        least: &[
            ("faults", 1000),
            ("faults_fail", 180),
            ("faults_truncate", 180),
            ("faults_wrong_length", 180),
            ("faults_refuse_page", 180),
        ],
        body: faults::refused_and_cut,
    },
    Driven {
        name: "faults::corrupt_answers",
        property: "An answer with a wrong byte is an error, or a wrong result; it changes no memory, \
                   and nobody reads behind a buffer for it.",
        rounds: 10,
        least: &[("faults_corrupt", 1000)],
        body: faults::corrupt,
    },
    Driven {
        name: "faults::lost_answers",
        property: "A device that does not answer is reset, and whoever waited has an error and all \
                   his memory.",
        rounds: 6,
        least: &[("faults", 1000), ("faults_hang", 330), ("faults_drop", 330)],
        body: faults::lost,
    },
    Driven {
        name: "faults::doubled_answers",
        property: "A device that answers twice costs its queue until the driver is bound anew, and \
                   no memory.",
        rounds: 3,
        least: &[("faults_duplicate", 1000)],
        body: faults::doubled,
    },
    Driven {
        name: "faults::failing_memory",
        property: "A page of the device that fails is lost alone, and nobody gets it again.",
        rounds: 12,
        least: &[("faults_poison", 1000)],
        body: faults::failing_memory,
    },
];

/// What each process of the guest's part is doing in the kernel.
const STACKS: &str = "for p in $(pidof cdm-stress); do echo \"process $p\"; \
    cat /proc/$p/task/*/wchan /proc/$p/task/*/stack 2> /dev/null; done";

/// Operations of a guest for which the host is asked for one round, where a run is that long.
const OPERATIONS_PER_ROUND: u64 = 1000;

/// The one of this name.
pub fn find(name: &str) -> Option<&'static Driven> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

/// A scenario that is played.
pub struct Play<'s, 'c> {
    scenario: &'static Driven,
    session: &'s mut Session<'c>,
    random: Rng,
    length: Length,
    started: Instant,
    rounds: u64,
    totals: Totals,
}

impl Driven {
    /// Plays it; what was counted, and why it did not hold if it did not.
    pub fn play(
        &'static self,
        session: &mut Session<'_>,
        seed: u64,
        length: Length,
    ) -> (Totals, Result<()>) {
        let mut play = Play {
            scenario: self,
            session,
            random: Rng::with_seed(seed),
            length,
            started: Instant::now(),
            rounds: 0,
            totals: Totals::new(),
        };
        let done = (self.body)(&mut play);
        let done = done.map_err(|error| play.with_stacks(error));
        let (rounds, seconds) = (play.rounds, play.started.elapsed().as_secs());
        let mut totals = play.totals;
        totals.insert("rounds".to_owned(), rounds);
        totals.insert("seconds".to_owned(), seconds);
        let counts = done.and_then(|()| self.judge(&totals));
        (totals, counts)
    }

    /// Whether enough was done to have tested anything.
    fn judge(&self, totals: &Totals) -> Result<()> {
        let total = |name: &str| totals.get(name).copied().unwrap_or(0);
        let rounds = total("rounds");
        let own = [("rounds", self.rounds)];
        let per_round = self
            .least
            .iter()
            .map(|(name, least)| (*name, rounds * least / 1000));
        for (name, least) in own.into_iter().chain(per_round) {
            let found = total(name);
            if found < least {
                bail!("it did not count: {name} {found}, least {least}");
            }
        }
        Ok(())
    }
}

impl Play<'_, '_> {
    /// Counts a round, unless the end has come.
    fn round(&mut self) -> bool {
        let is_over = match self.length {
            Length::Seconds(seconds) => self.started.elapsed().as_secs() >= seconds,
            Length::Rounds(operations) => self.rounds >= operations / OPERATIONS_PER_ROUND,
        };
        if is_over && self.rounds >= self.scenario.rounds {
            return false;
        }
        self.rounds += 1;
        true
    }

    /// Adds to a total.
    fn add(&mut self, name: &str, number: u64) {
        *self.totals.entry(name.to_owned()).or_default() += number;
    }

    /// Starts the guest's part.
    fn start(&mut self) -> Result<Playing> {
        let seed = self.random.u64(..);
        Playing::start(self.session, self.scenario.name, seed)
    }

    /// Has the guest's part come to its end, and adds what it counted.
    fn end(&mut self, playing: Playing) -> Result<()> {
        for (name, number) in playing.end(self.session)? {
            self.add(&name, number);
        }
        Ok(())
    }

    /// Adds to an error what the guest's processes are doing, if there is a guest that can say it.
    fn with_stacks(&mut self, error: anyhow::Error) -> anyhow::Error {
        if !self.session.is_up() {
            return error;
        }
        match self.session.text(STACKS) {
            Ok(stacks) if !stacks.is_empty() => error.context(stacks),
            _ => error,
        }
    }

    /// Process numbers of the backends.
    fn backends(&mut self) -> Result<Vec<u32>> {
        let vm = self.session.vm()?;
        Ok(vm.backends().iter().map(|backend| backend.pid()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_did_too_little_did_not_count() {
        for scenario in SCENARIOS {
            let mut totals = Totals::new();
            let judged = scenario.judge(&totals).expect_err("nothing was done");
            assert!(judged.to_string().contains("rounds"), "{judged}");
            totals.insert("rounds".to_owned(), scenario.rounds);
            let error = scenario.judge(&totals).expect_err("only rounds");
            assert!(error.to_string().contains(scenario.least[0].0), "{error}");
            for (name, least) in scenario.least {
                totals.insert((*name).to_owned(), scenario.rounds * least / 1000);
            }
            scenario.judge(&totals).expect("enough");
        }
    }

    #[test]
    fn names_are_unique_and_each_says_what_must_hold() {
        let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
        assert!(SCENARIOS.iter().all(|one| one.property.ends_with('.')));
    }
}
