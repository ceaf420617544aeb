// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a soak comes to: for programs, for people and for CI systems.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::super::junit;
use super::super::outcome::Verdict;
use super::super::said::Totals;
use super::super::scenarios::result::Figures;
use super::state::{Done, Options, State};
use crate::junit::{Case, Ending};
use crate::results::{Origin, cell};

/// What one scenario comes to over all its runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Runs {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Of those that were not skipped.
    seconds: f64,
    operations: u64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    origin: Origin,
    options: Options,
    /// Whether it ran for as long as it should.
    complete: bool,
    /// Whether something ran and nothing was wrong.
    good: bool,
    /// Seconds that it should run.
    wanted_seconds: u64,
    /// Seconds that it ran, boots not counted.
    seconds: u64,
    draws: usize,
    figures: Figures,
    /// What was wrong, in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    breach: Option<String>,
    /// Each scenario that was drawn.
    scenarios: BTreeMap<String, Runs>,
    /// Scenarios that were not drawn from, and why.
    left_away: BTreeMap<String, String>,
    /// Over all scenarios.
    totals: Totals,
}

impl Summary {
    /// What `state` comes to.
    pub fn new(
        origin: Origin,
        options: Options,
        wanted_seconds: u64,
        left_away: BTreeMap<String, String>,
        state: &State,
    ) -> Self {
        let mut scenarios: BTreeMap<String, Runs> = BTreeMap::new();
        let mut totals = Totals::new();
        for result in state.done().iter().flat_map(|done| &done.results) {
            let runs = scenarios.entry(result.name.clone()).or_default();
            match result.verdict {
                Verdict::Passed => runs.passed += 1,
                Verdict::Skipped => runs.skipped += 1,
                Verdict::Failed | Verdict::Lost => runs.failed += 1,
            }
            if result.verdict != Verdict::Skipped {
                runs.seconds += result.seconds;
            }
            runs.operations += result.totals.get("operations").copied().unwrap_or_default();
            for (name, number) in &result.totals {
                *totals.entry(name.clone()).or_default() += number;
            }
        }
        let breach = state.breach().map(|result| result.lines());
        let passed: u64 = scenarios.values().map(|runs| runs.passed).sum();
        let seconds = state.seconds() as u64;
        Self {
            origin,
            options,
            complete: seconds >= wanted_seconds,
            good: breach.is_none() && passed > 0,
            wanted_seconds,
            seconds,
            draws: state.done().len(),
            figures: Figures::of(&totals),
            breach,
            scenarios,
            left_away,
            totals,
        }
    }

    /// Whether it ran for as long as it should and nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.complete && self.good
    }

    /// Name of its files.
    pub fn name(&self) -> String {
        let kernel = match self.options.kernel.contains('/') {
            true => "tree",
            false => &self.options.kernel,
        };
        let memory = match self.options.memory_type.as_str() {
            "best" => String::new(),
            memory => format!("-{memory}"),
        };
        format!("soak-{kernel}{memory}-{}", self.options.build)
    }

    /// One screen for who waits.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(breach) = &self.breach {
            let _ = writeln!(text, "{breach}");
        }
        for (name, why) in &self.left_away {
            let _ = writeln!(text, "not drawn {name}: {why}");
        }
        let count = |of: fn(&Runs) -> u64| self.scenarios.values().map(of).sum::<u64>();
        let _ = writeln!(
            text,
            "{} of {} s in {} draws of {} scenarios, seed {}: {}",
            self.seconds,
            self.wanted_seconds,
            self.draws,
            self.scenarios.len(),
            self.options.seed,
            self.figures
        );
        let _ = write!(
            text,
            "{} passed, {} failed, {} skipped",
            count(|runs| runs.passed),
            count(|runs| runs.failed),
            count(|runs| runs.skipped)
        );
        text
    }

    /// The page for people.
    pub fn page(&self) -> String {
        let options = &self.options;
        let mut page = self.origin.head(&format!(
            "Soak on the {} kernel, {} build, {} memory type",
            options.kernel, options.build, options.memory_type
        ));
        let state = match (self.good, self.complete) {
            (true, true) => "It ran to its end, and nothing was wrong",
            (true, false) => "It has not run to its end; nothing was wrong so far",
            (false, _) => "It FAILED",
        };
        let _ = writeln!(
            page,
            "{state}: {} s of {} s, boots not counted, in {} draws. After each draw the contents of all pages, \
             the driver's and the kernel's counts and the guest's kernel log were checked.\n",
            self.seconds, self.wanted_seconds, self.draws
        );
        if let Some(breach) = &self.breach {
            let _ = writeln!(page, "```\n{breach}\n```\n");
        }
        page += "| what | number |\n|---|---|\n";
        for (name, number) in self.figures.rows() {
            let _ = writeln!(page, "| {name} | {number} |");
        }
        page += "\n| scenario | passed | skipped | failed | seconds | operations |\n\
                 |---|---|---|---|---|---|\n";
        for (name, runs) in &self.scenarios {
            let _ = writeln!(
                page,
                "| {name} | {} | {} | {} | {:.0} | {} |",
                runs.passed, runs.skipped, runs.failed, runs.seconds, runs.operations
            );
        }
        if !self.left_away.is_empty() {
            page += "\n| not drawn from | why |\n|---|---|\n";
            for (name, why) in &self.left_away {
                let _ = writeln!(page, "| {name} | {} |", cell(why));
            }
        }
        page += "\n| total | number |\n|---|---|\n";
        for (name, number) in &self.totals {
            let _ = writeln!(page, "| {name} | {number} |");
        }
        page
    }

    /// What a CI system shows: a case for each scenario of each draw, and whether it ran for as long as
    /// it should.
    pub fn cases(&self, done: &[Done]) -> Vec<Case> {
        let of_draw = |done: &Done| {
            let mut cases = junit::of_scenarios(&done.results);
            for case in &mut cases {
                case.name += &format!(" (draw {}, seed {})", done.draw.number, done.draw.seed);
            }
            cases
        };
        let mut cases: Vec<Case> = done.iter().flat_map(of_draw).collect();
        cases.push(Case {
            suite: self.name(),
            name: "ran_for_as_long_as_asked".to_owned(),
            ending: match self.complete {
                true => Ending::Passed,
                false => Ending::Failed("failed"),
            },
            time: None,
            detail: format!("{} s of {} s", self.seconds, self.wanted_seconds),
        });
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{done, options};
    use super::*;
    use crate::context::Context;
    use crate::git::Commit;
    use crate::schema;

    const COMMAND: &str = "just soak --hours 0.1 --seed 7";

    /// What 12.5 s each of these come to, of `wanted` seconds.
    fn summary(wanted: u64, verdicts: &[Verdict]) -> (Summary, Vec<Case>) {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let commit = Commit {
            hash: "abc".into(),
            changed: false,
        };
        let mut state = State::open(&ctx, &options(), &commit, "i", false).expect("new");
        for (number, verdict) in verdicts.iter().enumerate() {
            state.add(done(number as u64, *verdict)).expect("kept");
        }
        let left_away = BTreeMap::from([("a::b".to_owned(), "it cannot".to_owned())]);
        let origin = Origin::new(COMMAND, "abc");
        let summary = Summary::new(origin, options(), wanted, left_away, &state);
        let cases = summary.cases(state.done());
        (summary, cases)
    }

    #[test]
    fn totals_add_up_and_a_soak_is_good_when_it_ran_to_its_end_without_a_breach() {
        let (good, _) = summary(25, &[Verdict::Passed, Verdict::Passed, Verdict::Skipped]);
        assert!(good.is_good());
        assert_eq!(good.totals["operations"], 15);
        let runs = &good.scenarios["moves::about"];
        assert_eq!((runs.passed, runs.skipped, runs.seconds), (2, 1, 25.0));
        assert!(good.text().ends_with("2 passed, 0 failed, 1 skipped"));
        assert!(!summary(26, &[Verdict::Passed, Verdict::Passed]).0.is_good());
        assert!(!summary(1, &[Verdict::Passed, Verdict::Lost]).0.is_good());
        assert!(!summary(0, &[]).0.is_good(), "nothing ran");
        assert!(!summary(1, &[Verdict::Skipped]).0.is_good(), "nothing ran");
    }

    #[test]
    fn page_has_the_command_the_figures_and_what_was_wrong() {
        let (bad, _) = summary(60, &[Verdict::Passed, Verdict::Failed]);
        let page = bad.page();
        for part in [
            "    just soak --hours 0.1 --seed 7\n",
            "Commit abc.",
            "It FAILED: 25 s of 60 s",
            "repeat: just stress moves::about --seed 9",
            "| operations | 10 |",
            "| moves::about | 1 | 0 | 1 | 25 | 10 |",
            "| a::b | it cannot |",
        ] {
            assert!(page.contains(part), "{part} is not in:\n{page}");
        }
        assert_eq!(bad.name(), "soak-public-plain");
    }

    #[test]
    fn json_follows_its_schema_and_each_run_is_a_case() {
        let (bad, cases) = summary(60, &[Verdict::Passed, Verdict::Failed]);
        let text = serde_json::to_vec(&bad).expect("JSON");
        schema::follows("cdm-stress-results.schema.json", &text).expect("as it says");
        let endings: Vec<Ending> = cases.iter().map(|case| case.ending).collect();
        let failed = Ending::Failed("failed");
        assert_eq!(endings, [Ending::Passed, failed, failed]);
        assert_eq!(cases[1].name, "about (draw 1, seed 9)");
    }
}
