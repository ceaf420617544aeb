// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the pages of results share: a frame that needs no other file and no network, and reads well
//! on a wide screen, on a narrow one, and in the dark.

mod bars;

use std::fmt::Write as _;

use crate::results::LICENCE;

pub use self::bars::{Bar, Piece, bars};

/// How pages look. Drawings have colours of their own for ink and ground, which the dark must
/// replace.
const STYLE: &str = include_str!("html/style.css");

/// Red, green and blue of colours that are told apart also by who sees few of them, on light and on
/// dark ground.
pub const COLOURS: [(u8, u8, u8); 8] = [
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (128, 128, 128),
    (160, 110, 60),
];

/// Good, bad, neither, and where nothing is judged: numbers of colours.
pub const GOOD: usize = 2;
pub const BAD: usize = 4;
pub const NEITHER: usize = 6;
pub const PLAIN: usize = 0;

/// A whole page around its body.
pub fn page(title: &str, body: &str) -> String {
    let mut colours = String::new();
    for (number, (red, green, blue)) in COLOURS.iter().enumerate() {
        let _ = writeln!(
            colours,
            ".c{number} {{ background: #{red:02x}{green:02x}{blue:02x} }}"
        );
    }
    format!(
        "<!DOCTYPE html>\n<!-- {LICENCE} -->\n<html lang=\"en\">\n\
         <head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{colours}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n{body}</body>\n</html>\n",
        title = escaped(title)
    )
}

/// Which colour is whose.
pub fn legend<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut html = "<p class=\"legend\">".to_owned();
    for (number, name) in names.into_iter().enumerate() {
        let colour = number % COLOURS.len();
        let _ = write!(
            html,
            "<span><i class=\"c{colour}\"></i>{}</span> ",
            escaped(name)
        );
    }
    html + "</p>\n"
}

/// Text in a page.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_names_its_colours_and_asks_nobody_for_more() {
        let html = page("a & b", &legend(["<one>", "two"]));
        for part in [
            "<title>a &amp; b</title>",
            ".c0 { background: #0072b2 }",
            "<i class=\"c1\"></i>two",
            "&lt;one&gt;",
            "prefers-color-scheme: dark",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        for outside in ["<script", "<link", "src=", "@import", "url(", "href="] {
            assert!(!html.contains(outside), "{outside} is in {html}");
        }
    }
}
