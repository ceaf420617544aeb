// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The regression gate: figures of two runs, by their ratios to references that were measured
//! in the same run, so that a slower machine is no regression.
//!
//! The noise of a figure is how far its ratios are apart from round to round. A change counts if
//! it is more than the noise of both runs together.

use std::fmt;

use anyhow::{Result, ensure};

use super::figure::Figure;

/// Fewest rounds that tell what the noise is.
const ROUNDS_MIN: u32 = 3;

/// What became of a figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// No more than noise.
    None,
    /// Faster.
    Better(Numbers),
    /// Slower.
    Worse(Numbers),
    /// It was measured before, and is not now.
    Gone,
}

/// A change that counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numbers {
    old: f64,
    new: f64,
    /// By how much both runs together vary, as a factor.
    noise: f64,
}

/// A figure, and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    name: String,
    reference: String,
    /// What became of it.
    pub change: Change,
}

impl Compared {
    /// Whether it fails the gate.
    pub fn is_bad(&self) -> bool {
        matches!(self.change, Change::Worse(_) | Change::Gone)
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, numbers) = match &self.change {
            Change::None => ("as before", None),
            Change::Better(numbers) => ("better", Some(numbers)),
            Change::Worse(numbers) => ("WORSE", Some(numbers)),
            Change::Gone => ("GONE: it was measured before, and is not now", None),
        };
        write!(f, "{} against {}: {word}", self.name, self.reference)?;
        match numbers {
            Some(Numbers { old, new, noise }) => {
                write!(
                    f,
                    ": ratio {old:.3} before, {new:.3} now; noise accounts for a factor of {noise:.2}"
                )
            }
            None => Ok(()),
        }
    }
}

/// Compares what both runs have measured, in the order of the old one. What only the new one has is
/// no matter; what only the old one has is, in those groups that the new one has at all.
pub fn compare(old: &[Figure], new: &[Figure]) -> Result<Vec<Compared>> {
    for (which, figures) in [("old", old), ("new", new)] {
        let least = figures.iter().map(|figure| figure.runs).min().unwrap_or(0);
        ensure!(
            least >= ROUNDS_MIN,
            "the {which} results have figures of {least} rounds, which do not tell what is noise; \
             measure with --rounds {ROUNDS_MIN} or more"
        );
    }
    let has_group = |group: &str| new.iter().any(|figure| figure.group() == group);
    let compared: Vec<_> = old
        .iter()
        .filter(|figure| has_group(figure.group()))
        .map(|figure| {
            let is_same = |other: &&Figure| {
                other.name == figure.name
                    && other.reference == figure.reference
                    && other.unit == figure.unit
            };
            Compared {
                name: figure.name.clone(),
                reference: figure.reference.clone(),
                change: match new.iter().find(is_same) {
                    Some(other) => change(figure, other),
                    None => Change::Gone,
                },
            }
        })
        .collect();
    ensure!(
        !compared.is_empty(),
        "the two results have no group in common"
    );
    Ok(compared)
}

fn change(old: &Figure, new: &Figure) -> Change {
    let spread = |figure: &Figure| figure.ratio_max / figure.ratio_min;
    let numbers = Numbers {
        old: old.ratio,
        new: new.ratio,
        noise: spread(old) * spread(new),
    };
    let gain = match old.unit.less_is_better() {
        true => old.ratio / new.ratio,
        false => new.ratio / old.ratio,
    };
    if gain > numbers.noise {
        Change::Better(numbers)
    } else if gain * numbers.noise < 1.0 {
        Change::Worse(numbers)
    } else {
        Change::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_agent_protocol::Unit;

    fn figure(name: &str, unit: Unit, ratios: [f64; 3]) -> Figure {
        let [ratio_min, ratio, ratio_max] = ratios;
        Figure {
            name: name.into(),
            value: 1.0,
            unit,
            reference: "memcpy".into(),
            ratio,
            min: 1.0,
            median: 1.0,
            max: 1.0,
            runs: 3,
            reference_value: 1.0,
            ratio_min,
            ratio_max,
        }
    }

    fn rate(ratios: [f64; 3]) -> Figure {
        figure("a/b", Unit::MebibytesPerSecond, ratios)
    }

    fn verdict(old: &Figure, new: &Figure) -> Compared {
        let compared = compare(std::slice::from_ref(old), std::slice::from_ref(new));
        compared.expect("comparable").remove(0)
    }

    #[test]
    fn change_within_the_noise_of_both_runs_is_none() {
        // Each varies by a tenth, so a fifth may be chance.
        let old = rate([0.95, 1.0, 1.045]);
        for ratio in [0.84, 1.0, 1.2] {
            let new = rate([ratio * 0.95, ratio, ratio * 1.045]);
            assert_eq!(verdict(&old, &new).change, Change::None, "{ratio}");
        }
    }

    #[test]
    fn change_beyond_it_counts_and_the_worse_fails() {
        let old = rate([0.95, 1.0, 1.045]);
        let new = |ratio: f64| rate([ratio * 0.95, ratio, ratio * 1.045]);
        let worse = verdict(&old, &new(0.8));
        assert!(worse.is_bad(), "{worse}");
        let text = worse.to_string();
        assert!(
            text.contains("WORSE: ratio 1.000 before, 0.800 now"),
            "{text}"
        );
        let better = verdict(&old, &new(1.3));
        assert!(
            matches!(better.change, Change::Better(_)) && !better.is_bad(),
            "{better}"
        );
    }

    #[test]
    fn noise_of_either_run_is_enough_for_a_change_to_be_chance() {
        let quiet = |ratio| rate([ratio; 3]);
        let loud = rate([0.7, 0.8, 1.4]);
        assert!(verdict(&quiet(1.0), &quiet(0.99)).is_bad());
        assert!(!verdict(&quiet(1.0), &loud).is_bad());
        assert!(!verdict(&loud, &quiet(0.5)).is_bad());
    }

    #[test]
    fn more_of_a_time_is_worse() {
        let time = |ratio| figure("a/b", Unit::Microseconds, [ratio; 3]);
        assert!(verdict(&time(1.0), &time(1.1)).is_bad());
        assert!(!verdict(&time(1.1), &time(1.0)).is_bad());
    }

    #[test]
    fn figure_that_is_gone_fails_unless_its_group_was_not_asked_for() {
        let old = [
            rate([1.0; 3]),
            figure("a/c", Unit::MebibytesPerSecond, [1.0; 3]),
            figure("other/c", Unit::MebibytesPerSecond, [1.0; 3]),
        ];
        let compared = compare(&old, &old[..1]).expect("comparable");
        let bad: Vec<_> = compared.iter().map(Compared::is_bad).collect();
        assert_eq!(bad, [false, true]);
        assert!(compared[1].to_string().contains("GONE"));
        assert!(compare(&old[2..], &old[..1]).is_err(), "nothing in common");
    }

    #[test]
    fn too_few_rounds_are_refused_with_the_next_step() {
        let old = rate([1.0; 3]);
        let mut new = old.clone();
        new.runs = 2;
        let error = compare(&[old], &[new]).expect_err("too few").to_string();
        assert!(
            error.contains("new results") && error.contains("--rounds 3"),
            "{error}"
        );
    }
}
