// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own suite for device memory, `hmm-tests`, on this project's device: each of its
//! tests is a result here, and so is the kernel's log. What is known to fail is declared in
//! `images/kernel/known-failures.toml`, in both directions.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Stage;
use super::report::Verdict;
use super::run::Run;
use crate::build::{self, BuildKind, KernelChoice};
use crate::cache;
use crate::context::Context;
use crate::stress::{self, Judged, SuiteVerdict};
use crate::vm::MemoryType;

/// The stage `hmm`.
#[derive(Debug)]
pub struct Hmm;

/// Each kernel with each type of memory that it has.
const PLACES: &[(KernelChoice, MemoryType)] = &[
    (KernelChoice::Public, MemoryType::Public),
    (KernelChoice::Public, MemoryType::Coherent),
    (KernelChoice::Public, MemoryType::Private),
    (KernelChoice::Vanilla, MemoryType::Coherent),
    (KernelChoice::Vanilla, MemoryType::Private),
];

/// Parts of the names of tests that are left to `just stress --suite hmm-tests`, and why.
const LEFT_OUT: &[(&str, &str)] = &[(
    ".benchmark_thp_migration",
    "a benchmark, which may take its two minutes under emulation; just stress --suite hmm-tests runs it",
)];

/// What the suite says of a test that took longer than it gives it, most of them 30 seconds, which is
/// meant for hardware. Such a test gets a second try, in a guest of its own: one that hangs will hang
/// again.
const TIMED_OUT: &str = "Test terminated by timeout";

/// The test that judges the kernel's log.
const LOG: &str = "kernel_log_is_as_declared";

/// First part of the names of the tests in a place.
fn prefix(kernel: &KernelChoice, memory_type: MemoryType) -> String {
    format!("hmm::{kernel}::{memory_type}::")
}

/// Name of a result: the suite separates fixture, variant and test by dots.
fn result(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.replace('.', "::"))
}

/// Names of the suite's tests in a place. The suite is not asked: whoever starts it has the kernel
/// make huge pages, also for the list of its tests.
fn names(ctx: &Context, kernel: &KernelChoice, memory_type: MemoryType) -> Result<Vec<String>> {
    let path = build::kernel_source(ctx, kernel)?.join(build::HMM_TESTS_SOURCE);
    let source =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    stress::hmm_test_names(&source, memory_type)
}

impl Stage for Hmm {
    fn name(&self) -> &'static str {
        "hmm"
    }

    fn list(&mut self, run: &Run) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for (kernel, memory_type) in PLACES {
            let prefix = prefix(kernel, *memory_type);
            let names = names(run.ctx(), kernel, *memory_type)?;
            all.extend(names.iter().map(|name| result(&prefix, name)));
            all.push(result(&prefix, LOG));
        }
        Ok(all)
    }

    fn run(&mut self, run: &mut Run, chosen: &[String]) -> Result<()> {
        for (kernel, memory_type) in PLACES {
            let prefix = prefix(kernel, *memory_type);
            let wanted: Vec<String> = chosen
                .iter()
                .filter_map(|name| name.strip_prefix(&prefix))
                .map(|name| name.replace("::", "."))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            if let Err(error) = run_place(run, kernel, *memory_type, &prefix, &wanted) {
                let names: Vec<String> = wanted.iter().map(|name| result(&prefix, name)).collect();
                run.fail_missing_of(&names, &format!("the suite did not run: {error:#}"));
            }
        }
        Ok(())
    }
}

fn run_place(
    run: &mut Run,
    kernel: &KernelChoice,
    memory_type: MemoryType,
    prefix: &str,
    wanted: &[String],
) -> Result<()> {
    let ctx = run.ctx();
    let built = build::kernel(ctx, kernel, BuildKind::Plain)?;
    // The log alone is judged of the whole suite.
    let asked = match wanted {
        [one] if one == LOG => names(ctx, kernel, memory_type)?,
        _ => wanted.to_vec(),
    };
    let mut tests: Vec<String> = Vec::new();
    for name in asked.iter().filter(|name| *name != LOG) {
        match left_out(name) {
            None => tests.push(name.clone()),
            Some(why) if wanted.contains(name) => {
                run.record(&result(prefix, name), Verdict::Skipped, Duration::ZERO, why);
            }
            Some(_) => {}
        }
    }
    let logs = run.folder().join(format!("hmm-{kernel}"));
    let mut complaints = Vec::new();
    for is_last in [false, true] {
        if tests.is_empty() {
            break;
        }
        let mut again = Vec::new();
        let mut on_ended = |test: &Judged| {
            if !is_last && !test.expected && test.detail.contains(TIMED_OUT) {
                again.push(test.name.clone());
            } else if wanted.contains(&test.name) {
                let (verdict, detail) = judge(test);
                run.record(&result(prefix, &test.name), verdict, test.took, &detail);
            }
        };
        let folder = logs.join(if is_last { "again" } else { "first" });
        cache::create_folder(&folder)?;
        let ran = stress::run_hmm_tests(ctx, &built, memory_type, &folder, &tests, &mut on_ended)?;
        complaints.extend(ran.log_complaints());
        tests = again;
    }
    if wanted.iter().any(|name| name == LOG) {
        let complaints = complaints.join("\n");
        let verdict = match complaints.is_empty() {
            true => Verdict::Passed,
            false => Verdict::Failed,
        };
        run.record(&result(prefix, LOG), verdict, Duration::ZERO, &complaints);
    }
    Ok(())
}

/// Why a test is left to another command, if it is.
fn left_out(name: &str) -> Option<&'static str> {
    LEFT_OUT
        .iter()
        .find(|(part, _)| name.ends_with(part))
        .map(|(_, why)| *why)
}

/// A test that ends as it is declared to proves nothing.
fn judge(test: &Judged) -> (Verdict, String) {
    match (test.complaint(), test.verdict, &test.declared) {
        (Some(complaint), _, _) => (Verdict::Failed, format!("{complaint}\n{}", test.detail)),
        (None, SuiteVerdict::Passed, _) => (Verdict::Passed, String::new()),
        (None, _, declared) => {
            let why = declared.as_ref().map(|declared| {
                format!(
                    "known, mended by {}: {}",
                    declared.mended_by(),
                    declared.why
                )
            });
            (Verdict::Skipped, why.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(verdict: SuiteVerdict, expected: bool) -> Judged {
        Judged {
            name: "hmm.one".into(),
            verdict,
            expected,
            declared: None,
            detail: "said".into(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn only_what_passes_as_it_should_has_passed() {
        let verdict = |test: &Judged| judge(test).0;
        assert_eq!(
            verdict(&judged(SuiteVerdict::Passed, true)),
            Verdict::Passed
        );
        for failed in [
            SuiteVerdict::Failed,
            SuiteVerdict::Lost,
            SuiteVerdict::Skipped,
        ] {
            assert_eq!(verdict(&judged(failed, false)), Verdict::Failed);
            assert_eq!(verdict(&judged(failed, true)), Verdict::Skipped);
        }
        // Declared to fail, and passes.
        assert_eq!(
            verdict(&judged(SuiteVerdict::Passed, false)),
            Verdict::Failed
        );
    }

    #[test]
    fn names_of_places_do_not_begin_alike() {
        for (kernel, memory_type) in PLACES {
            let this = prefix(kernel, *memory_type);
            let begin = PLACES
                .iter()
                .filter(|(kernel, memory_type)| prefix(kernel, *memory_type).starts_with(&this));
            assert_eq!(begin.count(), 1, "{this}");
        }
    }
}
