// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm soak`: scenarios drawn at random for hours, until the time is over or something is wrong.

mod draw;
mod state;
mod summary;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;

use self::draw::{Deck, Draw};
use self::state::{Done, Options, State};
use self::summary::Summary;
use super::scenarios::order::{Length, Order, Shard};
use super::scenarios::{self, GUESTS, Stand, skips};
use crate::build::{self, Kernel, KernelOptions};
use crate::cache::KeyBuilder;
use crate::context::Context;
use crate::git::Commit;
use crate::results::{self, Origin};
use crate::runs;
use crate::vm::{MemoryType, Parts};

const HELP: &str = "\
Examples:
  just soak --hours 8
  just soak --hours 1.5 --seed 1 --record
  just soak --hours 1.5 --seed 1 --record --resume
  just soak --hours 24 --seed 7 --shard 2/8 --build debug
  just soak --hours 0.2 moves huge

Draws scenarios of `just stress --list`, their seeds, their time, and the machine: one to four
devices, with room or full; now and then several scenarios at the same time. Every scenario comes
once before any comes again. A line for each tells how far it is. At the first one that does not
hold it ends: the folder of the failure has all that is known of it and the line that repeats it.

The same seed draws the same. What is done is kept in the cache, so with --resume an interrupted
soak goes on behind the last draw that came to its end, and one that is done goes on if more hours
are asked for. --shard I/N does every Nth draw, for machines that share a soak.

The results folder (--keep-logs, or a new folder in the cache) gets results.json, written anew after
each draw, junit.xml, and the logs of each guest.

Exit status: 0 good, 1 something was wrong, 2 could not run.";

/// Seconds of an hour.
const HOUR: f64 = 3600.0;

/// Arguments of `cdm soak`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP, after_help = "\
Examples:
  just soak --hours 8
  just soak --hours 1.5 --seed 1 --record --resume")]
pub struct SoakArgs {
    /// Draw from the scenario or the family called NAME [default: all]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,

    /// Go on for NUM hours, such as 0.5; boots are not counted
    #[arg(long, value_name = "NUM", value_parser = hours)]
    hours: f64,

    /// Draw by NUM [default: another number each time, which is told]
    #[arg(long, value_name = "NUM")]
    seed: Option<u64>,

    /// Type of the device memory [default: the best that the kernel has]
    #[arg(long, value_name = "TYPE", value_enum)]
    memory_type: Option<MemoryType>,

    #[command(flatten)]
    kernel: KernelOptions,

    /// Do part I of N parts that are one soak together
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,

    /// Go on with the soak of the same options that this commit has begun
    #[arg(long, requires = "seed")]
    resume: bool,

    /// Write the summary into docs/results too
    #[arg(long)]
    record: bool,

    /// Keep logs and results in DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

fn hours(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(hours) if hours > 0.0 && hours <= 24.0 * 365.0 => Ok(hours),
        _ => Err(format!("'{text}' is no number of hours, such as 8 or 0.5")),
    }
}

/// `cdm soak`.
pub fn run(ctx: &Context, args: &SoakArgs) -> Result<ExitCode> {
    ensure!(
        !args.record || (args.scenarios.is_empty() && args.shard.is_none()),
        "--record writes down what all scenarios come to in a whole soak; leave names and --shard \
         away"
    );
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let commit = Commit::of_run(ctx, args.record)?;
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let folder = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let soak = Soak {
        ctx,
        commit,
        command: command(args, seed),
        seed,
        wanted_seconds: (args.hours * HOUR).ceil() as u64,
        memory_type: args.memory_type,
        shard: args.shard.unwrap_or(Shard::WHOLE),
        kernel,
        folder,
    };
    let is_good = soak.run(&args.scenarios, args.resume, args.record)?;
    let where_to = soak.folder.display();
    ctx.progress.say(format!("logs and results: {where_to}"));
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The command line of a soak, as a person would write it. How it was interrupted and where its logs
/// went does not matter to whoever wants the same.
fn command(args: &SoakArgs, seed: u64) -> String {
    let mut words = vec!["just soak".to_owned()];
    words.extend(args.scenarios.iter().cloned());
    words.push(format!("--hours {} --seed {seed}", args.hours));
    words.extend(
        args.memory_type
            .map(|wanted| format!("--memory-type {wanted}")),
    );
    words.extend(args.shard.map(|shard| format!("--shard {shard}")));
    words.push(format!(
        "--kernel {} --build {}",
        args.kernel.kernel, args.kernel.build
    ));
    words.join(" ")
}

/// A soak.
struct Soak<'a> {
    ctx: &'a Context,
    commit: Commit,
    /// The command line that does this again.
    command: String,
    seed: u64,
    wanted_seconds: u64,
    memory_type: Option<MemoryType>,
    shard: Shard,
    kernel: Kernel,
    /// Where logs and results go.
    folder: PathBuf,
}

impl Soak<'_> {
    /// Runs draws until the time is over or something is wrong. Whether it is good.
    fn run(&self, names: &[String], resume: bool, record: bool) -> Result<bool> {
        let (left_away, drawable): (Vec<_>, Vec<_>) =
            scenarios::called(scenarios::list(self.ctx)?, names)?
                .into_iter()
                .map(|listed| (self.not_begun(&listed.name, names), listed))
                .partition(|(why, _)| why.is_some());
        ensure!(
            !drawable.is_empty(),
            "there is nothing to draw from: what is called does not run on this kernel"
        );
        let left_away: BTreeMap<String, String> = left_away
            .into_iter()
            .map(|(why, listed)| (listed.name, why.unwrap_or_default()))
            .collect();
        let drawable = drawable.into_iter().map(|(_, listed)| listed).collect();
        let deck = Deck::new(self.seed, self.shard, drawable);
        let options = self.options(names);
        let wanted = clock(self.wanted_seconds as f64);
        let mut state = State::open(self.ctx, &options, &self.commit, &self.inputs()?, resume)?;
        if !state.done().is_empty() {
            println!(
                "{} draws, {}: done before",
                state.done().len(),
                clock(state.seconds())
            );
        }
        let summary = |state: &State| {
            let origin = Origin::new(&self.command, self.commit.to_string());
            Summary::new(
                origin,
                options.clone(),
                self.wanted_seconds,
                left_away.clone(),
                state,
            )
        };
        let mut guests = Guests::new(self);
        let progress = self.ctx.progress.task("soak", None);
        while state.breach().is_none() && state.seconds() < self.wanted_seconds as f64 {
            let draw = deck.draw(state.done().len() as u64);
            let at = clock(state.seconds());
            let done = guests.run(draw, |detail| {
                let words = scenarios::first_words(detail);
                progress.set_detail(format!("{at} of {wanted}, {words}"));
            })?;
            for result in &done.results {
                println!("{at} draw {}: {}", done.draw.number, result.lines());
            }
            state.add(done)?;
            self.write(&summary(&state))?;
        }
        guests.end()?;
        drop(progress);
        let summary = summary(&state);
        println!("{}", summary.text());
        self.write(&summary)?;
        let cases = summary.cases(state.done());
        crate::junit::write(&self.folder.join("junit.xml"), &self.command, &cases)?;
        if record {
            let json = serde_json::to_string_pretty(&summary)?;
            results::record(self.ctx, &summary.name(), &json, &summary.page())?;
        }
        Ok(summary.is_good())
    }

    fn write(&self, summary: &Summary) -> Result<()> {
        let json = serde_json::to_string_pretty(summary)?;
        results::write(&self.folder.join("results.json"), &json)
    }

    fn options(&self, names: &[String]) -> Options {
        Options {
            kernel: self.kernel.choice.to_string(),
            build: self.kernel.kind.to_string(),
            memory_type: match self.memory_type {
                Some(memory_type) => memory_type.to_string(),
                None => "best".to_owned(),
            },
            names: names.to_vec(),
            seed: self.seed,
            shard: self.shard.to_string(),
        }
    }

    /// Stands for all that runs.
    fn inputs(&self) -> Result<String> {
        let parts = Parts::build(self.ctx, &self.kernel)?;
        let mut key = KeyBuilder::new();
        key.text("kernel", self.kernel.key.as_str())
            .text("backend", parts.backend.to_string_lossy())
            .text("initramfs", parts.initramfs.to_string_lossy());
        Ok(key.finish().to_string())
    }

    /// What a draw asks of the scenarios.
    fn order(&self, draw: &Draw) -> Order {
        Order {
            names: draw.scenarios.clone(),
            seed: draw.seed,
            length: Length::Seconds(draw.seconds),
            devices: draw.devices,
            memory_type: self.memory_type,
            room: draw.room,
            shard: None,
            all_at_once: draw.scenarios.len() > 1,
        }
    }

    /// Why a scenario is not drawn from, if it is not.
    fn not_begun(&self, name: &str, names: &[String]) -> Option<String> {
        skips::not_begun(&self.kernel.choice, names, name)
    }
}

/// Guests, one after the other: as long as the next draw wants the same machine, the same one.
struct Guests<'a> {
    soak: &'a Soak<'a>,
    devices: u8,
    stand: Option<Stand<'a>>,
}

impl<'a> Guests<'a> {
    fn new(soak: &'a Soak<'a>) -> Self {
        Self {
            soak,
            devices: 0,
            stand: None,
        }
    }

    /// Runs a draw to its end.
    fn run(&mut self, draw: Draw, on_progress: impl FnMut(&str)) -> Result<Done> {
        let soak = self.soak;
        let order = soak.order(&draw);
        if draw.devices != self.devices {
            self.end()?;
            self.devices = draw.devices;
        }
        let stand = match &mut self.stand {
            Some(stand) => stand,
            none => {
                let kernel = soak.kernel.clone();
                let logs = logs_from(&draw);
                let stand = Stand::new(soak.ctx, kernel, order.clone(), &soak.folder, &logs)?;
                none.insert(stand)
            }
        };
        stand.obey(order);
        let results = match &draw.scenarios[..] {
            [name] => vec![stand.run(name, on_progress)],
            names => stand.run_together(names, on_progress),
        };
        Ok(Done { draw, results })
    }

    /// Turns the guest off that runs.
    fn end(&mut self) -> Result<()> {
        match self.stand.take() {
            Some(stand) => stand.end().map(drop),
            None => Ok(()),
        }
    }
}

/// Folder of the logs of guests that serve from a draw on: no two machines have the same, also where a
/// soak that goes on writes to the folder that it began with.
fn logs_from(draw: &Draw) -> String {
    format!("{GUESTS}/from_draw_{}", draw.number)
}

/// `1:02:03`.
fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Verdict;
    use super::*;
    use crate::arguments;

    fn parse(line: &str) -> Result<SoakArgs, clap::Error> {
        arguments::parse(line.split_whitespace())
    }

    #[test]
    fn line_that_is_told_does_the_same_again() {
        let line = "moves huge::cut --hours 0.5 --seed 3 --memory-type coherent --shard 1/2 \
                    --kernel public --build debug";
        let args = parse(line).expect("parsed");
        assert_eq!(command(&args, 3), format!("just soak {line}"));
        let short = parse("--hours 2").expect("parsed");
        let told = command(&short, 77);
        assert_eq!(
            told,
            "just soak --hours 2 --seed 77 --kernel public --build plain"
        );
    }

    #[test]
    fn time_that_is_none_and_a_resume_of_nobody_knows_what_are_refused() {
        for line in [
            "--hours 0",
            "--hours -1",
            "--hours soon",
            "--hours inf",
            "--hours NaN",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        let error = parse("--hours 1 --resume")
            .expect_err("no seed")
            .to_string();
        assert!(error.contains("--seed"), "{error}");
        assert!(parse("moves").is_err(), "no hours");
    }

    #[test]
    fn guests_of_two_machines_have_two_folders() {
        let logs = |number| logs_from(&state::tests::done(number, Verdict::Passed).draw);
        assert_ne!(logs(0), logs(8));
    }

    #[test]
    fn clock_tells_hours() {
        assert_eq!(clock(0.0), "0:00:00");
        assert_eq!(clock(3723.9), "1:02:03");
    }
}
