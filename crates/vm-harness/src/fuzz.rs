// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm fuzz`: lets libFuzzer think of what a hostile guest, or a client of the control
//! socket, could say to the device.
//!
//! What it finds interesting is kept in the cache, as few and small inputs as reach the same, and
//! is where the next run begins; the repository has the seeds. What all runs came to is kept
//! there, too, and written down on request.

mod coverage;
mod record;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::build::{self, Instrumentation};
use crate::cache;
use crate::calendar;
use crate::command::run_logged_within;
use crate::context::Context;
use crate::git::Commit;
use record::{Document, Store};

/// What one input may take: the device lets a guest work for a fiftieth of a second here.
const INPUT_LIMIT_S: u64 = 25;

/// Memory that a fuzzer may take: it leaks nothing, or it is found.
const MEMORY_LIMIT_MIB: u64 = 2048;

/// Longest input, unless a target has longer ones in its seeds.
const INPUT_BYTES_MAX: u64 = 16 << 10;

/// Beyond its time, a fuzzer may take this long to come to an end.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Taking each kept input once may take this long.
const REPLAY_LIMIT: Duration = Duration::from_secs(900);

/// A run is counted in pieces of this length: one that is interrupted loses no more.
const PIECE_S: u64 = 300;

/// Beginnings of the names of inputs that break something, behind that of the target.
const BREAKING: [&str; 4] = ["crash-", "timeout-", "oom-", "leak-"];

/// What is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Guest memory with rings and descriptors in it
    Chains,
    /// One request in a chain that is as it should be
    Commands,
    /// Commands on memory of processes, and answers to page requests
    Pages,
    /// Accesses to the config space
    Config,
    /// Lines of the control socket
    ControlSocket,
}

/// Arguments of `cdm fuzz`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just fuzz                             every target for a minute
  just fuzz commands --seconds 3600
  just fuzz --jobs 2 --seconds 3600 --record
  just fuzz --seconds 0 --record        write down what earlier runs came to

An input that breaks something is kept, and the run ends with exit status 1 and its path. The next
run tries it again. --record writes docs/results/fuzz.json and .md, with what all runs came to.")]
pub struct FuzzArgs {
    /// What to feed [default: everything, one after the other]
    #[arg(value_name = "TARGET", value_enum)]
    targets: Vec<Target>,

    /// Time for each target; 0 looks only at inputs that broke something
    #[arg(long, value_name = "NUM", default_value_t = 60)]
    seconds: u64,

    /// Feed so many targets at a time
    #[arg(long, value_name = "NUM", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,

    /// Write the results of all runs to docs/results, too
    #[arg(long)]
    record: bool,
}

/// What a run of one target came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Figures {
    /// Inputs that were tried.
    pub executions: u64,
    /// Edges of the program that some input of the corpus takes.
    pub coverage: u64,
    /// Inputs that are kept.
    pub corpus: u64,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Chains,
        Self::Commands,
        Self::Pages,
        Self::Config,
        Self::ControlSocket,
    ];

    /// As program and folders are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chains => "chains",
            Self::Commands => "commands",
            Self::Pages => "pages",
            Self::Config => "config",
            Self::ControlSocket => "control_socket",
        }
    }
}

/// `cdm fuzz`.
pub fn run(ctx: &Context, args: &FuzzArgs) -> Result<ExitCode> {
    let targets = match &args.targets[..] {
        [] => &Target::ALL[..],
        chosen => chosen,
    };
    let commit = Commit::of_run(ctx, args.record)?;
    let log = ctx.logs().join("fuzz-build.log");
    // Before the store is read: another run adds to it.
    let _lock = cache::lock(ctx, "fuzz", "fuzzing")?;
    let feeder = Feeder {
        ctx,
        programs: build::fuzz_programs(ctx, Instrumentation::Edges, &log)?,
        corpus: ctx.cache.join("fuzz"),
        run: record::Run {
            source: &record::source(ctx)?,
            commit: &commit,
            date: &calendar::date(SystemTime::now()),
        },
        store: Mutex::new(Store::open(ctx)?),
    };
    let left = Mutex::new(targets.iter());
    let is_good = Mutex::new(true);
    thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let next = lock(&left).next().copied();
                    let Some(target) = next else { return };
                    if let Err(error) = feeder.feed(target, args.seconds) {
                        ctx.progress.say(format!("cdm: {error:#}"));
                        *lock(&is_good) = false;
                    }
                }
            });
        }
    });
    if args.record {
        feeder.record()?;
    }
    let is_good = *lock(&is_good);
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that a run needs, whichever target it is at.
struct Feeder<'a> {
    ctx: &'a Context,
    programs: PathBuf,
    /// Holds what is kept.
    corpus: PathBuf,
    run: record::Run<'a>,
    store: Mutex<Store>,
}

impl Feeder<'_> {
    /// Runs one target, piece by piece, and says what that came to.
    fn feed(&self, target: Target, seconds: u64) -> Result<()> {
        let name = target.name();
        let kept = self.corpus.join(name);
        cache::create_folder(&self.corpus)?;
        take_up(&kept)?;
        self.try_again(target)?;
        let mut executions = 0;
        let mut last = None;
        let mut left = seconds;
        while left > 0 {
            let piece = left.min(PIECE_S);
            let log = self.ctx.logs().join(format!("fuzz-{name}.log"));
            let what = format!("fuzzing {name}, {left} s left");
            let _task = self.ctx.progress.task(what, Some(&log));
            let figures = feed(self.ctx, &self.programs, target, piece, &self.corpus, &log)?;
            lock(&self.store).add(target, &self.run, piece, &figures)?;
            executions += figures.executions;
            last = Some(figures);
            left -= piece;
        }
        if let Some(figures) = last {
            self.minimise(target)?;
            println!(
                "{name}: {executions} inputs tried, {} edges covered, {} inputs kept",
                figures.coverage,
                files_in(&kept)?.len()
            );
        }
        Ok(())
    }

    /// Gives the inputs that broke something to the program once more. Those that break nothing
    /// now are kept with the others.
    fn try_again(&self, target: Target) -> Result<()> {
        let name = target.name();
        for path in self.breaking(target)? {
            let log = self.ctx.logs().join(format!("fuzz-{name}-again.log"));
            let mut command = self.program(target);
            let limit = Duration::from_secs(INPUT_LIMIT_S) + END_LIMIT;
            let tried = run_logged_within(limit, command.arg(&path), name, &log, |_| ());
            tried.with_context(|| format!("{} still breaks {name}", path.display()))?;
            let file = path.file_name().context("a file has a name")?;
            let place = self.corpus.join(name).join(file);
            fs::rename(&path, &place)
                .with_context(|| format!("cannot move {} to the others", path.display()))?;
        }
        Ok(())
    }

    /// Inputs that broke a target.
    fn breaking(&self, target: Target) -> Result<Vec<PathBuf>> {
        let mut paths = files_in(&self.corpus)?;
        paths.retain(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| is_breaking(&name, target))
        });
        Ok(paths)
    }

    fn program(&self, target: Target) -> Command {
        let mut command = Command::new(self.programs.join(target.name()));
        command
            .arg(format!("-timeout={INPUT_LIMIT_S}"))
            .arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"));
        command
    }

    /// Keeps as few and small inputs as reach the same.
    fn minimise(&self, target: Target) -> Result<()> {
        let name = target.name();
        let kept = self.corpus.join(name);
        let fewer = self.corpus.join(format!("{name}.fewer"));
        cache::remove_tree(&fewer)?;
        cache::create_folder(&fewer)?;
        let log = self.ctx.logs().join(format!("fuzz-{name}-merge.log"));
        let what = format!("looking which inputs of {name} to keep");
        let _task = self.ctx.progress.task(what.clone(), Some(&log));
        let mut command = self.program(target);
        command.arg("-merge=1").args([&fewer, &kept]);
        run_logged_within(REPLAY_LIMIT, &mut command, &what, &log, |_| ())?;
        // In steps that can be taken up again: there is always one that is whole.
        let old = superseded(&kept);
        cache::remove_tree(&old)?;
        let moved = fs::rename(&kept, &old).and_then(|()| fs::rename(&fewer, &kept));
        moved.with_context(|| format!("cannot replace {}", kept.display()))?;
        cache::remove_tree(&old)
    }

    /// Writes down what all runs came to.
    fn record(&self) -> Result<()> {
        let coverage = coverage::measure(self.ctx, &self.corpus)?;
        println!("{}", coverage.sentence());
        let mut left_to_fix = Vec::new();
        for target in Target::ALL {
            left_to_fix.push((target, self.breaking(target)?.len()));
        }
        let of = |target| {
            let found = left_to_fix.iter().find(|(of, _)| *of == target);
            found.map_or(0, |(_, count)| *count)
        };
        let document = Document::new(&lock(&self.store), &self.run, of, coverage);
        document.publish(self.ctx)?;
        if !document.is_good() {
            self.ctx.progress.say(
                "cdm: not each target has run for an hour yet, also on this code, with nothing left \
                 to fix; the page tells which",
            );
        }
        Ok(())
    }
}

/// Where a corpus is while another one takes its place.
fn superseded(kept: &Path) -> PathBuf {
    kept.with_extension("old")
}

/// Makes the folder of a corpus, or brings back what an interruption left beside its place.
fn take_up(kept: &Path) -> Result<()> {
    let old = superseded(kept);
    if !kept.exists() && old.exists() {
        return fs::rename(&old, kept)
            .with_context(|| format!("cannot bring {} back", kept.display()));
    }
    cache::create_folder(kept)
}

/// Whether a file of that name holds an input that broke a target.
fn is_breaking(name: &str, target: Target) -> bool {
    let kind = name
        .strip_prefix(target.name())
        .and_then(|rest| rest.strip_prefix('-'));
    kind.is_some_and(|kind| BREAKING.iter().any(|breaking| kind.starts_with(breaking)))
}

/// Files in a folder, and not below it.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

/// Runs one target. New inputs go below `corpus`, beside what earlier runs have left there.
pub fn feed(
    ctx: &Context,
    programs: &Path,
    target: Target,
    seconds: u64,
    corpus: &Path,
    log: &Path,
) -> Result<Figures> {
    let kept = corpus.join(target.name());
    cache::create_folder(&kept)?;
    let seeds = seeds(&ctx.repo, target);
    let breaking = corpus.join(format!("{}-", target.name()));
    let mut command = Command::new(programs.join(target.name()));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_LIMIT_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}", breaking.display()))
        .arg("-print_final_stats=1")
        .args([&kept, &seeds]);
    let mut figures = None;
    let limit = Duration::from_secs(seconds) + END_LIMIT;
    run_logged_within(limit, &mut command, target.name(), log, |line| {
        figures = Figures::parse(line).or(figures.take());
    })
    .with_context(|| {
        format!(
            "an input breaks {}; it is {}*",
            target.name(),
            breaking.display()
        )
    })?;
    match figures {
        Some(figures) => Ok(figures),
        None => bail!(
            "{} says nothing of what it did; its log is {}",
            target.name(),
            log.display()
        ),
    }
}

/// Where a target begins.
pub fn seeds(repo: &Path, target: Target) -> PathBuf {
    repo.join(build::FUZZ_FOLDER)
        .join("corpus")
        .join(target.name())
}

impl Figures {
    /// Reads libFuzzer's last line: `#193337 DONE cov: 532 ft: 3099 corp: 526/21Kb ...`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let executions = words.next()?.strip_prefix('#')?.parse().ok()?;
        if words.next()? != "DONE" {
            return None;
        }
        let mut after = |wanted: &str| words.find(|word| *word == wanted).and(words.next());
        let coverage = after("cov:")?.parse().ok()?;
        let corpus = after("corp:")?.split('/').next()?.parse().ok()?;
        Some(Self {
            executions,
            coverage,
            corpus,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn figures_are_those_of_the_last_line() {
        let line =
            "#193337\tDONE   cov: 532 ft: 3099 corp: 526/21Kb lim: 184 exec/s: 21481 rss: 36Mb";
        let expected = Figures {
            executions: 193_337,
            coverage: 532,
            corpus: 526,
        };
        assert_eq!(Figures::parse(line), Some(expected));
        for other in [
            "#131072\tpulse  cov: 523 ft: 2735 corp: 442/13079b lim: 128",
            "Done 193337 runs in 9 second(s)",
            "",
        ] {
            assert_eq!(Figures::parse(other), None, "{other}");
        }
    }

    #[test]
    fn inputs_that_broke_a_target_are_told_by_their_names() {
        assert!(is_breaking("commands-crash-0123", Target::Commands));
        assert!(is_breaking(
            "control_socket-timeout-0123",
            Target::ControlSocket
        ));
        for other in ["commands-slow-unit-0123", "chains-crash-0123", "runs.json"] {
            assert!(!is_breaking(other, Target::Commands), "{other}");
        }
    }

    #[test]
    fn corpus_that_was_being_replaced_is_taken_up_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let kept = dir.path().join("pages");
        fs::create_dir(superseded(&kept)).expect("made");
        fs::write(superseded(&kept).join("one"), "input").expect("written");
        take_up(&kept).expect("there");
        assert_eq!(files_in(&kept).expect("readable"), [kept.join("one")]);
        // One that is there stays.
        fs::create_dir(superseded(&kept)).expect("made");
        take_up(&kept).expect("there");
        assert_eq!(files_in(&kept).expect("readable").len(), 1);
    }

    #[test]
    fn every_target_has_a_program_and_seeds() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let manifest = fs::read_to_string(repo.join(build::FUZZ_FOLDER).join("Cargo.toml"));
        let manifest = manifest.expect("a manifest");
        let programs: BTreeSet<&str> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/"))
            .filter_map(|rest| rest.strip_suffix(".rs\""))
            .collect();
        assert_eq!(programs, Target::ALL.map(Target::name).into());
        for target in Target::ALL {
            let count = fs::read_dir(seeds(&repo, target))
                .expect("a folder")
                .count();
            assert!(count > 0, "{}", target.name());
        }
    }
}
