// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bars of pieces, for what a time is made of.

use anyhow::Result;
use plotters::prelude::*;

use super::plot::{Axis, FONT, colour, drawn, picture};

const BAR_HEIGHT: u32 = 34;

/// A bar of pieces, one behind the other.
pub struct Bar {
    /// What it stands for.
    pub label: String,
    /// Names and lengths.
    pub pieces: Vec<(String, f64)>,
}

/// Bars of pieces, from the top to the bottom.
pub fn bars(title: &str, x: &Axis, bars: &[Bar]) -> Result<String> {
    let length = |bar: &Bar| bar.pieces.iter().map(|piece| piece.1).sum::<f64>();
    let longest = bars.iter().map(length).fold(f64::MIN_POSITIVE, f64::max);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in bars.iter().flat_map(|bar| &bar.pieces) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let rows = bars.len() as f64;
    let height = 110 + BAR_HEIGHT * bars.len() as u32 + 18 * names.len() as u32;
    picture(height, |area| {
        let (legend, below) = area.split_vertically(30 + 18 * names.len() as i32);
        drawn(legend.draw(&Text::new(title, (10, 8), (FONT, 16))))?;
        for (number, name) in names.iter().enumerate() {
            let y = 30 + 18 * number as i32;
            let square = Rectangle::new([(10, y), (22, y + 12)], colour(number).filled());
            drawn(legend.draw(&square))?;
            drawn(legend.draw(&Text::new(*name, (28, y), (FONT, 13))))?;
        }
        let mut chart = drawn(
            ChartBuilder::on(&below)
                .margin(10)
                .x_label_area_size(42)
                .y_label_area_size(150)
                .build_cartesian_2d(0.0..longest * 1.05, 0.0..rows),
        )?;
        let name_of = |place: &f64| {
            let row = rows - 0.5 - place;
            let is_middle = (row - row.round()).abs() < 1e-6 && row >= -1e-6;
            let bar = is_middle.then(|| bars.get(row.round() as usize)).flatten();
            bar.map_or_else(String::new, |bar| bar.label.clone())
        };
        drawn(
            chart
                .configure_mesh()
                .disable_y_mesh()
                .y_labels(2 * bars.len() + 1)
                .x_desc(x.name)
                .x_label_formatter(&|value| (x.label)(*value))
                .y_label_formatter(&name_of)
                .draw(),
        )?;
        for (row, bar) in bars.iter().enumerate() {
            let top = rows - row as f64 - 0.15;
            let mut start = 0.0;
            for (name, length) in &bar.pieces {
                let number = names.iter().position(|known| known == name).unwrap_or(0);
                let corners = [(start, top), (start + length, top - 0.7)];
                let piece = Rectangle::new(corners, colour(number).filled());
                drawn(chart.draw_series([piece]))?;
                start += length;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXIS: Axis = Axis {
        name: "time",
        label: |value| format!("{value:.0}u"),
    };

    #[test]
    fn bar_is_as_long_as_its_pieces() {
        let bar = |label: &str, length| Bar {
            label: label.into(),
            pieces: vec![("copy".into(), length), ("rest".into(), 1.0)],
        };
        let svg = bars("where", &AXIS, &[bar("first", 3.0), bar("second", 1.0)]).expect("drawn");
        for text in ["where", "first", "second", "copy", "rest"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        let widths: Vec<u32> = svg
            .match_indices("<rect")
            .filter_map(|(at, _)| {
                svg[at..]
                    .split("width=\"")
                    .nth(1)?
                    .split('"')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        // The ground, the legend's two squares, and the pieces.
        assert_eq!(widths.len(), 1 + 2 + 4, "{widths:?}");
        assert!(widths[3].abs_diff(3 * widths[5]) <= 3, "{widths:?}");
    }
}
