// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Failures of the kernel's own suite that are known, as data: each with the patch
//! of the series that mends it, or with what else stands in its way.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::outcome::Verdict;
use crate::build::series;
use crate::vm::MemoryType;

/// Where they are, in the repository.
const FILE: &str = "images/kernel/known-failures.toml";

/// All of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    test: Vec<TestRow>,
    #[serde(default)]
    report: Vec<ReportRow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TestRow {
    suite: String,
    kernel: String,
    memory_type: MemoryType,
    /// Names in the suite.
    names: Vec<String>,
    /// How they end.
    #[serde(default = "failed")]
    ends: Verdict,
    #[serde(default)]
    patches: Vec<String>,
    why: String,
}

fn failed() -> Verdict {
    Verdict::Failed
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ReportRow {
    suite: String,
    kernel: String,
    memory_type: MemoryType,
    /// Part of the line that tells what the report is.
    text: String,
    #[serde(default)]
    patches: Vec<String>,
    why: String,
}

/// What is declared of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Declared {
    /// Subjects of the patches that mend it; none if no patch of the series does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<String>,
    /// Why it fails.
    pub why: String,
}

impl Declared {
    /// What has to come for it to pass.
    pub fn mended_by(&self) -> String {
        match self.patches.as_slice() {
            [] => "no patch of the series".to_owned(),
            patches => patches.join("; "),
        }
    }
}

impl File {
    /// Reads the repository's.
    pub fn read(repo: &Path) -> Result<Self> {
        let path = repo.join(FILE);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file: Self = toml::from_str(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        let subjects = series::subjects(repo)?;
        file.check_patches(&subjects)
            .with_context(|| format!("in {}", path.display()))?;
        Ok(file)
    }

    /// Refuses a row whose patch is not in the series.
    fn check_patches(&self, subjects: &[String]) -> Result<()> {
        let tests = self.test.iter().flat_map(|row| &row.patches);
        let reports = self.report.iter().flat_map(|row| &row.patches);
        for patch in tests.chain(reports) {
            ensure!(
                subjects.contains(patch),
                "'{patch}' is the subject of no patch in images/kernel/patches"
            );
        }
        Ok(())
    }

    /// What is known of a suite on a kernel with a type of memory.
    pub fn of(&self, suite: &str, kernel: &str, memory_type: MemoryType) -> Known<'_> {
        let here = (suite, kernel, memory_type);
        let of_test = |row: &&TestRow| (&*row.suite, &*row.kernel, row.memory_type) == here;
        let of_report = |row: &&ReportRow| (&*row.suite, &*row.kernel, row.memory_type) == here;
        Known {
            tests: self.test.iter().filter(of_test).collect(),
            reports: self.report.iter().filter(of_report).collect(),
        }
    }
}

fn declared(patches: &[String], why: &str) -> Declared {
    Declared {
        patches: patches.to_vec(),
        why: why.to_owned(),
    }
}

/// Known failures in one place.
pub struct Known<'a> {
    tests: Vec<&'a TestRow>,
    reports: Vec<&'a ReportRow>,
}

impl Known<'_> {
    /// How a test is declared to end.
    pub fn test(&self, name: &str) -> Option<(Verdict, Declared)> {
        self.tests
            .iter()
            .find(|row| row.names.iter().any(|known| known == name))
            .map(|row| (row.ends, declared(&row.patches, &row.why)))
    }

    /// Whether a test ends as it should: passed, or as declared.
    pub fn expects(&self, name: &str, verdict: Verdict) -> bool {
        match self.test(name) {
            Some((declared, _)) => declared == verdict,
            None => verdict == Verdict::Passed,
        }
    }

    /// What is declared of a report of the kernel's.
    pub fn report(&self, text: &str) -> Option<Declared> {
        self.reports
            .iter()
            .find(|row| text.contains(&row.text))
            .map(|row| declared(&row.patches, &row.why))
    }

    /// Texts of the declared reports.
    pub fn reports(&self) -> impl Iterator<Item = &str> {
        self.reports.iter().map(|row| row.text.as_str())
    }

    /// Refuses a table that speaks of tests that the suite does not have.
    pub fn check_names(&self, names: &[String]) -> Result<()> {
        for name in self.tests.iter().flat_map(|row| &row.names) {
            ensure!(
                names.contains(name),
                "{FILE} names '{name}', which the suite does not have"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// One declared failure and one declared report.
    pub fn sample() -> File {
        toml::from_str(
            r#"
            [[test]]
            suite = "hmm-tests"
            kernel = "vanilla"
            memory-type = "coherent"
            names = ["hmm.one"]
            patches = ["mm: mend it"]
            why = "it is broken"
            [[report]]
            suite = "hmm-tests"
            kernel = "vanilla"
            memory-type = "coherent"
            text = "NULL pointer"
            patches = ["mm: mend it"]
            why = "it is broken"
            "#,
        )
        .expect("well formed")
    }

    #[test]
    fn failure_is_known_in_its_own_place_only() {
        let file = sample();
        let known = file.of("hmm-tests", "vanilla", MemoryType::Coherent);
        assert_eq!(
            known.test("hmm.one").map(|(ends, _)| ends),
            Some(Verdict::Failed)
        );
        assert!(known.test("hmm.two").is_none());
        for (suite, kernel, memory_type) in [
            ("hmm-tests-upstream", "vanilla", MemoryType::Coherent),
            ("hmm-tests", "public", MemoryType::Coherent),
            ("hmm-tests", "vanilla", MemoryType::Private),
        ] {
            assert!(
                file.of(suite, kernel, memory_type)
                    .test("hmm.one")
                    .is_none()
            );
        }
    }

    #[test]
    fn row_for_a_test_or_a_patch_that_is_not_there_is_refused() {
        let file = sample();
        let known = file.of("hmm-tests", "vanilla", MemoryType::Coherent);
        assert!(known.check_names(&["hmm.one".into()]).is_ok());
        let error = known.check_names(&["hmm.two".into()]).expect_err("gone");
        assert!(error.to_string().contains("hmm.one"), "{error}");
        assert!(file.check_patches(&["mm: mend it".into()]).is_ok());
        assert!(file.check_patches(&["mm: other".into()]).is_err());
    }

    #[test]
    fn rows_of_the_repository_name_patches_of_the_series() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("crates/vm-harness has two parents");
        File::read(repo).expect("well formed");
    }
}
