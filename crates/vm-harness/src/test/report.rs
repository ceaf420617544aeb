// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results of tests: kept, counted, told, written down.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not hold, or has no result.
    Failed,
    /// It could not be tried here, which was to be expected.
    Skipped,
}

/// The result of one test.
#[derive(Clone, Debug, Serialize)]
pub struct TestResult {
    /// Name by which it is chosen.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Why it failed or was skipped; diagnostics.
    pub detail: String,
}

impl TestResult {
    /// A result; `took` is rounded to milliseconds.
    pub fn new(name: &str, verdict: Verdict, took: Duration, detail: &str) -> Self {
        let seconds = took.as_millis() as f64 / 1000.0;
        Self {
            name: name.to_owned(),
            verdict,
            seconds,
            detail: detail.trim_end().to_owned(),
        }
    }
}

/// All results so far, and the names that still lack one.
#[derive(Debug, Default)]
pub struct Report {
    results: Vec<TestResult>,
    recorded: BTreeSet<String>,
    missing: BTreeSet<String>,
}

/// What the JSON file holds.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    passed: usize,
    failed: usize,
    skipped: usize,
    results: &'a [TestResult],
}

impl Report {
    /// Announces tests, each of which must get a result.
    pub fn expect(&mut self, names: &[String]) {
        self.missing.extend(names.iter().cloned());
    }

    /// Names that were announced and have no result yet.
    pub fn missing(&self) -> Vec<String> {
        self.missing.iter().cloned().collect()
    }

    /// Keeps a result. A second one of the same name is kept as a failure: whoever reports twice
    /// cannot be trusted with either.
    pub fn record(&mut self, mut result: TestResult) -> &TestResult {
        self.missing.remove(&result.name);
        if !self.recorded.insert(result.name.clone()) {
            result.verdict = Verdict::Failed;
            result.detail = format!("reported more than once\n{}", result.detail);
        }
        self.results.push(result);
        self.results.last().expect("pushed just now")
    }

    fn number(&self, verdict: Verdict) -> usize {
        self.results
            .iter()
            .filter(|result| result.verdict == verdict)
            .count()
    }

    /// Whether there is no result at all.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// Whether something ran, nothing failed, and nothing is missing.
    pub fn is_good(&self) -> bool {
        self.number(Verdict::Passed) > 0
            && self.number(Verdict::Failed) == 0
            && self.missing.is_empty()
    }

    /// The closing line.
    pub fn count(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.number(Verdict::Passed),
            self.number(Verdict::Failed) + self.missing.len(),
            self.number(Verdict::Skipped)
        )
    }

    /// What failed and why, for the end of a long output.
    pub fn failures(&self) -> String {
        let mut text = String::new();
        for result in self
            .results
            .iter()
            .filter(|result| result.verdict == Verdict::Failed)
        {
            let _ = writeln!(text, "\nFAILED {}", result.name);
            result.detail.lines().for_each(|line| {
                let _ = writeln!(text, "    {line}");
            });
        }
        text
    }

    /// Writes all results as JSON.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let document = Document {
            version: 1,
            passed: self.number(Verdict::Passed),
            failed: self.number(Verdict::Failed) + self.missing.len(),
            skipped: self.number(Verdict::Skipped),
            results: &self.results,
        };
        let mut file = File::create(path)
            .with_context(|| format!("cannot write the results to {}", path.display()))?;
        serde_json::to_writer_pretty(&mut file, &document)?;
        writeln!(file).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &str, verdict: Verdict) -> TestResult {
        TestResult::new(name, verdict, Duration::from_millis(1500), "because\n")
    }

    #[test]
    fn count_is_of_results_by_verdict() {
        let mut report = Report::default();
        report.record(result("a", Verdict::Passed));
        report.record(result("b", Verdict::Skipped));
        assert_eq!(report.count(), "1 passed, 0 failed, 1 skipped");
        assert!(report.is_good());
        report.record(result("c", Verdict::Failed));
        assert_eq!(report.count(), "1 passed, 1 failed, 1 skipped");
        assert!(!report.is_good());
        assert_eq!(report.failures(), "\nFAILED c\n    because\n");
    }

    #[test]
    fn announced_test_without_a_result_counts_as_failed() {
        let mut report = Report::default();
        report.expect(&["a".into(), "b".into()]);
        report.record(result("a", Verdict::Passed));
        assert_eq!(report.missing(), ["b"]);
        assert_eq!(report.count(), "1 passed, 1 failed, 0 skipped");
        assert!(!report.is_good());
    }

    #[test]
    fn second_result_of_one_name_fails() {
        let mut report = Report::default();
        report.record(result("a", Verdict::Passed));
        report.record(result("a", Verdict::Passed));
        assert_eq!(report.count(), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn nothing_run_is_not_good_and_nor_is_everything_skipped() {
        let mut report = Report::default();
        assert!(!report.is_good() && report.is_empty());
        report.record(result("a", Verdict::Skipped));
        assert!(!report.is_good());
    }

    #[test]
    fn json_holds_each_result() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results.json");
        let mut report = Report::default();
        report.record(result("a", Verdict::Failed));
        report.write_json(&path).expect("written");
        let text = std::fs::read_to_string(&path).expect("readable");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["failed"], 1);
        assert_eq!(json["results"][0]["verdict"], "failed");
        assert_eq!(json["results"][0]["seconds"], 1.5);
    }
}
