// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm bench`: what device and driver do, measured in one guest in turn with what a user
//! would pick instead, and how their costs grow with memory, devices and processes.
//!
//! `cdm-bench` in the guest measures; this collates, writes results, and compares them with those
//! of an earlier run.

mod about;
mod boot;
mod compare;
mod figure;
mod growth;
mod guest;
mod machine;
mod report;
mod table;
mod unpatched;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::about::About;
use self::compare::{Change, compare};
pub(crate) use self::figure::Figure;
use self::figure::collate;
use self::growth::Growth;
use self::unpatched::Unpatched;
use crate::build::{self, Kernel, KernelOptions};
use crate::cache;
use crate::context::Context;
use crate::git::Commit;
use crate::progress::Task;
use crate::results;
use crate::runs;
use crate::test::Session;
use crate::vm::boot::accelerator;
use crate::vm::{BootTime, VmSpec};
use cdm_agent_protocol::Sample;

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
compared with (for 'migrate' also in a guest whose kernel is without the series); then a guest for each size of device memory (growth), and guests that do nothing else
(boot). Writes results.json (docs/reference/schemas/cdm-bench-results.schema.json), report.html
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
    let program = build::guest_tools(ctx)?.join(guest::PROGRAM);
    let groups = Groups::choose(guest::groups(&program)?, &args.groups)?;
    let spec = machine::spec(kernel)?;
    let accel = accelerator(ctx, &spec)?;
    let mut about = About::new(args, &commit, &spec, accel);
    about.groups = groups.names();
    about.guest.release = release(&spec.kernel)?;
    let logs = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let samples = measure(ctx, args, &groups, &program, spec, &logs)?;
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

/// What is measured.
#[derive(Debug, PartialEq)]
struct Groups {
    /// In the guest that all share.
    shared: Vec<String>,
    /// In machines of their own.
    growth: bool,
    /// With machines that do nothing but boot.
    boot: bool,
}

impl Groups {
    /// All groups, or those that are wanted; `program` are those that the program has.
    fn choose(program: Vec<String>, wanted: &[String]) -> Result<Self> {
        let mut all = program;
        all.retain(|name| !growth::PARTS.contains(&&**name) && name != unpatched::PART);
        all.extend([growth::NAME, boot::NAME].map(str::to_owned));
        for name in wanted {
            ensure!(
                all.contains(name),
                "there is no group '{name}'; there are {}",
                all.join(", ")
            );
        }
        all.retain(|name| wanted.is_empty() || wanted.contains(name));
        let mut take = |own: &str| {
            let before = all.len();
            all.retain(|name| name != own);
            all.len() < before
        };
        let (growth, boot) = (take(growth::NAME), take(boot::NAME));
        Ok(Self {
            shared: all,
            growth,
            boot,
        })
    }

    fn names(&self) -> Vec<String> {
        let own = [(self.growth, growth::NAME), (self.boot, boot::NAME)];
        let own = own.into_iter().filter(|(is_wanted, _)| *is_wanted);
        let own = own.map(|(_, name)| name.to_owned());
        self.shared.iter().cloned().chain(own).collect()
    }
}

/// The release of a kernel, as `uname -r` tells it in the guest.
fn release(kernel: &Kernel) -> Result<String> {
    let path = kernel.objects.join("include/config/kernel.release");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Has all groups measured: those that share a guest round by round, and then the others, each round
/// by round, so that no guest runs beside the one that is measured.
fn measure(
    ctx: &Context,
    args: &BenchArgs,
    groups: &Groups,
    program: &Path,
    spec: VmSpec,
    logs: &Path,
) -> Result<Vec<Sample>> {
    let rounds = args.rounds();
    let mut samples = Vec::new();
    let growth = Growth {
        ctx,
        kernel: spec.kernel.clone(),
        logs: logs.to_owned(),
        quick: args.quick,
    };
    if !groups.shared.is_empty() {
        let mut session = Session::new(ctx, spec, logs.to_owned());
        session.vm()?;
        machine::prepare(&mut session)?;
        let mut unpatched = match groups.shared.iter().any(|name| name == unpatched::OF_GROUP) {
            true => Some(Unpatched::boot(ctx, args.kernel.build, logs)?),
            false => None,
        };
        let progress = task(ctx, "measuring", rounds.into());
        for round in 0..rounds {
            let arguments = args.arguments(&groups.shared, round);
            samples.extend(guest::measure(&mut session, &arguments, &progress)?);
            if let Some(unpatched) = &mut unpatched {
                let arguments = args.arguments(&[unpatched::PART.to_owned()], round);
                samples.extend(unpatched.round(&arguments, &progress)?);
            }
            progress.set_detail("on the host");
            samples.extend(guest::measure_on_host(program, &arguments)?);
            progress.advance();
        }
        session.judge_log()?;
        session.end()?;
        if let Some(unpatched) = unpatched {
            unpatched.end()?;
        }
    }
    if groups.growth {
        let machines = growth.machines() as u64;
        let progress = task(ctx, "measuring growth", u64::from(rounds) * machines);
        for round in 0..rounds {
            let arguments = |group: &str| args.arguments(&[group.to_owned()], round);
            samples.extend(growth.round(round, arguments, &progress)?);
        }
    }
    if groups.boot {
        let progress = task(ctx, "measuring boots", rounds.into());
        let both = BootTime::prepare(ctx, &args.kernel)?;
        for round in 0..rounds {
            samples.extend(boot::round(&both, round)?);
            progress.advance();
        }
    }
    Ok(samples)
}

fn task(ctx: &Context, what: &str, total: u64) -> Task {
    let progress = ctx.progress.task(what, None);
    progress.set_total(total);
    progress
}

/// Reads the results of an earlier run.
pub(crate) fn read(path: &Path) -> Result<Vec<Figure>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no results.json of 'just bench' of this version",
            path.display()
        )
    })
}

/// Writes into `folder` what a run leaves that gets these lines of the program and is nobody's:
/// for who looks at its page.
pub(crate) fn write_example(folder: &Path, lines: &str) -> Result<()> {
    let samples: Vec<Sample> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    write(folder, &About::sample(), &samples, &collate(&samples)?)
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
    let (same, changed): (Vec<_>, Vec<_>) = compared
        .iter()
        .partition(|one| matches!(one.change, Change::None(_)));
    for one in changed {
        println!("{one}");
    }
    let hidden: Vec<f64> = same
        .iter()
        .filter_map(|one| match one.change {
            Change::None(noise) => Some(noise),
            _ => None,
        })
        .collect();
    let bad = compared.iter().filter(|one| one.is_bad()).count();
    println!("{} figures compared, {bad} worse or gone", compared.len());
    if let Some(noise) = figure::median(&hidden) {
        println!(
            "half of those that are as before could have changed by a factor of {noise:.2} and not \
             be told; more rounds tell more"
        );
    }
    Ok(match bad {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn parse(line: &str) -> BenchArgs {
        arguments::parse(line.split_whitespace()).expect("well formed")
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
    fn groups_with_machines_of_their_own_are_told_from_the_others() {
        let program = || {
            ["migrate", "unpatched", "probe", "files", "scaling"]
                .map(str::to_owned)
                .to_vec()
        };
        let all = Groups::choose(program(), &[]).expect("all");
        assert_eq!(all.names(), ["migrate", "files", "growth", "boot"]);
        assert_eq!(all.shared, ["migrate", "files"]);
        let some = Groups::choose(program(), &["boot".into(), "files".into()]).expect("two");
        assert_eq!(some.names(), ["files", "boot"]);
        assert!(some.boot && !some.growth);
        for name in ["migrat", "probe", "unpatched"] {
            let error = Groups::choose(program(), &[name.into()]).expect_err("none");
            let text = error.to_string();
            assert!(
                text.contains(name) && text.contains("growth, boot"),
                "{text}"
            );
        }
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
