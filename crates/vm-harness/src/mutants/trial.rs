// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Looks for a mistake: boots what has it, and runs one command after the other in the guest until
//! one of them finds something wrong.
//!
//! What counts is a check: a test that says what is not as it must be, or a report of the guest's
//! kernel. A guest that is lost or hangs without either is a sign and no proof; the search goes
//! on, and the sign is told. What failed must pass without the mistake.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cdm_agent_protocol::{Command, Exec, ExitStatus, ModuleState};

use super::catalogue::Mutant;
use super::subject::Subject;
use crate::build::{Kernel, KernelChoice};
use crate::context::Context;
use crate::test::ktap::Reader;
use crate::test::report::Verdict;
use crate::test::{HostTest, Session, host_test, plan};
use crate::vm::{ByteSize, Event, FileCopy, VmSpec, reports};

/// Longest silence of a command: the guest tests give each test 120 s.
const SILENCE: Duration = Duration::from_secs(150);
/// The tests of the guest.
const TESTS: &str = "cdm-guest-tests";
/// What runs last where nothing else has found anything.
const LAST: &str = "cdm-stress run mixed::everything --seconds 60";
/// How a test's failure begins that the guest's runner ended.
const HANGS: &str = "still running after ";
/// Begins the names of tests that drive a guest from outside.
const OUTSIDE: &str = "e2e::";
/// How the results of a program begin that writes KTAP.
const KTAP: &str = "KTAP version 1";
/// How a program of the guest says that it was not told what to do.
const COULD_NOT_RUN: ExitStatus = ExitStatus::Code(2);
/// What every mutant must do right, or else it is none that anybody would have merged.
const SMOKE: &str = "cdmctl info";

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// From the first command on, other than the one that every mutant must pass.
    pub seconds: u64,
    pub found: Option<Found>,
    /// Commands that ran, in their order.
    pub tried: Vec<String>,
    /// What went wrong that no check has found.
    pub signs: Vec<String>,
}

/// What gave a mistake away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The command that was running.
    pub command: String,
    /// Its check that failed, in its own words.
    pub check: Option<Check>,
    /// What the kernel said, in one line.
    pub report: Option<String>,
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name of the test, if the command has several.
    pub test: Option<String>,
    pub words: String,
}

/// Looks for mistakes.
pub struct Search<'a> {
    /// Kernel modules of the good kernel, which fit a mutant of it, too.
    modules: FileCopy,
    /// How long to look for one.
    limit: Duration,
    /// The guest without a mistake, booted when something has been found.
    healthy: Session<'a>,
    /// What that is.
    good: &'a Subject,
    /// Where its logs go.
    folder: PathBuf,
    ctx: &'a Context,
}

impl<'a> Search<'a> {
    /// `healthy` is the guest without a mistake.
    pub fn new(
        ctx: &'a Context,
        healthy: &'a Subject,
        limit: Duration,
        folder: &Path,
    ) -> Result<Self> {
        let modules = FileCopy::kernel_modules(ctx, &healthy.kernel)?;
        let spec = machine(&healthy.kernel, &modules);
        let folder = folder.join("healthy");
        Ok(Self {
            modules,
            limit,
            healthy: Session::new(ctx, spec, folder.clone()),
            good: healthy,
            folder: folder.join("outside"),
            ctx,
        })
    }

    /// Looks for the mistake of a mutant that was built. An error means that it is no mutant.
    pub fn run(&mut self, mutant: &Mutant, subject: &Subject, logs: PathBuf) -> Result<Trial> {
        let spec = machine(&subject.kernel, &self.modules);
        let mut session = Session::new(&subject.ctx, spec, logs.clone());
        let known = smoke(&mut session)?;
        for command in &mutant.seen_by {
            check_names(command, &known, &subject.kernel.choice)?;
        }
        let task = self
            .ctx
            .progress
            .task(format!("looking for {}", mutant.name), None);
        let started = Instant::now();
        let mut trial = Trial {
            seconds: 0,
            found: None,
            tried: Vec::new(),
            signs: Vec::new(),
        };
        for command in commands(&mutant.seen_by, &known) {
            if started.elapsed() >= self.limit {
                break;
            }
            task.set_detail(&command);
            let end = match host_test(&command, &subject.kernel.choice) {
                Some(test) => observe_from_outside(subject, test, &command, logs.join("outside")),
                None => observe(&mut session, &command),
            };
            let end = end.with_context(|| format!("looking with '{command}'"))?;
            trial.tried.push(command.clone());
            trial.seconds = started.elapsed().as_secs();
            trial.signs.extend(end.sign);
            if end.check.is_some() || end.report.is_some() {
                trial.found = Some(Found {
                    command,
                    check: end.check,
                    report: end.report,
                });
                break;
            }
        }
        drop(task);
        session.discard();
        if let Some(found) = &trial.found {
            self.expect_healthy(found)?;
        }
        Ok(trial)
    }

    /// Expects that what found the mistake finds nothing without it.
    fn expect_healthy(&mut self, found: &Found) -> Result<()> {
        let test = found.check.as_ref().and_then(|check| check.test.as_deref());
        let command = match test {
            Some(test) if found.command.starts_with(TESTS) => format!("{TESTS} --exact {test}"),
            _ => found.command.clone(),
        };
        let end = match host_test(&command, &self.good.kernel.choice) {
            Some(test) => observe_from_outside(self.good, test, &command, self.folder.clone()),
            None => observe(&mut self.healthy, &command),
        };
        let end = end.context("without the mistake")?;
        let wrong = end
            .check
            .map(|check| check.words)
            .or(end.report)
            .or(end.sign);
        match wrong {
            None => Ok(()),
            Some(wrong) => bail!("'{command}' fails without the mistake, too: {wrong}"),
        }
    }

    /// Turns the good guest off in good order.
    pub fn end(self) -> Result<()> {
        self.healthy.end()
    }
}

/// Two small devices, and room for what both hold.
fn machine(kernel: &Kernel, modules: &FileCopy) -> VmSpec {
    let mut spec = VmSpec::new(kernel.clone());
    plan::main_machine(&mut spec);
    spec.memory = ByteSize(2 << 30);
    spec.files.push(modules.clone());
    spec
}

/// Expects a guest that works as far as a look at it tells, and gives the names of its tests.
fn smoke(session: &mut Session<'_>) -> Result<Vec<String>> {
    if let ModuleState::Failed(reason) = &session.vm()?.greeting().module {
        bail!("the driver does not load: {reason}");
    }
    session.text(SMOKE)?;
    session.judge_log()?;
    let names = session.text(&format!("{TESTS} --list"))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Refuses a command that names tests which are not there: it would look for nothing.
fn check_names(command: &str, known: &[String], kernel: &KernelChoice) -> Result<()> {
    if command.starts_with(OUTSIDE) {
        let is_there = host_test(command, kernel).is_some();
        ensure!(is_there, "there is no test '{command}' from outside");
        return Ok(());
    }
    let mut words = command.split_whitespace();
    if words.next() != Some(TESTS) {
        return Ok(());
    }
    while let Some(option) = words.next() {
        let value = words.next().unwrap_or_default();
        let is_there = match option {
            "--exact" => known.iter().any(|name| name == value),
            "--group" => known.iter().any(|name| plan::group_of(name) == value),
            "--filter" => known.iter().any(|name| name.contains(value)),
            _ => true,
        };
        ensure!(is_there, "'{command}': there is no test of '{value}'");
    }
    Ok(())
}

/// What the patch names, then each group of tests, then everything at once.
fn commands(seen_by: &[String], known: &[String]) -> Vec<String> {
    let groups = known
        .iter()
        .map(|test| plan::group_of(test))
        .filter(|group| plan::is_general(group))
        .map(|group| format!("{TESTS} --group {group}"));
    let mut commands: Vec<String> = Vec::new();
    for command in seen_by.iter().cloned().chain(groups).chain([LAST.into()]) {
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    commands
}

/// How a command ended.
#[derive(Debug, Default)]
struct End {
    check: Option<Check>,
    report: Option<String>,
    sign: Option<String>,
}

/// Runs a command until its first check that fails. An error means that there is no guest, or no
/// such command.
fn observe(session: &mut Session<'_>, command: &str) -> Result<End> {
    session.vm()?;
    let mut output = Output::default();
    let ran = follow(session, command, &mut output);
    let mut end = End::default();
    let has_begun = output.reader.is_some();
    match ran {
        Ok(status) => match output.judge(status) {
            Ok(check) => end.check = check,
            // It was never going to find anything.
            Err(sign) if !has_begun && status == Some(COULD_NOT_RUN) => {
                bail!("'{command}' could not run: {sign}")
            }
            Err(sign) => end.sign = Some(format!("{command}: {sign}")),
        },
        Err(error) => end.sign = Some(format!("{command}: {error:#}")),
    }
    // A guest that has reported something may not answer any more, and is not asked.
    let mut log = session.vm()?.kernel_log()?;
    if end.sign.is_none() && reports(&log).is_empty() {
        log = match session.new_log() {
            Ok(log) => log,
            Err(error) => {
                end.sign = Some(format!("{command}: {error:#}"));
                session.vm()?.kernel_log()?
            }
        };
    }
    end.report = reports(&log).into_iter().next().map(|line| line.text);
    if end.check.is_some() || end.report.is_some() || end.sign.is_some() {
        session.discard();
    }
    Ok(end)
}

/// Runs a test that drives a guest from outside, in a machine of its own.
fn observe_from_outside(
    subject: &Subject,
    test: HostTest,
    name: &str,
    logs: PathBuf,
) -> Result<End> {
    let mut spec = VmSpec::new(subject.kernel.clone());
    (test.shape)(&mut spec);
    let mut session = Session::new(&subject.ctx, spec, logs);
    session.vm()?;
    let checked = session.check(&test.check);
    session.discard();
    Ok(End {
        check: checked.err().map(|error| Check {
            test: Some(name.to_owned()),
            // Where logs of a run are means nothing to who reads of it elsewhere.
            words: causes(&error, Session::LOGS),
        }),
        ..End::default()
    })
}

/// What went wrong and why, but for what begins like that.
fn causes(error: &anyhow::Error, without: &str) -> String {
    let causes: Vec<String> = error
        .chain()
        .map(|cause| cause.to_string().trim_end().to_owned())
        .filter(|cause| !cause.starts_with(without))
        .collect();
    causes.join(": ")
}

/// Hands what a command says on to `output` until that has seen enough; the command's status if
/// it came to its end.
fn follow(
    session: &mut Session<'_>,
    command: &str,
    output: &mut Output,
) -> Result<Option<ExitStatus>> {
    let vm = session.vm()?;
    let mut running = vm.start(Exec {
        command: Command::Shell(command.to_owned()),
        tty: None,
        env: Vec::new(),
        cwd: None,
    })?;
    running.input().end();
    loop {
        let event = running
            .next_event(SILENCE)
            .with_context(|| format!("it has written nothing for {} s", SILENCE.as_secs()))?;
        match event {
            Event::Stdout(data) => {
                if output.take(&data) {
                    return Ok(None);
                }
            }
            Event::Stderr(data) => output.complain(&data),
            Event::Exit(status) => return Ok(Some(status)),
            Event::Failed(reason) => bail!("{reason}"),
            Event::Lost(lost) => bail!("{lost}"),
        }
    }
}

/// What a command says.
#[derive(Debug, Default)]
struct Output {
    partial: Vec<u8>,
    /// KTAP, if it begins so.
    reader: Option<Reader>,
    last: String,
    complaints: String,
    failed: Option<Check>,
    /// A test that did not come to its end, and so to no check.
    hanging: Option<String>,
}

impl Output {
    /// Takes in standard output; whether no more is needed.
    fn take(&mut self, data: &[u8]) -> bool {
        self.partial.extend_from_slice(data);
        while let Some(at) = self.partial.iter().position(|byte| *byte == b'\n') {
            let rest = self.partial.split_off(at + 1);
            let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
            self.partial = rest;
            self.line(&line);
        }
        self.has_seen_enough()
    }

    fn line(&mut self, line: &str) {
        if self.last.is_empty() && line == KTAP {
            self.reader = Some(Reader::default());
        }
        self.last = line.to_owned();
        let Some(reader) = &mut self.reader else {
            return;
        };
        // A stream that is out of order is no check that failed: its program's status tells.
        let Ok(Some(outcome)) = reader.line(line) else {
            return;
        };
        if outcome.verdict != Verdict::Failed || self.has_seen_enough() {
            return;
        }
        let words = words(&outcome.diagnostics);
        if words.starts_with(HANGS) {
            self.hanging = Some(format!("{} is {words}", outcome.name));
        } else {
            self.failed = Some(Check {
                words,
                test: Some(outcome.name),
            });
        }
    }

    fn has_seen_enough(&self) -> bool {
        self.failed.is_some() || self.hanging.is_some()
    }

    fn complain(&mut self, data: &[u8]) {
        self.complaints.push_str(&String::from_utf8_lossy(data));
    }

    /// The check that failed, if one did; an error for an end that tells of no check. `status` is
    /// that of a program that has come to its end.
    fn judge(self, status: Option<ExitStatus>) -> Result<Option<Check>, String> {
        if let Some(hanging) = self.hanging {
            return Err(hanging);
        }
        let code = status.map(ExitStatus::shell_code);
        match (self.failed, code) {
            (Some(failed), _) => Ok(Some(failed)),
            (None, None | Some(0)) => Ok(None),
            // Programs without KTAP say in their last line what was not as it must be.
            (None, Some(1)) if self.reader.is_none() && !self.last.is_empty() => Ok(Some(Check {
                test: None,
                words: self.last,
            })),
            (None, Some(code)) => Err(format!(
                "exit status {code}: {}",
                self.complaints.lines().next().unwrap_or(&self.last)
            )),
        }
    }
}

/// What a test says of its failure, in one line, without what it says of every run.
fn words(diagnostics: &[String]) -> String {
    let said: Vec<&str> = diagnostics
        .iter()
        .map(String::as_str)
        .filter(|note| !note.starts_with("seed ") && !note.starts_with("took "))
        .collect();
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, code: i32) -> Result<Option<Check>, String> {
        let mut output = Output::default();
        let failed = output.take(text.as_bytes());
        output.judge((!failed).then_some(ExitStatus::Code(code)))
    }

    #[test]
    fn first_test_that_fails_is_what_has_found_the_mistake() {
        let text = "KTAP version 1\n1..3\n# seed 1, limit 120 s a test\n# took 3 ms\nok 1 a::x\n\
                    # word 7 is 3\n# left behind: 1 page\n# took 4 ms\nnot ok 2 a::y\n";
        let check = said(text, 1).expect("a check").expect("one that failed");
        assert_eq!(check.test.as_deref(), Some("a::y"));
        assert_eq!(check.words, "word 7 is 3; left behind: 1 page");
    }

    #[test]
    fn causes_are_told_without_the_place_of_the_logs() {
        let error = anyhow::anyhow!("word 3 is 4\n")
            .context("with a fault")
            .context(format!("{}/somewhere", Session::LOGS));
        assert_eq!(causes(&error, Session::LOGS), "with a fault: word 3 is 4");
    }

    #[test]
    fn test_that_hangs_has_checked_nothing() {
        let text = "KTAP version 1\n1..1\n# seed 1, limit 120 s a test\n# still running after 120 \
                    s: killed\n# took 120000 ms\nnot ok 1 a::x\n";
        let sign = said(text, 1).expect_err("no check");
        assert!(sign.contains("a::x is still running"), "{sign}");
    }

    #[test]
    fn program_without_tests_is_judged_by_its_status_and_its_last_line() {
        let bad = said("cdm-stress: seed 1\nresult failed: page 3\n", 1).expect("a check");
        assert_eq!(bad.expect("failed").words, "result failed: page 3");
        assert_eq!(said("cdm-stress: seed 1\nresult ok\n", 0), Ok(None));
    }

    #[test]
    fn program_that_could_not_run_has_found_nothing() {
        assert!(said("", 2).is_err());
        assert!(said("KTAP version 1\n1..2\nok 1 a::x\n", 137).is_err());
        assert!(said("KTAP version 1\n1..1\nok 1 a::x\n", 1).is_err());
        assert_eq!(said("KTAP version 1\n1..1\nok 1 a::x\n", 0), Ok(None));
    }

    #[test]
    fn what_the_patch_names_comes_first_and_nothing_comes_twice() {
        let known = ["fork::a", "private::a", "fork::b", "huge::a"].map(str::to_owned);
        let seen_by = ["cdm-guest-tests --group huge".to_owned()];
        let expected = [
            "cdm-guest-tests --group huge",
            "cdm-guest-tests --group fork",
            LAST,
        ];
        assert_eq!(commands(&seen_by, &known), expected);
    }

    #[test]
    fn command_for_a_test_that_is_gone_is_refused() {
        let known = ["fork::a".to_owned()];
        for good in [
            "cdm-guest-tests --exact fork::a",
            "cdm-guest-tests --group fork --seed 3",
            "cdm-stress run --seconds 3",
        ] {
            check_names(good, &known, &KernelChoice::Public).expect(good);
        }
        for bad in ["--exact fork::b", "--group for", "--filter huge"] {
            let command = format!("{TESTS} {bad}");
            assert!(check_names(&command, &known, &KernelChoice::Public).is_err());
        }
    }

    #[test]
    fn test_from_outside_is_one_of_the_kernel_that_it_runs_on() {
        let name = "e2e::public::faults::short_completions_are_errors";
        check_names(name, &[], &KernelChoice::Public).expect("there is one");
        for (name, kernel) in [
            (name, KernelChoice::Vanilla),
            ("e2e::public::faults::gone", KernelChoice::Public),
        ] {
            assert!(check_names(name, &[], &kernel).is_err(), "{name}");
        }
    }
}
