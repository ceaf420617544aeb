// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm test`: every check and test of the project as one list of named results.
//!
//! A stage announces the names of its tests, runs those that were chosen, and
//! records one result for each. Whatever was announced and has no result in the
//! end failed: a stage that dies, or a guest that says too little, cannot look
//! like success. The last line on standard output counts the results.

mod cargo_tests;
mod docs;
mod e2e;
mod fuzz;
mod host;
mod kernel;
pub(crate) mod ktap;
mod lint;
pub(crate) mod report;
mod run;
mod select;
mod table;
mod unit;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::context::Context;
use crate::runs;

pub(crate) use self::e2e::{HostTest, Session, host_test, plan, plan::main_machine};

use self::report::Report;
use self::run::Run;
use self::select::Selection;

const EXAMPLES: &str = "\
Examples:
  just test
  just test e2e::public::fork
  just test pinned --keep-logs /tmp/logs
  just test --list

The last line counts the results: 'N passed, N failed, N skipped'.
Exit status: 0 all passed or skipped, 1 a test failed, 2 could not run.";

/// Arguments of `cdm test`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct TestArgs {
    /// Run the tests whose name contains TEXT (default: all)
    #[arg(value_name = "FILTER")]
    filter: Option<String>,

    /// Print the names of the chosen tests and run none
    #[arg(long)]
    list: bool,

    /// Keep logs and results in DIR (default: a new folder in the cache)
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

/// One kind of tests.
trait Stage {
    /// First part of the names of its tests.
    fn name(&self) -> &'static str;

    /// Names of all its tests.
    fn list(&mut self, run: &Run) -> Result<Vec<String>>;

    /// Runs the chosen tests and records a result for each.
    fn run(&mut self, run: &mut Run, chosen: &[String]) -> Result<()>;
}

/// The stages, cheapest first, so that what is quickly found is found first.
fn stages() -> Vec<Box<dyn Stage>> {
    vec![
        Box::new(lint::LINT),
        Box::new(docs::DOCS),
        Box::<unit::Unit>::default(),
        Box::new(fuzz::FUZZ),
        Box::new(kernel::KERNEL),
        Box::<e2e::EndToEnd>::default(),
        Box::new(host::HOST),
    ]
}

/// `cdm test`.
pub fn run(ctx: &Context, args: TestArgs) -> Result<ExitCode> {
    let selection = Selection::new(args.filter);
    if args.list {
        return list(ctx, &selection);
    }
    let folder = runs::folder(ctx, runs::TESTS, args.keep_logs.as_deref())?;
    let mut run = Run::new(ctx, folder);
    for mut stage in stages() {
        if selection.may_be_in(stage.name()) {
            run_stage(stage.as_mut(), &mut run, &selection);
        }
    }
    finish(&run)
}

fn list(ctx: &Context, selection: &Selection) -> Result<ExitCode> {
    let run = Run::new(ctx, runs::folder(ctx, runs::TESTS, None)?);
    let mut names = Vec::new();
    for mut stage in stages() {
        if selection.may_be_in(stage.name()) {
            names.extend(
                stage
                    .list(&run)?
                    .into_iter()
                    .filter(|name| selection.takes(name)),
            );
        }
    }
    names.iter().for_each(|name| println!("{name}"));
    Ok(if names.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn run_stage(stage: &mut dyn Stage, run: &mut Run, selection: &Selection) {
    let names = match stage.list(run) {
        Ok(names) => names,
        Err(error) => {
            run.fail(&format!("{}::list", stage.name()), &format!("{error:#}"));
            return;
        }
    };
    let chosen: Vec<String> = names
        .into_iter()
        .filter(|name| selection.takes(name))
        .collect();
    if chosen.is_empty() {
        return;
    }
    run.expect(&chosen);
    let ended = stage.run(run, &chosen);
    run.fail_missing(match &ended {
        Ok(()) => "it was announced and has no result".to_owned(),
        Err(error) => format!("its stage could not go on: {error:#}"),
    });
    if let Err(error) = ended {
        // Also where every test had its result before the stage broke.
        run.fail(&format!("{}::stage", stage.name()), &format!("{error:#}"));
    }
}

/// Tells what failed, writes the results down, and counts.
fn finish(run: &Run) -> Result<ExitCode> {
    let report: &Report = run.report();
    print!("{}", report.failures());
    report.write_json(&run.folder().join("results.json"))?;
    run.ctx()
        .progress
        .say(format!("logs and results: {}", run.folder().display()));
    if report.is_empty() {
        run.ctx()
            .progress
            .say("no test matches: see 'just test --list' for the names");
    }
    println!("{}", report.count());
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
