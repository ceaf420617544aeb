// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm test`: every check and test of the project as one list of named results.
//!
//! A stage announces the names of its tests, runs those that were chosen, and
//! records one result for each. Whatever was announced and has no result in the
//! end failed: a stage that dies, or a guest that says too little, cannot look
//! like success. The last line on standard output counts the results.

mod cargo_tests;
mod closing;
mod docs;
pub(crate) mod e2e;
mod fuzz;
mod hmm;
mod host;
mod kernel;
pub(crate) mod ktap;
mod lint;
mod nightly;
mod packages;
pub(crate) mod report;
mod run;
mod select;
mod table;
mod unit;
mod workflows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::context::Context;
use crate::git::Commit;
use crate::results::Origin;
use crate::runs;

pub(crate) use self::e2e::{HostTest, Session, host_test, plan, plan::main_machine};

use self::closing::Closing;
use self::nightly::LeftAway;
use self::run::Run;
use self::select::Selection;
pub use self::unit::cargo;

const EXAMPLES: &str = "\
Examples:
  just test
  just test e2e::public::fork
  just test pinned --keep-logs /tmp/logs
  just test --nightly
  just test --list

What takes minutes and seldom finds what nothing else finds is left to --nightly; a FILTER takes it, too.

The results folder, which is told at the end, gets results.json, junit.xml and, for each test
that failed, failures/NAME with all that is known of it and the line that repeats it.
The last line counts the results: 'N passed, N failed, N skipped'.
Exit status: 0 all passed or skipped, 1 a test failed, 2 could not run.";

/// Arguments of `cdm test`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct TestArgs {
    /// Run the tests whose name contains TEXT (default: all)
    #[arg(value_name = "FILTER")]
    filter: Option<String>,

    /// Run also what takes long and is left away otherwise; the end of a run tells what that is
    #[arg(long)]
    nightly: bool,

    /// Print the names of the chosen tests and run none
    #[arg(long)]
    list: bool,

    /// Keep logs and results in DIR (default: a new folder in the cache)
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,

    /// End the whole run after NUM minutes; what has no result then has failed
    #[arg(long, value_name = "NUM", default_value_t = TIME_LIMIT_MIN,
          value_parser = clap::value_parser!(u64).range(1..=TIME_LIMIT_MAX_MIN))]
    time_limit: u64,
}

impl TestArgs {
    /// Whether a chosen test boots a guest with a userland that `ci/just` makes.
    pub fn wants_rootfs(&self) -> bool {
        let selection = Selection::new(self.filter.clone());
        !self.list && selection.may_be_in("e2e") && e2e::wants_rootfs(&selection)
    }
}

/// Minutes that a run may take: five times as long as with nothing in the cache.
const TIME_LIMIT_MIN: u64 = 150;
/// A week, beyond which a limit is none.
const TIME_LIMIT_MAX_MIN: u64 = 7 * 24 * 60;

/// One kind of tests.
trait Stage: Send {
    /// First part of the names of its tests.
    fn name(&self) -> &'static str;

    /// Names of all its tests.
    fn list(&mut self, run: &Run) -> Result<Vec<String>>;

    /// Runs the chosen tests and records a result for each.
    fn run(&mut self, run: &mut Run, chosen: &[String]) -> Result<()>;
}

/// Stages that follow each other.
type Stages = Vec<Box<dyn Stage>>;

/// The stages, cheapest first, so that what is quickly found is found first.
fn stages() -> Stages {
    vec![
        Box::new(lint::LINT),
        Box::new(docs::DOCS),
        Box::<unit::Unit>::default(),
        Box::new(fuzz::FUZZ),
        Box::new(kernel::KERNEL),
    ]
}

/// The stages that come behind these, and run beside each other: most of what `host` does is wait.
fn guest_stages() -> [Stages; 2] {
    [
        vec![Box::<e2e::EndToEnd>::default()],
        vec![
            Box::new(packages::PACKAGES),
            Box::new(host::HOST),
            Box::new(hmm::Hmm),
        ],
    ]
}

/// Every stage, for who asks what tests there are.
fn all_stages() -> impl Iterator<Item = Box<dyn Stage>> {
    stages()
        .into_iter()
        .chain(guest_stages().into_iter().flatten())
}

/// `cdm test`.
pub fn run(ctx: &Context, args: TestArgs) -> Result<ExitCode> {
    let mut command = "just test".to_owned();
    if args.nightly {
        command += " --nightly";
    }
    if let Some(filter) = &args.filter {
        command += &format!(" {filter}");
    }
    let takes_all = args.nightly || args.filter.is_some();
    let left_away = (!takes_all).then(LeftAway::default);
    let selection = Selection::new(args.filter);
    if args.list {
        return list(ctx, &selection, left_away);
    }
    let folder = runs::folder(ctx, runs::TESTS, args.keep_logs.as_deref())?;
    let mut run = Run::new(ctx, folder);
    let commit = Commit::current(ctx).map_or_else(|_| "unknown".to_owned(), |it| it.to_string());
    let closing = Closing::new(&run, Origin::new(command, commit));
    closing.end_after(Duration::from_secs(args.time_limit * 60));
    let left_away = Mutex::new(left_away);
    let run_all = |stages: Stages, run: &mut Run| {
        for mut stage in stages {
            if selection.may_be_in(stage.name()) {
                run_stage(stage.as_mut(), run, &selection, &left_away);
            }
        }
    };
    run_all(stages(), &mut run);
    thread::scope(|scope| {
        for stages in guest_stages() {
            let (run_all, mut run) = (&run_all, run.beside());
            scope.spawn(move || run_all(stages, &mut run));
        }
    });
    let left_away = left_away
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(left_away) = left_away {
        for gone in left_away.unused() {
            let why = format!("the table of nightly tests names '{gone}', which is no test");
            run.fail("test::nightly", &why);
        }
        print!("{}", left_away.text());
    }
    Ok(match closing.close()? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn list(ctx: &Context, selection: &Selection, mut left_away: Option<LeftAway>) -> Result<ExitCode> {
    let run = Run::new(ctx, runs::folder(ctx, runs::TESTS, None)?);
    let mut names = Vec::new();
    for mut stage in all_stages() {
        if selection.may_be_in(stage.name()) {
            names.extend(
                stage
                    .list(&run)?
                    .into_iter()
                    .filter(|name| selection.takes(name)),
            );
        }
    }
    if let Some(left_away) = &mut left_away {
        left_away.take_from(&mut names);
    }
    names.iter().for_each(|name| println!("{name}"));
    Ok(if names.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn run_stage(
    stage: &mut dyn Stage,
    run: &mut Run,
    selection: &Selection,
    left_away: &Mutex<Option<LeftAway>>,
) {
    let names = match stage.list(run) {
        Ok(names) => names,
        Err(error) => {
            run.fail(&format!("{}::list", stage.name()), &format!("{error:#}"));
            return;
        }
    };
    let mut chosen: Vec<String> = names
        .into_iter()
        .filter(|name| selection.takes(name))
        .collect();
    if let Some(left_away) = &mut *left_away.lock().unwrap_or_else(PoisonError::into_inner) {
        left_away.take_from(&mut chosen);
    }
    if chosen.is_empty() {
        return;
    }
    run.expect(&chosen);
    let ended = stage.run(run, &chosen);
    let why = match &ended {
        Ok(()) => "it was announced and has no result".to_owned(),
        Err(error) => format!("its stage could not go on: {error:#}"),
    };
    run.fail_missing_of(&chosen, &why);
    if let Err(error) = ended {
        // Also where every test had its result before the stage broke.
        run.fail(&format!("{}::stage", stage.name()), &format!("{error:#}"));
    }
}
