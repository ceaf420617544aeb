// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results as files: JSON for programs, a page for people.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::super::Task;
use super::compare::Comparison;
use super::tap::Verdict;
use crate::results::{self, Origin, cell};

/// Results of all programs.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    kernel: String,
    build: String,
    /// Type of the device's memory, or `best`.
    memory_type: String,
    /// One for each program.
    pub programs: Vec<Comparison>,
}

/// How many tests there are of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    tests: usize,
    same: usize,
    declared: usize,
    lost: usize,
    without: usize,
}

impl Count {
    fn of(program: &Comparison) -> Self {
        let mut count = Self::default();
        for test in &program.tests {
            count.tests += 1;
            let kind = match (test.without, test.is_lost(), &test.declared) {
                (Verdict::Passed, false, _) => &mut count.same,
                (Verdict::Passed, true, Some(_)) => &mut count.declared,
                (Verdict::Passed, true, None) => &mut count.lost,
                _ => &mut count.without,
            };
            *kind += 1;
        }
        count
    }

    fn add(&mut self, other: Self) {
        self.tests += other.tests;
        self.same += other.same;
        self.declared += other.declared;
        self.lost += other.lost;
        self.without += other.without;
    }
}

impl Document {
    /// A document without programs.
    pub fn new(task: &Task<'_>, memory_type: String) -> Self {
        Self {
            origin: Origin::new(task.command.clone(), task.commit.to_string()),
            kernel: task.kernel_name(),
            build: task.kernel.kind.to_string(),
            memory_type,
            programs: Vec::new(),
        }
    }

    /// Whether something ran and nothing is wrong.
    pub fn is_good(&self) -> bool {
        !self.programs.is_empty()
            && self
                .programs
                .iter()
                .all(|program| program.complaints.is_empty())
    }

    /// One line that counts.
    pub fn count(&self) -> String {
        let mut all = Count::default();
        for program in &self.programs {
            all.add(Count::of(program));
        }
        let pages = |count: fn(&Comparison) -> u64| self.programs.iter().map(count).sum::<u64>();
        format!(
            "{} programs, {} tests: {} pass with and without a device, {} differ as declared, {} pass \
             without and not with one, {} do not pass without one; {} pages moved into the device, {} \
             back",
            self.programs.len(),
            all.tests,
            all.same,
            all.declared,
            all.lost,
            all.without,
            pages(|program| program.pages_to_device),
            pages(|program| program.pages_to_system)
        )
    }

    /// Writes results.json into the run's folder; with `--record` JSON and page into the repository.
    pub fn publish(&self, task: &Task<'_>) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        results::write(&task.folder.join("results.json"), &json)?;
        if task.record {
            let name = format!("mm-selftests-{}-{}", self.kernel, self.build);
            results::record(task.ctx, &name, &json, &self.page())?;
        }
        Ok(())
    }

    fn page(&self) -> String {
        let mut page = self.origin.head(&format!(
            "The kernel's mm selftests with resident pages, {} kernel, {} build, {} memory type",
            self.kernel, self.build, self.memory_type
        ));
        let _ = writeln!(
            page,
            "Each program ran in a guest without a device, and in one with a device while `cdm-shuttle` \
             moved its memory into the device and back. In all: {}.\n",
            self.count()
        );
        page += "| program | times | tests | same | differ as declared | only without | pass in neither \
                 | pages into the device | back |\n|---|---|---|---|---|---|---|---|---|\n";
        for program in &self.programs {
            let count = Count::of(program);
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                program.program,
                program.times,
                count.tests,
                count.same,
                count.declared,
                count.lost,
                count.without,
                program.pages_to_device,
                program.pages_to_system
            );
        }
        page += &self.lost();
        page += &self.complaints();
        page
    }

    /// Tests that pass without a device and not with one.
    fn lost(&self) -> String {
        let mut text = String::new();
        for program in &self.programs {
            for test in program.tests.iter().filter(|test| test.is_lost()) {
                let why = test.declared.as_deref().unwrap_or("NOT DECLARED");
                let _ = writeln!(
                    text,
                    "| {} | {} | {:?} | {} |",
                    program.program,
                    cell(&test.name),
                    test.with,
                    cell(why)
                );
            }
        }
        match text.is_empty() {
            true => text,
            false => format!(
                "\n## Tests that pass without a device and not with one\n\n\
                 | program | test | with one | why |\n|---|---|---|---|\n{text}"
            ),
        }
    }

    fn complaints(&self) -> String {
        let mut text = String::new();
        for program in &self.programs {
            for complaint in &program.complaints {
                let _ = writeln!(text, "- {}: {complaint}", program.program);
            }
            for why in &program.bailed_out {
                let _ = writeln!(text, "- {} bailed out, as declared: {why}", program.program);
            }
            for report in &program.declared_reports {
                let _ = writeln!(text, "- {}, as declared: {report}", program.program);
            }
        }
        match text.is_empty() {
            true => text,
            false => format!("\n## What else there is to say\n\n{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::Compared;
    use super::*;

    fn test(name: &str, without: Verdict, with: Verdict, declared: Option<&str>) -> Compared {
        Compared {
            name: name.into(),
            without,
            with,
            declared: declared.map(str::to_owned),
            detail: String::new(),
        }
    }

    fn document(complaints: &[&str]) -> Document {
        use Verdict::{Failed, Passed, Skipped};
        Document {
            origin: Origin::new("just stress --suite mm-selftests", "abc"),
            kernel: "public".into(),
            build: "plain".into(),
            memory_type: "best".into(),
            programs: vec![Comparison {
                program: "rmap".into(),
                times: 2,
                bailed_out: vec!["it looks twice".into()],
                pages_to_device: 20,
                pages_to_system: 10,
                tests: vec![
                    test("one", Passed, Passed, None),
                    test("two", Passed, Failed, Some("it looks at frames")),
                    test("three", Passed, Failed, None),
                    test("four", Skipped, Skipped, None),
                ],
                complaints: complaints.iter().map(|text| (*text).to_owned()).collect(),
                declared_reports: Vec::new(),
            }],
        }
    }

    #[test]
    fn page_counts_and_names_what_differs() {
        let page = document(&["it is so"]).page();
        for part in [
            "just stress --suite mm-selftests\n",
            "| rmap | 2 | 4 | 1 | 1 | 1 | 1 | 20 | 10 |",
            "| rmap | two | Failed | it looks at frames |",
            "| rmap | three | Failed | NOT DECLARED |",
            "- rmap: it is so",
            "- rmap bailed out, as declared: it looks twice",
        ] {
            assert!(page.contains(part), "{part} is not in:\n{page}");
        }
        assert!(
            !page.contains("| one |") && !page.contains("| four |"),
            "{page}"
        );
    }

    #[test]
    fn document_with_a_complaint_or_without_a_program_is_not_good() {
        assert!(document(&[]).is_good());
        assert!(!document(&["no"]).is_good());
        let mut none = document(&[]);
        none.programs.clear();
        assert!(!none.is_good());
    }
}
