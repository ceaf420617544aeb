// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm fuzz`: lets libFuzzer think of what a hostile guest, or a client of the control
//! socket, could say to the device.
//!
//! What it finds interesting is kept in the cache and is where the next run begins; the
//! repository has the seeds.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::build;
use crate::cache;
use crate::command::run_logged_within;
use crate::context::Context;

/// What one input may take: the device lets a guest work for a fiftieth of a second here.
const INPUT_LIMIT_S: u64 = 25;

/// Memory that a fuzzer may take: it leaks nothing, or it is found.
const MEMORY_LIMIT_MIB: u64 = 2048;

/// Longest input, unless a target has longer ones in its seeds.
const INPUT_BYTES_MAX: u64 = 16 << 10;

/// Beyond its time, a fuzzer may take this long to come to an end.
const END_LIMIT: Duration = Duration::from_secs(120);

/// What is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Guest memory with rings and descriptors in it
    Chains,
    /// One request in a chain that is as it should be
    Commands,
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

An input that breaks something is kept, and the run ends with exit status 1 and its path.")]
pub struct FuzzArgs {
    /// What to feed [default: everything, one after the other]
    #[arg(value_name = "TARGET", value_enum)]
    targets: Vec<Target>,

    /// Time for each target
    #[arg(long, value_name = "NUM", default_value_t = 60)]
    seconds: u64,
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
    pub const ALL: [Self; 4] = [
        Self::Chains,
        Self::Commands,
        Self::Config,
        Self::ControlSocket,
    ];

    /// As program and folders are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chains => "chains",
            Self::Commands => "commands",
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
    let programs = build::fuzz_programs(ctx, &ctx.logs().join("fuzz-build.log"))?;
    let corpus = ctx.cache.join("fuzz");
    let mut code = ExitCode::SUCCESS;
    for &target in targets {
        let name = target.name();
        let log = ctx.logs().join(format!("fuzz-{name}.log"));
        let what = format!("fuzzing {name} for {} s", args.seconds);
        let task = ctx.progress.task(what, Some(&log));
        let ended = feed(ctx, &programs, target, args.seconds, &corpus, &log);
        drop(task);
        match ended {
            Ok(figures) => println!(
                "{name}: {} inputs tried, {} edges covered, {} inputs kept",
                figures.executions, figures.coverage, figures.corpus
            ),
            Err(error) => {
                ctx.progress.say(format!("cdm: {error:#}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
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
    fn every_target_has_a_program_and_seeds() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let manifest = std::fs::read_to_string(repo.join(build::FUZZ_FOLDER).join("Cargo.toml"));
        let manifest = manifest.expect("a manifest");
        let programs: BTreeSet<&str> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/"))
            .filter_map(|rest| rest.strip_suffix(".rs\""))
            .collect();
        assert_eq!(programs, Target::ALL.map(Target::name).into());
        for target in Target::ALL {
            let count = std::fs::read_dir(seeds(&repo, target))
                .expect("a folder")
                .count();
            assert!(count > 0, "{}", target.name());
        }
    }
}
