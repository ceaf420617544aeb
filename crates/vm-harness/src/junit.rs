// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results as JUnit XML, which CI systems show: the same results as in results.json, and
//! nothing of its own.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Passed,
    /// It does not hold; the word says in which way.
    Failed(&'static str),
    /// Not tried, or failed as declared; the detail has the reason.
    Skipped,
}

/// One result.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it belongs to.
    pub suite: String,
    /// Its name there.
    pub name: String,
    /// How it ended.
    pub ending: Ending,
    /// How long it took, where that is known.
    pub time: Option<Duration>,
    /// Why it ended so; diagnostics. The first line is the short of it.
    pub detail: String,
}

/// Writes results, in suites in the order in which they first come.
pub fn write(path: &Path, title: &str, cases: &[Case]) -> Result<()> {
    let mut report = Report::new(title);
    let mut names: Vec<&str> = Vec::new();
    for case in cases {
        if !names.contains(&case.suite.as_str()) {
            names.push(&case.suite);
        }
    }
    for name in names {
        let mut suite = TestSuite::new(name);
        let mut time = Duration::ZERO;
        for case in cases.iter().filter(|case| case.suite == name) {
            suite.add_test_case(test_case(case));
            time += case.time.unwrap_or_default();
        }
        suite.set_time(time);
        report.add_test_suite(suite);
    }
    report.set_time(cases.iter().filter_map(|case| case.time).sum());
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    report
        .serialize(BufWriter::new(file))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn test_case(case: &Case) -> TestCase {
    let short = case.detail.lines().next().unwrap_or_default();
    let mut status = match case.ending {
        Ending::Passed => TestCaseStatus::success(),
        Ending::Failed(kind) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_type(kind).set_description(&*case.detail);
            status
        }
        Ending::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_description(&*case.detail);
            status
        }
    };
    if case.ending != Ending::Passed {
        status.set_message(short);
    }
    let mut test = TestCase::new(&*case.name, status);
    test.set_classname(&*case.suite);
    if let Some(time) = case.time {
        test.set_time(time);
    }
    test
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A case that took one and a half seconds.
    pub fn case(suite: &str, name: &str, ending: Ending, detail: &str) -> Case {
        Case {
            suite: suite.into(),
            name: name.into(),
            ending,
            time: Some(Duration::from_millis(1500)),
            detail: detail.into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_with_every_result_in_its_suite() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("junit.xml");
        let cases = [
            case("e2e::public::fork", "a", Ending::Passed, ""),
            case(
                "unit",
                "b",
                Ending::Failed("lost"),
                "1 < 2 & \"so\"\n\u{1b}[1mmore",
            ),
            case("e2e::public::fork", "c", Ending::Skipped, "no disk\nat all"),
        ];
        write(&path, "cdm test", &cases).expect("written");
        let text = std::fs::read_to_string(&path).expect("there");
        let read = Report::deserialize_from_str(&text).expect("JUnit");
        assert_eq!((read.tests, read.failures, read.errors), (3, 1, 0));
        let suites: Vec<(&str, usize)> = read
            .test_suites
            .iter()
            .map(|suite| (suite.name.as_str(), suite.test_cases.len()))
            .collect();
        assert_eq!(suites, [("e2e::public::fork", 2), ("unit", 1)]);
        for part in [
            "type=\"lost\"",
            "message=\"1 &lt; 2 &amp; &quot;so&quot;\"",
            "<skipped message=\"no disk\"",
            "time=\"1.500\"",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains('\u{1b}'), "no XML has such a character");
    }
}
