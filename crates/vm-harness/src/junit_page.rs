// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm results`: the JUnit file of a run as Markdown, for CI systems that show such pages and no
//! JUnit. GitHub's need no action of somebody else's then, and no right to write anything.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use quick_junit::{Report, TestCase, TestCaseStatus, TestSuite};

use crate::results::cell;

/// The file, in the folder of a run.
pub(crate) const FILE: &str = "junit.xml";
/// Failures with all that they say. A page of GitHub's holds 1 MiB.
pub(crate) const SHOWN_FAILURES: usize = 40;
/// Characters of one.
pub(crate) const SHOWN_TEXT: usize = 4000;

/// Arguments of `cdm results`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just test --keep-logs /tmp/results; just results /tmp/results
  just results results >> \"$GITHUB_STEP_SUMMARY\"")]
pub struct ResultsArgs {
    /// Results folder of 'just test', 'just stress' and others (their --keep-logs)
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// `cdm results`.
pub fn run(args: &ResultsArgs) -> Result<ExitCode> {
    print!("{}", page(&read(&args.folder)?));
    Ok(ExitCode::SUCCESS)
}

/// The results in the folder of a run.
pub(crate) fn read(folder: &Path) -> Result<Report> {
    let path = folder.join(FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}; a run writes it at its end, and one that has come to none has its \
             logs there",
            path.display()
        )
    })?;
    Report::deserialize_from_str(&text)
        .with_context(|| format!("{} is no JUnit file", path.display()))
}

/// How many cases ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Count {
    /// Of these cases.
    pub fn of<'a>(cases: impl Iterator<Item = &'a TestCase>) -> Self {
        let mut count = Self::default();
        for case in cases {
            match case.status {
                TestCaseStatus::Success { .. } => count.passed += 1,
                TestCaseStatus::NonSuccess { .. } => count.failed += 1,
                TestCaseStatus::Skipped { .. } => count.skipped += 1,
            }
        }
        count
    }
}

/// All cases, each with its suite.
pub(crate) fn cases(report: &Report) -> impl Iterator<Item = (&TestSuite, &TestCase)> {
    let suites = report.test_suites.iter();
    suites.flat_map(|suite| suite.test_cases.iter().map(move |case| (suite, case)))
}

/// The page: the count, the suites, and what failed.
fn page(report: &Report) -> String {
    let all = Count::of(cases(report).map(|(_, case)| case));
    let mut page = format!(
        "### {}: {} passed, {} failed, {} skipped\n\n\
         | suite | passed | failed | skipped | seconds |\n|---|--:|--:|--:|--:|\n",
        report.name.as_ref().map_or("results", |name| name.as_str()),
        all.passed,
        all.failed,
        all.skipped
    );
    for suite in &report.test_suites {
        let count = Count::of(suite.test_cases.iter());
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {:.1} |",
            cell(suite.name.as_str()),
            count.passed,
            count.failed,
            count.skipped,
            suite.time.unwrap_or_default().as_secs_f64()
        );
    }
    let failures = cases(report).filter_map(|(suite, case)| Some((suite, case, text_of(case)?)));
    for (suite, case, text) in failures.take(SHOWN_FAILURES) {
        let shown: String = text.chars().take(SHOWN_TEXT).collect();
        let _ = write!(
            page,
            "\n**{}::{}**\n\n````\n{}\n````\n",
            suite.name.as_str(),
            case.name.as_str(),
            shown.trim_end()
        );
    }
    if all.failed > SHOWN_FAILURES {
        let more = all.failed - SHOWN_FAILURES;
        let _ = write!(page, "\nand {more} more failures, which {FILE} has\n");
    }
    page
}

/// What a case that failed says.
pub(crate) fn text_of(case: &TestCase) -> Option<&str> {
    let TestCaseStatus::NonSuccess {
        message,
        description,
        ..
    } = &case.status
    else {
        return None;
    };
    let text = description.as_ref().or(message.as_ref());
    Some(text.map_or("it says nothing", |text| text.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::junit::tests::case;
    use crate::junit::{Case, Ending, write};

    fn written(cases: &[Case]) -> Report {
        let dir = tempfile::tempdir().expect("temporary folder");
        write(&dir.path().join(FILE), "just test", cases).expect("written");
        read(dir.path()).expect("read back")
    }

    #[test]
    fn page_counts_each_suite_and_shows_what_failed() {
        let report = written(&[
            case("unit::a|b", "one", Ending::Passed, ""),
            case(
                "e2e",
                "two",
                Ending::Failed("failed"),
                "left a page\nrepeat: x",
            ),
            case("e2e", "three", Ending::Skipped, "no disk"),
        ]);
        let page = page(&report);
        assert!(
            page.starts_with("### just test: 1 passed, 1 failed, 1 skipped\n"),
            "{page}"
        );
        for part in [
            "\n| unit::a\\|b | 1 | 0 | 0 | 1.5 |\n",
            "\n| e2e | 0 | 1 | 1 | 3.0 |\n",
            "\n**e2e::two**\n\n````\nleft a page\nrepeat: x\n````\n",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("three") && !page.contains("more failures"));
    }

    #[test]
    fn page_of_many_failures_has_an_end_and_says_so() {
        let long = "x".repeat(10 * SHOWN_TEXT);
        let cases: Vec<Case> = (0..SHOWN_FAILURES + 2)
            .map(|number| case("e2e", &format!("n{number}"), Ending::Failed("lost"), &long))
            .collect();
        let page = page(&written(&cases));
        assert!(page.ends_with("and 2 more failures, which junit.xml has\n"));
        assert!(page.len() < 1 << 19, "{} bytes", page.len());
    }

    #[test]
    fn folder_without_results_is_told_with_the_reason() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = format!("{:#}", read(dir.path()).expect_err("none"));
        assert!(
            error.contains("junit.xml") && error.contains("at its end"),
            "{error}"
        );
    }
}
