// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What of Markdown the book and the documents' checks need: links with their place, the anchors that headings
//! get, and blocks of code.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A link or an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    /// What it leads to, as written.
    pub to: String,
    /// Where the whole link is in the text, in bytes.
    pub place: Range<usize>,
    /// The line that it begins in, from 1.
    pub line: usize,
}

/// Where a link leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// To another site.
    Elsewhere,
    /// To a file beside the document, or to a heading.
    Inside {
        /// The path as written, empty for the document itself.
        path: String,
        /// The heading's anchor.
        anchor: Option<String>,
    },
}

impl Link {
    /// Where it leads.
    pub fn target(&self) -> Target {
        if self.to.contains("://") || self.to.starts_with("mailto:") {
            return Target::Elsewhere;
        }
        let (path, anchor) = match self.to.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor.to_owned())),
            None => (self.to.as_str(), None),
        };
        Target::Inside {
            path: path.to_owned(),
            anchor,
        }
    }
}

fn parser(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// Links and images of a document, in order. What stands in code is none.
pub fn links(text: &str) -> Vec<Link> {
    parser(text)
        .into_offset_iter()
        .filter_map(|(event, place)| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => Some(Link {
                to: dest_url.into_string(),
                line: text[..place.start].matches('\n').count() + 1,
                place,
            }),
            _ => None,
        })
        .collect()
}

/// Anchors of a document's headings, as GitHub and mdBook make them.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let mut heading: Option<String> = None;
    for event in parser(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap_or_default());
                let before = times.entry(anchor.clone()).or_default();
                found.insert(match *before {
                    0 => anchor,
                    // A second heading of the same words.
                    again => format!("{anchor}-{again}"),
                });
                *before += 1;
            }
            Event::Text(part) | Event::Code(part) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&part);
                }
            }
            _ => {}
        }
    }
    found
}

/// Blocks of code between fences: what they are said to be, and their text.
pub fn blocks(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut inside = false;
    for event in parser(text) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(kind))) => {
                inside = true;
                found.push((kind.into_string(), String::new()));
            }
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(part) if inside => {
                if let Some((_, block)) = found.last_mut() {
                    block.push_str(&part);
                }
            }
            _ => {}
        }
    }
    found
}

fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_images_are_found_with_their_lines_and_code_has_none() {
        let text = "[a](b.md#c)\n\n    [no](code.md)\n\n`[no](x.md)` and ![d](e.svg)\n";
        let found: Vec<_> = links(text)
            .into_iter()
            .map(|link| (link.to, link.line))
            .collect();
        assert_eq!(found, [("b.md#c".into(), 1), ("e.svg".into(), 5)]);
    }

    #[test]
    fn links_are_told_apart_by_where_they_lead() {
        let target = |text: &str| links(text).remove(0).target();
        let inside = |path: &str, anchor: Option<&str>| Target::Inside {
            path: path.into(),
            anchor: anchor.map(Into::into),
        };
        assert_eq!(target("[a](https://b.c/#d)"), Target::Elsewhere);
        assert_eq!(target("[a](b.md#c)"), inside("b.md", Some("c")));
        assert_eq!(target("[a](#c)"), inside("", Some("c")));
        assert_eq!(target("[a](b/c)"), inside("b/c", None));
    }

    #[test]
    fn blocks_between_fences_are_found_with_their_language() {
        let text = "```rust\na\n\nb\n```\n\n    no fence\n\n```\nc\n```\n";
        let expected = [("rust", "a\n\nb\n"), ("", "c\n")];
        assert_eq!(blocks(text), expected.map(|(a, b)| (a.into(), b.into())));
    }

    #[test]
    fn anchors_are_lower_case_without_punctuation_and_counted_when_equal() {
        let text = "# One `two`: three\n## x\n## x\n### sysfs, `/sys/a_b/`\n";
        let expected = ["one-two-three", "sysfs-sysa_b", "x", "x-1"];
        assert_eq!(anchors(text), expected.map(String::from).into());
    }
}
