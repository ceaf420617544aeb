// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Plots as SVG, which a page can hold by itself.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::html::COLOURS;

/// Small, with large letters: a page shows it as wide as there is room, also on a telephone.
const WIDTH: u32 = 480;
const HEIGHT: u32 = 300;
/// Whatever the reader has.
const FONT: (&str, u32) = ("sans-serif", 15);

/// What an axis shows. Where it is logarithmic, points have the logarithm, and `label` undoes it.
pub struct Axis {
    /// What is counted, and in what.
    pub name: &'static str,
    /// The text at a place of it.
    pub label: fn(f64) -> String,
    /// The places that get one, of all between the ends.
    pub places: fn(&Range<f64>) -> Vec<f64>,
}

/// A line through points.
pub struct Line {
    /// Whose it is.
    pub label: String,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
}

/// A colour for each number.
fn colour(number: usize) -> RGBColor {
    let (red, green, blue) = COLOURS[number % COLOURS.len()];
    RGBColor(red, green, blue)
}

/// The library's errors hold parts of the picture, and cannot be passed on.
fn drawn<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("cannot draw: {error}"))
}

/// Lines in one system of axes. Whose they are, the page says below.
pub fn lines(x: &Axis, y: &Axis, lines: &[Line]) -> Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x_range = range(points().map(|point| point.0));
    let y_range = range(points().map(|point| point.1));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = drawn(
            ChartBuilder::on(&area)
                .margin(10)
                .margin_right(30)
                .x_label_area_size(46)
                .y_label_area_size(70)
                .build_cartesian_2d(Scale::of(x, x_range), Scale::of(y, y_range)),
        )?;
        drawn(
            chart
                .configure_mesh()
                .label_style(FONT)
                .axis_desc_style(FONT)
                .x_desc(x.name)
                .y_desc(y.name)
                .x_label_formatter(&|value| (x.label)(*value))
                .y_label_formatter(&|value| (y.label)(*value))
                .light_line_style(TRANSPARENT)
                .draw(),
        )?;
        for (number, line) in lines.iter().enumerate() {
            let style = colour(number).stroke_width(2);
            let series = LineSeries::new(line.points.iter().copied(), style).point_size(3);
            drawn(chart.draw_series(series))?;
        }
        drawn(area.present())?;
    }
    Ok(svg)
}

/// An axis whose labels are where it wants them.
struct Scale {
    ends: RangedCoordf64,
    places: Vec<f64>,
}

impl Scale {
    fn of(axis: &Axis, range: Range<f64>) -> Self {
        Self {
            places: (axis.places)(&range),
            ends: range.into(),
        }
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.ends.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.places.clone()
    }

    fn range(&self) -> Range<f64> {
        self.ends.range()
    }
}

/// Labels that have room on an axis.
const LABELS: usize = 6;

/// As many of some places as there is room for labels.
fn thinned(places: &[f64]) -> Vec<f64> {
    let step = places.len().div_ceil(LABELS).max(1);
    places.iter().copied().step_by(step).collect()
}

/// Places that are multiples of a number.
pub fn multiples(range: &Range<f64>, of: f64) -> Vec<f64> {
    let (first, last) = ((range.start / of).ceil() as i64, (range.end / of) as i64);
    let places: Vec<f64> = (first..=last).map(|number| number as f64 * of).collect();
    thinned(&places)
}

/// Places of a logarithmic axis whose values are as round as they can be where there are several.
pub fn round_values(range: &Range<f64>) -> Vec<f64> {
    let tenths = |step: usize| (10..100).step_by(step).map(|tenth| f64::from(tenth) / 10.0);
    let digits: [Vec<f64>; 4] = [
        vec![1.0],
        vec![1.0, 2.0, 5.0],
        tenths(10).collect(),
        tenths(1).collect(),
    ];
    let places = |digits: &Vec<f64>| -> Vec<f64> {
        let decades = range.start.floor() as i32..=range.end.floor() as i32;
        decades
            .flat_map(|decade| {
                digits
                    .iter()
                    .map(move |digit| digit.log10() + f64::from(decade))
            })
            .filter(|place| range.contains(place))
            .collect()
    };
    let found = digits.iter().map(places).find(|places| places.len() >= 3);
    thinned(&found.unwrap_or_default())
}

/// From the least to the greatest value, with some room; never empty.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, greatest) = values.fold(
        (f64::INFINITY, f64::NEG_INFINITY),
        |(least, greatest), value| (least.min(value), greatest.max(value)),
    );
    if least > greatest {
        return 0.0..1.0;
    }
    let room = ((greatest - least) * 0.06).max(0.1);
    least - room..greatest + room
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXIS: Axis = Axis {
        name: "size",
        label: |value| format!("{value:.0}u"),
        places: |range| multiples(range, 1.0),
    };

    #[test]
    fn plot_has_axes_and_a_line_for_each() {
        let line = |label: &str| Line {
            label: label.into(),
            points: vec![(1.0, 2.0), (2.0, 5.0)],
        };
        let svg = lines(&AXIS, &AXIS, &[line("one"), line("other")]).expect("drawn");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["size", "2u", "5u"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        for (colour, wanted) in [("#0072B2", 1), ("#E69F00", 1), ("#009E73", 0)] {
            let lines = svg.lines().filter(|line| line.contains("<polyline"));
            let own = lines.filter(|line| line.contains(colour)).count();
            assert_eq!(own, wanted, "{colour} in {svg}");
        }
    }

    #[test]
    fn places_with_a_label_are_round_and_few() {
        assert_eq!(multiples(&(15.5..18.5), 1.0), [16.0, 17.0, 18.0]);
        assert_eq!(multiples(&(0.0..100.0), 25.0).len(), 5);
        assert!(multiples(&(10.0..60.0), 1.0).len() <= LABELS);
        let values = |range: Range<f64>| -> Vec<f64> {
            let undone = |place: &f64| (10f64.powf(*place) * 100.0).round() / 100.0;
            round_values(&range).iter().map(undone).collect()
        };
        assert_eq!(values(0.9..3.1), [10.0, 100.0, 1000.0]);
        assert_eq!(values(1.9..2.8), [100.0, 200.0, 500.0]);
        assert_eq!(values(2.25..2.65), [200.0, 300.0, 400.0]);
        assert!(values(2.0..2.2).len() >= 3);
    }

    #[test]
    fn range_is_never_empty() {
        assert_eq!(range(std::iter::empty()), 0.0..1.0);
        let one = range(std::iter::once(4.0));
        assert!(one.start < 4.0 && one.end > 4.0);
    }
}
