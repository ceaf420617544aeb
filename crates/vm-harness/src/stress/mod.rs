// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm stress`: the kernel's own suite for device memory, on this project's device and
//! on upstream's, and a program that does everything at once for as long as it is told.
//!
//! None of it is part of `cdm test`: it takes longer, and the suite on an unpatched
//! kernel takes the guest down with it.

mod hmm;
mod junit;
mod known;
mod mixed;
mod outcome;
mod publish;
mod state;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::build::{self, KernelOptions};
use crate::context::Context;
use crate::git::Commit;
use crate::runs;
use crate::vm::MemoryType;

const HELP: &str = "\
Examples:
  just stress --suite hmm-tests
  just stress --suite hmm-tests --memory-type coherent --kernel vanilla
  just stress --suite hmm-tests-upstream --kernel vanilla --record
  just stress --suite mixed --seed 1 --minutes 30 --build debug
  just stress --suite mixed --seed 1 --minutes 30 --build debug --resume --record

Suites:
  hmm-tests           tools/testing/selftests/mm/hmm-tests.c of the kernel's own source, on
                      this project's device. Standard output has its KTAP lines, and no
                      other device serves it.
  hmm-tests-upstream  the same program on upstream's device, lib/test_hmm.c on a plain PCI
                      BAR, to compare with.
  mixed               cdm-stress in the guest: mixed folio sizes, files, forks, pins,
                      truncation, eviction and device commands at once, each byte checked. It
                      runs in pieces, each in a new guest, whose totals add up.

Each memory type of hmm-tests gets a guest of its own. A test that takes its guest down
is lost; the tests behind it run in a new guest. Failures that are known are declared in
images/kernel/known-failures.toml with what mends them; a failure that is not declared, a
declared one that does not happen, and a report in the kernel's log are failures of the run.

The results folder (--keep-logs, or a new folder in the cache, which is told at the end) gets
results.json, junit.xml, for hmm-tests TYPE.ktap with all that the suite said, and for each guest a folder
with its console.log, command line and kernel configuration. What failed has a folder in
failures, with all that is known of it and the line that repeats it.

Exit status: 0 good, 1 something failed, 2 could not run.";

/// Minutes of one piece of `mixed`: what an interruption costs at most.
const PIECE_MINUTES: u64 = 5;

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// The kernel's suite on this project's device
    HmmTests,
    /// The kernel's suite on upstream's own device
    HmmTestsUpstream,
    /// Everything at once, for a given time
    Mixed,
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HmmTests => "hmm-tests",
            Self::HmmTestsUpstream => "hmm-tests-upstream",
            Self::Mixed => "mixed",
        })
    }
}

/// Arguments of `cdm stress`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP, after_help = "\
Examples:
  just stress --suite hmm-tests
  just stress --suite mixed --seed 1 --minutes 30")]
pub struct StressArgs {
    /// What to run
    #[arg(long, value_name = "SUITE", value_enum)]
    suite: Suite,

    /// Type of the device memory [default: hmm-tests: each that the kernel has; mixed: the best]
    #[arg(long, value_name = "TYPE", value_enum)]
    memory_type: Option<MemoryType>,

    #[command(flatten)]
    kernel: KernelOptions,

    /// mixed: seed of the first piece; each further piece has the next number
    #[arg(long, value_name = "NUM")]
    seed: Option<u64>,

    /// mixed: run for NUM minutes, all pieces together
    #[arg(long, value_name = "NUM", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: Option<u64>,

    /// mixed: minutes of one piece [default: 5]
    #[arg(long, value_name = "NUM", value_parser = clap::value_parser!(u64).range(1..))]
    piece_minutes: Option<u64>,

    /// mixed: go on with the run of the same options that this commit has begun
    #[arg(long)]
    resume: bool,

    /// Write the summary into docs/results too
    #[arg(long)]
    record: bool,

    /// Keep logs and results in DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

/// `cdm stress`.
pub fn run(ctx: &Context, args: &StressArgs) -> Result<ExitCode> {
    check(args)?;
    let commit = Commit::of_run(ctx, args.record)?;
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let folder = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let task = Task {
        ctx,
        kernel,
        commit,
        folder,
        command: command(args),
        record: args.record,
    };
    let good = match args.suite {
        Suite::Mixed => {
            let order = mixed::Order {
                memory_type: args.memory_type,
                seed: args.seed.unwrap_or_default(),
                minutes: args.minutes.unwrap_or_default(),
                piece_minutes: args.piece_minutes.unwrap_or(PIECE_MINUTES),
            };
            mixed::run(&task, &order, args.resume)
        }
        suite => hmm::run(&task, suite, args.memory_type),
    };
    ctx.progress
        .say(format!("logs and results: {}", task.folder.display()));
    Ok(if good? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What all suites are given.
pub(crate) struct Task<'a> {
    ctx: &'a Context,
    kernel: build::Kernel,
    commit: Commit,
    /// Where logs and results go.
    folder: PathBuf,
    /// The command line that does this again.
    command: String,
    /// Whether the summary goes into the repository.
    record: bool,
}

impl Task<'_> {
    /// The kernel's name in results: a tree of the user's own has none that tells anything.
    fn kernel_name(&self) -> String {
        match &self.kernel.choice {
            build::KernelChoice::Tree(_) => "tree".to_owned(),
            named => named.to_string(),
        }
    }
}

/// Refuses options that would have no effect, and wants those that there is no default for.
fn check(args: &StressArgs) -> Result<()> {
    if args.suite == Suite::Mixed {
        ensure!(
            args.seed.is_some() && args.minutes.is_some(),
            "--suite mixed needs --seed NUM and --minutes NUM: what cannot be repeated proves \
             little"
        );
        return Ok(());
    }
    ensure!(
        !(args.record && args.memory_type.is_some()),
        "--record writes down one page for all types of memory that the kernel has; leave \
         --memory-type away"
    );
    let given = [
        ("--seed", args.seed.is_some()),
        ("--minutes", args.minutes.is_some()),
        ("--piece-minutes", args.piece_minutes.is_some()),
        ("--resume", args.resume),
    ];
    for (option, given) in given {
        ensure!(
            !given,
            "{option} belongs to --suite mixed; {} runs each of its tests once",
            args.suite
        );
    }
    Ok(())
}

/// The command line of a run, as a person would write it. How it was interrupted and where its
/// logs went does not matter to whoever wants the same.
fn command(args: &StressArgs) -> String {
    let mut words = vec![format!("just stress --suite {}", args.suite)];
    if let Some(memory_type) = args.memory_type {
        words.push(format!("--memory-type {memory_type}"));
    }
    words.push(format!("--kernel {}", args.kernel.kernel));
    words.push(format!("--build {}", args.kernel.build));
    let numbers = [
        ("--seed", args.seed),
        ("--minutes", args.minutes),
        ("--piece-minutes", args.piece_minutes),
    ];
    for (option, number) in numbers {
        words.extend(number.map(|number| format!("{option} {number}")));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: StressArgs,
    }

    fn parse(line: &str) -> StressArgs {
        Cli::try_parse_from(std::iter::once("stress").chain(line.split_whitespace()))
            .expect("well formed")
            .args
    }

    #[test]
    fn mixed_wants_seed_and_minutes_and_the_others_refuse_them() {
        assert!(check(&parse("--suite mixed --seed 1 --minutes 2")).is_ok());
        let error = check(&parse("--suite mixed --minutes 2")).expect_err("no seed");
        assert!(error.to_string().contains("--seed"), "{error}");
        for option in ["--seed 1", "--minutes 1", "--piece-minutes 1", "--resume"] {
            let args = parse(&format!("--suite hmm-tests {option}"));
            let error = check(&args).expect_err(option).to_string();
            assert!(error.contains(option.split(' ').next().unwrap_or_default()));
        }
    }

    #[test]
    fn part_of_a_suite_is_not_recorded_as_if_it_were_all_of_it() {
        assert!(check(&parse("--suite hmm-tests --record")).is_ok());
        let args = parse("--suite hmm-tests --record --memory-type private");
        let error = check(&args).expect_err("a part").to_string();
        assert!(error.contains("--memory-type"), "{error}");
        let mixed = "--suite mixed --seed 1 --minutes 2 --record --memory-type private";
        assert!(check(&parse(mixed)).is_ok());
    }

    #[test]
    fn command_names_what_decides_the_run() {
        let args = parse("--suite mixed --seed 7 --minutes 30 --build debug --resume --record");
        assert_eq!(
            command(&args),
            "just stress --suite mixed --kernel public --build debug --seed 7 --minutes 30"
        );
    }
}
