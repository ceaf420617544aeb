// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Unit, integration and documentation tests of the workspace, each under its
//! own name.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::Stage;
use super::cargo_tests::{Said, failure_of, parse_list};
use super::report::Verdict;
use super::run::Run;
use crate::build;
use crate::command::{run_logged, run_logged_within};
use crate::context::Context;

/// The stage `unit`; documentation tests are its `unit::doc`.
#[derive(Debug, Default)]
pub struct Unit {
    programs: Vec<Program>,
}

/// One test program.
#[derive(Debug)]
struct Program {
    /// Package and target, as the names of its tests begin.
    prefix: String,
    path: PathBuf,
    /// Folder of the package, where cargo would start it.
    folder: PathBuf,
    tests: Vec<String>,
}

/// Longest that one test program may take, its building apart: the longest takes seconds.
const PROGRAM_LIMIT: Duration = Duration::from_secs(600);

const DOC: &str = "unit::doc";

/// cargo for the checks, with a target folder of their own.
pub fn cargo(ctx: &Context) -> Command {
    let mut command = Command::new("cargo");
    build::set_environment(&mut command, ctx, "check");
    command
}

impl Stage for Unit {
    fn name(&self) -> &'static str {
        "unit"
    }

    fn list(&mut self, run: &Run) -> Result<Vec<String>> {
        self.programs = build(run)?;
        let mut names = Vec::new();
        for program in &mut self.programs {
            program.tests = list(program)?;
            names.extend(
                program
                    .tests
                    .iter()
                    .map(|test| format!("{}::{test}", program.prefix)),
            );
        }
        names.extend(
            list_documentation(run)?
                .iter()
                .map(|test| format!("{DOC}::{test}")),
        );
        Ok(names)
    }

    fn run(&mut self, run: &mut Run, chosen: &[String]) -> Result<()> {
        for program in &self.programs {
            let wanted: Vec<&str> = program
                .tests
                .iter()
                .map(String::as_str)
                .filter(|test| chosen.contains(&format!("{}::{test}", program.prefix)))
                .collect();
            if !wanted.is_empty() {
                run_program(run, program, &wanted)?;
            }
        }
        if chosen.iter().any(|name| name.starts_with(DOC)) {
            run_documentation(run, chosen)?;
        }
        Ok(())
    }
}

/// The parts of cargo's messages that are of interest.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    target: Target,
    #[serde(default)]
    profile: Profile,
}

#[derive(Default, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Default, Deserialize)]
struct Profile {
    test: bool,
}

impl Message {
    /// The test program that the message tells of.
    fn program(line: &str) -> Option<Program> {
        if !line.starts_with('{') {
            return None;
        }
        let message: Self = serde_json::from_str(line).ok()?;
        if message.reason != "compiler-artifact" || !message.profile.test {
            return None;
        }
        // Built, so that it goes on to compile, but no program of tests.
        if message.target.kind.iter().any(|kind| kind == "bench") {
            return None;
        }
        let folder = message.manifest_path.parent()?.to_owned();
        let crate_name = folder.file_name()?.to_str()?.to_owned();
        let prefix = match message.target.kind.iter().any(|kind| kind == "lib") {
            true => format!("unit::{crate_name}"),
            false => format!("unit::{crate_name}::{}", message.target.name),
        };
        Some(Program {
            prefix,
            path: message.executable?,
            folder,
            tests: Vec::new(),
        })
    }
}

fn build(run: &Run) -> Result<Vec<Program>> {
    let log = run.folder().join("unit-build.log");
    let mut command = cargo(run.ctx());
    command
        .args([
            "test",
            "--workspace",
            "--all-targets",
            "--locked",
            "--no-run",
        ])
        .arg("--message-format=json-render-diagnostics");
    let task = run
        .ctx()
        .progress
        .task("building the unit tests", Some(&log));
    let mut programs = Vec::new();
    run_logged(&mut command, "building the unit tests", &log, |line| {
        if let Some(what) = line.trim_start().strip_prefix("Compiling ") {
            task.set_detail(what);
        }
        programs.extend(Message::program(line));
    })?;
    if programs.is_empty() {
        bail!("cargo built no test program; log: {}", log.display());
    }
    programs.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    Ok(programs)
}

fn list(program: &Program) -> Result<Vec<String>> {
    let output = Command::new(&program.path)
        .current_dir(&program.folder)
        .args(["--list", "--format", "terse"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.path.display()))?;
    if !output.status.success() {
        bail!(
            "{} cannot list its tests: {}",
            program.path.display(),
            output.status
        );
    }
    Ok(parse_list(&String::from_utf8_lossy(&output.stdout)))
}

fn run_program(run: &mut Run, program: &Program, wanted: &[&str]) -> Result<()> {
    let mut command = Command::new(&program.path);
    command.current_dir(&program.folder);
    if wanted.len() < program.tests.len() {
        command.arg("--exact").args(wanted);
    }
    let log = run
        .folder()
        .join(format!("{}.log", program.prefix.replace("::", "-")));
    let what = format!("running {}", program.prefix);
    let task = run.ctx().progress.task(&what, Some(&log));
    let (output, took) = output_of(&mut command, &what, &log);
    drop(task);
    record(run, &program.prefix, &output, took, &log)
}

/// Runs a test program; it ends with a failure if a test does, which its results tell better.
fn output_of(command: &mut Command, what: &str, log: &Path) -> (String, Duration) {
    let started = Instant::now();
    let mut output = String::new();
    let result = run_logged_within(PROGRAM_LIMIT, command, what, log, |line| {
        output.push_str(line);
        output.push('\n');
    });
    if let Err(error) = result {
        output.push_str(&format!("{error:#}\n"));
    }
    (output, started.elapsed())
}

fn record(run: &mut Run, prefix: &str, output: &str, took: Duration, log: &Path) -> Result<()> {
    let said = Said::parse(output);
    let each = took / said.lines.len().max(1) as u32;
    for line in &said.lines {
        let detail = match line.verdict {
            Verdict::Passed => String::new(),
            Verdict::Skipped => line.reason.clone(),
            Verdict::Failed => failure_of(output, &line.name),
        };
        run.record(
            &format!("{prefix}::{}", line.name),
            line.verdict,
            each,
            &detail,
        );
    }
    if !said.is_consistent() {
        bail!(
            "{prefix} ended early: {}; its end:\n{}\nlog: {}",
            said.numbers(),
            last_lines(output),
            log.display()
        );
    }
    Ok(())
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

fn documentation(run: &Run) -> Command {
    let mut command = cargo(run.ctx());
    command.args(["test", "--workspace", "--doc", "--locked"]);
    command
}

fn list_documentation(run: &Run) -> Result<Vec<String>> {
    let log = run.folder().join("unit-doc-list.log");
    let mut names = Vec::new();
    let mut command = documentation(run);
    command.args(["--", "--list", "--format", "terse"]);
    run_logged(
        &mut command,
        "listing the documentation tests",
        &log,
        |line| {
            names.extend(parse_list(line));
        },
    )?;
    Ok(names)
}

fn run_documentation(run: &mut Run, chosen: &[String]) -> Result<()> {
    let log = run.folder().join("unit-doc.log");
    let mut command = documentation(run);
    command.arg("--").arg("--exact");
    command.args(
        chosen
            .iter()
            .filter_map(|name| name.strip_prefix(&format!("{DOC}::"))),
    );
    let (output, took) = output_of(&mut command, "running the documentation tests", &log);
    record(run, DOC, &output, took, &log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_program_of_a_library_is_named_by_its_crate() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/r/crates/a/Cargo.toml",
            "target":{"name":"cdm_a","kind":["lib"]},"profile":{"test":true},"executable":"/t/a-1"}"#;
        let program = Message::program(line).expect("a program");
        assert_eq!(
            (program.prefix.as_str(), program.folder),
            ("unit::a", "/r/crates/a".into())
        );
        let tool = line.replace(r#"["lib"]"#, r#"["bin"]"#);
        assert_eq!(
            Message::program(&tool).expect("a program").prefix,
            "unit::a::cdm_a"
        );
    }

    #[test]
    fn artifacts_that_are_no_test_program_are_left_out() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/r/crates/a/Cargo.toml",
            "target":{"name":"a","kind":["bin"]},"profile":{"test":false},"executable":"/t/a"}"#;
        assert!(Message::program(line).is_none());
        let bench = r#"{"reason":"compiler-artifact","manifest_path":"/r/crates/a/Cargo.toml",
            "target":{"name":"a","kind":["bench"]},"profile":{"test":true},"executable":"/t/a"}"#;
        assert!(Message::program(bench).is_none());
        assert!(Message::program(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(Message::program("   Compiling a v0.1.0").is_none());
    }
}
