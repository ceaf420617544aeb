// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm bench`: what device and driver do, measured in one guest in turn with what a user
//! would pick instead.
//!
//! `cdm-bench` in the guest measures; this collates, writes results, and compares them with those
//! of an earlier run.

mod about;
mod compare;
mod figure;
mod machine;
mod report;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use self::about::About;
use self::compare::{Change, compare};
use self::figure::{Figure, collate};
use crate::build::{self, KernelOptions};
use crate::cache;
use crate::context::Context;
use crate::git::Commit;
use crate::progress::Task;
use crate::results;
use crate::runs;
use crate::test::Session;
use crate::vm::boot::{Stream, accelerator};
use cdm_agent_protocol::Sample;

/// The program that measures, in the guest and on the host.
const PROGRAM: &str = "cdm-bench";

/// Longest silence of the program: a turn of the largest size, on a slow host.
const SILENCE: Duration = Duration::from_secs(300);

/// Rounds, unless told otherwise.
const ROUNDS: u32 = 5;
const QUICK_ROUNDS: u32 = 3;

/// Where results are, in the repository; git knows nothing of that folder.
const FOLDER: &str = "target/bench";

/// Arguments of `cdm bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just bench --quick
  just bench migrate --rounds 9
  just bench --compare ../before/results.json

Boots one guest, has cdm-bench measure there, round after round, the device and what it is
compared with, and writes results.json (docs/reference/schemas/cdm-bench-results.schema.json), report.html
with plots, run.json, which says on what machine that was, and samples.jsonl into target/bench. --compare fails if a
ratio is worse than in FILE by more than both runs vary from round to round.

Exit status: 0 good, 1 something is worse than in FILE, 2 could not run.")]
pub struct BenchArgs {
    /// Groups to measure, such as 'migrate' [default: all]
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,

    /// Measure everything NUM times, in turn [default: 5, or 3 with --quick]
    #[arg(long, value_name = "NUM", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// Measure fewer sizes, for less long
    #[arg(long)]
    quick: bool,

    /// Fail if something is slower than in FILE, the results.json of an earlier run
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    #[command(flatten)]
    kernel: KernelOptions,

    /// Keep logs in DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

impl BenchArgs {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(match self.quick {
            true => QUICK_ROUNDS,
            false => ROUNDS,
        })
    }

    /// The command line, as a person would write it.
    fn command(&self) -> String {
        let mut words = vec!["just bench".to_owned()];
        words.extend(self.groups.iter().cloned());
        words.extend(self.quick.then(|| "--quick".to_owned()));
        words.push(format!("--rounds {}", self.rounds()));
        words.push(format!("--kernel {}", self.kernel.kernel));
        words.push(format!("--build {}", self.kernel.build));
        words.join(" ")
    }

    /// Arguments of the program that measures, for a round.
    fn arguments(&self, groups: &[String], round: u32) -> Vec<String> {
        let mut words = groups.to_vec();
        words.extend(["--rounds", "1", "--first-round"].map(str::to_owned));
        words.push(round.to_string());
        words.extend(self.quick.then(|| "--quick".to_owned()));
        words
    }
}

/// `cdm bench`.
pub fn run(ctx: &Context, args: &BenchArgs) -> Result<ExitCode> {
    // It may be the file that this run writes.
    let old = args.compare.as_deref().map(read).transpose()?;
    let commit = Commit::current(ctx)?;
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let spec = machine::spec(kernel)?;
    let accel = accelerator(ctx, &spec)?;
    let mut about = About::new(args, &commit, &spec, accel);
    let logs = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let mut session = Session::new(ctx, spec, logs);
    about.groups = groups(&mut session, &args.groups)?;
    about.guest.release = session.text("uname -r")?.trim().to_owned();
    machine::prepare(&mut session)?;
    let samples = measure(ctx, &mut session, args, &about.groups)?;
    session.judge_log()?;
    session.end()?;
    let figures = collate(&samples)?;
    let folder = ctx.repo.join(FOLDER);
    write(&folder, &about, &samples, &figures)?;
    print!("{}\n{}", about.sentence() + "\n", table::table(&figures));
    ctx.progress.say(format!("results: {}", folder.display()));
    match old {
        Some(old) => judge(&old, &figures),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The groups that are wanted: those that the program in the guest lists, or some of them.
fn groups(session: &mut Session<'_>, wanted: &[String]) -> Result<Vec<String>> {
    let list = session.text("cdm-bench --list")?;
    let all: Vec<String> = list
        .lines()
        .filter(|line| !line.starts_with(' '))
        .map(str::to_owned)
        .collect();
    for name in wanted {
        ensure!(
            all.contains(name),
            "there is no group '{name}'; there are {}",
            all.join(", ")
        );
    }
    Ok(match wanted {
        [] => all,
        wanted => wanted.to_vec(),
    })
}

/// Has the guest measure, and the host what is compared there, by turns.
fn measure(
    ctx: &Context,
    session: &mut Session<'_>,
    args: &BenchArgs,
    groups: &[String],
) -> Result<Vec<Sample>> {
    let program = build::guest_tools(ctx)?.join(PROGRAM);
    let progress = ctx.progress.task("measuring", None);
    progress.set_total(args.rounds().into());
    let mut samples = Vec::new();
    for round in 0..args.rounds() {
        let arguments = args.arguments(groups, round);
        samples.extend(in_guest(session, &arguments, &progress)?);
        progress.set_detail("on the host");
        samples.extend(on_host(&program, &arguments)?);
        progress.advance();
    }
    Ok(samples)
}

/// Has the guest measure; it says on its standard error how far it is.
fn in_guest(
    session: &mut Session<'_>,
    arguments: &[String],
    progress: &Task,
) -> Result<Vec<Sample>> {
    let line = format!("{PROGRAM} {}", arguments.join(" "));
    let (mut samples, mut said) = (Vec::new(), Vec::new());
    let status =
        session
            .vm()?
            .exec_streaming_within(SILENCE, &line, |stream, text| match stream {
                Stream::Stdout => samples.push(Sample::parse(text)),
                Stream::Stderr => match text.strip_prefix("progress ") {
                    Some(detail) => progress.set_detail(detail),
                    None => said.push(text.to_owned()),
                },
            })?;
    if !status.success() {
        bail!("'{line}' ended with {status:?}: {}", said.join("\n"));
    }
    samples
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(Into::into)
}

/// Has the same program measure on the host.
fn on_host(program: &Path, arguments: &[String]) -> Result<Vec<Sample>> {
    let output = Command::new(program)
        .arg("--host")
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{PROGRAM} --host {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    String::from_utf8(output.stdout)?
        .lines()
        .map(|line| Ok(Sample::parse(line)?))
        .collect()
}

/// Reads the results of an earlier run.
fn read(path: &Path) -> Result<Vec<Figure>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no results.json of 'just bench' of this version",
            path.display()
        )
    })
}

fn write(folder: &Path, about: &About, samples: &[Sample], figures: &[Figure]) -> Result<()> {
    cache::create_folder(folder)?;
    let put = |name: &str, text: &str| results::write(&folder.join(name), text);
    put("results.json", &serde_json::to_string_pretty(figures)?)?;
    put("report.html", &report::page(about, samples, figures)?)?;
    put("run.json", &serde_json::to_string_pretty(about)?)?;
    let lines: Vec<String> = samples
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    put("samples.jsonl", &lines.join("\n"))
}

/// Tells what changed, and whether the gate is passed.
fn judge(old: &[Figure], new: &[Figure]) -> Result<ExitCode> {
    let compared = compare(old, new)?;
    for one in compared.iter().filter(|one| one.change != Change::None) {
        println!("{one}");
    }
    let bad = compared.iter().filter(|one| one.is_bad()).count();
    println!("{} figures compared, {bad} worse or gone", compared.len());
    Ok(match bad {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> BenchArgs {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Cli::try_parse_from(words).expect("well formed").args
    }

    #[test]
    fn command_names_what_decides_the_run() {
        assert_eq!(
            parse("migrate --quick --compare x --keep-logs /tmp/x").command(),
            "just bench migrate --quick --rounds 3 --kernel public --build plain"
        );
    }

    #[test]
    fn program_is_told_groups_and_round() {
        let groups = ["a".to_owned(), "b".to_owned()];
        assert_eq!(
            parse("").arguments(&groups, 4).join(" "),
            "a b --rounds 1 --first-round 4"
        );
        assert_eq!(
            parse("--quick --rounds 4")
                .arguments(&groups[..1], 0)
                .join(" "),
            "a --rounds 1 --first-round 0 --quick"
        );
    }

    #[test]
    fn program_that_fails_on_the_host_gives_no_samples() {
        let say = |script: &str| on_host(Path::new("/bin/sh"), &["-c".into(), script.into()]);
        // The shell takes --host for an option that it does not know.
        let error = say("true").expect_err("failed").to_string();
        assert!(error.contains("cdm-bench --host -c true failed"), "{error}");
        assert!(on_host(Path::new("/nonexistent"), &[]).is_err());
        assert!(
            on_host(Path::new("/bin/true"), &[])
                .expect("ran")
                .is_empty()
        );
    }

    #[test]
    fn file_that_holds_no_results_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.json");
        let refused = |path: &Path| format!("{:#}", read(path).expect_err("no results"));
        assert!(refused(&path).contains("x.json"));
        fs::write(&path, "{}").expect("written");
        assert!(refused(&path).contains("no results.json"));
        fs::write(&path, "[]").expect("written");
        assert_eq!(read(&path).expect("an empty list"), []);
    }
}
