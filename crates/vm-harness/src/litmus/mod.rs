// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm litmus`: what CPUs and device see of each other's accesses, millions of times a
//! test, against the memory model of docs/reference/device.md.
//!
//! `cdm test` runs the same program with less patience.

mod page;
pub mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use self::page::Document;
use self::report::Report;
use crate::build::{self, KernelOptions};
use crate::context::Context;
use crate::git::Commit;
use crate::progress::Task;
use crate::results;
use crate::runs;
use crate::test::Session;
use crate::vm::boot::{Stream, accelerator};
use crate::vm::{ByteSize, VmSpec};

/// Longest silence of the program, which says every two seconds how far it is.
const SILENCE: Duration = Duration::from_secs(120);
/// Instances of each test with each casting in each memory, unless told otherwise.
const INSTANCES: u64 = 2_000_000;

/// Arguments of `cdm litmus`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just litmus
  just litmus --test SB+relaxed --instances 10000000
  just litmus --kernel vanilla --record

Runs cdm-litmus in a guest: each test of docs/reference/device.md with each casting of CPUs and
device, in device memory, in system memory and with words in both. An outcome that the memory
model forbids is a failure, and so is store buffering that is never seen. With --record the
result goes to docs/results.

Exit status: 0 good, 1 something failed, 2 could not run.")]
pub struct LitmusArgs {
    /// Run the test called NAME; repeatable [default: all]
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,

    /// Run NUM instances of each test with each casting in each memory
    #[arg(long, value_name = "NUM", default_value_t = INSTANCES, value_parser = clap::value_parser!(u64).range(1..))]
    instances: u64,

    /// Start the random pauses from NUM
    #[arg(long, value_name = "NUM", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    kernel: KernelOptions,

    /// Write the result into docs/results too
    #[arg(long, conflicts_with = "tests")]
    record: bool,

    /// Keep logs and results in DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

/// `cdm litmus`.
pub fn run(ctx: &Context, args: &LitmusArgs) -> Result<ExitCode> {
    let commit = Commit::of_run(ctx, args.record)?;
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let folder = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let spec = machine(kernel);
    let accel = accelerator(ctx, &spec)?;
    let mut session = Session::new(ctx, spec, folder.clone());
    let names = names(&mut session)?;
    for name in &args.tests {
        ensure!(
            names.contains(name),
            "there is no test '{name}'; there are {}",
            names.join(", ")
        );
    }
    let chosen: Vec<&String> = names
        .iter()
        .filter(|name| args.tests.is_empty() || args.tests.contains(name))
        .collect();
    let progress = ctx.progress.task("litmus", None);
    progress.set_total(chosen.len() as u64);
    let mut document = Document::new(args, &command(args), &commit, accel);
    for name in chosen {
        progress.set_detail(name);
        let line = format!(
            "cdm-litmus --test {name} --instances {} --seed {} --json",
            args.instances, args.seed
        );
        let report = ask(&mut session, &line, Some(&progress))?;
        for run in &report.runs {
            println!("{}", run.sentence());
        }
        document.add(report);
        progress.advance();
    }
    drop(progress);
    session.judge_log()?;
    session.end()?;
    println!("{}", document.sentence());
    let json = serde_json::to_string_pretty(&document)?;
    results::write(&folder.join("results.json"), &json)?;
    if args.record {
        results::record(ctx, &document.name(), &json, &document.page())?;
    }
    ctx.progress
        .say(format!("logs and results: {}", folder.display()));
    Ok(match document.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// One small device; two CPUs are enough for all castings.
fn machine(kernel: build::Kernel) -> VmSpec {
    let mut spec = VmSpec::new(kernel);
    spec.device_memory = ByteSize(256 << 20);
    spec.memory = ByteSize(512 << 20);
    spec
}

/// Names of the tests, as the program lists them.
fn names(session: &mut Session) -> Result<Vec<String>> {
    let list = session.text("cdm-litmus --list")?;
    let names: Vec<String> = list
        .lines()
        .filter(|line| !line.starts_with(' '))
        .map(str::to_owned)
        .collect();
    ensure!(!names.is_empty(), "the program lists no test:\n{list}");
    Ok(names)
}

/// Runs the program, which tells how far it is on its standard error.
pub fn ask(session: &mut Session, line: &str, progress: Option<&Task>) -> Result<Report> {
    let (mut json, mut said) = (String::new(), Vec::new());
    let status =
        session
            .vm()?
            .exec_streaming_within(SILENCE, line, |stream, text| match stream {
                Stream::Stdout => json = std::mem::take(&mut json) + text + "\n",
                Stream::Stderr => match (text.strip_prefix("progress "), progress) {
                    (Some(detail), Some(progress)) => progress.set_detail(detail),
                    (Some(_), None) => {}
                    (None, _) => said.push(text.to_owned()),
                },
            })?;
    let code = status.shell_code();
    if !matches!(code, 0 | 1) {
        bail!("'{line}' ended with {status:?}: {}", said.join("\n"));
    }
    let report: Report =
        serde_json::from_str(&json).with_context(|| format!("'{line}' said: {json}"))?;
    ensure!(
        report.is_good() == (code == 0),
        "'{line}' exits with {code}, and its report says otherwise: {json}"
    );
    Ok(report)
}

/// The command line of a run, as a person would write it.
fn command(args: &LitmusArgs) -> String {
    let mut words = vec!["just litmus".to_owned()];
    words.extend(args.tests.iter().map(|name| format!("--test {name}")));
    words.push(format!("--instances {}", args.instances));
    words.push(format!("--seed {}", args.seed));
    words.push(format!("--kernel {}", args.kernel.kernel));
    words.push(format!("--build {}", args.kernel.build));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn parse(line: &str) -> Result<LitmusArgs, clap::Error> {
        arguments::parse(line.split_whitespace())
    }

    #[test]
    fn command_names_what_decides_the_run() {
        let args = parse("--seed 3 --test CoRR --keep-logs /tmp/x").expect("well formed");
        assert_eq!(
            command(&args),
            "just litmus --test CoRR --instances 2000000 --seed 3 --kernel public --build plain"
        );
    }

    #[test]
    fn part_of_the_tests_is_not_recorded_as_if_it_were_all_of_them() {
        assert!(parse("--record").is_ok());
        assert!(parse("--record --test CoRR").is_err());
    }
}
