// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Differences between a boot with a device and one without that are explained, as data.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Where they are, in the repository.
const FILE: &str = "images/kernel/known-differences.toml";

/// All of them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    #[serde(default)]
    difference: Vec<Row>,
    #[serde(default)]
    report: Vec<Report>,
    #[serde(default)]
    bail_out: Vec<BailOut>,
}

/// Tests that need not end with a device as they do without.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Program and arguments.
    pub program: String,
    /// Part of the names of the tests.
    pub test: String,
    /// How often they differ.
    pub differs: Often,
    /// Why that is no fault.
    pub why: String,
}

/// How often a declared difference comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Often {
    /// In each run, or the row is wrong.
    Always,
    /// When a page moves at that moment.
    Sometimes,
}

/// A report in the kernel's log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    program: String,
    /// Part of the line that tells what it is.
    text: String,
    why: String,
}

/// A program's last word when it gives up, and with it the tests that were still to come.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BailOut {
    program: String,
    /// Part of what it says behind `Bail out!`.
    text: String,
    why: String,
}

impl Differences {
    /// Reads the repository's.
    pub fn read(repo: &Path) -> Result<Self> {
        let path = repo.join(FILE);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let read: Self = toml::from_str(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        ensure!(
            read.difference.iter().all(|row| !row.why.is_empty())
                && read.report.iter().all(|row| !row.why.is_empty())
                && read.bail_out.iter().all(|row| !row.why.is_empty()),
            "{FILE} has a row that does not say why"
        );
        Ok(read)
    }

    /// Rows for a program.
    pub fn of<'a>(&'a self, program: &'a str) -> impl Iterator<Item = &'a Row> {
        self.difference
            .iter()
            .filter(move |row| row.program == program)
    }

    /// The row for a test.
    pub fn test<'a>(&'a self, program: &'a str, name: &str) -> Option<&'a Row> {
        self.of(program).find(|row| name.contains(&row.test))
    }

    /// Why a report of the kernel is none of a fault, if that is declared.
    pub fn report(&self, program: &str, text: &str) -> Option<&str> {
        self.report
            .iter()
            .find(|row| row.program == program && text.contains(&row.text))
            .map(|row| row.why.as_str())
    }

    /// Why a program that has said this and gone may do so, if that is declared.
    pub fn bail_out(&self, program: &str, line: &str) -> Option<&str> {
        let said = line.trim().strip_prefix("Bail out!")?;
        self.bail_out
            .iter()
            .find(|row| row.program == program && said.contains(&row.text))
            .map(|row| row.why.as_str())
    }

    /// Refuses rows for programs that do not run.
    pub fn check_programs(&self, titles: &[String]) -> Result<()> {
        let programs = self.difference.iter().map(|row| &row.program);
        let reports = self.report.iter().map(|row| &row.program);
        let bail_outs = self.bail_out.iter().map(|row| &row.program);
        for program in programs.chain(reports).chain(bail_outs) {
            ensure!(
                titles.contains(program),
                "{FILE} names '{program}', which does not run"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::programs::PROGRAMS;
    use super::*;

    pub fn sample() -> Differences {
        toml::from_str(
            r#"
            [[difference]]
            program = "rmap"
            test = "anon"
            differs = "always"
            why = "it looks at frames"
            [[difference]]
            program = "rmap"
            test = "shm"
            differs = "sometimes"
            why = "it looks at frames"
            [[report]]
            program = "rmap"
            text = "mm/x.c"
            why = "it is told to"
            [[bail_out]]
            program = "rmap"
            text = "unmatched"
            why = "it looks twice"
            "#,
        )
        .expect("well formed")
    }

    #[test]
    fn row_holds_for_its_program_and_its_tests_only() {
        let rows = sample();
        assert!(rows.test("rmap", "migrate.anon").is_some());
        assert!(rows.test("rmap", "migrate.file").is_none());
        assert!(rows.test("cow", "migrate.anon").is_none());
        assert_eq!(
            rows.report("rmap", "WARNING: mm/x.c:1"),
            Some("it is told to")
        );
        assert!(rows.report("cow", "WARNING: mm/x.c:1").is_none());
        let bailed = "Bail out! two looks unmatched";
        assert_eq!(rows.bail_out("rmap", bailed), Some("it looks twice"));
        assert!(rows.bail_out("cow", bailed).is_none());
        assert!(rows.bail_out("rmap", "two looks unmatched").is_none());
        assert!(rows.check_programs(&["rmap".into()]).is_ok());
        let error = rows.check_programs(&["cow".into()]).expect_err("no rmap");
        assert!(error.to_string().contains("rmap"), "{error}");
    }

    #[test]
    fn rows_of_the_repository_are_for_programs_that_run() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("crates/vm-harness has two parents");
        let titles: Vec<String> = PROGRAMS.iter().map(|program| program.title()).collect();
        let rows = Differences::read(repo).expect("well formed");
        rows.check_programs(&titles).expect("programs that run");
    }
}
