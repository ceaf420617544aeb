// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads what the kernel's mm selftests write: TAP of a looser kind than
//! `test::ktap` takes. Results have no names of their own but whole sentences, which repeat; what
//! stands before them, `[RUN] …` or `[INFO] …`, tells them apart. Lines of other kinds come in between.

use serde::{Deserialize, Serialize};

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed,
    /// It does not hold, and its author expects that.
    #[serde(rename = "expected failure")]
    ExpectedFailure,
    /// It was not tried.
    Skipped,
    /// There is no result, though there should be one.
    Lost,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the test is about, by its own words.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was said since the result before.
    pub said: Vec<String>,
}

/// A stream being read.
#[derive(Debug, Default)]
pub struct Reader {
    /// What the test that runs is about.
    running: String,
    said: Vec<String>,
    outcomes: Vec<Outcome>,
}

impl Reader {
    /// Takes in a line.
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        let Some((verdict, text)) = result(line) else {
            self.other(line);
            return;
        };
        let said = std::mem::take(&mut self.said);
        let name = match (self.running.as_str(), text.as_str()) {
            ("", text) => text.to_owned(),
            (running, "") => running.to_owned(),
            // Some repeat it themselves.
            (running, text) if text.contains(running) || running.contains(text) => text.to_owned(),
            (running, text) => format!("{running}: {text}"),
        };
        self.outcomes.push(Outcome {
            name,
            verdict,
            said,
        });
    }

    fn other(&mut self, line: &str) {
        let text = line.trim_start_matches(['#', ' ']);
        let told = ["[RUN]", "[INFO]"]
            .iter()
            .find_map(|kind| text.strip_prefix(kind));
        // What a program finds out about the machine is about no test.
        if let Some(what) = told.filter(|what| !what.trim_start().starts_with("detected ")) {
            self.running = what.trim().to_owned();
        } else if !text.is_empty() {
            self.said.push(text.to_owned());
        }
    }

    /// The results, in their order, each with a name that no other one has.
    pub fn finish(mut self) -> Vec<Outcome> {
        for index in 0..self.outcomes.len() {
            let (before, rest) = self.outcomes.split_at_mut(index);
            let name = rest[0].name.clone();
            let base = |other: &str| {
                other == name
                    || other
                        .strip_prefix(&name)
                        .is_some_and(|end| end.starts_with(" (time "))
            };
            let times = before.iter().filter(|other| base(&other.name)).count();
            if times > 0 {
                rest[0].name = format!("{name} (time {})", times + 1);
            }
        }
        self.outcomes
    }
}

/// Verdict and words of a line that is a result.
fn result(line: &str) -> Option<(Verdict, String)> {
    let (good, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, text) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<u32>().ok()?;
    // A directive comes behind the words, or, from kselftest.h, before them.
    let text = text.trim().trim_start_matches("- ");
    let (words, directive) = match text.strip_prefix("# ") {
        Some(rest) => {
            let (directive, words) = rest.split_once(' ').unwrap_or((rest, ""));
            (words, directive)
        }
        None => {
            let (words, directive) = text.split_once(" # ").unwrap_or((text, ""));
            (words, directive.split(' ').next().unwrap_or_default())
        }
    };
    let verdict = match directive {
        "SKIP" => Verdict::Skipped,
        "XFAIL" => Verdict::ExpectedFailure,
        _ if good => Verdict::Passed,
        _ => Verdict::Failed,
    };
    Some((verdict, words.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Outcome> {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish()
    }

    fn names(text: &str) -> Vec<(String, Verdict)> {
        let outcomes = read(text);
        outcomes
            .into_iter()
            .map(|one| (one.name, one.verdict))
            .collect()
    }

    #[test]
    fn results_are_told_apart_by_what_stands_before_them() {
        let text = "TAP version 13\n1..3\n# [INFO] detected THP size: 16 KiB\n\
                    # [RUN] fork() ... with base page\n\
                    ok 1 No leak from parent into child\n# [RUN] fork() ... with THP\n\
                    ok 2 No leak from parent into child\nnot ok 3 No leak from parent into child\n";
        let expected = [
            (
                "fork() ... with base page: No leak from parent into child",
                Verdict::Passed,
            ),
            (
                "fork() ... with THP: No leak from parent into child",
                Verdict::Passed,
            ),
            (
                "fork() ... with THP: No leak from parent into child (time 2)",
                Verdict::Failed,
            ),
        ];
        assert_eq!(
            names(text),
            expected.map(|(name, verdict)| (name.to_owned(), verdict))
        );
    }

    #[test]
    fn directives_are_read_on_both_sides_of_the_words() {
        let text = "ok 1 # SKIP no hugetlb\nok 2 a.b # SKIP no swap\nok 3 # XFAIL not yet\n\
                    not ok 4 c.d # XFAIL oh\nok 5 a # b\n";
        let verdicts: Vec<Verdict> = read(text).iter().map(|one| one.verdict).collect();
        let expected = [
            Verdict::Skipped,
            Verdict::Skipped,
            Verdict::ExpectedFailure,
            Verdict::ExpectedFailure,
            Verdict::Passed,
        ];
        assert_eq!(verdicts, expected);
        assert_eq!(read(text)[1].name, "a.b");
    }

    #[test]
    fn what_was_said_goes_with_the_result_behind_it() {
        let outcomes = read("# went wrong\nfree text\nnot ok 1 a\nok then\nok 2 b\n");
        assert_eq!(outcomes[0].said, ["went wrong", "free text"]);
        assert_eq!(outcomes[1].said, ["ok then"]);
    }
}
