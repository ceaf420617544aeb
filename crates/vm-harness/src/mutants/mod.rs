// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm mutants`: whether the tests would find a mistake. Kernel, driver and backend are built with
//! mistakes that somebody could make, one at a time, and what runs in the guest has to notice.
//!
//! It takes long, and is no part of `cdm test`, which only looks whether the mistakes still apply.
//! What was caught is kept, so that an interrupted run goes on where it was.

pub mod catalogue;
mod record;
mod subject;
mod trial;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use self::catalogue::{Mutant, Part};
use self::record::{Document, Keys, Outcome, Store};
use self::subject::Workshop;
use self::trial::Search;
use crate::build::{self, KernelChoice, KernelOptions};
use crate::context::Context;
use crate::git::Commit;
use crate::runs;

const HELP: &str = "\
Examples:
  just mutants
  just mutants --list
  just mutants driver/01 backend
  just mutants --minutes 60 --record

A mutant is a patch of ci/mutants. It is built, booted, and must pass 'cdmctl info'; then the
commands that its head names run in the guest, then all groups of guest tests and cdm-stress, until
a check fails or the kernel reports something. What failed must pass without the mistake. A mutant
that nothing finds has survived: a test is missing. One that does not build or boot is none, and
fails the run.

What was caught is kept in the cache under the patch and the sources that it is planted in, and is
not tried again unless --anew asks for it; a survivor is tried again when the tests have changed.
Mutants of the kernel need the series: they are left out of other kernels than 'public'.

Exit status: 0 each mutant was caught, 1 one was not, or not yet, 2 could not run.";

/// Minutes for one mutant, unless told otherwise.
const LIMIT_MINUTES: u64 = 15;

/// Arguments of `cdm mutants`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP, after_help = "\
Examples:
  just mutants
  just mutants driver --record")]
pub struct MutantsArgs {
    /// Try the mutants whose names contain NAME [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Print the mutants and what is known of them, and try none
    #[arg(long, conflicts_with_all = ["minutes", "anew", "record"])]
    list: bool,

    /// Build the mutants, and boot none
    #[arg(long, conflicts_with_all = ["list", "minutes", "record"])]
    build_only: bool,

    /// Begin no mutant after NUM minutes; the next run goes on
    #[arg(long, value_name = "NUM")]
    minutes: Option<u64>,

    /// Look for each mistake for NUM minutes at most
    #[arg(long, value_name = "NUM", default_value_t = LIMIT_MINUTES, value_parser = clap::value_parser!(u64).range(1..))]
    limit_minutes: u64,

    /// Try again what was caught before
    #[arg(long)]
    anew: bool,

    #[command(flatten)]
    kernel: KernelOptions,

    /// Write the result into docs/results too
    #[arg(long)]
    record: bool,

    /// Keep logs and results in DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

/// `cdm mutants`.
pub fn run(ctx: &Context, args: &MutantsArgs) -> Result<ExitCode> {
    check(args)?;
    let commit = Commit::of_run(ctx, args.record)?;
    let all: Vec<Mutant> = catalogue::all(&ctx.repo)?
        .into_iter()
        .filter(|mutant| fits(mutant, &args.kernel.kernel))
        .collect();
    let chosen = catalogue::chosen(&all, &args.names)?;
    let keys = Keys::new(ctx, &args.kernel)?;
    let mut store = Store::open(ctx, &keys, args.record)?;
    if args.list {
        for mutant in chosen {
            println!("{}", record::line(mutant, store.find(mutant)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    for mutant in &chosen {
        if mutant.part != Part::Kernel {
            catalogue::apply(mutant, &ctx.repo, true)?;
        }
    }
    if args.build_only {
        return build_all(ctx, args, &chosen);
    }
    let folder = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let tried = try_all(ctx, args, &commit, &chosen, &mut store, &folder)?;
    let rows = all
        .iter()
        .map(|mutant| Ok((mutant, store.find(mutant)?.cloned())))
        .collect::<Result<Vec<_>>>()?;
    let document = Document::new(&command(args), &commit, rows);
    println!("{}", document.count());
    document.publish(ctx, &folder, args.record)?;
    ctx.progress
        .say(format!("logs and results: {}", folder.display()));
    let is_good = tried && {
        let mut found = chosen.iter().map(|mutant| store.find(mutant));
        found.all(|outcome| matches!(outcome, Ok(Some(outcome)) if outcome.is_caught()))
    };
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Builds mutants. What does not compile is none.
fn build_all(ctx: &Context, args: &MutantsArgs, chosen: &[&Mutant]) -> Result<ExitCode> {
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let mut workshop = Workshop::open(ctx, kernel)?;
    let mut all_were = true;
    for mutant in chosen {
        match workshop.build(mutant) {
            Ok(_) => println!("built     {}", mutant.name),
            Err(error) => {
                println!("INVALID   {}: {error:#}", mutant.name);
                all_were = false;
            }
        }
    }
    Ok(match all_were {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Tries what nothing is known of yet, as long as there is time. Whether all of it were mutants.
fn try_all(
    ctx: &Context,
    args: &MutantsArgs,
    commit: &Commit,
    chosen: &[&Mutant],
    store: &mut Store<'_>,
    folder: &Path,
) -> Result<bool> {
    let started = Instant::now();
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let mut left = Vec::new();
    for mutant in chosen {
        match store.find(mutant)? {
            Some(before) if !args.anew => {
                println!("{} (before)", record::line(mutant, Some(before)))
            }
            _ => left.push(*mutant),
        }
    }
    if left.is_empty() {
        return Ok(true);
    }
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let mut workshop = Workshop::open(ctx, kernel)?;
    let healthy = workshop.healthy();
    let limit = minutes(args.limit_minutes);
    let mut search = Search::new(ctx, &healthy, limit, folder)?;
    let mut all_were = true;
    for mutant in left {
        if args
            .minutes
            .is_some_and(|most| started.elapsed() >= minutes(most))
        {
            break;
        }
        let began = Instant::now();
        let logs = folder.join(mutant.name.replace('/', "-"));
        let outcome = workshop.build(mutant).and_then(|subject| {
            let build_seconds = began.elapsed().as_secs();
            let trial = search.run(mutant, &subject, logs)?;
            Ok(Outcome::new(commit, build_seconds, trial))
        });
        match outcome {
            Ok(outcome) => {
                println!("{}", record::line(mutant, Some(&outcome)));
                store.add(ctx, mutant, outcome)?;
            }
            Err(error) => {
                println!("INVALID   {}: {error:#}", mutant.name);
                store.forget(ctx, mutant)?;
                all_were = false;
            }
        }
    }
    search.end()?;
    Ok(all_were)
}

/// Whether a mutant can be had with a kernel.
fn fits(mutant: &Mutant, kernel: &KernelChoice) -> bool {
    mutant.part != Part::Kernel || *kernel == KernelChoice::Public
}

/// Refuses options that contradict each other.
fn check(args: &MutantsArgs) -> Result<()> {
    ensure!(
        !(args.record && args.kernel.kernel != KernelChoice::Public),
        "--record writes down what becomes of all mutants, and those of the kernel need \
         --kernel public"
    );
    Ok(())
}

/// The command line of a run, as a person would write it.
fn command(args: &MutantsArgs) -> String {
    let mut words = vec!["just mutants --record".to_owned()];
    words.push(format!("--kernel {}", args.kernel.kernel));
    words.push(format!("--build {}", args.kernel.build));
    if args.limit_minutes != LIMIT_MINUTES {
        words.push(format!("--limit-minutes {}", args.limit_minutes));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn parse(line: &str) -> Result<MutantsArgs, clap::Error> {
        arguments::parse(line.split_whitespace())
    }

    #[test]
    fn part_of_the_mutants_is_not_recorded_as_if_it_were_all_of_them() {
        let args = |line| parse(line).expect("well formed");
        assert!(check(&args("--record")).is_ok());
        // The page has all of them, whichever this run tries.
        assert!(check(&args("driver --record")).is_ok());
        let error = check(&args("--record --kernel vanilla")).expect_err("without the kernel's");
        assert!(error.to_string().contains("--kernel public"), "{error}");
        assert!(parse("--list --record").is_err());
    }

    #[test]
    fn command_names_what_decides_the_result() {
        let args = parse("driver --minutes 3 --limit-minutes 5").expect("well formed");
        assert_eq!(
            command(&args),
            "just mutants --record --kernel public --build plain --limit-minutes 5"
        );
    }

    #[test]
    fn every_planted_mistake_of_this_repository_has_a_head_that_is_understood() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mutants = catalogue::all(&repo).expect("all are mutants");
        for part in Part::ALL {
            assert!(mutants.iter().any(|mutant| mutant.part == part));
        }
        for mutant in mutants.iter().filter(|mutant| mutant.part != Part::Kernel) {
            catalogue::apply(mutant, &repo, true).expect("applies");
        }
    }
}
