// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs each test in a process and a control group of its own, and looks afterwards
//! whether it left anything behind: device memory, pins, charges, counters that do
//! not fit.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cdm_guest_tools::invariants::Snapshot;
use cdm_guest_tools::kmemleak;
use cdm_guest_tools::ktap::{Outcome, Writer};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};

use crate::fixture::{Fixture, Skip, Test};
use crate::isolate::{panic_message, pipe_files};
use cdm_guest_tools::cgroup::Cgroup;

/// Longest that one test may take: ten times what the longest takes on an emulated CPU.
pub const LIMIT_SECONDS: u64 = 120;

/// Marks the line with the outcome among the notes of a test.
const OUTCOME: &str = "\x01";

/// Runs `tests` in order; whether all passed or were skipped.
pub fn run(tests: &[Test], seed: u64, limit: Duration) -> Result<bool> {
    let mut all_good = true;
    let mut writer = Writer::begin(io::stdout(), tests.len())?;
    writer.diagnostic(&format!("seed {seed}, limit {} s a test", limit.as_secs()))?;
    for (index, test) in tests.iter().enumerate() {
        let started = Instant::now();
        let before = Snapshot::take();
        let group = match Cgroup::is_possible() {
            true => Some(Cgroup::new()?),
            false => None,
        };
        let (mut outcome, notes) = run_isolated(*test, seed, limit, group.as_ref())?;
        for note in &notes {
            writer.diagnostic(note)?;
        }
        let is_last = index + 1 == tests.len();
        // What a test left behind is its failure too, whatever it found itself.
        let compared = before.and_then(|before| expect_nothing_left(&before, group, is_last));
        if let Err(error) = compared {
            writer.diagnostic(&format!("left behind: {error:#}"))?;
            outcome = Outcome::Failed;
        }
        all_good &= outcome != Outcome::Failed;
        writer.diagnostic(&format!("took {} ms", started.elapsed().as_millis()))?;
        writer.result(&test.full_name(), &outcome)?;
    }
    Ok(all_good)
}

/// Expects that a test which is over left nothing behind, and after the last one that all of them
/// together lost nothing.
fn expect_nothing_left(before: &Snapshot, group: Option<Cgroup>, is_last: bool) -> Result<()> {
    before.compare()?;
    if let Some(group) = group {
        group.expect_no_pages()?;
        group.remove()?;
    }
    if is_last {
        kmemleak::expect_nothing_lost()?;
    }
    Ok(())
}

/// Runs one test in a child; its outcome, and what it had to say.
fn run_isolated(
    test: Test,
    seed: u64,
    limit: Duration,
    group: Option<&Cgroup>,
) -> Result<(Outcome, Vec<String>)> {
    let (from, to) = pipe_files()?;
    // SAFETY: the runner has one thread, so no lock of another thread can be held in the child.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            drop(from);
            // A group of its own, so that a test that hangs is ended with all its children.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            run_in_child(test, seed, group, to);
            // SAFETY: `_exit` takes any status and does not return.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(to);
            collect(child, from, limit)
        }
    }
}

fn run_in_child(test: Test, seed: u64, group: Option<&Cgroup>, mut to: File) {
    let result = catch_unwind(AssertUnwindSafe(|| {
        group.map_or(Ok(()), Cgroup::enter)?;
        let notes = Box::new(to.try_clone()?);
        (test.run)(&Fixture::new(seed, notes)?)
    }));
    let line = match result {
        Ok(Ok(())) => "passed".into(),
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(skip) => format!("skipped {skip}"),
            None => format!("failed {error:#}"),
        },
        Err(panic) => format!("failed panic: {}", panic_message(panic.as_ref())),
    };
    // If the runner is gone there is nobody to tell.
    let _ = writeln!(to, "{OUTCOME}{}", line.replace('\n', " "));
}

/// Reads what a child says until it ends or its time is over.
fn collect(child: Pid, from: File, limit: Duration) -> Result<(Outcome, Vec<String>)> {
    let deadline = Instant::now() + limit;
    let mut notes = Vec::new();
    let mut outcome = None;
    let mut reader = BufReader::new(from);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if reader.buffer().is_empty() {
            let mut fds = [PollFd::new(reader.get_ref().as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, timeout).context("cannot wait for a test")? == 0 {
                notes.push(format!("still running after {} s: killed", limit.as_secs()));
                break;
            }
        }
        let mut line = String::new();
        if reader
            .read_line(&mut line)
            .context("cannot read from a test")?
            == 0
        {
            break;
        }
        match line.trim_end().strip_prefix(OUTCOME) {
            Some(text) => {
                outcome = Some(parse_outcome(text, &mut notes));
                break;
            }
            None => notes.push(line.trim_end().to_owned()),
        }
    }
    if outcome.is_none() {
        // Harmless if it ended by itself: it is not reaped yet, so its number is not reused.
        let _ = kill(child, Signal::SIGKILL);
    }
    let status = waitpid(child, None).context("cannot wait for a test")?;
    // Children that the test left behind.
    let _ = kill(Pid::from_raw(-child.as_raw()), Signal::SIGKILL);
    let outcome = outcome.unwrap_or_else(|| {
        notes.push(format!("ended without a result: {}", describe(status)));
        Outcome::Failed
    });
    Ok((outcome, notes))
}

fn parse_outcome(text: &str, notes: &mut Vec<String>) -> Outcome {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    match kind {
        "passed" => Outcome::Passed,
        "skipped" => Outcome::Skipped(rest.to_owned()),
        _ => {
            notes.push(rest.to_owned());
            Outcome::Failed
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit status {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("signal {signal}"),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_guest_tools::testing::alone;

    fn child_that_says(lines: &str) -> (Outcome, Vec<String>) {
        let (from, mut to) = pipe_files().unwrap();
        // SAFETY: the callers are alone in their process, and the child only ends itself.
        let pid = match unsafe { fork() }.unwrap() {
            // SAFETY: `_exit` takes any status and does not return.
            ForkResult::Child => unsafe { libc::_exit(3) },
            ForkResult::Parent { child } => child,
        };
        to.write_all(lines.as_bytes()).unwrap();
        drop(to);
        collect(pid, from, Duration::from_secs(LIMIT_SECONDS)).unwrap()
    }

    #[test]
    fn test_that_ends_without_a_result_failed() {
        alone(|| {
            let (outcome, notes) = child_that_says("a note\n");
            assert_eq!(outcome, Outcome::Failed);
            assert_eq!(notes[0], "a note");
            assert!(notes[1].contains("without a result"), "{notes:?}");
        });
    }

    #[test]
    fn notes_outcome_and_reason_come_through() {
        alone(|| {
            let (outcome, notes) = child_that_says("one\n\x01skipped no second device\n");
            assert_eq!(outcome, Outcome::Skipped("no second device".into()));
            assert_eq!(notes, ["one"]);
            let (outcome, notes) = child_that_says("\x01failed because\n");
            assert_eq!(
                (outcome, notes),
                (Outcome::Failed, vec!["because".to_owned()])
            );
            assert_eq!(child_that_says("\x01passed\n").0, Outcome::Passed);
        });
    }

    #[test]
    fn outcome_of_an_unknown_kind_is_a_failure() {
        alone(|| assert_eq!(child_that_says("\x01great\n").0, Outcome::Failed));
    }
}
