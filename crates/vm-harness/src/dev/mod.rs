// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm dev`: whenever a source of the driver is saved, builds it, puts it into the running guest
//! in the place of the one that is there, and runs a scenario on it.

mod watch;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::build::{self, Kernel, KernelOptions, MODULE_SOURCES};
use crate::context::Context;
use crate::guest::copy::into_guest;
use crate::vm::qemu::shell_line;
use crate::vm::visit::{Visit, Which};
use watch::Watch;

/// Where the guest has its driver; scenarios that take it out and put it in again look there.
const MODULE: &str = "/lib/modules/cdm.ko";
/// Takes the driver out and puts the new one in, with the parameters that the last one had.
const RELOAD: &str = r#"
kept=/run/cdm.parameters
if [ -d /sys/module/cdm ]; then
    for file in /sys/module/cdm/parameters/*; do
        echo "${file##*/}=$(cat "$file")"
    done > $kept
    rmmod cdm || exit
fi
insmod /lib/modules/cdm.ko $(cat $kept) || { dmesg | grep cdm | tail -n 5 >&2; exit 1; }
tries=0
until [ -e /dev/cdm0 ]; do
    tries=$((tries + 1))
    [ $tries -lt 400 ] || { echo 'no device came:' >&2; dmesg | tail -n 5 >&2; exit 1; }
    sleep 0.05
done
"#;

/// Arguments of `cdm dev`.
#[derive(Debug, Args)]
#[command(after_help = "\
A guest must run: 'just run-vm' in another terminal, with the same --kernel and --build.

Examples:
  just dev moves
  just dev address_space::fork_shares_pages --rounds 5
  just dev --exec 'cdmctl run checksum --size 16M'
  just dev --once --exec 'dmesg | tail'

'just stress --list' names the scenarios. With --once the exit status is that of what ran.")]
pub struct DevArgs {
    /// Run this scenario, or this family of them, after each reload
    #[arg(value_name = "SCENARIO", required_unless_present = "exec")]
    scenario: Option<String>,

    /// Run this line of shell in the guest instead
    #[arg(long, value_name = "CMD", conflicts_with = "scenario")]
    exec: Option<String>,

    /// Run a scenario for NUM operations, and for its least number of them
    #[arg(long, value_name = "NUM", default_value_t = 1)]
    rounds: u64,

    /// Build, reload and run now, and end
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    kernel: KernelOptions,
}

impl DevArgs {
    /// What runs in the guest after each reload.
    fn line(&self) -> String {
        match (&self.exec, &self.scenario) {
            (Some(line), _) => line.clone(),
            (None, scenario) => {
                let rounds = self.rounds.to_string();
                let name = scenario.clone().unwrap_or_default();
                let words = ["run".to_owned(), name, "--rounds".to_owned(), rounds];
                shell_line("cdm-stress", &words)
            }
        }
    }
}

/// `cdm dev`.
pub fn run(ctx: &Context, args: &DevArgs) -> Result<ExitCode> {
    // Where none runs, nothing need be built.
    drop(Visit::to(&args.which)?);
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let line = args.line();
    if args.once {
        let status = turn(ctx, &kernel, &args.which, &line)?;
        return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
    }
    let watch = Watch::new(MODULE_SOURCES.iter().map(|folder| ctx.repo.join(folder)))?;
    loop {
        // A driver that does not compile, or does not load, is what this is for.
        if let Err(error) = turn(ctx, &kernel, &args.which, &line) {
            ctx.progress.say(format!("cdm: {error:#}"));
        }
        ctx.progress
            .say("cdm: waits for a change of the driver; Ctrl-C ends this");
        let changed = watch.next()?;
        ctx.progress
            .say(format!("cdm: {} changed", changed.display()));
    }
}

/// Builds, reloads and runs; the status of what ran.
fn turn(ctx: &Context, kernel: &Kernel, which: &Which, line: &str) -> Result<i32> {
    let began = Instant::now();
    let module = build::module(ctx, kernel)?;
    let built = began.elapsed();
    let visit = Visit::to(which)?;
    reload(&visit, &module)?;
    let reloaded = began.elapsed() - built;
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    ctx.progress.say(format!(
        "cdm: built in {}, reloaded in {}; now: {line}",
        seconds(built),
        seconds(reloaded)
    ));
    let (status, errors) = visit.run(line, &[], io::empty(), &mut Lines)?;
    if !errors.is_empty() {
        ctx.progress.say(&errors);
    }
    let told = match status.success() {
        true => "it went well".to_owned(),
        false => format!("IT FAILED with {}", status.shell_code()),
    };
    let whole = began.elapsed();
    ctx.progress.say(format!(
        "cdm: {told}, after {} in all, {} of them for the build",
        seconds(whole),
        seconds(built)
    ));
    Ok(status.shell_code())
}

/// Puts a driver into the place of the one in the guest.
fn reload(visit: &Visit, module: &Path) -> Result<()> {
    into_guest(visit, module, MODULE)?;
    let (status, errors) = visit.run(RELOAD, &[], io::empty(), &mut io::sink())?;
    if errors.contains("temporarily unavailable") {
        bail!(
            "the driver cannot be taken out: a program in the guest has a device open; \
             'just shell' and 'ls -l /proc/*/fd | grep cdm' find it"
        );
    }
    ensure!(
        status.success(),
        "the guest does not take the driver: {errors}\nWas it booted with the same --kernel and \
         --build?"
    );
    Ok(())
}

/// Standard output, which shows a line when it comes.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn line(words: &[&str]) -> Result<String, clap::Error> {
        arguments::parse(words.iter().copied()).map(|args: DevArgs| args.line())
    }

    #[test]
    fn scenario_is_run_by_name_and_anything_else_as_it_is_written() {
        let moves = line(&["moves", "--rounds", "7"]).expect("understood");
        assert_eq!(moves, "cdm-stress run moves --rounds 7");
        assert_eq!(line(&["--exec", "a | b"]).expect("understood"), "a | b");
        assert!(line(&[]).is_err() && line(&["moves", "--exec", "a"]).is_err());
    }
}
