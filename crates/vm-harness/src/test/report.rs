// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results of tests: kept, counted, told, written down.

mod summary;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::evidence::repeat_test;
use crate::junit::{self, Case, Ending};
use crate::results::Origin;

/// Version of the form of results.json. It grows when a field goes or changes its meaning; new
/// fields may come without. docs/reference/schemas/cdm-test-results.schema.json describes it.
const VERSION: u32 = 1;

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
    command: &'a str,
    commit: &'a str,
    seconds: f64,
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
    /// cannot be trusted with either. So is a skip that says no reason.
    pub fn record(&mut self, mut result: TestResult) -> &TestResult {
        self.missing.remove(&result.name);
        if result.verdict == Verdict::Skipped && result.detail.is_empty() {
            result.verdict = Verdict::Failed;
            result.detail = "skipped without a reason".to_owned();
        }
        if result.verdict == Verdict::Failed && result.detail.is_empty() {
            result.detail = "it says nothing about why".to_owned();
        }
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

    /// Results of tests that failed.
    pub fn failed(&self) -> impl Iterator<Item = &TestResult> {
        let failed = |result: &&TestResult| result.verdict == Verdict::Failed;
        self.results.iter().filter(failed)
    }

    /// What failed and why, for the end of a long output, with the line that repeats it.
    pub fn failures(&self) -> String {
        let mut text = String::new();
        for result in self.failed() {
            let _ = writeln!(text, "\nFAILED {}", result.name);
            result.detail.lines().for_each(|line| {
                let _ = writeln!(text, "    {line}");
            });
            let _ = writeln!(text, "  repeat: {}", repeat_test(&result.name));
        }
        text
    }

    /// Counts by part of the tests and reasons of skips, on one screen.
    pub fn summary(&self) -> String {
        summary::text(&self.results)
    }

    /// Writes all results as results.json and junit.xml into a folder.
    pub fn write(&self, folder: &Path, origin: &Origin, took: Duration) -> Result<()> {
        self.write_json(&folder.join("results.json"), origin, took)?;
        let cases: Vec<Case> = self.results.iter().map(case).collect();
        junit::write(&folder.join("junit.xml"), origin.command(), &cases)
    }

    fn write_json(&self, path: &Path, origin: &Origin, took: Duration) -> Result<()> {
        let document = Document {
            version: VERSION,
            command: origin.command(),
            commit: origin.commit(),
            seconds: took.as_millis() as f64 / 1000.0,
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

fn case(result: &TestResult) -> Case {
    let (suite, name) = result
        .name
        .rsplit_once("::")
        .unwrap_or(("", result.name.as_str()));
    Case {
        suite: suite.to_owned(),
        name: name.to_owned(),
        ending: match result.verdict {
            Verdict::Passed => Ending::Passed,
            Verdict::Failed => Ending::Failed("failed"),
            Verdict::Skipped => Ending::Skipped,
        },
        time: Some(Duration::from_secs_f64(result.seconds)),
        detail: result.detail.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

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
        assert_eq!(
            report.failures(),
            "\nFAILED c\n    because\n  repeat: ci/just test c\n"
        );
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
    fn skip_without_a_reason_is_a_failure() {
        let mut report = Report::default();
        report.record(TestResult::new(
            "a",
            Verdict::Skipped,
            Duration::ZERO,
            " \n",
        ));
        assert_eq!(report.count(), "0 passed, 1 failed, 0 skipped");
        assert!(report.failures().contains("without a reason"));
    }

    #[test]
    fn files_hold_each_result_and_the_json_follows_its_schema() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut report = Report::default();
        report.record(result("unit::a", Verdict::Failed));
        report.record(result("unit::b", Verdict::Passed));
        report.record(result("e2e::public::c", Verdict::Skipped));
        let origin = Origin::new("just test", "abc with changes");
        report
            .write(folder.path(), &origin, Duration::from_secs(3))
            .expect("written");
        let text = std::fs::read(folder.path().join("results.json")).expect("readable");
        let json = schema::follows("cdm-test-results.schema.json", &text).expect("as it says");
        assert_eq!(json["failed"], 1);
        assert_eq!(json["results"][0]["verdict"], "failed");
        assert_eq!(json["results"][0]["seconds"], 1.5);
        let xml = std::fs::read_to_string(folder.path().join("junit.xml")).expect("readable");
        for part in ["tests=\"3\"", "failures=\"1\"", "skipped=\"1\""] {
            assert!(xml.contains(part), "{part} is not in {xml}");
        }
    }

    #[test]
    fn schema_refuses_what_is_not_such_a_result() {
        let good = serde_json::json!({
            "version": 1, "command": "just test", "commit": "abc", "seconds": 1.0,
            "passed": 1, "failed": 0, "skipped": 0,
            "results": [{"name": "unit::a", "verdict": "passed", "seconds": 0.1, "detail": ""}],
        });
        let follows = |value: &serde_json::Value| {
            schema::follows("cdm-test-results.schema.json", value.to_string().as_bytes())
        };
        follows(&good).expect("as it says");
        for (pointer, wrong) in [
            ("/version", serde_json::json!(2)),
            ("/results/0/verdict", serde_json::json!("fine")),
            ("/results/0/name", serde_json::json!("")),
            ("/passed", serde_json::json!(-1)),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).expect("there") = wrong;
            assert!(follows(&bad).is_err(), "{pointer}");
        }
    }
}
