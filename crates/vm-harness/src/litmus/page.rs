// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The result of all litmus tests: JSON for programs, a page for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::LitmusArgs;
use super::report::{Report, RunReport};
use crate::build::KernelChoice;
use crate::git::Commit;
use crate::results::Origin;
use crate::vm::accel::Accel;

/// Memories in the order of the page's columns.
const MEMORIES: [&str; 3] = ["device", "system", "mixed"];

/// All tests of a run.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    kernel: String,
    build: String,
    accel: String,
    seed: u64,
    /// CPUs of the guest.
    cpus: usize,
    /// Of all runs together.
    instances: u64,
    weak: u64,
    forbidden: u64,
    runs: Vec<RunReport>,
}

impl Document {
    /// A document without runs.
    pub fn new(args: &LitmusArgs, command: &str, commit: &Commit, accel: Accel) -> Self {
        Self {
            origin: Origin::new(command, commit.to_string()),
            kernel: match &args.kernel.kernel {
                // A tree of the user's own has no name that tells anything.
                KernelChoice::Tree(_) => "tree".to_owned(),
                named => named.to_string(),
            },
            build: args.kernel.build.to_string(),
            accel: accel.to_string(),
            seed: args.seed,
            cpus: 0,
            instances: 0,
            weak: 0,
            forbidden: 0,
            runs: Vec::new(),
        }
    }

    /// Takes in what the program said.
    pub fn add(&mut self, report: Report) {
        self.cpus = report.cpus;
        for run in report.runs {
            self.instances += run.instances;
            self.weak += run.weak;
            self.forbidden += run.forbidden;
            self.runs.push(run);
        }
    }

    /// Whether something ran, and all of it is good.
    pub fn is_good(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(RunReport::is_good)
    }

    /// What it all comes to.
    pub fn sentence(&self) -> String {
        let bad = self.runs.iter().filter(|run| !run.is_good()).count();
        let state = match bad {
            0 => "all good".to_owned(),
            bad => format!("{bad} FAILED"),
        };
        format!(
            "{} runs, {} instances, {} weak, {} forbidden: {state}",
            self.runs.len(),
            self.instances,
            self.weak,
            self.forbidden
        )
    }

    /// Name of its files.
    pub fn name(&self) -> String {
        format!("litmus-{}-{}", self.kernel, self.build)
    }

    /// The page for people: a row for each test and casting.
    pub fn page(&self) -> String {
        let mut page = self.origin.head(&format!(
            "Litmus tests on the {} kernel, {} build",
            self.kernel, self.build
        ));
        let _ = writeln!(
            page,
            "{}. The guest had {} CPUs, under {}. C is a thread on a CPU, D one on the device. The tests and \
             the rules are in [the specification](../reference/device.md). Weak outcomes are those that the \
             memory model allows and no interleaving leads to; their numbers are those in device memory, in \
             system memory, and with words in both.\n",
            self.sentence(),
            self.cpus,
            self.accel
        );
        page += "| test | rule | threads | instances | weak | forbidden | result |\n";
        page += "|---|---|---|---|---|---|---|\n";
        let mut rows: Vec<(&str, &str)> = Vec::new();
        for run in &self.runs {
            let row = (run.test.as_str(), run.casting.as_str());
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        for (test, casting) in rows {
            let runs: Vec<&RunReport> = self
                .runs
                .iter()
                .filter(|run| (run.test.as_str(), run.casting.as_str()) == (test, casting))
                .collect();
            let weak = MEMORIES.map(|memory| {
                let run = runs.iter().find(|run| run.memory == memory);
                run.map_or("-".to_owned(), |run| run.weak.to_string())
            });
            let result = match runs.iter().find(|run| !run.is_good()) {
                Some(run) => format!("{} in {} memory", run.verdict, run.memory),
                None => "good".to_owned(),
            };
            let _ = writeln!(
                page,
                "| `{test}` | {} | {casting} | {} | {} | {} | {result} |",
                runs.first().map_or("", |run| run.rule.as_str()),
                runs.iter().map(|run| run.instances).sum::<u64>(),
                weak.join(" / "),
                runs.iter().map(|run| run.forbidden).sum::<u64>(),
            );
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    fn document() -> Document {
        let mut document = Document {
            origin: Origin::new("just litmus", "abc"),
            kernel: "public".into(),
            build: "plain".into(),
            accel: "tcg".into(),
            seed: 1,
            cpus: 0,
            instances: 0,
            weak: 0,
            forbidden: 0,
            runs: Vec::new(),
        };
        document.add(sample());
        document
    }

    #[test]
    fn page_has_command_totals_and_a_row_for_each_test_and_casting() {
        let page = document().page();
        for part in [
            "    just litmus\n",
            "2 runs, 20 instances, 3 weak, 0 forbidden: all good",
            "2 CPUs, under tcg",
            "| `SB+relaxed` | allowed, and seen | CD | 10 | 3 / - / - | 0 | good |",
            "| `SB+seq-cst` | forbidden | CD | 10 | 0 / - / - | 0 | good |",
        ] {
            assert!(page.contains(part), "{part} is not in:\n{page}");
        }
        assert_eq!(document().name(), "litmus-public-plain");
    }

    #[test]
    fn json_counts_each_outcome_by_its_values() {
        let json = serde_json::to_value(document()).expect("JSON");
        assert_eq!(json["runs"][0]["outcomes"]["0:r0=0 1:r0=0"], 10);
        assert_eq!(json["instances"], 20);
    }

    #[test]
    fn one_bad_run_is_named_and_makes_all_bad() {
        let mut document = document();
        assert!(document.is_good());
        document.runs[1].verdict = "forbidden-seen".into();
        assert!(!document.is_good());
        let page = document.page();
        assert!(page.contains("1 FAILED"), "{page}");
        assert!(page.contains("forbidden-seen in device memory"), "{page}");
        document.runs.clear();
        assert!(!document.is_good());
    }
}
