// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Figures: what all samples of a name come to, against one reference each
//! (docs/reference/schemas/cdm-bench-results.schema.json).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use cdm_agent_protocol::{SUBJECT, Sample, Unit};

/// A figure against a reference: an element of `results.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The subject's median.
    pub value: f64,
    /// What values are counted in.
    pub unit: Unit,
    /// What it is compared with.
    pub reference: String,
    /// The subject's value by the reference's of the same round: the median of all rounds.
    pub ratio: f64,
    /// The subject's least value of a round,
    pub min: f64,
    /// its median,
    pub median: f64,
    /// and its greatest one.
    pub max: f64,
    /// How many rounds there were.
    pub runs: u32,
    /// The reference's median.
    pub reference_value: f64,
    /// The least ratio of a round,
    pub ratio_min: f64,
    /// and the greatest one.
    pub ratio_max: f64,
    /// The ratios of all rounds, in their order.
    pub ratios: Vec<f64>,
}

impl Figure {
    /// What stands before the first slash of its name.
    pub fn group(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// The middle of some values, or the mean of the two that are.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted.get(middle).copied(),
        _ => Some(f64::midpoint(
            *sorted.get(middle.checked_sub(1)?)?,
            sorted[middle],
        )),
    }
}

/// Values of somebody: one for each round.
type Rounds = BTreeMap<u32, f64>;

/// All that was measured under a name.
struct Named<'a> {
    name: &'a str,
    unit: Unit,
    /// In the order in which they came.
    by: Vec<(&'a str, Rounds)>,
}

/// Makes figures of samples, in the order in which their names came. Each reference must have been
/// measured in the same rounds as the subject.
pub fn collate(samples: &[Sample]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for named in by_name(samples)? {
        let name = named.name;
        let subject = named.by.iter().find(|(by, _)| *by == SUBJECT);
        let (_, subject) =
            subject.with_context(|| format!("{name} was not measured of {SUBJECT}"))?;
        let references = named.by.iter().filter(|(by, _)| *by != SUBJECT);
        let before = figures.len();
        for (reference, rounds) in references {
            let figure = against(&named, subject, reference, rounds);
            figures.push(figure.with_context(|| format!("{name} against {reference}"))?);
        }
        ensure!(
            figures.len() > before,
            "{name} has nothing to be compared with"
        );
    }
    ensure!(!figures.is_empty(), "nothing was measured");
    Ok(figures)
}

fn by_name(samples: &[Sample]) -> Result<Vec<Named<'_>>> {
    let mut found: Vec<(&str, Vec<&Sample>)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for sample in samples {
        let place = *places.entry(&sample.name).or_insert(found.len());
        if place == found.len() {
            found.push((&sample.name, Vec::new()));
        }
        found[place].1.push(sample);
    }
    found
        .into_iter()
        .map(|(name, samples)| {
            let unit = samples[0].unit;
            if let Some(other) = samples.iter().find(|sample| sample.unit != unit) {
                bail!(
                    "{name} is counted in {unit}, and of {} in {}",
                    other.by,
                    other.unit
                );
            }
            Ok(Named {
                name,
                unit,
                by: by_whom(&samples)?,
            })
        })
        .collect()
}

/// One value for each round; where a round has several samples, it is their median.
fn by_whom<'a>(samples: &[&'a Sample]) -> Result<Vec<(&'a str, Rounds)>> {
    let mut order: Vec<&str> = Vec::new();
    for sample in samples {
        if !order.contains(&&*sample.by) {
            order.push(&sample.by);
        }
    }
    order
        .into_iter()
        .map(|by| {
            let mut rounds: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
            for sample in samples.iter().filter(|sample| sample.by == by) {
                rounds.entry(sample.round).or_default().push(sample.value);
            }
            let middle = |(round, values): (u32, Vec<f64>)| {
                Ok((round, median(&values).context("no value")?))
            };
            Ok((by, rounds.into_iter().map(middle).collect::<Result<_>>()?))
        })
        .collect()
}

fn against(
    named: &Named<'_>,
    subject: &Rounds,
    reference: &str,
    rounds: &Rounds,
) -> Result<Figure> {
    ensure!(
        subject.keys().eq(rounds.keys()),
        "rounds {:?} were measured, and rounds {:?} of the reference",
        subject.keys().collect::<Vec<_>>(),
        rounds.keys().collect::<Vec<_>>()
    );
    let values: Vec<f64> = subject.values().copied().collect();
    let references: Vec<f64> = rounds.values().copied().collect();
    let ratios: Vec<f64> = values
        .iter()
        .zip(&references)
        .map(|(value, by)| value / by)
        .collect();
    let middle = |values: &[f64]| median(values).context("no round");
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    Ok(Figure {
        name: named.name.to_owned(),
        value: middle(&values)?,
        unit: named.unit,
        reference: reference.to_owned(),
        ratio: middle(&ratios)?,
        min: least(&values),
        median: middle(&values)?,
        max: greatest(&values),
        runs: u32::try_from(values.len())?,
        reference_value: middle(&references)?,
        ratio_min: least(&ratios),
        ratio_max: greatest(&ratios),
        ratios,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn sample(name: &str, by: &str, round: u32, value: f64) -> Sample {
        Sample {
            name: name.into(),
            by: by.into(),
            unit: Unit::MebibytesPerSecond,
            round,
            value,
        }
    }

    /// Three rounds of a subject and two references.
    pub fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (round, (subject, one, other)) in
            [(30.0, 10.0, 60.0), (20.0, 10.0, 20.0), (24.0, 8.0, 96.0)]
                .into_iter()
                .enumerate()
        {
            let round = round as u32;
            samples.push(sample("g/a", "cdm", round, subject));
            samples.push(sample("g/a", "one", round, one));
            samples.push(sample("g/a", "other", round, other));
        }
        samples
    }

    #[test]
    fn middle_of_values_is_found_in_any_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn ratio_is_of_values_of_one_round_and_not_of_medians() {
        let figures = collate(&samples()).expect("good");
        let [one, other] = &figures[..] else {
            panic!("{figures:?}")
        };
        assert_eq!((&*one.reference, &*other.reference), ("one", "other"));
        assert_eq!(
            (one.value, one.min, one.median, one.max),
            (24.0, 20.0, 24.0, 30.0)
        );
        assert_eq!((one.ratio_min, one.ratio, one.ratio_max), (2.0, 3.0, 3.0));
        assert_eq!(one.ratios, [3.0, 2.0, 3.0]);
        assert_eq!((one.reference_value, one.runs), (10.0, 3));
        // 0.5, 1.0 and 0.25; the medians would give 24 by 60.
        assert_eq!(
            (other.ratio_min, other.ratio, other.ratio_max),
            (0.25, 0.5, 1.0)
        );
        assert_eq!(one.group(), "g");
    }

    #[test]
    fn several_samples_of_a_round_count_as_their_median() {
        let mut samples = samples();
        samples.extend([1.0, 2.0].map(|value| sample("g/a", "one", 1, value)));
        let figures = collate(&samples).expect("good");
        assert_eq!(figures[0].ratio_max, 10.0);
    }

    fn refused(change: impl FnOnce(&mut Vec<Sample>)) -> String {
        let mut samples = samples();
        change(&mut samples);
        format!(
            "{:#}",
            collate(&samples).expect_err("a change for the worse")
        )
    }

    #[test]
    fn figure_without_its_like_in_each_round_is_none() {
        let text = refused(|samples| samples.retain(|one| one.by != "one" || one.round != 1));
        assert!(
            text.contains("against one") && text.contains("[0, 2]"),
            "{text}"
        );
        let text = refused(|samples| samples.retain(|one| one.by != "cdm"));
        assert!(text.contains("not measured of cdm"), "{text}");
        let text = refused(|samples| samples.retain(|one| one.by == "cdm"));
        assert!(text.contains("nothing to be compared"), "{text}");
        let text = refused(|samples| samples[4].unit = Unit::Microseconds);
        assert!(
            text.contains("counted in MiB/s, and of one in us"),
            "{text}"
        );
        assert_eq!(refused(Vec::clear), "nothing was measured");
    }

    #[test]
    fn figures_follow_the_schema() {
        let figures = collate(&samples()).expect("good");
        let json = serde_json::to_vec(&figures).expect("JSON");
        crate::schema::follows("cdm-bench-results.schema.json", &json).expect("as promised");
    }
}
