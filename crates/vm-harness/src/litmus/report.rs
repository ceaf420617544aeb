// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What `cdm-litmus --json` says (docs/reference/schemas/cdm-litmus.schema.json).

use anyhow::ensure;
use serde::{Deserialize, Serialize, Serializer};

/// Version of the report that is understood here.
const VERSION: u32 = 1;
/// The rule of a weak outcome that must be seen.
const EXPECTED: &str = "allowed, and seen";

/// All runs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of the form.
    pub version: u32,
    /// What the random pauses began with.
    pub seed: u64,
    /// CPUs of the guest.
    pub cpus: usize,
    /// One for each test, casting and memory.
    pub runs: Vec<RunReport>,
}

/// One test with one casting in one memory.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunReport {
    /// Name of the test.
    pub test: String,
    /// Who ran each thread.
    pub casting: String,
    /// Where the locations were.
    pub memory: String,
    /// What the model says of the weak outcome.
    pub rule: String,
    /// How often it ran.
    pub instances: u64,
    /// Outcomes that threads can have by taking turns.
    pub interleavings: u64,
    /// Others that the model allows.
    pub weak: u64,
    /// Outcomes that the model forbids.
    pub forbidden: u64,
    /// How often a thread began without another one.
    pub missed: u64,
    /// How long it took.
    pub milliseconds: u64,
    /// What it shows.
    pub verdict: String,
    /// Each outcome that was seen; in results by its values, to keep them short.
    #[serde(serialize_with = "by_values")]
    pub outcomes: Vec<Outcome>,
}

fn by_values<S: Serializer>(outcomes: &[Outcome], serializer: S) -> Result<S::Ok, S::Error> {
    let counts = outcomes.iter().map(|seen| (&seen.outcome, seen.count));
    serializer.collect_map(counts)
}

/// An outcome that was seen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Its values.
    pub outcome: String,
    /// What it is.
    pub kind: String,
    /// How often it was seen.
    pub count: u64,
}

impl RunReport {
    /// Whether it showed what the model says, by the counts.
    pub fn is_good(&self) -> bool {
        self.verdict == "good" && self.forbidden == 0 && (self.rule != EXPECTED || self.weak > 0)
    }

    /// One line.
    pub fn sentence(&self) -> String {
        format!(
            "{} {} {}: {} instances, {} weak, {} forbidden: {}",
            self.test,
            self.casting,
            self.memory,
            self.instances,
            self.weak,
            self.forbidden,
            self.verdict
        )
    }
}

impl Report {
    /// Whether something ran and every run is good.
    pub fn is_good(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(RunReport::is_good)
    }

    /// Fails with what is wrong: a forbidden outcome, store buffering that was not seen, a run of
    /// fewer than `instances`, or counts that do not add up.
    pub fn judge(&self, instances: u64) -> anyhow::Result<()> {
        ensure!(
            self.version == VERSION,
            "a report of version {}, and {VERSION} is understood",
            self.version
        );
        ensure!(!self.runs.is_empty(), "nothing ran");
        for run in &self.runs {
            ensure!(run.is_good(), "{}\n{:#?}", run.sentence(), run.outcomes);
            let counted: u64 = run.outcomes.iter().map(|outcome| outcome.count).sum();
            let sums = [counted, run.interleavings + run.weak + run.forbidden];
            ensure!(
                sums == [run.instances; 2],
                "{}: the outcomes are {sums:?} in all",
                run.sentence()
            );
            ensure!(
                run.instances >= instances,
                "{}: less than {instances}",
                run.sentence()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of two good runs.
    pub fn sample() -> Report {
        let run = |test: &str, rule: &str, weak| RunReport {
            test: test.into(),
            casting: "CD".into(),
            memory: "device".into(),
            rule: rule.into(),
            instances: 10,
            interleavings: 10 - weak,
            weak,
            forbidden: 0,
            missed: 1,
            milliseconds: 5,
            verdict: "good".into(),
            outcomes: vec![Outcome {
                outcome: "0:r0=0 1:r0=0".into(),
                kind: "weak".into(),
                count: 10,
            }],
        };
        Report {
            version: VERSION,
            seed: 1,
            cpus: 2,
            runs: vec![
                run("SB+relaxed", EXPECTED, 3),
                run("SB+seq-cst", "forbidden", 0),
            ],
        }
    }

    fn refused(change: impl FnOnce(&mut Report)) -> String {
        let mut report = sample();
        change(&mut report);
        report
            .judge(10)
            .expect_err("a change for the worse")
            .to_string()
    }

    #[test]
    fn good_report_is_good() {
        sample().judge(10).expect("good");
    }

    #[test]
    fn whatever_is_wrong_is_found_although_the_verdict_says_good() {
        refused(|report| report.runs[1].forbidden = 1);
        refused(|report| report.runs[0].weak = 0);
        refused(|report| report.runs[1].verdict = "forbidden-seen".into());
        refused(|report| report.version = 2);
        assert_eq!(refused(|report| report.runs.clear()), "nothing ran");
        let text = refused(|report| report.runs[1].outcomes[0].count = 9);
        assert!(text.contains("[9, 10] in all"), "{text}");
        let text = sample().judge(11).expect_err("too few").to_string();
        assert!(text.contains("less than 11"), "{text}");
    }
}
