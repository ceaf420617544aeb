// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tests of the table, one after the other in a guest; a guest that goes wrong
//! under one of them is replaced before the next.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cdm_agent_protocol::ModuleState;
use serde::Serialize;

use super::table::Column;
use crate::build::{self, BuildKind, KernelChoice};
use crate::context::Context;
use crate::test::ktap::Reader;
use crate::test::report::Verdict;
use crate::test::{Session, main_machine};
use crate::vm::boot::Stream;
use crate::vm::{FileCopy, VmSpec, reports};

/// Longest silence of one test, many times what the longest takes.
const SILENCE: Duration = Duration::from_secs(90);

/// What a test found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// It can be done.
    Works,
    /// It cannot.
    Fails,
    /// The test cannot be tried with this memory.
    Inapplicable,
    /// The kernel reports a fault of its own, or dies.
    Breaks,
}

/// A test of one column.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// As `group::name`.
    pub test: String,
    /// What it found.
    pub found: Found,
    /// The reason, unless it works.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// All tests of one column.
#[derive(Clone, Debug, Serialize)]
pub struct ColumnResults {
    /// Its heading.
    pub name: String,
    /// In the order of the table.
    pub results: Vec<Tried>,
}

/// Runs all tests of one column.
pub fn column(
    ctx: &Context,
    column: &Column,
    tests: &[String],
    folder: &Path,
) -> Result<ColumnResults> {
    let choice: KernelChoice = column.kernel.parse().map_err(anyhow::Error::msg)?;
    let mut spec = VmSpec::new(build::kernel(ctx, &choice, BuildKind::Plain)?);
    main_machine(&mut spec);
    spec.memory_types = vec![column.memory_type];
    // File systems and block devices are modules.
    let modules = FileCopy::kernel_modules(ctx, &spec.kernel)?;
    spec.files.push(modules);
    let logs = folder.join(format!("{}-{}", column.kernel, column.memory_type));
    let mut session = Session::new(ctx, spec, logs);
    let task = ctx.progress.task(format!("trying {}", column.name), None);
    task.set_total(tests.len() as u64);
    let mut results = Vec::new();
    for test in tests {
        task.set_detail(test);
        let (found, why) =
            one(&mut session, test).with_context(|| format!("{} on {}", test, column.name))?;
        results.push(Tried {
            test: test.clone(),
            found,
            why,
        });
        task.advance();
    }
    session.discard();
    Ok(ColumnResults {
        name: column.name.clone(),
        results,
    })
}

/// Runs one test. An error means that there is no guest to try it in.
fn one(session: &mut Session<'_>, test: &str) -> Result<(Found, String)> {
    if let ModuleState::Failed(reason) = &session.vm()?.greeting().module {
        anyhow::bail!("the driver does not load: {reason}");
    }
    let mut reader = Reader::default();
    let mut outcome = None;
    let mut errors = Vec::new();
    let line = format!("cdm-guest-tests --exact {test}");
    let ran = session
        .vm()?
        .exec_streaming_within(SILENCE, &line, |stream, text| match stream {
            Stream::Stdout => match reader.line(text) {
                Ok(Some(ended)) => outcome = Some(ended),
                Ok(None) => {}
                Err(fault) => errors.push(fault.to_string()),
            },
            Stream::Stderr => errors.push(text.to_owned()),
        });
    // A guest that has reported something may not answer any more, and is not asked.
    let mut log = session.vm()?.kernel_log()?;
    if ran.is_ok() && reports(&log).is_empty() {
        log = session.new_log()?;
    }
    let report = reports(&log).into_iter().next();
    let has_failed = outcome
        .as_ref()
        .is_some_and(|outcome| outcome.verdict == Verdict::Failed);
    if ran.is_err() || report.is_some() || has_failed {
        // What is left behind of it would mislead what comes after it.
        session.discard();
    }
    let why = |text: Option<&str>| text.unwrap_or_default().to_owned();
    Ok(match (report, ran, outcome) {
        (Some(report), _, _) => (Found::Breaks, report.text),
        (None, Err(error), _) => (Found::Breaks, why(format!("{error:#}").lines().next())),
        (None, Ok(_), None) => {
            anyhow::bail!("'{line}' gives no result: {}", errors.join("; "))
        }
        (None, Ok(_), Some(outcome)) => match outcome.verdict {
            Verdict::Passed => (Found::Works, String::new()),
            Verdict::Skipped => (Found::Inapplicable, outcome.reason),
            Verdict::Failed => (Found::Fails, why(reason(&outcome.diagnostics))),
        },
    })
}

/// Why a test failed: the first of its notes. The program's own note about all its tests comes
/// before them.
fn reason(diagnostics: &[String]) -> Option<&str> {
    let mut notes = diagnostics.iter().map(String::as_str);
    notes.find(|note| !note.starts_with("seed "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_the_tests_own() {
        let notes = ["seed 1, limit 120 s a test", "no page moved", "more"].map(str::to_owned);
        assert_eq!(reason(&notes), Some("no page moved"));
        assert_eq!(reason(&notes[..1]), None);
    }
}
