// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A group of tests inside the guest: its KTAP lines become named results here.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::super::ktap::{Outcome, Reader};
use super::super::report::Verdict;
use super::super::run::Run;
use super::{Session, known, plan};
use crate::build::KernelChoice;
use crate::vm::boot::Stream;

/// Name of the test that judges the kernel log after a group.
pub fn log_test(prefix: &str, group: &str) -> String {
    format!("{prefix}::{group}::kernel_log_is_clean")
}

/// Runs the chosen tests of a group and records their results.
pub fn run(
    run: &mut Run,
    session: &mut Session,
    prefix: &str,
    kernel: &KernelChoice,
    group: &str,
    wanted: &[String],
) {
    let start = format!("{prefix}::");
    let log_name = log_test(prefix, group);
    let tests: Vec<&str> = wanted
        .iter()
        .filter(|name| **name != log_name)
        .filter_map(|name| name.strip_prefix(&start))
        .filter(|test| plan::group_of(test) == group && !known::is_alone(kernel, test))
        .collect();
    let log_wanted = wanted.contains(&log_name);
    if tests.is_empty() && !log_wanted {
        return;
    }
    let mut died = None;
    if !tests.is_empty() {
        let chosen: Vec<_> = tests.iter().map(|test| format!("--exact {test}")).collect();
        let line = format!("cdm-guest-tests {}", chosen.join(" "));
        if let Err(error) = stream(run, session, prefix, kernel, &line) {
            died = Some(format!("{error:#}"));
        }
    }
    if log_wanted {
        // Without a guest there is no log to be clean.
        run.check(&log_name, |_| match &died {
            Some(why) => session
                .judge_log()
                .and_then(|()| bail!("the group broke off: {why}")),
            None => session.judge_log(),
        });
    }
    let broke_off = died.is_some();
    if let Some(why) = died {
        let names: Vec<_> = tests.iter().map(|test| format!("{start}{test}")).collect();
        run.fail_missing_of(&names, &why);
    }
    let names = tests.iter().map(|test| format!("{start}{test}"));
    let names: Vec<String> = names.chain([log_name]).collect();
    run.keep_evidence(&names, || session.evidence());
    if broke_off {
        session.discard();
    }
}

/// Runs a program that prints KTAP and records each result as it comes.
pub fn stream(
    run: &mut Run,
    session: &mut Session,
    prefix: &str,
    kernel: &KernelChoice,
    line: &str,
) -> Result<()> {
    let mut reader = Reader::default();
    let mut fault = None;
    let mut errors = String::new();
    let mut last = Instant::now();
    let vm = session.vm()?;
    let status = vm.exec_streaming(line, |stream, text| match stream {
        Stream::Stdout if fault.is_none() => match reader.line(text) {
            Ok(Some(outcome)) => {
                record(run, prefix, kernel, &outcome, last);
                last = Instant::now();
            }
            Ok(None) => {}
            Err(error) => fault = Some(error),
        },
        Stream::Stdout => {}
        Stream::Stderr => {
            errors.push_str(text);
            errors.push('\n');
        }
    })?;
    let said = || {
        let notes = reader.trailing().join("\n");
        format!("'{line}' ended with {status:?}\n{notes}\n{errors}")
    };
    if let Some(fault) = fault {
        return Err(fault).with_context(said);
    }
    reader.end().with_context(said)?;
    // 1 is a failed test, which has its own result.
    match status.shell_code() {
        0 | 1 => Ok(()),
        _ => bail!(said()),
    }
}

fn record(run: &mut Run, prefix: &str, kernel: &KernelChoice, outcome: &Outcome, since: Instant) {
    let name = format!("{prefix}::{}", outcome.name);
    let (verdict, detail) = judge(kernel, outcome);
    run.record(&name, verdict, since.elapsed(), &detail);
}

/// The verdict as the host sees it: a skip that is not declared is a failure, and so is a known
/// failure that does not show.
fn judge(kernel: &KernelChoice, outcome: &Outcome) -> (Verdict, String) {
    let notes = outcome.diagnostics.join("\n");
    if let Some(failure) = known::failure(kernel, &outcome.name) {
        return failure.judge(outcome.verdict, &notes);
    }
    if outcome.verdict != Verdict::Skipped {
        return (outcome.verdict, notes);
    }
    match plan::declared_skip(kernel, &outcome.name) {
        // The declared reason by itself: the summary counts by it.
        Some(reason) => (Verdict::Skipped, format!("{reason}\n{}", outcome.reason)),
        None => {
            let why = format!(
                "skipped, but it must run on {kernel}: {}\n{notes}",
                outcome.reason
            );
            (Verdict::Failed, why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, verdict: Verdict) -> Outcome {
        Outcome {
            name: name.into(),
            verdict,
            reason: "no reason".into(),
            diagnostics: vec!["a note".into()],
        }
    }

    #[test]
    fn undeclared_skip_is_a_failure_that_says_so() {
        let skipped = outcome("fork::x", Verdict::Skipped);
        let (verdict, detail) = judge(&KernelChoice::Public, &skipped);
        assert_eq!(verdict, Verdict::Failed);
        assert!(detail.contains("must run on public"), "{detail}");
    }

    #[test]
    fn declared_skip_is_a_skip_with_both_reasons() {
        let name = "observability::region_has_a_name_of_its_own_in_iomem";
        let (verdict, detail) = judge(&KernelChoice::Vanilla, &outcome(name, Verdict::Skipped));
        assert_eq!(verdict, Verdict::Skipped);
        assert!(detail.contains("MEMORY_DEVICE_PUBLIC") && detail.contains("no reason"));
    }

    #[test]
    fn other_verdicts_are_the_guests() {
        let failed = outcome("fork::x", Verdict::Failed);
        let expected = (Verdict::Failed, "a note".to_owned());
        assert_eq!(judge(&KernelChoice::Public, &failed), expected);
    }
}
