// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the tests of a suite ended, and whether that was to be expected.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::known::{Declared, Known};
use crate::vm::{Line, MemoryType};

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed,
    /// The suite did not try it.
    Skipped,
    /// Its guest died or hung under it.
    Lost,
}

/// One test of the suite, as it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The suite's own name for it.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What it said.
    pub detail: String,
    /// How long it took.
    pub took: Duration,
}

/// One test, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The suite's own name for it.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Whether it ended as it should: passed, or as declared.
    pub expected: bool,
    /// What is declared of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub declared: Option<Declared>,
    /// What it said, unless it passed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How long it took, which is another time in each run.
    #[serde(skip)]
    pub took: Duration,
}

impl Judged {
    /// Why it is no good, if it is not.
    pub fn complaint(&self) -> Option<String> {
        if self.expected {
            return None;
        }
        let why = match (&self.declared, self.verdict) {
            (Some(declared), Verdict::Passed) => format!(
                "passes, though it is declared to fail until '{}'",
                declared.mended_by()
            ),
            (Some(_), _) => "fails in another way than declared".to_owned(),
            (None, Verdict::Skipped) => "was skipped, which proves nothing".to_owned(),
            (None, Verdict::Lost) => "took its guest down".to_owned(),
            (None, _) => "failed".to_owned(),
        };
        let detail = self.detail.lines().last().unwrap_or_default();
        let text = format!("{} {why}: {detail}", self.name);
        Some(text.trim_end_matches([' ', ':']).to_owned())
    }
}

/// Reports of the kernel about itself that say the same of one test, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JudgedReport {
    /// The line that tells what it is, the first time.
    pub text: String,
    /// How often it came.
    pub times: usize,
    /// The test that ran, by the kernel's log; before the first one, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub during: Option<String>,
    /// What is declared of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub declared: Option<Declared>,
}

/// A run with one type of memory.
#[derive(Clone, Debug, Serialize)]
pub struct TypeRun {
    /// Type of the device memory.
    pub memory_type: MemoryType,
    /// Guests that it took.
    pub guests: usize,
    /// Number of tests that passed.
    pub passed: usize,
    /// Number of tests that failed, and were declared to.
    pub known: usize,
    /// Number of tests that did not end as they should.
    pub failed: usize,
    /// Each test.
    pub tests: Vec<Judged>,
    /// What the kernel reported about itself.
    pub reports: Vec<JudgedReport>,
    /// Declared reports that did not come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub absent_reports: Vec<String>,
}

/// The prefix of the lines that the runner writes into the guest's kernel log.
pub const MARK: &str = "hmm-tests: RUN ";

impl TypeRun {
    /// Judges what happened.
    pub fn judge(
        memory_type: MemoryType,
        known: &Known<'_>,
        ended: Vec<Ended>,
        logs: &[String],
    ) -> Self {
        let tests: Vec<Judged> = ended.into_iter().map(|test| known.judge(&test)).collect();
        let mut reports = Vec::new();
        for log in logs {
            judge_reports(known, log, &mut reports);
        }
        let absent_reports = known
            .reports()
            .filter(|text| !reports.iter().any(|report| report.text.contains(*text)))
            .map(str::to_owned)
            .collect();
        let count = |wanted: fn(&Judged) -> bool| tests.iter().filter(|test| wanted(test)).count();
        Self {
            memory_type,
            guests: logs.len(),
            passed: count(|test| test.expected && test.verdict == Verdict::Passed),
            known: count(|test| test.expected && test.verdict != Verdict::Passed),
            failed: count(|test| !test.expected),
            tests,
            reports,
            absent_reports,
        }
    }

    /// Whether something ran, and all of it is as it should be.
    pub fn is_good(&self) -> bool {
        self.passed > 0
            && self.failed == 0
            && self.absent_reports.is_empty()
            && self.reports.iter().all(|report| report.declared.is_some())
    }

    /// One line that counts.
    pub fn count(&self) -> String {
        let undeclared: usize = self
            .reports
            .iter()
            .filter(|report| report.declared.is_none())
            .map(|report| report.times)
            .sum();
        format!(
            "{}: {} tests, {} passed, {} failed as declared, {} failed; {} reports of the kernel, \
             {undeclared} of them not declared",
            self.memory_type,
            self.tests.len(),
            self.passed,
            self.known,
            self.failed,
            self.report_count(),
        )
    }

    /// Number of reports of the kernel.
    pub fn report_count(&self) -> usize {
        self.reports.iter().map(|report| report.times).sum()
    }

    /// What is not as it should be, a line each.
    pub fn complaints(&self) -> Vec<String> {
        let tests = self.tests.iter().filter_map(Judged::complaint);
        tests.chain(self.log_complaints()).collect()
    }

    /// What is not as it should be in the kernel's log, a line each.
    pub fn log_complaints(&self) -> Vec<String> {
        let reports = self.reports.iter().filter_map(|report| {
            let during = report.during.as_deref().unwrap_or("before the first test");
            (report.declared.is_none()).then(|| {
                format!(
                    "the kernel reports {} times ({during}): {}",
                    report.times, report.text
                )
            })
        });
        let absent = self
            .absent_reports
            .iter()
            .map(|text| format!("the kernel does not report '{text}', though that is declared"));
        reports.chain(absent).collect()
    }
}

impl Known<'_> {
    /// Judges one test.
    pub fn judge(&self, test: &Ended) -> Judged {
        let declared = self.test(&test.name);
        let expected = self.expects(&test.name, test.verdict);
        Judged {
            detail: match test.verdict {
                Verdict::Passed => String::new(),
                _ => test.detail.clone(),
            },
            name: test.name.clone(),
            verdict: test.verdict,
            expected,
            declared: declared.map(|(_, declared)| declared),
            took: test.took,
        }
    }
}

/// Adds the reports of one guest's log.
fn judge_reports(known: &Known<'_>, log: &str, all: &mut Vec<JudgedReport>) {
    let marks: Vec<(usize, &str)> = log
        .lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let (_, name) = line.split_once(MARK)?;
            Some((index + 1, name.trim_end()))
        })
        .collect();
    for Line { number, text } in crate::vm::reports(log) {
        let during = marks.iter().rev().find(|(mark, _)| *mark < number);
        let during = during.map(|(_, name)| (*name).to_owned());
        let same = |report: &&mut JudgedReport| {
            report.during == during && what_it_is(&report.text) == what_it_is(&text)
        };
        match all.iter_mut().find(same) {
            Some(report) => report.times += 1,
            None => all.push(JudgedReport {
                times: 1,
                during,
                declared: known.report(&text),
                text,
            }),
        }
    }
}

/// A report's line without where and to whom it happened.
fn what_it_is(text: &str) -> &str {
    text.split_once(", CPU#").map_or(text, |(what, _)| what)
}

#[cfg(test)]
mod tests {
    use super::super::known::tests::sample;
    use super::*;

    fn ended(name: &str, verdict: Verdict) -> Ended {
        Ended {
            name: name.into(),
            verdict,
            detail: "first\nlast line".into(),
            took: Duration::ZERO,
        }
    }

    const REPORT: &str =
        "[ 1.0] hmm-tests: RUN hmm.one\n[ 2.0] BUG: kernel NULL pointer dereference\n";

    fn judged(tests: &[(&str, Verdict)], log: &str) -> TypeRun {
        let file = sample();
        let known = file.of("hmm-tests", "vanilla", MemoryType::Coherent);
        let tests = tests
            .iter()
            .map(|(name, verdict)| ended(name, *verdict))
            .collect();
        TypeRun::judge(MemoryType::Coherent, &known, tests, &[log.to_owned()])
    }

    #[test]
    fn declared_failure_and_report_are_as_they_should_be() {
        let tests = [("hmm.one", Verdict::Failed), ("hmm.two", Verdict::Passed)];
        let run = judged(&tests, REPORT);
        assert!(run.is_good(), "{:?}", run.complaints());
        assert_eq!((run.passed, run.known, run.failed), (1, 1, 0));
        assert_eq!(run.reports[0].during.as_deref(), Some("hmm.one"));
    }

    #[test]
    fn declared_failure_that_passes_is_reported_with_its_patch() {
        let tests = [("hmm.one", Verdict::Passed), ("hmm.two", Verdict::Passed)];
        let run = judged(&tests, REPORT);
        assert!(!run.is_good());
        assert!(
            run.complaints()[0].contains("mm: mend it"),
            "{:?}",
            run.complaints()
        );
    }

    #[test]
    fn undeclared_failure_skip_and_loss_fail() {
        for verdict in [Verdict::Failed, Verdict::Skipped, Verdict::Lost] {
            let tests = [("hmm.one", Verdict::Failed), ("hmm.two", verdict)];
            let run = judged(&tests, REPORT);
            assert!(!run.is_good());
            assert!(
                run.complaints()[0].starts_with("hmm.two "),
                "{:?}",
                run.complaints()
            );
        }
        // Declared to fail, and lost.
        let tests = [("hmm.one", Verdict::Lost), ("hmm.two", Verdict::Passed)];
        assert_eq!(judged(&tests, REPORT).failed, 1);
    }

    #[test]
    fn report_that_is_not_declared_and_declared_one_that_does_not_come_fail() {
        let tests = [("hmm.one", Verdict::Failed), ("hmm.two", Verdict::Passed)];
        let other = format!("{REPORT}[ 3.0] WARNING: mm/x.c:1 at f\n");
        let run = judged(&tests, &other);
        assert!(!run.is_good());
        assert!(
            run.complaints()[0].contains("mm/x.c:1"),
            "{:?}",
            run.complaints()
        );
        let run = judged(&tests, "");
        assert!(!run.is_good());
        assert!(
            run.complaints()[0].contains("does not report"),
            "{:?}",
            run.complaints()
        );
    }

    #[test]
    fn reports_that_say_the_same_of_one_test_are_counted() {
        let tests = [("hmm.one", Verdict::Failed), ("hmm.two", Verdict::Passed)];
        let log = "hmm-tests: RUN hmm.one\n\
                   WARNING: mm/x.c:1 at f, CPU#0: a/1\n\
                   WARNING: mm/x.c:1 at f, CPU#1: a/2\n\
                   hmm-tests: RUN hmm.two\n\
                   WARNING: mm/x.c:1 at f, CPU#1: a/2\n";
        let run = judged(&tests, log);
        let times: Vec<usize> = run.reports.iter().map(|report| report.times).collect();
        assert_eq!((times, run.report_count()), (vec![2, 1], 3));
        assert!(
            run.complaints()[0].contains("2 times (hmm.one)"),
            "{:?}",
            run.complaints()
        );
    }

    #[test]
    fn run_of_no_test_is_not_good() {
        assert!(!judged(&[], REPORT).is_good());
        assert!(!judged(&[("hmm.one", Verdict::Failed)], REPORT).is_good());
    }
}
