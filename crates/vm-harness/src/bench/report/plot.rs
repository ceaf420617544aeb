// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Plots as SVG, which a page can hold by itself.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 380;
/// Whatever the reader has.
pub const FONT: &str = "sans-serif";

/// What an axis shows. Where it is logarithmic, points have the logarithm, and `label` undoes it.
pub struct Axis {
    /// What is counted, and in what.
    pub name: &'static str,
    /// The text at a place of it.
    pub label: fn(f64) -> String,
}

/// A line through points.
pub struct Line {
    /// Whose it is.
    pub label: String,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
}

/// Colours that are told apart also by who sees few of them.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(60, 60, 60),
];

/// A colour for each number.
pub fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// What is drawn on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws into a new picture.
pub fn picture(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    drawn(area.fill(&WHITE))?;
    draw(&area)?;
    drawn(area.present())?;
    drop(area);
    Ok(svg)
}

/// The library's errors hold parts of the picture, and cannot be passed on.
pub fn drawn<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("cannot draw: {error}"))
}

/// Lines in one system of axes.
pub fn lines(title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x_range = range(points().map(|point| point.0));
    let y_range = range(points().map(|point| point.1));
    picture(HEIGHT, |area| {
        let mut chart = drawn(
            ChartBuilder::on(area)
                .caption(title, (FONT, 16))
                .margin(10)
                .x_label_area_size(42)
                .y_label_area_size(62)
                .build_cartesian_2d(x_range, y_range),
        )?;
        drawn(
            chart
                .configure_mesh()
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
            drawn(chart.draw_series(series))?
                .label(&line.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        drawn(
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw(),
        )
    })
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
    };

    #[test]
    fn plot_has_title_axes_and_a_line_for_each() {
        let line = |label: &str| Line {
            label: label.into(),
            points: vec![(1.0, 2.0), (2.0, 5.0)],
        };
        let svg = lines("a title", &AXIS, &AXIS, &[line("one"), line("other")]).expect("drawn");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["a title", "size", "one", "other", "2u"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        // Each has a line in the plot and one in the legend.
        for colour in ["#0072B2", "#E69F00", "#009E73"] {
            let lines = svg.lines().filter(|line| line.contains("<polyline"));
            let own = lines.filter(|line| line.contains(colour)).count();
            let wanted = if colour == "#009E73" { 0 } else { 2 };
            assert_eq!(own, wanted, "{colour} in {svg}");
        }
    }

    #[test]
    fn range_is_never_empty() {
        assert_eq!(range(std::iter::empty()), 0.0..1.0);
        let one = range(std::iter::once(4.0));
        assert!(one.start < 4.0 && one.end > 4.0);
    }
}
