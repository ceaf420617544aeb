// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results as files: JSON for programs, a page for people, in the run's folder and,
//! when asked for, in the repository.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::known::Declared;
use super::outcome::{TypeRun, Verdict};
use super::{Suite, Task, junit};
use crate::results::{self, Origin, cell};

/// Results of the kernel's suite.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    suite: String,
    kernel: String,
    build: String,
    /// One for each type of memory.
    pub runs: Vec<TypeRun>,
}

impl Document {
    /// A document without runs.
    pub fn new(suite: Suite, task: &Task<'_>) -> Self {
        Self {
            origin: Origin::new(task.command.clone(), task.commit.to_string()),
            suite: suite.to_string(),
            kernel: task.kernel_name(),
            build: task.kernel.kind.to_string(),
            runs: Vec::new(),
        }
    }

    /// The suite's name.
    pub fn suite(&self) -> &str {
        &self.suite
    }

    /// Whether something ran and nothing is wrong.
    pub fn is_good(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(TypeRun::is_good)
    }

    fn name(&self) -> String {
        format!("{}-{}-{}", self.suite, self.kernel, self.build)
    }

    fn page(&self) -> String {
        let mut page = self.origin.head(&format!(
            "{} on the {} kernel, {} build",
            self.suite, self.kernel, self.build
        ));
        page +=
            "| memory | tests | passed | failed as declared | failed | guests | kernel reports |\n";
        page += "|---|---|---|---|---|---|---|\n";
        for run in &self.runs {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} |",
                run.memory_type,
                run.tests.len(),
                run.passed,
                run.known,
                run.failed,
                run.guests,
                run.report_count()
            );
        }
        for run in &self.runs {
            page += &details(run);
        }
        page
    }
}

/// What of a run deserves a line of its own.
fn details(run: &TypeRun) -> String {
    let mut text = String::new();
    let unusual: Vec<_> = run
        .tests
        .iter()
        .filter(|test| test.verdict != Verdict::Passed || !test.expected)
        .collect();
    if !unusual.is_empty() {
        let _ = writeln!(
            text,
            "\n## Tests that did not pass, {} memory\n",
            run.memory_type
        );
        text += "| test | ended | mended by | why |\n|---|---|---|---|\n";
        for test in unusual {
            let verdict = format!("{:?}", test.verdict).to_lowercase();
            let (mended_by, why) = match &test.declared {
                Some(declared) => (declared.mended_by(), declared.why.as_str()),
                None => (
                    "not declared".to_owned(),
                    test.detail.lines().last().unwrap_or_default(),
                ),
            };
            let _ = writeln!(
                text,
                "| `{}` | {verdict} | {} | {} |",
                test.name,
                cell(&mended_by),
                cell(why)
            );
        }
    }
    if !run.reports.is_empty() {
        let _ = writeln!(
            text,
            "\n## Reports of the kernel, {} memory\n",
            run.memory_type
        );
        text += "| report | times | during | mended by |\n|---|---|---|---|\n";
        for report in &run.reports {
            let mended_by = report
                .declared
                .as_ref()
                .map_or("not declared".to_owned(), Declared::mended_by);
            let during = report.during.as_deref().unwrap_or("before the first test");
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} |",
                cell(&report.text),
                report.times,
                cell(during),
                cell(&mended_by)
            );
        }
    }
    text
}

/// Writes results.json and junit.xml into the run's folder; with `--record` JSON and page into the
/// repository.
pub fn publish(task: &Task<'_>, document: &Document) -> Result<()> {
    let json = serde_json::to_string_pretty(document)?;
    results::write(&task.folder.join("results.json"), &json)?;
    let cases = junit::of_suite(document);
    crate::junit::write(&task.folder.join("junit.xml"), &task.command, &cases)?;
    if task.record {
        results::record(task.ctx, &document.name(), &json, &document.page())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::known::tests::sample;
    use super::super::outcome::Ended;
    use super::*;
    use crate::junit::Ending;
    use crate::schema;
    use crate::vm::MemoryType;

    fn document() -> Document {
        let file = sample();
        let known = file.of("hmm-tests", "vanilla", MemoryType::Coherent);
        let ended = |name: &str, verdict| Ended {
            name: name.into(),
            verdict,
            detail: String::new(),
            took: std::time::Duration::ZERO,
        };
        let tests = vec![
            ended("hmm.one", Verdict::Failed),
            ended("hmm.two", Verdict::Passed),
        ];
        let log = "BUG: kernel NULL pointer dereference\n".to_owned();
        Document {
            origin: Origin::new("just stress --suite hmm-tests", "abc"),
            suite: "hmm-tests".into(),
            kernel: "vanilla".into(),
            build: "plain".into(),
            runs: vec![TypeRun::judge(MemoryType::Coherent, &known, tests, &[log])],
        }
    }

    #[test]
    fn page_has_command_commit_counts_and_what_did_not_pass() {
        let page = document().page();
        for part in [
            "just stress --suite hmm-tests\n",
            "Commit abc.",
            "| coherent | 2 | 1 | 1 | 0 | 1 | 1 |",
            "| `hmm.one` | failed | mm: mend it | it is broken |",
            "NULL pointer",
        ] {
            assert!(page.contains(part), "{part} is not in:\n{page}");
        }
        assert!(!page.contains("`hmm.two`"), "{page}");
    }

    #[test]
    fn json_names_its_licence_and_each_test() {
        let text = serde_json::to_string_pretty(&document()).expect("JSON");
        assert!(
            text.lines()
                .take(5)
                .any(|line| line.contains("SPDX-License-Identifier"))
        );
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["runs"][0]["tests"][1]["verdict"], "passed");
        assert_eq!(
            json["runs"][0]["tests"][0]["declared"]["patches"][0],
            "mm: mend it"
        );
    }

    #[test]
    fn json_follows_its_schema_and_each_test_is_a_case() {
        let document = document();
        let text = serde_json::to_vec(&document).expect("JSON");
        schema::follows("cdm-stress-results.schema.json", &text).expect("as it says");
        let cases = junit::of_suite(&document);
        let endings: Vec<(&str, Ending)> = cases
            .iter()
            .map(|case| (case.name.as_str(), case.ending))
            .collect();
        let expected = [
            ("hmm.one", Ending::Skipped),
            ("hmm.two", Ending::Passed),
            ("kernel_log", Ending::Passed),
        ];
        assert_eq!(endings, expected);
        assert_eq!(cases[0].suite, "hmm-tests.coherent");
    }

    #[test]
    fn document_without_a_run_is_not_good() {
        let mut document = document();
        assert!(document.is_good());
        document.runs.clear();
        assert!(!document.is_good());
    }
}
