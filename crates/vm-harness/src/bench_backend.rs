// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm bench-backend`: what the parts of the device's process cost, and what of the host's own
//! speed it reaches. No guest is booted: what a guest sees is another benchmark's matter.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::build;
use crate::cache;
use crate::command::run_logged;
use crate::context::Context;

/// Arguments of `cdm bench-backend`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just bench-backend
  just bench-backend checksum --quick
  just bench-backend --instructions
  just bench-backend --instructions --compare ../before/instructions.json

Prints what each part costs, with the change since the last run, and the ratios to the host's own
speed, measured in turn. The ratios go to target/bench/backend.json, too.

With --instructions it counts, by callgrind, the instructions that each part takes: nothing else on
the machine changes that. The counts go to target/bench/instructions.json, too.

Exit status: 0 measured, 2 could not run, or a count has grown.")]
pub struct BenchBackendArgs {
    /// Measure only what has this in its name
    filter: Option<String>,

    /// Measure little and soon: a look, nothing to be compared
    #[arg(long)]
    quick: bool,

    /// Count instructions instead of measuring time
    #[arg(long, conflicts_with = "quick")]
    instructions: bool,

    /// Compare with the counts of an earlier run; a count that has grown by more than 1 % is an
    /// error
    #[arg(long, value_name = "FILE", requires = "instructions")]
    compare: Option<PathBuf>,
}

/// Rounds of each ratio.
const ROUNDS: &str = "9";
const ROUNDS_QUICK: &str = "3";

/// `cdm bench-backend`.
pub fn run(ctx: &Context, args: &BenchBackendArgs) -> Result<ExitCode> {
    let folder = ctx.repo.join("target/bench");
    cache::create_folder(&folder)?;
    compile(ctx)?;
    if args.instructions {
        // Cargo runs benchmarks in the folder of their package.
        let compare = args
            .compare
            .as_deref()
            .map(std::path::absolute)
            .transpose()?;
        let json = folder.join("instructions.json");
        measure(ctx, &instructions(args, &json, compare.as_deref()))?;
        return Ok(ExitCode::SUCCESS);
    }
    measure(ctx, &hot_paths(args))?;
    measure(ctx, &ratios(args, &folder.join("backend.json")))?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the benchmarks, so that nothing is built while they run.
fn compile(ctx: &Context) -> Result<()> {
    let what = "building the backend's benchmarks";
    let log = ctx.logs().join("bench-backend.log");
    let _task = ctx.progress.task(what, Some(&log));
    let mut command = cargo(ctx);
    command.args(["--benches", "--no-run"]);
    run_logged(&mut command, what, &log, |_| {})
}

fn measure(ctx: &Context, arguments: &[String]) -> Result<()> {
    let mut command = cargo(ctx);
    let status = command.arg("--quiet").args(arguments).status();
    let status = status.context("cannot start cargo")?;
    if !status.success() {
        bail!(
            "the benchmark '{}' failed; its own words are above",
            arguments[1]
        );
    }
    Ok(())
}

fn cargo(ctx: &Context) -> Command {
    let mut command = Command::new("cargo");
    // As the backend is built that a guest gets.
    build::set_environment(&mut command, ctx, "host");
    command.args(["bench", "--locked", "--package", "cdm-backend"]);
    command
}

fn hot_paths(args: &BenchBackendArgs) -> Vec<String> {
    let mut words = vec!["--bench", "hot_paths", "--", "--noplot"];
    if args.quick {
        words.extend(["--sample-size", "10", "--measurement-time", "0.2"]);
    }
    words.extend(args.filter.as_deref());
    words.into_iter().map(str::to_owned).collect()
}

fn ratios(args: &BenchBackendArgs, json: &Path) -> Vec<String> {
    let rounds = match args.quick {
        true => ROUNDS_QUICK,
        false => ROUNDS,
    };
    let json = json.to_string_lossy();
    let mut words = vec![
        "--bench", "ratios", "--", "--rounds", rounds, "--json", &json,
    ];
    words.extend(args.filter.as_deref());
    words.into_iter().map(str::to_owned).collect()
}

fn instructions(args: &BenchBackendArgs, json: &Path, compare: Option<&Path>) -> Vec<String> {
    let json = json.to_string_lossy();
    let compare = compare.map(Path::to_string_lossy);
    let mut words = vec!["--bench", "instructions", "--", "--json", &json];
    if let Some(file) = &compare {
        words.extend(["--compare", file]);
    }
    words.extend(args.filter.as_deref());
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_for_both_and_comes_last() {
        let args = BenchBackendArgs {
            filter: Some("copy".to_owned()),
            quick: true,
            instructions: false,
            compare: None,
        };
        for words in [
            hot_paths(&args),
            ratios(&args, Path::new("file")),
            instructions(&args, Path::new("file"), Some(Path::new("before"))),
        ] {
            assert_eq!(words.last().map(String::as_str), Some("copy"));
        }
        assert!(ratios(&args, Path::new("file")).contains(&ROUNDS_QUICK.to_owned()));
    }
}
