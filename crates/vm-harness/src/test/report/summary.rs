// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The results of a run on one screen: counted by part, and each reason for a skip.

use std::fmt::Write as _;

use super::{TestResult, Verdict};

/// Length of a reason's line.
const REASON_CHARS: usize = 96;

/// Results of one part of the tests.
#[derive(Default)]
struct Part<'a> {
    name: &'a str,
    passed: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
}

/// Counts by part, then the reasons for skips, the most frequent first. Nothing for no results.
pub fn text(results: &[TestResult]) -> String {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for result in results {
        let name = part_of(&result.name);
        let at = parts.iter().position(|part| part.name == name);
        let at = at.unwrap_or_else(|| {
            parts.push(Part {
                name,
                ..Part::default()
            });
            parts.len() - 1
        });
        let part = &mut parts[at];
        part.seconds += result.seconds;
        match result.verdict {
            Verdict::Passed => part.passed += 1,
            Verdict::Failed => part.failed += 1,
            Verdict::Skipped => {
                part.skipped += 1;
                let reason = result.detail.lines().next().unwrap_or_default();
                match reasons.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, times)) => *times += 1,
                    None => reasons.push((reason, 1)),
                }
            }
        }
    }
    reasons.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    let mut text = String::new();
    if parts.is_empty() {
        return text;
    }
    let _ = writeln!(
        text,
        "\n{:<16} {:>7} {:>7} {:>8} {:>9}",
        "", "passed", "failed", "skipped", "seconds"
    );
    for part in &parts {
        let _ = writeln!(
            text,
            "{:<16} {:>7} {:>7} {:>8} {:>9.0}",
            part.name, part.passed, part.failed, part.skipped, part.seconds
        );
    }
    if !reasons.is_empty() {
        text += "\nskipped, each for a declared reason:\n";
    }
    for (reason, times) in reasons {
        let _ = writeln!(text, "{times:>6} x {}", shortened(reason));
    }
    text
}

/// The stage of a test; for tests on machines, the kernel too.
fn part_of(name: &str) -> &str {
    let mut ends = name.match_indices("::").map(|(at, _)| at);
    let first = ends.next().unwrap_or(name.len());
    match &name[..first] {
        "e2e" => &name[..ends.next().unwrap_or(name.len())],
        stage => stage,
    }
}

fn shortened(reason: &str) -> String {
    match reason.chars().count() > REASON_CHARS {
        false => reason.to_owned(),
        true => reason.chars().take(REASON_CHARS - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn result(name: &str, verdict: Verdict, detail: &str) -> TestResult {
        TestResult::new(name, verdict, Duration::from_millis(1500), detail)
    }

    #[test]
    fn results_are_counted_by_part_and_skips_by_reason() {
        let results = [
            result("unit::a", Verdict::Passed, ""),
            result("e2e::public::a::x", Verdict::Skipped, "no swap\nseen here"),
            result("e2e::vanilla::a::x", Verdict::Skipped, "no files"),
            result("e2e::vanilla::a::y", Verdict::Failed, "why"),
            result(
                "e2e::vanilla::b::x",
                Verdict::Skipped,
                "no files\nelsewhere",
            ),
        ];
        let expected = "
                  passed  failed  skipped   seconds
unit                   1       0        0         2
e2e::public            0       0        1         2
e2e::vanilla           0       1        2         4

skipped, each for a declared reason:
     2 x no files
     1 x no swap
";
        assert_eq!(text(&results), expected);
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn summary_of_many_results_stays_on_one_screen() {
        let long = "because ".repeat(40);
        let results: Vec<TestResult> = (0..2000)
            .map(|number| result(&format!("unit::t{number}"), Verdict::Skipped, &long))
            .collect();
        let text = text(&results);
        assert!(text.lines().count() < 10, "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() < 110),
            "{text}"
        );
    }
}
