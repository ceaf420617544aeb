// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a CI system shows of a stress run: a case for each scenario and for each test of the
//! kernel's suite.

use super::outcome::{Judged, TypeRun, Verdict};
use super::publish::Document;
use super::scenarios::result::ScenarioResult;
use crate::junit::{Case, Ending};

/// Cases of the scenarios, a suite for each family.
pub fn of_scenarios(results: &[ScenarioResult]) -> Vec<Case> {
    let case = |result: &ScenarioResult| {
        let (family, name) = result.name.split_once("::").unwrap_or(("", &result.name));
        Case {
            suite: format!("scenarios.{family}"),
            name: name.to_owned(),
            ending: match result.verdict {
                Verdict::Passed => Ending::Passed,
                Verdict::Skipped => Ending::Skipped,
                Verdict::Failed => Ending::Failed("failed"),
                Verdict::Lost => Ending::Failed("lost"),
            },
            time: Some(result.took()),
            detail: match result.is_good() {
                true => result.detail.clone(),
                false => format!("{}\nrepeat: {}", result.detail, result.repeat),
            },
        }
    };
    results.iter().map(case).collect()
}

/// Cases of the kernel's suite: each test, and what the kernel's log holds.
pub fn of_suite(document: &Document) -> Vec<Case> {
    let mut cases = Vec::new();
    for run in &document.runs {
        let suite = format!("{}.{}", document.suite(), run.memory_type);
        cases.extend(run.tests.iter().map(|test| of_test(&suite, test)));
        cases.push(of_log(&suite, run));
    }
    cases
}

fn of_test(suite: &str, test: &Judged) -> Case {
    let (ending, detail) = match (test.expected, test.verdict) {
        (true, Verdict::Passed) => (Ending::Passed, String::new()),
        (true, _) => {
            let declared = test.declared.as_ref();
            let reason = declared.map(|declared| declared.mended_by());
            let reason = format!("fails as declared until: {}", reason.unwrap_or_default());
            (Ending::Skipped, format!("{reason}\n{}", test.detail))
        }
        (false, Verdict::Passed) => (
            Ending::Failed("passed"),
            "it passes, though it is declared to fail".to_owned(),
        ),
        (false, Verdict::Lost) => (Ending::Failed("lost"), test.detail.clone()),
        (false, Verdict::Skipped) => (Ending::Failed("skipped"), test.detail.clone()),
        (false, Verdict::Failed) => (Ending::Failed("failed"), test.detail.clone()),
    };
    Case {
        suite: suite.to_owned(),
        name: test.name.clone(),
        ending,
        time: None,
        detail,
    }
}

fn of_log(suite: &str, run: &TypeRun) -> Case {
    let complaints = run.log_complaints();
    Case {
        suite: suite.to_owned(),
        name: "kernel_log".to_owned(),
        ending: match complaints.is_empty() {
            true => Ending::Passed,
            false => Ending::Failed("report"),
        },
        time: None,
        detail: complaints.join("\n"),
    }
}
