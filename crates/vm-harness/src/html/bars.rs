// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bars below each other. They are no drawing but text beside boxes, which stays readable however
//! narrow the page is.

use std::fmt::Write as _;
use std::ops::Range;

use super::escaped;

/// A row.
pub struct Bar {
    pub name: String,
    /// What stands behind it.
    pub text: String,
    pub pieces: Vec<Piece>,
    /// The spread of what it shows.
    pub spread: Option<Range<f64>>,
}

/// A part of a bar.
pub struct Piece {
    /// The number of its colour.
    pub colour: usize,
    pub range: Range<f64>,
}

impl Piece {
    /// From zero to a value on either side of it.
    pub fn to(value: f64, colour: usize) -> Self {
        Self {
            colour,
            range: value.min(0.0)..value.max(0.0),
        }
    }

    /// Pieces of these lengths, one behind the other.
    pub fn stacked(lengths: impl IntoIterator<Item = (f64, usize)>) -> Vec<Self> {
        let mut end = 0.0;
        lengths
            .into_iter()
            .map(|(length, colour)| {
                let start = end;
                end += length;
                Self {
                    colour,
                    range: start..end,
                }
            })
            .collect()
    }
}

/// Bars that all begin at zero, where a line stands if it is `marked`; the longest take all room.
pub fn bars(bars: &[Bar], marked: bool) -> String {
    let ends = bars.iter().flat_map(|bar| {
        let pieces = bar.pieces.iter().map(|piece| &piece.range);
        pieces.chain(&bar.spread)
    });
    let (least, most) = ends.fold((0.0_f64, 0.0_f64), |(least, most), range| {
        (least.min(range.start), most.max(range.end))
    });
    let room = match most - least {
        room if room > 0.0 => room,
        _ => 1.0,
    };
    let percent = |length: f64| 100.0 * length / room;
    let put = |html: &mut String, class: &str, range: &Range<f64>| {
        let left = percent(range.start - least);
        let width = percent(range.end - range.start);
        let _ = write!(
            html,
            "<i class=\"{class}\" style=\"left:{left:.2}%;width:{width:.2}%\"></i>"
        );
    };
    let mut html = "<div class=\"bars\">\n".to_owned();
    for bar in bars {
        let _ = write!(
            html,
            "<div class=\"name\">{}</div><div class=\"track\">",
            escaped(&bar.name)
        );
        for piece in &bar.pieces {
            put(&mut html, &format!("c{}", piece.colour), &piece.range);
        }
        if let Some(spread) = &bar.spread {
            put(&mut html, "spread", spread);
        }
        if marked {
            let left = percent(-least);
            let _ = write!(html, "<i class=\"mark\" style=\"left:{left:.2}%\"></i>");
        }
        let _ = writeln!(
            html,
            "</div><div class=\"text\">{}</div>",
            escaped(&bar.text)
        );
    }
    html + "</div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(pieces: Vec<Piece>, spread: Option<Range<f64>>) -> Bar {
        Bar {
            name: "a&b".into(),
            text: "so <many>".into(),
            pieces,
            spread,
        }
    }

    #[test]
    fn longest_bar_takes_the_room_and_pieces_follow_each_other() {
        let two = Piece::stacked([(1.0, 2), (1.0, 4)]);
        let html = bars(
            &[bar(two, None), bar(vec![Piece::to(4.0, 0)], Some(3.0..8.0))],
            false,
        );
        for part in [
            "<i class=\"c2\" style=\"left:0.00%;width:12.50%\">",
            "<i class=\"c4\" style=\"left:12.50%;width:12.50%\">",
            "<i class=\"c0\" style=\"left:0.00%;width:50.00%\">",
            "<i class=\"spread\" style=\"left:37.50%;width:62.50%\">",
            "a&amp;b",
            "so &lt;many&gt;",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        assert!(!html.contains("mark"), "{html}");
    }

    #[test]
    fn bars_go_to_both_sides_of_the_mark() {
        let rows = [-1.0, 3.0].map(|value| bar(vec![Piece::to(value, 0)], None));
        let html = bars(&rows, true);
        for part in [
            "left:0.00%;width:25.00%",
            "left:25.00%;width:75.00%",
            "<i class=\"mark\" style=\"left:25.00%\">",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
    }

    #[test]
    fn bars_of_nothing_have_no_length() {
        let html = bars(&[bar(vec![Piece::to(0.0, 0)], None)], false);
        assert!(html.contains("left:0.00%;width:0.00%"), "{html}");
    }
}
