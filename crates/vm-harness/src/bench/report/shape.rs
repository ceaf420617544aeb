// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which plots the figures make: a size or a number of threads, devices or processes in a name is a
//! place on an axis.

use super::plot::{Axis, Line, multiples, round_values};
use crate::bench::figure::Figure;
use crate::html::{Bar, COLOURS, Piece};
use cdm_agent_protocol::{SUBJECT, Sample, Unit};

/// Suffixes of sizes, with the binary logarithms of what they stand for.
const SIZES: [(&str, u32); 3] = [("KiB", 10), ("MiB", 20), ("GiB", 30)];

/// A part of a name that is a number of bytes, such as `64KiB`.
fn bytes(word: &str) -> Option<f64> {
    SIZES.into_iter().find_map(|(suffix, shift)| {
        let number: f64 = word.strip_suffix(suffix)?.parse().ok()?;
        Some(number * f64::from(shift).exp2())
    })
}

/// A part of a name that is a number of what there is several of, such as `2-thread`.
fn count(word: &str) -> Option<f64> {
    let (number, what) = word.split_once('-')?;
    ["thread", "device", "process"]
        .contains(&what)
        .then(|| number.parse().ok())?
}

/// A name whose last part that is a number was taken out, and the number.
fn without(name: &str, number: fn(&str) -> Option<f64>) -> Option<(String, f64)> {
    let words: Vec<&str> = name.split('/').collect();
    let place = words.iter().rposition(|word| number(word).is_some())?;
    let value = number(words[place])?;
    let rest: Vec<&str> = words
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != place)
        .map(|(_, word)| *word)
        .collect();
    Some((rest.join("/"), value))
}

/// Lines that belong into one plot.
pub struct Plot {
    /// What all of it is.
    pub title: String,
    /// One for the subject and each reference.
    pub lines: Vec<Line>,
}

/// Values of all figures of a unit whose names differ by a number alone, over that number: a plot for
/// each of the names without it, of those that have several numbers. Both axes are logarithmic.
fn over(figures: &[Figure], unit: Unit, number: fn(&str) -> Option<f64>) -> Vec<Plot> {
    let mut plots: Vec<Plot> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.unit == unit) {
        let Some((title, at)) = without(&figure.name, number) else {
            continue;
        };
        let place = match plots.iter().position(|plot| plot.title == title) {
            Some(place) => place,
            None => {
                plots.push(Plot {
                    title,
                    lines: Vec::new(),
                });
                plots.len() - 1
            }
        };
        let values = [
            (SUBJECT, figure.value),
            (&figure.reference, figure.reference_value),
        ];
        for (by, value) in values {
            put(&mut plots[place].lines, by, (at.log2(), value.log10()));
        }
    }
    plots.retain(|plot| plot.lines.iter().any(|line| line.points.len() > 1));
    plots
}

/// Adds a point to the line of somebody, where it has none yet.
fn put(lines: &mut Vec<Line>, by: &str, point: (f64, f64)) {
    match lines.iter_mut().find(|line| line.label == by) {
        Some(line) if line.points.iter().any(|other| other.0 == point.0) => {}
        Some(line) => line.points.push(point),
        None => lines.push(Line {
            label: by.to_owned(),
            points: vec![point],
        }),
    }
}

/// Throughput by size.
pub fn by_size(figures: &[Figure]) -> Vec<Plot> {
    over(figures, Unit::MebibytesPerSecond, bytes)
}

/// Throughput by threads, devices and processes.
pub fn by_count(figures: &[Figure]) -> Vec<Plot> {
    over(figures, Unit::MebibytesPerSecond, count)
}

/// Times by the size of the device memory.
pub fn times_by_size(figures: &[Figure]) -> Vec<Plot> {
    over(figures, Unit::Milliseconds, bytes)
}

/// Memory that something takes by the size of the device memory.
pub fn memory_by_size(figures: &[Figure]) -> Vec<Plot> {
    over(figures, Unit::Mebibytes, bytes)
}

/// The axis of sizes.
pub const SIZE: Axis = Axis {
    name: "size",
    label: |place| {
        // The greatest of which there is one or more.
        let is_one = |(_, shift): &&(&str, u32)| place >= f64::from(*shift);
        let (suffix, shift) = SIZES.iter().rev().find(is_one).unwrap_or(&SIZES[0]);
        format!("{:.0} {suffix}", (place - f64::from(*shift)).exp2())
    },
    places: |range| multiples(range, 1.0),
};

/// The axis of threads, devices and processes.
pub const COUNT: Axis = Axis {
    name: "threads, devices or processes",
    label: |place| match (place.exp2() - place.exp2().round()).abs() < 1e-6 {
        true => format!("{:.0}", place.exp2()),
        false => String::new(),
    },
    places: |range| multiples(range, 1.0),
};

/// An axis whose places are decimal logarithms.
const fn logarithmic(name: &'static str) -> Axis {
    Axis {
        name,
        label: |place| crate::bench::table::number(10f64.powf(place)),
        places: round_values,
    }
}

/// The axis of throughput.
pub const THROUGHPUT: Axis = logarithmic("MiB/s");

/// The axis of times that somebody notices.
pub const LONG_TIME: Axis = logarithmic("milliseconds");

/// The axis of memory.
pub const MEMORY: Axis = logarithmic("MiB");

/// The axis of times.
pub const TIME: Axis = logarithmic("microseconds");

/// The axis of shares.
pub const SHARE: Axis = Axis {
    name: "percent of samples",
    label: |place| format!("{place:.0}"),
    places: |range| multiples(range, 25.0),
};

/// The group whose figures are parts of a time.
const BREAKDOWN: &str = "breakdown";

/// What a time is made of.
pub struct Breakdown {
    /// What took the time.
    pub title: String,
    /// Names of the pieces, whose places are the numbers of their colours.
    pub pieces: Vec<String>,
    /// One for the subject and each reference.
    pub bars: Vec<Bar>,
}

/// What times are made of: one for each name without its last part, which is that of a piece.
pub fn breakdowns(figures: &[Figure]) -> Vec<Breakdown> {
    let mut titles: Listed<Listed<Listed<f64>>> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.group() == BREAKDOWN) {
        let Some((title, piece)) = figure.name.rsplit_once('/') else {
            continue;
        };
        let all = entry(&mut titles, title);
        // A subject with several references comes several times, with the same value.
        *entry(entry(all, SUBJECT), piece) = figure.value;
        *entry(entry(all, &figure.reference), piece) = figure.reference_value;
    }
    titles
        .into_iter()
        .map(|(title, all)| breakdown(title, all))
        .collect()
}

fn breakdown(title: String, all: Listed<Listed<f64>>) -> Breakdown {
    let mut names: Listed<()> = Vec::new();
    for (name, _) in all.iter().flat_map(|(_, pieces)| pieces) {
        entry(&mut names, name);
    }
    let pieces: Vec<String> = names.into_iter().map(|(name, ())| name).collect();
    let bars = all
        .into_iter()
        .map(|(name, lengths)| {
            let sum: f64 = lengths.iter().map(|(_, length)| length).sum();
            let coloured = lengths.iter().map(|(name, length)| {
                let place = pieces.iter().position(|known| known == name);
                (*length, place.unwrap_or(0) % COLOURS.len())
            });
            Bar {
                text: crate::bench::table::number(sum),
                pieces: Piece::stacked(coloured),
                spread: None,
                name,
            }
        })
        .collect();
    Breakdown {
        title,
        pieces,
        bars,
    }
}

/// Fewest samples that show a distribution.
const SAMPLES_MIN: usize = 20;

/// How times are distributed: for each name that is one in microseconds, which part of the samples of each took
/// no longer than so long.
pub fn distributions(samples: &[Sample]) -> Vec<Plot> {
    let mut plots: Listed<Listed<Vec<f64>>> = Vec::new();
    for sample in samples
        .iter()
        .filter(|sample| sample.unit == Unit::Microseconds)
    {
        let own = entry(&mut plots, &sample.name);
        entry(own, &sample.by).push(sample.value);
    }
    // What has one value for a round has no distribution.
    plots.retain(|(_, by)| by.iter().any(|(_, values)| values.len() >= SAMPLES_MIN));
    let plot = |(title, by): (String, Listed<Vec<f64>>)| Plot {
        title,
        lines: by
            .into_iter()
            .map(|(label, values)| distribution(label, values))
            .collect(),
    };
    plots.into_iter().map(plot).collect()
}

/// Values by keys, in the order in which the keys came.
type Listed<T> = Vec<(String, T)>;

/// The value of a key in a list that keeps its order; a new one if there is none.
fn entry<'a, T: Default>(list: &'a mut Listed<T>, key: &str) -> &'a mut T {
    let place = match list.iter().position(|(known, _)| known == key) {
        Some(place) => place,
        None => {
            list.push((key.to_owned(), T::default()));
            list.len() - 1
        }
    };
    &mut list[place].1
}

fn distribution(label: String, mut values: Vec<f64>) -> Line {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1).max(1) as f64;
    let points = values
        .iter()
        .enumerate()
        .map(|(number, value)| (value.log10(), 100.0 * number as f64 / last))
        .collect();
    Line { label, points }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, reference: &str, value: f64) -> Figure {
        Figure {
            name: name.into(),
            value,
            unit: Unit::MebibytesPerSecond,
            reference: reference.into(),
            ratio: 1.0,
            min: 1.0,
            median: 1.0,
            max: 1.0,
            runs: 3,
            reference_value: 1000.0,
            ratio_min: 1.0,
            ratio_max: 1.0,
            ratios: vec![1.0; 3],
        }
    }

    #[test]
    fn figures_that_differ_by_size_are_one_plot_with_a_line_for_each() {
        let figures = [
            figure("m/4KiB/64KiB/to/1-thread", "a", 10.0),
            figure("m/4KiB/64KiB/to/1-thread", "b", 10.0),
            figure("m/4KiB/1MiB/to/1-thread", "a", 100.0),
            figure("m/2MiB/1MiB/to/1-thread", "a", 100.0),
        ];
        let plots = by_size(&figures);
        // The folios are all of one size, which makes no line.
        assert_eq!(plots.len(), 1);
        assert_eq!(plots[0].title, "m/4KiB/to/1-thread");
        let lines: Vec<_> = plots[0]
            .lines
            .iter()
            .map(|line| (&*line.label, &*line.points))
            .collect();
        assert_eq!(
            lines,
            [
                ("cdm", &[(16.0, 1.0), (20.0, 2.0)][..]),
                ("a", &[(16.0, 3.0), (20.0, 3.0)][..]),
                ("b", &[(16.0, 3.0)][..]),
            ]
        );
    }

    #[test]
    fn figures_that_differ_by_threads_devices_or_processes_are_one_plot() {
        for what in ["thread", "device", "process"] {
            let figures = [
                figure(&format!("m/16MiB/to/1-{what}"), "a", 10.0),
                figure(&format!("m/16MiB/to/2-{what}"), "a", 100.0),
            ];
            let plots = by_count(&figures);
            assert_eq!(plots.len(), 1);
            assert_eq!(plots[0].lines[0].points, [(0.0, 1.0), (1.0, 2.0)]);
            assert!(by_count(&figures[..1]).is_empty());
        }
    }

    #[test]
    fn what_a_device_costs_is_plotted_by_its_size_and_apart_by_unit() {
        let of = |unit, what: &str| {
            ["256MiB", "1GiB"].map(|size| Figure {
                unit,
                ..figure(&format!("growth/{what}/{size}"), "a", 10.0)
            })
        };
        let figures = [
            of(Unit::Milliseconds, "probe"),
            of(Unit::Mebibytes, "memory"),
        ]
        .concat();
        let titles =
            |plots: Vec<Plot>| plots.into_iter().map(|plot| plot.title).collect::<Vec<_>>();
        assert_eq!(titles(times_by_size(&figures)), ["growth/probe"]);
        assert_eq!(titles(memory_by_size(&figures)), ["growth/memory"]);
        assert!(by_size(&figures).is_empty());
        let plot = times_by_size(&figures).remove(0);
        assert_eq!(plot.lines[0].points, [(28.0, 1.0), (30.0, 1.0)]);
    }

    #[test]
    fn distribution_goes_from_the_least_to_the_greatest_sample() {
        let sample = |value| Sample {
            name: "page/to".into(),
            by: "cdm".into(),
            unit: Unit::Microseconds,
            round: 0,
            value,
        };
        let mut samples: Vec<Sample> = vec![sample(10.0); SAMPLES_MIN - 1];
        samples.insert(0, sample(100.0));
        samples.push(sample(1.0));
        let plots = distributions(&samples);
        assert_eq!(plots.len(), 1);
        let points = &plots[0].lines[0].points;
        assert_eq!(points.first(), Some(&(0.0, 0.0)));
        assert_eq!(points.last(), Some(&(2.0, 100.0)));
        assert_eq!(points[SAMPLES_MIN / 2].0, 1.0);
        assert!(distributions(&samples[..3]).is_empty());
    }

    #[test]
    fn time_is_a_bar_of_its_parts_for_the_subject_and_each_reference() {
        let figures = [
            figure("breakdown/4KiB/to/copy", "test_hmm", 3.0),
            figure("breakdown/4KiB/to/remap", "test_hmm", 4.0),
            figure("m/4KiB/to/copy", "test_hmm", 4.0),
        ];
        let found = breakdowns(&figures);
        assert_eq!(found.len(), 1);
        let Breakdown {
            title,
            pieces,
            bars,
        } = &found[0];
        assert_eq!(title, "breakdown/4KiB/to");
        assert_eq!(pieces, &["copy", "remap"]);
        let shown = |bar: &Bar| {
            let ends = bar
                .pieces
                .iter()
                .map(|piece| (piece.colour, piece.range.end));
            (bar.name.clone(), bar.text.clone(), ends.collect::<Vec<_>>())
        };
        let shown: Vec<_> = bars.iter().map(shown).collect();
        let wanted = |name: &str, text: &str, ends: [f64; 2]| {
            (
                name.to_owned(),
                text.to_owned(),
                vec![(0, ends[0]), (1, ends[1])],
            )
        };
        assert_eq!(
            shown,
            [
                wanted("cdm", "7.00", [3.0, 7.0]),
                wanted("test_hmm", "2000", [1000.0, 2000.0]),
            ]
        );
    }

    #[test]
    fn axes_say_what_their_places_stand_for() {
        assert_eq!((SIZE.label)(16.0), "64 KiB");
        assert_eq!((SIZE.label)(24.0), "16 MiB");
        assert_eq!((THROUGHPUT.label)(2.0), "100");
        assert_eq!((SIZE.label)(36.0), "64 GiB");
        assert_eq!((COUNT.label)(8.0), "256");
        assert_eq!((COUNT.label)(1.5), "");
    }
}
