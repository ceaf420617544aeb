// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counts of outcomes, and what the memory model says of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::interleave;
use crate::shape::{Rule, Test};

/// Values below this are counted in a table; all that a test writes are.
const SMALL: u64 = 4;

/// What an outcome is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Some interleaving leads to it.
    Interleaving,
    /// The one that the test is about, where the model allows it.
    Weak,
    /// What the model forbids.
    Forbidden,
}

impl Kind {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interleaving => "interleaving",
            Self::Weak => "weak",
            Self::Forbidden => "forbidden",
        }
    }
}

/// What a run showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What the model says.
    Good,
    /// An outcome that the model forbids.
    ForbiddenSeen,
    /// The weak outcome that shows that the threads met was not seen.
    WeakNotSeen,
}

impl Verdict {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::ForbiddenSeen => "forbidden-seen",
            Self::WeakNotSeen => "weak-not-seen",
        }
    }
}

/// How often each outcome of a test was seen.
#[derive(Clone, Debug)]
pub struct Tally {
    test: Test,
    interleavings: BTreeSet<Vec<u64>>,
    /// Of outcomes of small values, by the number that their values are the digits of.
    small: Vec<u64>,
    /// Of the others.
    odd: BTreeMap<Vec<u64>, u64>,
    instances: u64,
    /// How often a thread began an instance without another one.
    pub missed: u64,
}

impl Tally {
    /// Nothing was seen.
    pub fn new(test: &Test) -> Self {
        let values = test.observed().count() as u32;
        Self {
            test: *test,
            interleavings: interleave::outcomes(test),
            small: vec![0; (SMALL as usize).pow(values)],
            odd: BTreeMap::new(),
            instances: 0,
            missed: 0,
        }
    }

    /// Counts one.
    pub fn add(&mut self, outcome: &[u64]) {
        self.instances += 1;
        if outcome.iter().all(|&value| value < SMALL) {
            let digits = outcome.iter().rev();
            let index = digits.fold(0, |index, &value| index * SMALL + value);
            self.small[index as usize] += 1;
        } else {
            *self.odd.entry(outcome.to_vec()).or_default() += 1;
        }
    }

    /// How many were counted.
    pub fn instances(&self) -> u64 {
        self.instances
    }

    /// What the model says of an outcome.
    fn kind(&self, outcome: &[u64]) -> Kind {
        if self.interleavings.contains(outcome) {
            Kind::Interleaving
        } else if self.test.rule != Rule::Forbidden && self.test.is_weak(outcome) {
            Kind::Weak
        } else {
            Kind::Forbidden
        }
    }

    /// Each outcome that was seen, and how often.
    pub fn outcomes(&self) -> Vec<(Vec<u64>, Kind, u64)> {
        let values = self.test.observed().count() as u32;
        let small = self.small.iter().enumerate().map(|(index, &count)| {
            let digit = |place| index as u64 / SMALL.pow(place) % SMALL;
            ((0..values).map(digit).collect::<Vec<u64>>(), count)
        });
        let odd = self
            .odd
            .iter()
            .map(|(outcome, &count)| (outcome.clone(), count));
        let mut seen: Vec<_> = small.chain(odd).filter(|(_, count)| *count > 0).collect();
        seen.sort_unstable();
        seen.into_iter()
            .map(|(outcome, count)| {
                let kind = self.kind(&outcome);
                (outcome, kind, count)
            })
            .collect()
    }

    /// How many outcomes of a kind were seen.
    pub fn of(&self, wanted: Kind) -> u64 {
        let outcomes = self.outcomes().into_iter();
        outcomes
            .filter(|(_, kind, _)| *kind == wanted)
            .map(|(_, _, count)| count)
            .sum()
    }

    /// What it all shows.
    pub fn verdict(&self) -> Verdict {
        if self.of(Kind::Forbidden) > 0 {
            Verdict::ForbiddenSeen
        } else if self.test.rule == Rule::Expected && self.of(Kind::Weak) == 0 {
            Verdict::WeakNotSeen
        } else {
            Verdict::Good
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TESTS;

    fn tally(name: &str, outcomes: &[&[u64]]) -> Tally {
        let test = TESTS.iter().find(|test| test.name == name).unwrap();
        let mut tally = Tally::new(test);
        outcomes.iter().for_each(|outcome| tally.add(outcome));
        tally
    }

    #[test]
    fn one_forbidden_outcome_among_good_ones_is_found() {
        let good: &[&[u64]] = &[&[0, 0], &[0, 1], &[1, 1], &[1, 1]];
        assert_eq!(tally("MP+release+acquire", good).verdict(), Verdict::Good);
        let bad = tally("MP+release+acquire", &[good, &[&[1, 0]]].concat());
        assert_eq!(bad.verdict(), Verdict::ForbiddenSeen);
        let count = |kind| bad.of(kind);
        assert_eq!((count(Kind::Forbidden), count(Kind::Interleaving)), (1, 4));
    }

    #[test]
    fn outcome_is_weak_where_it_is_allowed_and_forbidden_where_it_is_not() {
        assert_eq!(tally("MP+relaxed", &[&[1, 0]]).of(Kind::Weak), 1);
        assert_eq!(tally("MP+relaxed", &[&[1, 0]]).verdict(), Verdict::Good);
        assert_eq!(tally("SB+relaxed", &[&[0, 0]]).verdict(), Verdict::Good);
        let forbidden = tally("SB+seq-cst", &[&[0, 0]]);
        assert_eq!(forbidden.verdict(), Verdict::ForbiddenSeen);
    }

    #[test]
    fn expected_outcome_that_was_not_seen_is_a_failure() {
        let tally = tally("SB+relaxed", &[&[0, 1], &[1, 0], &[1, 1]]);
        assert_eq!(tally.verdict(), Verdict::WeakNotSeen);
    }

    #[test]
    fn value_that_nobody_wrote_is_forbidden_whatever_the_rule() {
        for value in [2, 7, u64::MAX] {
            let tally = tally("MP+relaxed", &[&[value, 0]]);
            assert_eq!(tally.verdict(), Verdict::ForbiddenSeen, "{value}");
            assert_eq!(tally.outcomes()[0].0, [value, 0]);
        }
    }
}
