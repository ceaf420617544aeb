// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm stress`: named scenarios by a seed, and the kernel's own suites, on this project's device and
//! on upstream's; and `cdm soak`, which draws scenarios for hours.
//!
//! `cdm test` runs the scenarios for a few seconds each, and the suite on this project's device.
//! The rest is no part of it: it takes longer, and on upstream's device an unpatched kernel takes
//! the guest down with it.

mod driven;
mod fault;
pub(crate) mod hmm;
mod junit;
mod known;
mod leaks;
pub(crate) mod outcome;
mod publish;
pub(crate) mod said;
pub(crate) mod scenarios;
mod selftests;
pub mod soak;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::build::{self, BuildKind, KernelOptions};
use crate::context::Context;
use crate::git::Commit;
use crate::runs;
use crate::vm::MemoryType;

pub(crate) use hmm::{names_in_source as hmm_test_names, run_chosen as run_hmm_tests};
pub(crate) use outcome::{Judged, Verdict as SuiteVerdict};

use self::scenarios::order::{self, Length, Order, Room, Shard};

const HELP: &str = "\
Examples:
  just stress
  just stress moves huge::cut_in_the_device --seed 7 --seconds 60 --memory scarce
  just stress --all-at-once --devices 4 --build debug
  just stress --shard 1/4 --rounds 5000
  just stress --suite hmm-tests
  just stress --suite hmm-tests --memory-type coherent --kernel vanilla
  just stress --suite hmm-tests-upstream --kernel vanilla --record
  just stress --suite mm-selftests
  just stress --suite fault

Suites:
  scenarios           the named scenarios of cdm-stress (`--list` names them with the property
                      that must hold), each by itself in a guest or, with --all-at-once, at the
                      same time. After each the contents, the kernel's and the driver's counts,
                      the kernel's log and, on the debug build, lost memory are looked at. One
                      that does not start or end has failed; a skip needs a declared reason; a
                      guest that is not as it should be is given up, and the others go on in a
                      new one. A failure prints the line that repeats it.
  hmm-tests           tools/testing/selftests/mm/hmm-tests.c of the kernel's own source, on
                      this project's device. Standard output has its KTAP lines, and no
                      other device serves it.
  hmm-tests-upstream  the same program on upstream's device, lib/test_hmm.c on a plain PCI
                      BAR, to compare with.
  mm-selftests        the other mm selftests of the kernel's own source, in a guest without a
                      device, and in one with a device while their memory moves into it and
                      back. A test that passes without and not with is a failure; differences
                      that are explained are declared in images/kernel/known-differences.toml.
  fault               each allocation of each call to the driver fails once, on the debug build

Each memory type of hmm-tests gets a guest of its own. A test that takes its guest down
is lost; the tests behind it run in a new guest. Failures that are known are declared in
images/kernel/known-failures.toml with what mends them; a failure that is not declared, a
declared one that does not happen, and a report in the kernel's log are failures of the run.

The results folder (--keep-logs, or a new folder in the cache, which is told at the end) gets
results.json, junit.xml, for hmm-tests TYPE.ktap with all that the suite said, and for each guest a folder
with its console.log, command line and kernel configuration. What failed has a folder in
failures, with all that is known of it and the line that repeats it.

Exit status: 0 good, 1 something failed, 2 could not run.";

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// The named scenarios
    Scenarios,
    /// The kernel's suite on this project's device
    HmmTests,
    /// The kernel's suite on upstream's own device
    HmmTestsUpstream,
    /// The kernel's other mm selftests, with resident pages and without
    MmSelftests,
    /// Failing allocations in the driver, on the debug build
    Fault,
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scenarios => "scenarios",
            Self::HmmTests => "hmm-tests",
            Self::HmmTestsUpstream => "hmm-tests-upstream",
            Self::MmSelftests => "mm-selftests",
            Self::Fault => "fault",
        })
    }
}

/// Arguments of `cdm stress`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP, after_help = "\
Examples:
  just stress
  just stress moves --seed 7 --seconds 60
  just stress --suite hmm-tests")]
pub struct StressArgs {
    /// scenarios: run the scenario or the family called NAME [default: all]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,

    /// What to run
    #[arg(long, value_name = "SUITE", value_enum, default_value_t = Suite::Scenarios)]
    suite: Suite,

    /// scenarios: print the names with the property that must hold, and run none
    #[arg(long)]
    list: bool,

    /// Type of the device memory [default: hmm-tests: each that the kernel has; others: the best]
    #[arg(long, value_name = "TYPE", value_enum)]
    memory_type: Option<MemoryType>,

    #[command(flatten)]
    kernel: KernelOptions,

    /// scenarios: start random sequences from NUM [default: 1]
    #[arg(long, value_name = "NUM")]
    seed: Option<u64>,

    /// scenarios: run each for NUM seconds, and for its least number of operations [default: 10]
    #[arg(long, value_name = "NUM", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,

    /// scenarios: run each for NUM operations, and for its least number of them
    #[arg(long, value_name = "NUM", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,

    /// scenarios: give the guest NUM devices [default: 2]
    #[arg(long, value_name = "NUM", value_parser = clap::value_parser!(u8).range(1..=4))]
    devices: Option<u8>,

    /// scenarios: how much room the devices have [default: plenty]
    #[arg(long, value_name = "ROOM", value_enum)]
    memory: Option<Room>,

    /// scenarios: run part I of N parts that are all of them together
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,

    /// scenarios: run them at the same time
    #[arg(long)]
    all_at_once: bool,

    /// mm-selftests: run the program NAME and no others, or several with commas
    #[arg(long = "program", value_name = "NAME", value_delimiter = ',')]
    programs: Vec<String>,

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
    if args.list {
        for scenario in scenarios::list(ctx)? {
            println!("{}\n    {}", scenario.name, scenario.property);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let commit = Commit::of_run(ctx, args.record)?;
    let kernel = build::kernel(ctx, &args.kernel.kernel, build_of(args))?;
    let folder = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let task = Task {
        ctx,
        commit,
        folder,
        command: match args.suite {
            Suite::Scenarios => {
                let mut line = order(args).line(&args.scenarios, &kernel);
                line.extend(args.shard.map(|shard| format!(" --shard {shard}")));
                line
            }
            _ => command(args),
        },
        kernel,
        record: args.record,
    };
    let good = match args.suite {
        Suite::Scenarios => scenarios::run(&task, &order(args)),
        Suite::MmSelftests => selftests::run(&task, args.memory_type, &args.programs),
        Suite::Fault => fault::run(&task, args.memory_type),
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

/// The kind of build that a run is about: without its checkers a failure shows half of what it does.
fn build_of(args: &StressArgs) -> BuildKind {
    match args.suite {
        Suite::Fault => BuildKind::Debug,
        _ => args.kernel.build,
    }
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

/// What is asked of the scenarios.
fn order(args: &StressArgs) -> Order {
    Order {
        names: args.scenarios.clone(),
        seed: args.seed.unwrap_or(1),
        length: match (args.seconds, args.rounds) {
            (_, Some(rounds)) => Length::Rounds(rounds),
            (seconds, None) => Length::Seconds(seconds.unwrap_or(order::SECONDS)),
        },
        devices: args.devices.unwrap_or(order::DEVICES),
        memory_type: args.memory_type,
        room: args.memory.unwrap_or_default(),
        shard: args.shard,
        all_at_once: args.all_at_once,
    }
}

/// Refuses options that would have no effect, and wants those that there is no default for.
fn check(args: &StressArgs) -> Result<()> {
    let suite = args.suite;
    let of_scenarios = [
        ("a scenario's name", !args.scenarios.is_empty()),
        ("--list", args.list),
        ("--seed", args.seed.is_some()),
        ("--seconds", args.seconds.is_some()),
        ("--rounds", args.rounds.is_some()),
        ("--devices", args.devices.is_some()),
        ("--memory", args.memory.is_some()),
        ("--shard", args.shard.is_some()),
        ("--all-at-once", args.all_at_once),
    ];
    let of_selftests = [("--program", !args.programs.is_empty())];
    let refuse = |options: &[(&str, bool)], owner: &str| -> Result<()> {
        match options.iter().find(|(_, given)| *given) {
            Some((option, _)) => bail!("{option} belongs to --suite {owner}, not to {suite}"),
            None => Ok(()),
        }
    };
    if suite != Suite::Scenarios {
        refuse(&of_scenarios, "scenarios")?;
    }
    if suite != Suite::MmSelftests {
        refuse(&of_selftests, "mm-selftests")?;
    }
    match suite {
        Suite::Scenarios => ensure!(
            !args.record,
            "--record belongs to the other suites and to just soak: a run of scenarios leaves \
             results.json"
        ),
        Suite::HmmTests | Suite::HmmTestsUpstream | Suite::MmSelftests | Suite::Fault => {
            ensure!(
                !(args.record && args.memory_type.is_some()),
                "--record writes down one page for all types of memory that the kernel has; leave \
                 --memory-type away"
            );
            ensure!(
                !args.record || args.programs.is_empty(),
                "--record writes down what all programs come to; leave --program away"
            );
        }
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
    if !args.programs.is_empty() {
        words.push(format!("--program {}", args.programs.join(",")));
    }
    words.push(format!("--kernel {}", args.kernel.kernel));
    words.push(format!("--build {}", build_of(args)));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn parse(line: &str) -> StressArgs {
        arguments::parse(line.split_whitespace()).expect("well formed")
    }

    #[test]
    fn options_of_another_suite_are_refused() {
        let refused = |suite: &str, options: &[&str]| {
            for option in options {
                let args = parse(&format!("--suite {suite} {option}"));
                let error = check(&args).expect_err(option).to_string();
                let name = option.split(' ').next().unwrap_or_default();
                assert!(error.contains(name), "{error}");
            }
        };
        let of_scenarios = [
            "--list",
            "--seed 1",
            "--seconds 1",
            "--rounds 1",
            "--devices 1",
            "--memory scarce",
            "--shard 1/2",
            "--all-at-once",
        ];
        refused("hmm-tests", &of_scenarios);
        refused("scenarios", &["--record"]);
        let named = parse("--suite hmm-tests moves");
        assert!(check(&named).is_err(), "it has no scenario of that name");
    }

    #[test]
    fn scenarios_are_what_runs_without_a_suite() {
        let args = parse("moves --seed 7 --rounds 5 --devices 4 --memory scarce");
        check(&args).expect("fine");
        assert_eq!(args.suite, Suite::Scenarios);
        let order = order(&args);
        assert_eq!(order.names, ["moves"]);
        assert_eq!(order.length, Length::Rounds(5));
        let plain = super::order(&parse(""));
        assert_eq!((plain.seed, plain.devices), (1, order::DEVICES));
    }

    #[test]
    fn part_of_a_suite_is_not_recorded_as_if_it_were_all_of_it() {
        assert!(check(&parse("--suite hmm-tests --record")).is_ok());
        let args = parse("--suite hmm-tests --record --memory-type private");
        let error = check(&args).expect_err("a part").to_string();
        assert!(error.contains("--memory-type"), "{error}");
    }

    #[test]
    fn program_of_the_selftests_is_no_option_of_other_suites_and_not_recorded() {
        assert!(check(&parse("--suite mm-selftests --program cow")).is_ok());
        for line in [
            "--suite hmm-tests --program cow",
            "--suite mm-selftests --program cow --record",
        ] {
            let error = check(&parse(line)).expect_err(line).to_string();
            assert!(error.contains("--program"), "{error}");
        }
    }

    #[test]
    fn failing_allocations_are_for_the_debug_build() {
        let args = parse("--suite fault");
        assert_eq!(build_of(&args), BuildKind::Debug);
        assert!(command(&args).ends_with("--build debug"));
    }

    #[test]
    fn command_names_what_decides_the_run() {
        let args = parse("--suite hmm-tests --memory-type private --build debug --record");
        assert_eq!(
            command(&args),
            "just stress --suite hmm-tests --memory-type private --kernel public --build debug"
        );
    }
}
