// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the program prints: versioned JSON, which docs/reference/schemas/cdm-litmus.schema.json
//! describes, or a few lines for people.

use serde::Serialize;

use crate::run::Run;
use crate::shape::casting_name;
use crate::tally::{Kind, Tally, Verdict};

/// Version of the report; grows when a field goes or changes its meaning.
pub const VERSION: u32 = 1;

/// All runs.
#[derive(Serialize)]
pub struct Report {
    pub version: u32,
    pub seed: u64,
    pub cpus: usize,
    pub runs: Vec<RunReport>,
}

/// One test with one casting in one place.
#[derive(Serialize)]
pub struct RunReport {
    pub test: &'static str,
    pub casting: String,
    pub memory: &'static str,
    pub rule: String,
    pub instances: u64,
    pub interleavings: u64,
    pub weak: u64,
    pub forbidden: u64,
    pub missed: u64,
    pub milliseconds: u64,
    pub verdict: &'static str,
    pub outcomes: Vec<Outcome>,
}

/// An outcome that was seen.
#[derive(Serialize)]
pub struct Outcome {
    pub outcome: String,
    pub kind: &'static str,
    pub count: u64,
}

impl RunReport {
    /// The report of a run.
    pub fn new(run: Run, tally: &Tally, milliseconds: u64) -> Self {
        let outcomes = tally.outcomes().into_iter();
        Self {
            test: run.test.name,
            casting: casting_name(run.casting),
            memory: run.place.name(),
            rule: run.test.rule.to_string(),
            instances: tally.instances(),
            interleavings: tally.of(Kind::Interleaving),
            weak: tally.of(Kind::Weak),
            forbidden: tally.of(Kind::Forbidden),
            missed: tally.missed,
            milliseconds,
            verdict: tally.verdict().name(),
            outcomes: outcomes
                .map(|(outcome, kind, count)| Outcome {
                    outcome: run.test.shown(&outcome),
                    kind: kind.name(),
                    count,
                })
                .collect(),
        }
    }

    /// Whether it showed what the model says.
    pub fn is_good(&self) -> bool {
        self.verdict == Verdict::Good.name()
    }

    /// One line, and after a failure all outcomes.
    pub fn sentence(&self) -> String {
        let Self {
            test,
            casting,
            memory,
            instances,
            weak,
            forbidden,
            verdict,
            ..
        } = self;
        let mut text = format!(
            "{test} {casting} {memory}: {instances} instances, {weak} weak, {forbidden} forbidden: \
             {verdict}"
        );
        if !self.is_good() {
            for seen in &self.outcomes {
                text += &format!("\n    {} {}: {}", seen.kind, seen.outcome, seen.count);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TESTS;
    use crate::run::Place;

    fn report(name: &str, outcome: &[u64]) -> RunReport {
        let test = TESTS.iter().find(|test| test.name == name).unwrap();
        let mut tally = Tally::new(test);
        tally.add(outcome);
        let run = Run {
            test,
            casting: test.castings[0],
            place: Place::Mixed,
        };
        RunReport::new(run, &tally, 3)
    }

    #[test]
    fn report_is_what_its_schema_says() {
        let report = Report {
            version: VERSION,
            seed: 1,
            cpus: 2,
            runs: vec![
                report("SB+relaxed", &[0, 0]),
                report("SB+seq-cst", &[0, 0]),
                report("CoWW", &[7, 0, 1]),
            ],
        };
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/schemas/cdm-litmus.schema.json"
        );
        let mut schemas = boon::Schemas::new();
        let schema = boon::Compiler::new().compile(path, &mut schemas).unwrap();
        let value = serde_json::to_value(report).unwrap();
        if let Err(error) = schemas.validate(&value, schema) {
            panic!("{error}");
        }
    }

    #[test]
    fn failure_is_told_with_the_outcomes_that_were_seen() {
        let bad = report("SB+seq-cst", &[0, 0]);
        assert!(!bad.is_good());
        let text = bad.sentence();
        assert!(text.contains("1 forbidden: forbidden-seen"), "{text}");
        assert!(text.contains("forbidden 0:r0=0 1:r0=0: 1"), "{text}");
        let good = report("SB+relaxed", &[0, 0]);
        assert!(good.is_good() && good.sentence().lines().count() == 1);
    }
}
