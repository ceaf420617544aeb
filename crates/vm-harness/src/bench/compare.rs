// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The regression gate: figures of two runs, by their ratios to references that were measured
//! in the same run, so that a slower machine is no regression.
//!
//! A figure has changed if its median ratio has, by more than [`SURE`] times the standard error of
//! the difference of the two medians. What a few rounds say of their own noise is itself mostly
//! chance: of three rounds, one in a hundred is ten times as close together as it should be, and a
//! run has more than a hundred figures. So no figure counts as quieter than those of its group
//! and unit are on the average (of squares) in that run. And what is less than [`LEAST`] is not
//! worth a word.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

use super::figure::Figure;

/// Fewest rounds that tell what the noise is.
const ROUNDS_MIN: usize = 3;

/// Standard errors that a change has to exceed. By chance one figure in four thousand does, on each
/// side, so that of 140 figures one is called worse in one comparison of thirty.
const SURE: f64 = 3.5;

/// The least factor that counts as a change.
const LEAST: f64 = 1.05;

/// Standard error of a median by that of a mean, where values are spread by chance.
const OF_MEDIAN: f64 = 1.2533;

/// From the quartiles' distance to the standard deviation.
const OF_QUARTILES: f64 = 1.349;

/// What became of a figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// No more than noise, which is up to this factor.
    None(f64),
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
    /// The factor up to which a change may be chance.
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
            Change::None(_) => ("as before", None),
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
        let least = figures.iter().map(|figure| figure.ratios.len()).min();
        let least = least.unwrap_or(0);
        ensure!(
            least >= ROUNDS_MIN,
            "the {which} results have figures of {least} rounds, which do not tell what is noise; \
             measure with --rounds {ROUNDS_MIN} or more"
        );
    }
    let (of_old, of_new) = (Noise::of(old), Noise::of(new));
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
            let other = new.iter().find(is_same);
            let change = other.map(|other| {
                let noise = of_old.error(figure).hypot(of_new.error(other)) * SURE;
                change(figure, other, noise.exp().max(LEAST))
            });
            Compared {
                name: figure.name.clone(),
                reference: figure.reference.clone(),
                change: change.unwrap_or(Change::Gone),
            }
        })
        .collect();
    ensure!(
        !compared.is_empty(),
        "the two results have no group in common"
    );
    Ok(compared)
}

/// What is known of the noise of a run: the average of it over all figures of a group and a unit.
struct Noise<'a>(BTreeMap<(&'a str, &'static str), f64>);

impl<'a> Noise<'a> {
    fn of(figures: &'a [Figure]) -> Self {
        let mut all: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for figure in figures {
            let own = all.entry(kind(figure)).or_default();
            own.push(deviation(&figure.ratios));
        }
        let average = |(kind, values): (_, Vec<f64>)| {
            let squares: f64 = values.iter().map(|value| value * value).sum();
            (kind, (squares / values.len() as f64).sqrt())
        };
        Self(all.into_iter().map(average).collect())
    }

    /// Standard error of the median of a figure's ratios, of which the logarithm is taken.
    fn error(&self, figure: &Figure) -> f64 {
        let floor = self.0.get(&kind(figure)).copied().unwrap_or(0.0);
        let deviation = deviation(&figure.ratios).max(floor);
        OF_MEDIAN * deviation / (figure.ratios.len() as f64).sqrt()
    }
}

/// Figures that are as quiet as each other.
fn kind(figure: &Figure) -> (&str, &'static str) {
    (figure.group(), figure.unit.name())
}

/// Rounds from which on quartiles tell the noise: single rounds that the host was busy in do not
/// move the median then, nor do they move these.
const ROUNDS_FOR_QUARTILES: usize = 8;

/// How far ratios are apart: the standard deviation of their logarithms.
fn deviation(ratios: &[f64]) -> f64 {
    let mut logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
    logs.sort_by(f64::total_cmp);
    let count = logs.len();
    if count >= ROUNDS_FOR_QUARTILES {
        return (logs[count - 1 - count / 4] - logs[count / 4]) / OF_QUARTILES;
    }
    let mean = logs.iter().sum::<f64>() / count as f64;
    let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
    (squares / (count as f64 - 1.0)).sqrt()
}

fn change(old: &Figure, new: &Figure, noise: f64) -> Change {
    let numbers = Numbers {
        old: old.ratio,
        new: new.ratio,
        noise,
    };
    let gain = match old.unit.less_is_better() {
        true => old.ratio / new.ratio,
        false => new.ratio / old.ratio,
    };
    if gain > noise {
        Change::Better(numbers)
    } else if gain * noise < 1.0 {
        Change::Worse(numbers)
    } else {
        Change::None(noise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure::median;
    use cdm_agent_protocol::Unit;
    use serde::Deserialize;

    fn figure(name: &str, reference: &str, unit: Unit, ratios: &[f64]) -> Figure {
        let ratio = median(ratios).expect("rounds");
        Figure {
            name: name.into(),
            value: 1.0,
            unit,
            reference: reference.into(),
            ratio,
            min: 1.0,
            median: 1.0,
            max: 1.0,
            runs: u32::try_from(ratios.len()).expect("few"),
            reference_value: 1.0,
            ratio_min: ratio,
            ratio_max: ratio,
            ratios: ratios.to_vec(),
        }
    }

    fn rate(ratios: &[f64]) -> Figure {
        figure("a/b", "memcpy", Unit::MebibytesPerSecond, ratios)
    }

    /// Three rounds that are two parts in a hundred apart.
    fn quiet(ratio: f64) -> Figure {
        rate(&[0.98 * ratio, ratio, 1.02 * ratio])
    }

    fn verdict(old: &Figure, new: &Figure) -> Compared {
        let compared = compare(std::slice::from_ref(old), std::slice::from_ref(new));
        compared.expect("comparable").remove(0)
    }

    fn bad(compared: &[Compared]) -> Vec<String> {
        let bad = compared.iter().filter(|one| one.is_bad());
        bad.map(ToString::to_string).collect()
    }

    /// A figure of two runs of one commit, as they were measured.
    #[derive(Deserialize)]
    struct Recorded {
        name: String,
        reference: String,
        unit: Unit,
        first: Vec<f64>,
        second: Vec<f64>,
    }

    /// Both runs, with the second one's subject slower by a factor.
    fn recorded(text: &str, slower: f64) -> [Vec<Figure>; 2] {
        let recorded: Vec<Recorded> = serde_json::from_str(text).expect("figures");
        let of = |one: &Recorded, ratios: &[f64], slower: f64| {
            let factor = match one.unit.less_is_better() {
                true => slower,
                false => 1.0 / slower,
            };
            let ratios: Vec<f64> = ratios.iter().map(|ratio| ratio * factor).collect();
            figure(&one.name, &one.reference, one.unit, &ratios)
        };
        let first = recorded.iter().map(|one| of(one, &one.first, 1.0));
        let second = recorded.iter().map(|one| of(one, &one.second, slower));
        [first.collect(), second.collect()]
    }

    /// 'just bench --quick', three rounds on a host with two processors and a load of 5.
    const BUSY: &str = include_str!("golden/busy.json");

    #[test]
    fn same_commit_measured_again_on_a_busy_host_has_not_changed() {
        let [first, second] = recorded(BUSY, 1.0);
        assert!(first.len() > 100, "{}", first.len());
        for (old, new) in [(&first, &second), (&second, &first)] {
            let compared = compare(old, new).expect("comparable");
            assert_eq!(bad(&compared), [""; 0]);
        }
    }

    /// What a device takes of memory, three rounds of 'just bench growth --quick', which hardly depends on
    /// other work.
    const QUIET: &str = include_str!("golden/quiet.json");

    #[test]
    fn a_fifth_more_is_found_where_it_was_quiet_enough_and_nothing_without_it() {
        let [first, same] = recorded(QUIET, 1.0);
        assert_eq!(bad(&compare(&first, &same).expect("comparable")), [""; 0]);
        let [first, slower] = recorded(QUIET, 1.2);
        let found = bad(&compare(&first, &slower).expect("comparable"));
        assert_eq!(found.len(), first.len(), "{found:?}");
    }

    #[test]
    fn rounds_that_agree_by_chance_are_no_quieter_than_their_group() {
        let loud = |name: &str| figure(name, "x", Unit::MebibytesPerSecond, &[0.6, 1.0, 1.7]);
        let alike = |ratio: f64| figure("a/b", "memcpy", Unit::MebibytesPerSecond, &[ratio; 3]);
        let run = |ratio| [alike(ratio), loud("a/1"), loud("a/2")];
        let compared = compare(&run(1.0), &run(0.7)).expect("comparable");
        assert_eq!(bad(&compared), [""; 0]);
        // By itself it is what it seems.
        assert!(verdict(&alike(1.0), &alike(0.7)).is_bad());
    }

    #[test]
    fn change_within_the_noise_of_both_runs_is_none() {
        for ratio in [0.94, 1.0, 1.06] {
            let verdict = verdict(&quiet(1.0), &quiet(ratio));
            assert!(matches!(verdict.change, Change::None(_)), "{verdict}");
        }
    }

    #[test]
    fn change_beyond_it_counts_and_the_worse_fails() {
        let worse = verdict(&quiet(1.0), &quiet(0.8));
        assert!(worse.is_bad(), "{worse}");
        let text = worse.to_string();
        assert!(
            text.contains("WORSE: ratio 1.000 before, 0.800 now"),
            "{text}"
        );
        let better = verdict(&quiet(1.0), &quiet(1.3));
        assert!(
            matches!(better.change, Change::Better(_)) && !better.is_bad(),
            "{better}"
        );
    }

    #[test]
    fn change_of_a_few_parts_in_a_hundred_is_not_worth_a_word() {
        let alike = |ratio| rate(&[ratio; 3]);
        assert!(!verdict(&alike(1.0), &alike(0.96)).is_bad());
        assert!(verdict(&alike(1.0), &alike(0.95)).is_bad());
    }

    #[test]
    fn noise_of_either_run_is_enough_for_a_change_to_be_chance() {
        let loud = rate(&[0.7, 0.8, 1.4]);
        assert!(!verdict(&quiet(1.0), &loud).is_bad());
        assert!(!verdict(&loud, &quiet(0.5)).is_bad());
    }

    #[test]
    fn more_rounds_tell_smaller_changes() {
        let rounds = |ratio: f64, count: usize| {
            let steps = [0.92, 0.96, 1.0, 1.04, 1.08].map(|step| step * ratio);
            rate(&steps.repeat(count))
        };
        assert!(!verdict(&rounds(1.0, 1), &rounds(0.86, 1)).is_bad());
        assert!(verdict(&rounds(1.0, 4), &rounds(0.86, 4)).is_bad());
    }

    #[test]
    fn single_rounds_of_a_busy_host_do_not_hide_a_change_from_many_rounds() {
        let rounds = |ratio: f64| {
            let mut rounds = [0.98 * ratio, 1.02 * ratio].repeat(5);
            rounds[..2].copy_from_slice(&[3.0, 0.2]);
            rate(&rounds)
        };
        assert!(verdict(&rounds(1.0), &rounds(0.8)).is_bad());
    }

    #[test]
    fn more_of_a_time_is_worse() {
        let time = |ratio: f64| figure("a/b", "x", Unit::Microseconds, &[ratio; 3]);
        assert!(verdict(&time(1.0), &time(1.1)).is_bad());
        assert!(!verdict(&time(1.1), &time(1.0)).is_bad());
    }

    #[test]
    fn figure_that_is_gone_fails_unless_its_group_was_not_asked_for() {
        let named = |name| figure(name, "memcpy", Unit::MebibytesPerSecond, &[1.0; 3]);
        let old = [named("a/b"), named("a/c"), named("other/c")];
        let compared = compare(&old, &old[..1]).expect("comparable");
        let bad: Vec<_> = compared.iter().map(Compared::is_bad).collect();
        assert_eq!(bad, [false, true]);
        assert!(compared[1].to_string().contains("GONE"));
        assert!(compare(&old[2..], &old[..1]).is_err(), "nothing in common");
    }

    #[test]
    fn too_few_rounds_are_refused_with_the_next_step() {
        let error = compare(&[rate(&[1.0; 3])], &[rate(&[1.0; 2])]);
        let error = error.expect_err("too few").to_string();
        assert!(
            error.contains("new results") && error.contains("--rounds 3"),
            "{error}"
        );
    }
}
