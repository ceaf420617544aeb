// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Starts build tools: what they print goes to a log, each line of it to a
//! callback for progress, and the lines that matter into the error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::cache;

/// Lines of a failed tool's output that an error repeats.
const SHOWN_LINES: usize = 12;

/// Runs a program to its end. Its output, both streams as they come, goes to
/// `log` and line by line to `on_line`. Failure is an error that shows the
/// lines which tell the reason.
pub fn run_logged(
    command: &mut Command,
    what: &str,
    log: &Path,
    on_line: impl FnMut(&str),
) -> Result<()> {
    run(command, what, log, None, on_line)
}

/// [`run_logged`] for a program that may hang: after `limit` it is killed with all that it
/// started, which is a failure that says so.
pub fn run_logged_within(
    limit: Duration,
    command: &mut Command,
    what: &str,
    log: &Path,
    on_line: impl FnMut(&str),
) -> Result<()> {
    run(command, what, log, Some(limit), on_line)
}

fn run(
    command: &mut Command,
    what: &str,
    log: &Path,
    limit: Option<Duration>,
    mut on_line: impl FnMut(&str),
) -> Result<()> {
    if let Some(folder) = log.parent() {
        cache::create_folder(folder)?;
    }
    let mut out =
        File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    writeln!(out, "+ {command:?}")?;

    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    if limit.is_some() {
        command.process_group(0);
    }
    let mut child = command.spawn().with_context(|| {
        format!("cannot start {program}, which the toolbox should have; see 'just doctor'")
    })?;
    // The command holds copies of the pipe's writing end; without this the
    // reader below would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let watchdog = limit.map(|limit| Watchdog::start(limit, &child));

    let mut reader = BufReader::new(reader);
    let mut tail = Tail::default();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        tail.push(text);
        on_line(text);
        line.clear();
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {program}"))?;
    if let (Some(limit), true) = (limit, watchdog.is_some_and(Watchdog::stop)) {
        bail!(
            "{what} was killed after {} s; its last lines:\n{}\nlog: {}",
            limit.as_secs(),
            tail.text(),
            log.display()
        );
    }
    if !status.success() {
        bail!(
            "{what} failed ({program}: {status}):\n{}\nlog: {}",
            tail.text(),
            log.display()
        );
    }
    Ok(())
}

/// Kills a process group that takes too long.
struct Watchdog {
    done: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    /// Watches `child`, which leads a process group.
    fn start(limit: Duration, child: &Child) -> Self {
        let group = Pid::from_raw(child.id() as i32);
        let (done, stopped) = channel();
        let thread = thread::spawn(move || {
            let late = stopped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if late {
                // Fails only when nobody of the group is left.
                let _ = killpg(group, Signal::SIGKILL);
            }
            late
        });
        Self { done, thread }
    }

    /// Whether it had to kill.
    fn stop(self) -> bool {
        drop(self.done);
        self.thread.join().unwrap_or(false)
    }
}

/// Keeps the lines of a long output that are worth repeating: those that speak
/// of errors, or else the last ones.
#[derive(Debug, Default)]
struct Tail {
    errors: Vec<String>,
    last: VecDeque<String>,
}

impl Tail {
    fn push(&mut self, line: &str) {
        let lower = line.to_ascii_lowercase();
        let tells = [
            "error:",
            "error[",
            "***",
            "failed",
            "no space left",
            "cannot find",
        ];
        if self.errors.len() < SHOWN_LINES && tells.iter().any(|word| lower.contains(word)) {
            self.errors.push(line.to_owned());
        }
        if self.last.len() == SHOWN_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
    }

    fn text(&self) -> String {
        let lines: Vec<&str> = if self.errors.is_empty() {
            self.last.iter().map(String::as_str).collect()
        } else {
            self.errors.iter().map(String::as_str).collect()
        };
        lines
            .iter()
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_reach_the_log_and_the_callback() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let log = dir.path().join("logs/one.log");
        let mut seen = Vec::new();
        run_logged(
            &mut shell("echo out; echo err >&2"),
            "the test",
            &log,
            |line| {
                seen.push(line.to_owned());
            },
        )
        .expect("succeeds");
        assert_eq!(seen, ["out", "err"]);
        let log = std::fs::read_to_string(log).expect("written");
        assert!(
            log.starts_with("+ ") && log.ends_with("out\nerr\n"),
            "{log}"
        );
    }

    #[test]
    fn a_failure_shows_the_error_lines_among_much_else_and_the_log() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let log = dir.path().join("one.log");
        let script = "echo 'mm/x.c:3: error: no such field'; seq 100; exit 3";
        let error = run_logged(&mut shell(script), "building", &log, |_| {}).expect_err("fails");
        let text = error.to_string();
        assert!(text.contains("mm/x.c:3: error: no such field"), "{text}");
        assert!(!text.contains("57") && text.contains("one.log"), "{text}");
    }

    #[test]
    fn a_failure_without_error_lines_shows_the_last_ones() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = run_logged(
            &mut shell("seq 100; exit 1"),
            "x",
            &dir.path().join("l"),
            |_| {},
        )
        .expect_err("fails");
        assert!(error.to_string().contains("  100\n"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children_and_its_last_words_are_shown() {
        let dir = tempfile::tempdir().expect("temporary folder");
        // The background child keeps the pipe open: killing the shell alone would not do.
        let mut command = shell("echo here; sleep 1000 & wait");
        let limit = Duration::from_millis(200);
        let error = run_logged_within(limit, &mut command, "x", &dir.path().join("l"), |_| {})
            .expect_err("killed");
        let text = error.to_string();
        assert!(
            text.contains("killed after") && text.contains("here"),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_ends_in_time_is_not_called_late() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let limit = Duration::from_secs(600);
        run_logged_within(
            limit,
            &mut shell("true"),
            "x",
            &dir.path().join("l"),
            |_| {},
        )
        .expect("in time");
    }

    #[test]
    fn a_missing_program_is_named_with_the_next_step() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut command = Command::new("no-such-program");
        let error = run_logged(&mut command, "x", &dir.path().join("l"), |_| {}).expect_err("none");
        let text = format!("{error:#}");
        assert!(
            text.contains("no-such-program") && text.contains("doctor"),
            "{text}"
        );
    }
}
