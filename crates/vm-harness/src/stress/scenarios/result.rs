// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How each scenario ended, and what all of them come to.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::outcome::Verdict;
use super::super::said::Totals;
use crate::results::Origin;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// One scenario, as it ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ScenarioResult {
    /// `family::what_happens`.
    pub name: String,
    /// How it ended: `lost` with its guest.
    pub verdict: Verdict,
    /// How long it took, with what was looked at afterwards.
    pub seconds: f64,
    /// Why it failed, or was skipped.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub detail: String,
    /// What it counted.
    pub totals: Totals,
    /// The line that runs it again as it ran.
    pub repeat: String,
    /// The folder of its guest's logs; none if there was no guest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logs: Option<PathBuf>,
}

impl ScenarioResult {
    /// Whether it held, or could not be tried for a declared reason.
    pub fn is_good(&self) -> bool {
        matches!(self.verdict, Verdict::Passed | Verdict::Skipped)
    }

    /// How long it took.
    pub fn took(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// One line for who waits; more if it failed.
    pub fn lines(&self) -> String {
        let word = match self.verdict {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
            Verdict::Lost => "LOST",
        };
        let operations = self.totals.get("operations").copied().unwrap_or_default();
        let mut text = format!("{word:<7} {} ({:.1} s", self.name, self.seconds);
        if operations > 0 {
            let _ = write!(text, ", {operations} operations");
        }
        text.push(')');
        match self.verdict {
            Verdict::Passed => {}
            Verdict::Skipped => {
                let _ = write!(text, ": {}", self.detail);
            }
            Verdict::Failed | Verdict::Lost => {
                for line in self.detail.lines() {
                    let _ = write!(text, "\n        {line}");
                }
                let _ = write!(text, "\n        repeat: {}", self.repeat);
            }
        }
        text
    }
}

/// What totals come to, in what a person asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    operations: u64,
    /// Calls of the driver that migrate.
    migrations: u64,
    pages_to_devices: u64,
    pages_back: u64,
    pages_between_devices: u64,
    pages_evicted: u64,
    /// Bytes of all of these.
    bytes_moved: u64,
    pages_written: u64,
    device_commands: u64,
    pages_compared: u64,
    /// Faults of devices.
    faults_survived: u64,
}

impl Figures {
    /// What `totals` come to.
    pub fn of(totals: &Totals) -> Self {
        let total = |name: &str| totals.get(name).copied().unwrap_or_default();
        let sum = |names: &[&str]| names.iter().map(|name| total(name)).sum();
        let moved: u64 = sum(&["pages_to_device", "pages_to_system", "pages_evicted"]);
        Self {
            operations: total("operations"),
            migrations: sum(&["migrate_to_device", "migrate_to_system", "migrate_foreign"]),
            pages_to_devices: total("pages_to_device"),
            pages_back: total("pages_to_system"),
            pages_between_devices: total("pages_between_devices"),
            pages_evicted: total("pages_evicted"),
            bytes_moved: moved * PAGE_BYTES,
            pages_written: total("pages_rewritten"),
            device_commands: sum(&[
                "device_stores",
                "device_checksums",
                "device_comparisons",
                "device_atomics",
            ]),
            pages_compared: total("verified_pages"),
            faults_survived: total("faults"),
        }
    }

    fn gigabytes(&self) -> String {
        format!("{:.1}", self.bytes_moved as f64 / 1e9)
    }

    /// A name for people and the number of each.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("operations", self.operations.to_string()),
            ("calls to migrate", self.migrations.to_string()),
            ("pages to devices", self.pages_to_devices.to_string()),
            ("pages back", self.pages_back.to_string()),
            (
                "pages between devices",
                self.pages_between_devices.to_string(),
            ),
            ("pages evicted", self.pages_evicted.to_string()),
            ("GB moved", self.gigabytes()),
            ("pages written", self.pages_written.to_string()),
            ("commands of devices", self.device_commands.to_string()),
            ("pages compared", self.pages_compared.to_string()),
            ("faults survived", self.faults_survived.to_string()),
        ]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .rows()
            .into_iter()
            .map(|(name, number)| format!("{number} {name}"))
            .collect();
        f.write_str(&words.join(", "))
    }
}

/// All results, as programs read them.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    /// Whether nothing failed and something ran.
    good: bool,
    passed: usize,
    failed: usize,
    skipped: usize,
    seed: u64,
    /// Guests that it took.
    guests: u32,
    /// Over all scenarios.
    totals: Totals,
    /// Each scenario.
    pub results: Vec<ScenarioResult>,
}

impl Document {
    /// What `results` come to.
    pub fn new(origin: Origin, seed: u64, guests: u32, results: Vec<ScenarioResult>) -> Self {
        let count = |wanted: fn(&ScenarioResult) -> bool| {
            results.iter().filter(|result| wanted(result)).count()
        };
        let (passed, skipped) = (
            count(|result| result.verdict == Verdict::Passed),
            count(|result| result.verdict == Verdict::Skipped),
        );
        let failed = count(|result| !result.is_good());
        let mut totals = Totals::new();
        for (name, number) in results.iter().flat_map(|result| &result.totals) {
            *totals.entry(name.clone()).or_default() += number;
        }
        Self {
            origin,
            good: failed == 0 && passed > 0,
            passed,
            failed,
            skipped,
            seed,
            guests,
            totals,
            results,
        }
    }

    /// Whether nothing failed and something ran.
    pub fn is_good(&self) -> bool {
        self.good
    }

    /// What it comes to, on one screen.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let not_good = self.results.iter().filter(|result| !result.is_good());
        for result in not_good {
            let _ = writeln!(text, "{}", result.lines());
        }
        let skipped = |result: &&ScenarioResult| result.verdict == Verdict::Skipped;
        for result in self.results.iter().filter(skipped) {
            let _ = writeln!(text, "skipped {}: {}", result.name, result.detail);
        }
        let seconds = self.totals.get("seconds").copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "{seconds} s of {} guests, seed {}: {}",
            self.guests,
            self.seed,
            Figures::of(&self.totals)
        );
        let _ = write!(
            text,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &str, verdict: Verdict) -> ScenarioResult {
        ScenarioResult {
            name: name.into(),
            verdict,
            seconds: 1.5,
            detail: "why\nmore".into(),
            totals: Totals::from([("operations".into(), 5), ("pages_to_device".into(), 10)]),
            repeat: format!("just stress {name} --seed 1"),
            logs: None,
        }
    }

    fn document(results: Vec<ScenarioResult>) -> Document {
        Document::new(Origin::new("just stress", "abc"), 1, 2, results)
    }

    #[test]
    fn totals_are_counted_and_the_verdict_follows_from_the_results() {
        let good = document(vec![
            result("a::a", Verdict::Passed),
            result("a::b", Verdict::Passed),
            result("a::c", Verdict::Skipped),
        ]);
        assert!(good.is_good());
        let summary = good.summary();
        assert!(
            summary.ends_with("2 passed, 0 failed, 1 skipped"),
            "{summary}"
        );
        assert!(summary.contains("15 operations,"), "{summary}");
        assert!(summary.contains("skipped a::c: why"), "{summary}");
    }

    #[test]
    fn failed_and_lost_scenarios_fail_and_say_how_to_repeat_them() {
        for verdict in [Verdict::Failed, Verdict::Lost] {
            let bad = document(vec![
                result("a::a", Verdict::Passed),
                result("a::b", verdict),
            ]);
            assert!(!bad.is_good());
            let summary = bad.summary();
            assert!(
                summary.contains("repeat: just stress a::b --seed 1"),
                "{summary}"
            );
            assert!(summary.contains("1 passed, 1 failed"), "{summary}");
        }
    }

    #[test]
    fn run_of_nothing_is_not_good() {
        assert!(!document(Vec::new()).is_good());
        assert!(!document(vec![result("a::a", Verdict::Skipped)]).is_good());
    }
}
