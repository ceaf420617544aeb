// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What `cdm-stress` says in a guest: KTAP, with totals and progress among the diagnostics.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use crate::test::Session;
use crate::test::ktap::{Outcome, Reader};
use crate::vm::boot::Stream;
use std::time::Duration;

/// How often the program says how far it is, in seconds.
pub const REPORT_SECONDS: u64 = 10;
/// Longest silence of the program: it looks for what is left behind without a word.
pub const SILENCE: Duration = Duration::from_secs(300);

/// Counts by their names.
pub type Totals = BTreeMap<String, u64>;

/// What the program said so far.
#[derive(Debug, Default)]
pub struct Said {
    reader: Reader,
    /// One for each scenario that ended.
    pub outcomes: Vec<Outcome>,
    /// What each scenario counted.
    totals: BTreeMap<String, Totals>,
    /// What makes it no result at all.
    faults: Vec<String>,
    /// What it wrote to standard error.
    pub complaints: Vec<String>,
}

impl Said {
    /// Runs a line of `cdm-stress` and takes in what it says, as far as it comes; the error is why
    /// it came no further.
    pub fn by(
        session: &mut Session<'_>,
        line: &str,
        mut on_progress: impl FnMut(&str),
    ) -> (Self, Result<()>) {
        let mut said = Self::default();
        let ran = session.vm().and_then(|vm| {
            vm.exec_streaming_within(SILENCE, line, |stream, text| match stream {
                Stream::Stdout => {
                    if let Some(detail) = text.strip_prefix("# progress ") {
                        on_progress(detail);
                    }
                    said.take(text);
                }
                Stream::Stderr => said.complaints.push(text.to_owned()),
            })
        });
        let ended = ran.and_then(|status| match status.shell_code() {
            0 | 1 => Ok(()),
            _ => bail!("'{line}' ended with {status:?}"),
        });
        let ended = ended.and_then(|()| said.check());
        // What it found, as far as it came, may be the reason.
        let ended = match said.complaints.is_empty() {
            true => ended,
            false => ended.with_context(|| said.complaints.join("\n")),
        };
        (said, ended)
    }

    /// Takes in a line of standard output.
    pub fn take(&mut self, line: &str) {
        if line.starts_with("# progress ") {
            return;
        }
        if let Some(total) = line.strip_prefix("# total ") {
            return self.total(total);
        }
        match self.reader.line(line) {
            Ok(outcome) => self.outcomes.extend(outcome),
            Err(fault) => self.faults.push(fault.to_string()),
        }
    }

    fn total(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let parsed = match words[..] {
            [scenario, name, number] => number.parse().ok().map(|number| (scenario, name, number)),
            _ => None,
        };
        let Some((scenario, name, number)) = parsed else {
            self.faults.push(format!("a total that is none: '{text}'"));
            return;
        };
        let totals = self.totals.entry(scenario.to_owned()).or_default();
        if totals.insert(name.to_owned(), number).is_some() {
            self.faults.push(format!("a second total: '{text}'"));
        }
    }

    /// Whether all of it came, in the form that it should have.
    pub fn check(&self) -> Result<()> {
        if let Some(fault) = self.faults.first() {
            bail!("what it says is no KTAP: {fault}");
        }
        self.reader.end().with_context(|| {
            let notes = self.reader.trailing().join("\n");
            format!("it broke off: {notes}")
        })
    }

    /// How a scenario ended, if it did.
    pub fn outcome(&self, scenario: &str) -> Option<&Outcome> {
        self.outcomes
            .iter()
            .find(|outcome| outcome.name == scenario)
    }

    /// What a scenario counted.
    pub fn totals(&self, scenario: &str) -> Totals {
        self.totals.get(scenario).cloned().unwrap_or_default()
    }

    #[cfg(test)]
    pub fn of(text: &str) -> (Self, Result<()>) {
        let mut said = Self::default();
        text.lines().for_each(|line| said.take(line));
        let ended = said.check();
        (said, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::report::Verdict;

    const GOOD: &str = "\
KTAP version 1
1..2
# seed 1
# progress a::b 10 s, operations 3
# total a::b seconds 20
# total a::b operations 6000
ok 1 a::b
# total a::c operations 7
# wrong contents
not ok 2 a::c";

    #[test]
    fn results_and_totals_go_by_scenario() {
        let (said, ended) = Said::of(GOOD);
        ended.expect("complete");
        assert_eq!(said.totals("a::b")["operations"], 6000);
        assert_eq!(said.totals("a::c")["operations"], 7);
        let outcome = said.outcome("a::c").expect("it ended");
        assert_eq!(outcome.verdict, Verdict::Failed);
        assert_eq!(outcome.diagnostics, ["wrong contents"]);
        assert!(said.outcome("a::d").is_none());
    }

    #[test]
    fn stream_that_is_cut_or_lies_is_no_result() {
        let cases = [
            ("not ok 2 a::c", "", "broke off"),
            ("ok 1 a::b", "ok 2 a::b", "no KTAP"),
            ("operations 7", "operations many", "a total that is none"),
            ("a::b seconds 20", "a::b operations 20", "a second total"),
        ];
        for (from, to, wanted) in cases {
            let (_, ended) = Said::of(&GOOD.replace(from, to));
            let error = format!("{:#}", ended.expect_err(wanted));
            assert!(error.contains(wanted), "{error}");
        }
    }
}
