// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Allocations of the driver that fail, one after the other, on a kernel that watches what becomes of
//! it: the groups `injected` and `injected_probe` of
//! cdm-guest-tests, with each type of memory whose driver code differs.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::Task;
use crate::results::{self, Origin, cell};
use crate::test::ktap::{Outcome, Reader};
use crate::test::report::Verdict;
use crate::test::{Session, main_machine};
use crate::vm::boot::Stream;
use crate::vm::{FileCopy, MemoryType, VmSpec};

/// The groups, and longest that one of its tests may take, in seconds: some ten thousand calls on
/// a kernel that checks each access to memory.
const GROUPS: &str = "--group injected --group injected_probe";
const LIMIT_SECONDS: u64 = 1800;
/// Longest silence.
const SILENCE: Duration = Duration::from_secs(LIMIT_SECONDS + 120);

/// Tests that a type of memory skips, and why.
const SKIPS: &[(MemoryType, &str, &str)] = &[(
    MemoryType::Private,
    "injected::migration_of_a_file_fails_cleanly_at_each_allocation",
    "page cache does not move to private memory",
)];

/// What one test came to.
#[derive(Debug, Serialize)]
struct Row {
    test: String,
    /// Allocations that failed.
    failures: u32,
    /// Those that ended the call with an error.
    refused: u32,
    /// Those in spite of which it passed.
    survived: u32,
    /// Why it failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    good: bool,
}

/// A guest with one type of memory.
#[derive(Debug, Serialize)]
struct Place {
    memory_type: String,
    rows: Vec<Row>,
    /// What was wrong besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    complaint: Option<String>,
}

/// Results of all guests.
#[derive(Debug, Serialize)]
struct Document {
    #[serde(flatten)]
    origin: Origin,
    kernel: String,
    build: String,
    places: Vec<Place>,
}

/// Runs the group with a type of memory, or with the best and with private memory. Whether all was
/// good.
pub fn run(task: &Task<'_>, memory_type: Option<MemoryType>) -> Result<bool> {
    let types = match memory_type {
        Some(one) => vec![Some(one)],
        None => vec![None, Some(MemoryType::Private)],
    };
    let mut document = Document {
        origin: Origin::new(task.command.clone(), task.commit.to_string()),
        kernel: task.kernel_name(),
        build: task.kernel.kind.to_string(),
        places: Vec::new(),
    };
    for memory_type in types {
        let place = run_place(task, memory_type)?;
        println!("# cdm: {}", place.count());
        document.places.push(place);
    }
    let json = serde_json::to_string_pretty(&document)?;
    results::write(&task.folder.join("results.json"), &json)?;
    if task.record {
        let name = format!("fault-{}-{}", document.kernel, document.build);
        results::record(task.ctx, &name, &json, &document.page())?;
    }
    Ok(document.is_good())
}

fn run_place(task: &Task<'_>, memory_type: Option<MemoryType>) -> Result<Place> {
    let mut spec = VmSpec::new(task.kernel.clone());
    main_machine(&mut spec);
    spec.disks.clear();
    spec.memory_types = memory_type.into_iter().collect();
    spec.files = Vec::<FileCopy>::new();
    let name = memory_type.map_or("best".to_owned(), |one| one.to_string());
    let mut session = Session::new(task.ctx, spec, task.folder.join(&name));
    // A machine that does not boot is no result.
    session.vm()?;
    let _task = task
        .ctx
        .progress
        .task(format!("failing allocations, {name} memory"), None);
    let mut reader = Reader::default();
    let mut rows = Vec::new();
    let mut fault = None;
    let mut errors = String::new();
    let line = format!("cdm-guest-tests {GROUPS} --limit {LIMIT_SECONDS}");
    let streamed = session
        .vm()?
        .exec_streaming_within(SILENCE, &line, |stream, text| {
            if stream == Stream::Stderr {
                errors += text;
                return;
            }
            println!("{text}");
            match reader.line(text) {
                Ok(Some(outcome)) => rows.push(Row::of(memory_type, &outcome)),
                Ok(None) => {}
                Err(error) => fault = Some(error),
            }
        });
    let ended = streamed
        .and_then(|status| match status.shell_code() {
            0 | 1 => Ok(()),
            _ => bail!("'{line}' ended with {status:?}"),
        })
        .and_then(|()| match fault {
            Some(fault) => Err(fault.into()),
            None => Ok(()),
        })
        .and_then(|()| Ok(reader.end()?))
        .and_then(|()| session.judge_log())
        .and_then(|()| session.end())
        .with_context(|| errors);
    Ok(Place {
        memory_type: name,
        rows,
        complaint: ended
            .err()
            .map(|error| format!("{error:#}").trim().to_owned()),
    })
}

impl Row {
    fn of(memory_type: Option<MemoryType>, outcome: &Outcome) -> Self {
        let numbers = outcome.diagnostics.iter().filter_map(|line| numbers(line));
        // A test may make several calls.
        let sum = numbers.fold([0; 3], |sum, numbers| {
            [0, 1, 2].map(|index| sum[index] + numbers[index])
        });
        let declared = SKIPS
            .iter()
            .find(|(skipping, test, _)| Some(*skipping) == memory_type && *test == outcome.name);
        let (good, why) = match (outcome.verdict, declared) {
            (Verdict::Passed, None) => (true, None),
            (Verdict::Skipped, Some((_, _, why))) => (true, Some((*why).to_owned())),
            (Verdict::Passed, Some(_)) => (false, Some("is declared to be skipped".to_owned())),
            (Verdict::Skipped, None) => (false, Some(format!("skipped: {}", outcome.reason))),
            (Verdict::Failed, _) => (false, Some(outcome.diagnostics.join("; "))),
        };
        Self {
            test: outcome.name.clone(),
            failures: sum[0],
            refused: sum[1],
            survived: sum[2],
            why,
            good,
        }
    }
}

/// The numbers of a line like `7 failures: 4 ended the call, 3 did not`.
fn numbers(line: &str) -> Option<[u32; 3]> {
    let (failures, rest) = line.split_once(" failures: ")?;
    let (refused, rest) = rest.split_once(" ended the call, ")?;
    let survived = rest.strip_suffix(" did not")?;
    Some([
        failures.parse().ok()?,
        refused.parse().ok()?,
        survived.parse().ok()?,
    ])
}

impl Place {
    fn failures(&self) -> u32 {
        self.rows.iter().map(|row| row.failures).sum()
    }

    /// Whether it came to its end, allocations failed, and nothing is wrong.
    fn check(&self) -> Result<()> {
        if let Some(complaint) = &self.complaint {
            bail!("{complaint}");
        }
        ensure!(self.failures() > 0, "no allocation failed");
        let bad = self.rows.iter().filter(|row| !row.good).count();
        ensure!(bad == 0, "{bad} tests failed");
        Ok(())
    }

    fn count(&self) -> String {
        let state = match self.check() {
            Ok(()) => "good".to_owned(),
            Err(error) => format!("FAILED: {error}"),
        };
        format!(
            "{} memory: {} tests, {} allocations failed: {state}",
            self.memory_type,
            self.rows.len(),
            self.failures()
        )
    }
}

impl Document {
    fn is_good(&self) -> bool {
        !self.places.is_empty() && self.places.iter().all(|place| place.check().is_ok())
    }

    fn page(&self) -> String {
        let mut page = self.origin.head(&format!(
            "Failing allocations on the {} kernel, {} build",
            self.kernel, self.build
        ));
        page += "Each call to the driver was made with its first allocation failing, with its second, and \
                 so on until it passed without a failure. A failure ended the call with an error, or \
                 the call did without. After each one nothing was left behind, and the next call \
                 worked.\n";
        for place in &self.places {
            let _ = writeln!(page, "\n## {}\n", place.count());
            page += "| test | failures | ended the call | did not | |\n|---|---|---|---|---|\n";
            for row in &place.rows {
                let _ = writeln!(
                    page,
                    "| `{}` | {} | {} | {} | {} |",
                    row.test,
                    row.failures,
                    row.refused,
                    row.survived,
                    cell(row.why.as_deref().unwrap_or_default())
                );
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, verdict: Verdict) -> Outcome {
        Outcome {
            name: name.into(),
            verdict,
            reason: "none".into(),
            diagnostics: vec![
                "7 failures: 4 ended the call, 3 did not".into(),
                "2 failures: 2 ended the call, 0 did not".into(),
                "took 8 ms".into(),
            ],
        }
    }

    fn place(rows: Vec<Row>) -> Place {
        Place {
            memory_type: "best".into(),
            rows,
            complaint: None,
        }
    }

    #[test]
    fn failures_of_all_calls_of_a_test_are_counted() {
        let row = Row::of(None, &outcome("injected::a", Verdict::Passed));
        assert_eq!((row.failures, row.refused, row.survived), (9, 6, 3));
        assert!(row.good);
        assert_eq!(numbers("1 failures of memory"), None);
    }

    #[test]
    fn only_a_declared_skip_is_good_and_it_must_come() {
        let (memory_type, test, _) = SKIPS[0];
        let good =
            |memory_type, name: &str, verdict| Row::of(memory_type, &outcome(name, verdict)).good;
        assert!(good(Some(memory_type), test, Verdict::Skipped));
        assert!(!good(Some(memory_type), test, Verdict::Passed));
        assert!(!good(None, test, Verdict::Skipped));
        assert!(!good(None, "injected::a", Verdict::Failed));
    }

    #[test]
    fn place_without_a_failure_or_with_a_bad_test_is_not_good() {
        let row = |verdict| Row::of(None, &outcome("injected::a", verdict));
        assert!(place(vec![row(Verdict::Passed)]).check().is_ok());
        assert!(
            place(vec![row(Verdict::Passed), row(Verdict::Failed)])
                .check()
                .is_err()
        );
        assert!(place(Vec::new()).check().is_err());
        let mut broken = place(vec![row(Verdict::Passed)]);
        broken.complaint = Some("the kernel reports".into());
        assert!(broken.count().contains("FAILED: the kernel reports"));
    }
}
