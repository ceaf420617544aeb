// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bars as SVG, which a page can hold by itself.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const WIDTH: i32 = 900;
/// Where bars begin, left of which their names are, and where they end at most.
const LEFT: i32 = 430;
const RIGHT: i32 = 800;
const ROW: i32 = 20;
const FONT: &str = "sans-serif";
/// Characters of a name that have room.
const NAME_CHARS: usize = 64;

/// Good, bad, neither, and what a bar is drawn of where nothing is judged: told apart also by who
/// sees few colours.
pub const GOOD: RGBColor = RGBColor(0, 158, 115);
pub const BAD: RGBColor = RGBColor(213, 94, 0);
pub const NEITHER: RGBColor = RGBColor(170, 170, 170);
pub const PLAIN: RGBColor = RGBColor(0, 114, 178);

/// A row of a picture.
pub struct Bar {
    pub name: String,
    /// What stands behind it.
    pub text: String,
    /// Its parts, from left to right.
    pub parts: Vec<(f64, RGBColor)>,
    /// The spread of what it shows.
    pub spread: Option<(f64, f64)>,
}

/// Bars below each other, the longest as long as there is room. A line stands at `mark`.
pub fn bars(bars: &[Bar], mark: Option<f64>) -> Result<String> {
    let length = |bar: &Bar| {
        let whole: f64 = bar.parts.iter().map(|(part, _)| part).sum();
        whole.max(bar.spread.map_or(0.0, |(_, max)| max))
    };
    let longest = bars.iter().map(length).chain(mark).fold(0.0, f64::max);
    let at = |value: f64| match longest > 0.0 {
        true => LEFT + (value / longest * f64::from(RIGHT - LEFT)).round() as i32,
        false => LEFT,
    };
    let height = ROW * bars.len() as i32 + 10;
    let mut svg = String::new();
    {
        let size = (WIDTH as u32, height as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let font = (FONT, 12).into_font();
        for (number, bar) in bars.iter().enumerate() {
            let top = ROW * number as i32 + 5;
            drawn(area.draw(&Text::new(shown(&bar.name), (4, top + 3), font.clone())))?;
            let mut from = 0.0;
            for (part, colour) in &bar.parts {
                let corners = [(at(from), top + 2), (at(from + part), top + ROW - 4)];
                drawn(area.draw(&Rectangle::new(corners, colour.filled())))?;
                from += part;
            }
            if let Some((min, max)) = bar.spread {
                let middle = top + ROW / 2 - 1;
                let line = PathElement::new([(at(min), middle), (at(max), middle)], BLACK);
                drawn(area.draw(&line))?;
            }
            let behind = (at(length(bar)) + 6, top + 3);
            drawn(area.draw(&Text::new(bar.text.clone(), behind, font.clone())))?;
        }
        if let Some(mark) = mark {
            let line = PathElement::new([(at(mark), 0), (at(mark), height)], BLACK.mix(0.4));
            drawn(area.draw(&line))?;
        }
        drawn(area.present())?;
    }
    Ok(svg)
}

/// A name that has room: of long ones the end, which tells them from their neighbours.
fn shown(name: &str) -> String {
    let chars = name.chars().count();
    match chars > NAME_CHARS {
        true => std::iter::once('…')
            .chain(name.chars().skip(chars - NAME_CHARS + 1))
            .collect(),
        false => name.to_owned(),
    }
}

/// The library's errors hold parts of the picture, and cannot be passed on.
fn drawn<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("cannot draw: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, parts: &[(f64, RGBColor)], spread: Option<(f64, f64)>) -> Bar {
        Bar {
            name: name.into(),
            text: "so <many>".into(),
            parts: parts.to_vec(),
            spread,
        }
    }

    /// Left edges and widths of the rectangles.
    fn rectangles(svg: &str) -> Vec<(i32, i32)> {
        let field = |line: &str, name: &str| -> i32 {
            let rest = line.split(&format!(" {name}=\"")).nth(1).expect("a field");
            let value = rest.split('"').next().expect("a value");
            value.parse().expect("a number")
        };
        svg.lines()
            .filter(|line| line.contains("<rect"))
            .map(|line| (field(line, "x"), field(line, "width")))
            .collect()
    }

    #[test]
    fn longest_bar_takes_the_room_and_parts_follow_each_other() {
        let svg = bars(
            &[
                bar("a&b", &[(1.0, GOOD), (1.0, BAD)], None),
                bar("c", &[(4.0, PLAIN)], Some((3.0, 8.0))),
            ],
            Some(1.0),
        )
        .expect("drawn");
        let eighth = (RIGHT - LEFT) / 8;
        let expected = [(LEFT, eighth), (LEFT + eighth, eighth), (LEFT, 4 * eighth)];
        for ((left, width), (want_left, want_width)) in rectangles(&svg).iter().zip(expected) {
            assert!(
                (left - want_left).abs() <= 1,
                "{left} instead of {want_left}"
            );
            assert!(
                (width - want_width).abs() <= 1,
                "{width} instead of {want_width}"
            );
        }
        assert_eq!(rectangles(&svg).len(), 3);
        for text in ["a&amp;b", "so &lt;many&gt;", "#0072B2"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn of_a_long_name_the_end_is_shown() {
        let long = format!("{}-the-end", "é".repeat(2 * NAME_CHARS));
        let name = shown(&long);
        assert_eq!(name.chars().count(), NAME_CHARS);
        assert!(
            name.starts_with('…') && name.ends_with("-the-end"),
            "{name}"
        );
        assert_eq!(shown("short"), "short");
    }

    #[test]
    fn bars_of_nothing_are_drawn() {
        assert!(bars(&[bar("a", &[(0.0, GOOD)], None)], None).is_ok());
        assert!(bars(&[], None).is_ok());
    }
}
