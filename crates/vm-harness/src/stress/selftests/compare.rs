// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a program found without a device, beside what it found with one.

use serde::Serialize;

use super::differences::{Differences, Often};
use super::tap::{Outcome, Verdict};

/// The test that each program has besides its own: that it comes to its end.
pub const END: &str = "comes to its end";

/// One run of a program.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Its results, the last one about its end.
    pub outcomes: Vec<Outcome>,
    /// Why it may have given up before its end, if it has and that is declared. What it had no
    /// result of is left to the other runs then.
    pub bailed_out: Option<String>,
    /// What the kernel reported about itself meanwhile.
    pub reports: Vec<String>,
    /// Pages that moved into a device.
    pub pages_to_device: u64,
    /// Pages that moved back.
    pub pages_to_system: u64,
}

/// A test, with a device and without.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// By its program's own words.
    pub name: String,
    /// How it ended without a device.
    pub without: Verdict,
    /// The worst end that it had with one.
    pub with: Verdict,
    /// Why that is no fault, if it is declared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub declared: Option<String>,
    /// What was said where it did not pass.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Compared {
    /// Whether it passes without a device, and not with one.
    pub fn is_lost(&self) -> bool {
        self.without == Verdict::Passed && self.with != Verdict::Passed
    }
}

/// A program, with a device and without.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Program and arguments.
    pub program: String,
    /// How often it ran with a device.
    pub times: usize,
    /// Of these, how often it gave up before its end, for which reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bailed_out: Vec<String>,
    /// Pages that moved into the device under it.
    pub pages_to_device: u64,
    /// Pages that moved back.
    pub pages_to_system: u64,
    /// Its tests.
    pub tests: Vec<Compared>,
    /// What is wrong, a line each.
    pub complaints: Vec<String>,
    /// Reports of the kernel that are declared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub declared_reports: Vec<String>,
}

impl Comparison {
    /// Compares.
    pub fn of(
        program: &str,
        least_pages: u64,
        without: &Ran,
        with: &[Ran],
        known: &Differences,
    ) -> Self {
        let tests: Vec<Compared> = without
            .outcomes
            .iter()
            .map(|outcome| compare(program, outcome, with, known))
            .collect();
        let sum = |count: fn(&Ran) -> u64| with.iter().map(count).sum();
        let mut comparison = Self {
            program: program.to_owned(),
            times: with.len(),
            bailed_out: with
                .iter()
                .filter_map(|ran| ran.bailed_out.clone())
                .collect(),
            pages_to_device: sum(|ran| ran.pages_to_device),
            pages_to_system: sum(|ran| ran.pages_to_system),
            tests,
            complaints: Vec::new(),
            declared_reports: Vec::new(),
        };
        comparison.complain(least_pages, without, with, known);
        comparison
    }

    fn complain(&mut self, least_pages: u64, without: &Ran, with: &[Ran], known: &Differences) {
        let mut complaints = Vec::new();
        for test in self.tests.iter().filter(|test| test.is_lost()) {
            if test.declared.is_none() {
                let said = test.detail.lines().last().unwrap_or_default();
                complaints.push(format!(
                    "'{}' passes without a device, and with one it has {:?}: {said}",
                    test.name, test.with
                ));
            }
        }
        for row in known.of(&self.program) {
            let of_row =
                |test: &&Compared| test.without == Verdict::Passed && test.name.contains(&row.test);
            let mut tests = self.tests.iter().filter(of_row).peekable();
            if tests.peek().is_none() {
                complaints.push(format!(
                    "a difference of '{}' is declared, which is no test that passes without a device",
                    row.test
                ));
            }
            for test in tests.filter(|test| row.differs == Often::Always && !test.is_lost()) {
                complaints.push(format!(
                    "'{}' passes with a device, though it is declared that it does not",
                    test.name
                ));
            }
        }
        if !self
            .tests
            .iter()
            .any(|test| test.without == Verdict::Passed && test.name != END)
        {
            complaints.push("none of its tests passes even without a device".to_owned());
        }
        if self.pages_to_device < least_pages {
            complaints.push(format!(
                "it met too few resident pages: {} moved into the device, not {least_pages}",
                self.pages_to_device
            ));
        }
        let places = std::iter::once((without, "without a device"))
            .chain(with.iter().map(|ran| (ran, "with a device")));
        for (ran, place) in places {
            for report in &ran.reports {
                match known.report(&self.program, report) {
                    Some(why) => self.declared_reports.push(format!("{report}: {why}")),
                    None => complaints.push(format!("the kernel reports {place}: {report}")),
                }
            }
        }
        self.complaints = complaints;
    }
}

fn compare(program: &str, without: &Outcome, with: &[Ran], known: &Differences) -> Compared {
    let ended: Vec<Option<&Outcome>> = with
        .iter()
        .map(|ran| {
            (
                ran,
                ran.outcomes.iter().find(|one| one.name == without.name),
            )
        })
        .filter(|(ran, found)| found.is_some() || ran.bailed_out.is_none())
        .map(|(_, found)| found)
        .collect();
    let worst = ended
        .iter()
        .map(|one| one.map_or(Verdict::Lost, |one| one.verdict))
        .find(|verdict| *verdict != without.verdict)
        .unwrap_or(match ended.is_empty() {
            true => Verdict::Lost,
            false => without.verdict,
        });
    let is_lost = without.verdict == Verdict::Passed && worst != Verdict::Passed;
    let said: Vec<&str> = ended
        .iter()
        .flatten()
        .chain((without.verdict != Verdict::Passed).then_some(&without))
        .find(|one| one.verdict != Verdict::Passed)
        .map(|one| one.said.iter().map(String::as_str).collect())
        .unwrap_or_default();
    Compared {
        name: without.name.clone(),
        without: without.verdict,
        with: worst,
        declared: is_lost
            .then(|| known.test(program, &without.name))
            .flatten()
            .map(|row| row.why.clone()),
        detail: said.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::differences::tests::sample;
    use super::*;

    fn ran(tests: &[(&str, Verdict)], pages: u64) -> Ran {
        let outcome = |(name, verdict): &(&str, Verdict)| Outcome {
            name: (*name).to_owned(),
            verdict: *verdict,
            said: vec!["why it is so".into()],
        };
        Ran {
            outcomes: tests.iter().map(outcome).collect(),
            pages_to_device: pages,
            ..Ran::default()
        }
    }

    const BOTH: [(&str, Verdict); 3] = [
        ("migrate.anon", Verdict::Passed),
        ("migrate.shm", Verdict::Passed),
        ("migrate.file", Verdict::Passed),
    ];

    /// What a run comes to whose tests end with a device as told, the others as without.
    fn complaints(changed: &[(&str, Verdict)], pages: u64) -> Vec<String> {
        let with: Vec<(&str, Verdict)> = BOTH
            .iter()
            .map(|(name, verdict)| {
                let other = changed.iter().find(|(changed, _)| changed == name);
                (*name, other.map_or(*verdict, |(_, verdict)| *verdict))
            })
            .collect();
        let with = [ran(&BOTH, 0), ran(&with, pages)];
        let known = sample();
        Comparison::of("rmap", 5, &ran(&BOTH, 0), &with, &known).complaints
    }

    const ANON: (&str, Verdict) = ("migrate.anon", Verdict::Failed);

    #[test]
    fn only_a_declared_difference_is_none() {
        assert!(complaints(&[ANON], 5).is_empty());
        assert!(complaints(&[ANON, ("migrate.shm", Verdict::Failed)], 5).is_empty());
        for verdict in [Verdict::Failed, Verdict::Skipped, Verdict::Lost] {
            let complaints = complaints(&[ANON, ("migrate.file", verdict)], 5);
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert!(complaints[0].contains("migrate.file"), "{complaints:?}");
        }
    }

    #[test]
    fn declared_difference_that_does_not_come_is_told() {
        let complaints = complaints(&[], 5);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(
            complaints[0].contains("'migrate.anon' passes"),
            "{complaints:?}"
        );
    }

    #[test]
    fn row_for_a_test_that_is_not_there_is_told() {
        let known = sample();
        let tests = [ANON.0, "other"].map(|name| (name, Verdict::Passed));
        let with = ran(&[ANON, ("other", Verdict::Passed)], 9);
        let complaints = Comparison::of("rmap", 5, &ran(&tests, 0), &[with], &known).complaints;
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("'shm'"), "{complaints:?}");
    }

    #[test]
    fn test_without_a_result_and_a_run_without_resident_pages_fail() {
        let with = ran(&[ANON, ("migrate.shm", Verdict::Passed)], 4);
        let compared = Comparison::of("rmap", 5, &ran(&BOTH, 0), &[with], &sample());
        let text = compared.complaints.join("\n");
        assert!(
            text.contains("migrate.file") && text.contains("Lost"),
            "{text}"
        );
        assert!(text.contains("4 moved into the device, not 5"), "{text}");
    }

    #[test]
    fn what_a_run_that_bailed_out_leaves_open_another_run_must_tell() {
        let mut bailed = ran(&[ANON], 9);
        bailed.bailed_out = Some("it looks twice".into());
        let compare = |with: &[Ran]| {
            let compared = Comparison::of("rmap", 5, &ran(&BOTH, 0), with, &sample());
            (compared.complaints.len(), compared.bailed_out.len())
        };
        let whole = ran(&[ANON, BOTH[1], BOTH[2]], 9);
        assert_eq!(compare(&[bailed.clone(), whole]), (0, 1));
        // 'shm' is declared to differ; nobody tells of 'file'.
        assert_eq!(compare(&[bailed.clone(), bailed.clone()]), (1, 2));
        // What it did tell counts.
        bailed.outcomes.push(Outcome {
            name: "migrate.file".to_owned(),
            verdict: Verdict::Failed,
            said: Vec::new(),
        });
        let whole = ran(&[ANON, BOTH[1], BOTH[2]], 9);
        assert_eq!(compare(&[bailed, whole]), (1, 1));
    }

    #[test]
    fn report_of_the_kernel_fails_in_either_boot_unless_it_is_declared() {
        let mut without = ran(&BOTH, 0);
        without.reports = vec!["WARNING: mm/x.c:1".into(), "WARNING: mm/y.c:1".into()];
        let with = ran(&[ANON, BOTH[1], BOTH[2]], 5);
        let compared = Comparison::of("rmap", 5, &without, &[with], &sample());
        assert_eq!(compared.complaints.len(), 1, "{:?}", compared.complaints);
        assert!(compared.complaints[0].contains("mm/y.c"));
        assert_eq!(compared.declared_reports.len(), 1);
    }

    #[test]
    fn test_that_fails_without_a_device_too_is_no_difference() {
        let tests = [BOTH[0], BOTH[1], ("migrate.file", Verdict::Failed)];
        let with = ran(&[ANON, BOTH[1], tests[2]], 5);
        let compared = Comparison::of("rmap", 5, &ran(&tests, 0), &[with], &sample());
        assert!(compared.complaints.is_empty(), "{:?}", compared.complaints);
        assert_eq!(compared.tests[2].detail, "why it is so");
    }
}
