// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm boot-time`: what the whole way to a command in a guest costs, against a bare
//! QEMU that boots the same kernel and turns itself off.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::accel::Accel;
use super::boot::{Parts, accelerator};
use super::qemu;
use super::spec::VmSpec;
use crate::build::{self, KernelOptions};
use crate::context::Context;

/// Arguments of `cdm boot-time`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  just boot-time --runs 9")]
pub struct BootTimeArgs {
    #[command(flatten)]
    kernel: KernelOptions,

    /// Boot NUM times each way, in turn
    #[arg(long, value_name = "NUM", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

/// Both ways to boot.
pub struct BootTime {
    bare_arguments: Vec<String>,
    ours_arguments: Vec<String>,
    this: PathBuf,
    accel: Accel,
}

/// Wall time from the command to its end, both ways.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// A bare QEMU that boots the kernel and turns itself off.
    pub bare: Duration,
    /// `run-vm --exec true`.
    pub ours: Duration,
}

impl BootTime {
    /// Builds what is missing, and boots once each way, so that files are in the page cache.
    pub fn prepare(ctx: &Context, options: &KernelOptions) -> Result<Self> {
        let kernel = build::kernel(ctx, &options.kernel, options.build)?;
        let spec = VmSpec::new(kernel);
        let parts = Parts::build(ctx, &spec.kernel)?;
        let accel = accelerator(ctx, &spec)?;
        let ours_arguments = [
            "run-vm",
            "--exec",
            "true",
            "--kernel",
            &options.kernel.to_string(),
            "--build",
            &options.build.to_string(),
            "--accel",
            &accel.to_string(),
        ];
        let both = Self {
            bare_arguments: bare_arguments(&spec, &parts, accel),
            ours_arguments: ours_arguments.map(str::to_owned).to_vec(),
            this: env::current_exe().context("cannot tell where this program is")?,
            accel,
        };
        both.measure()?;
        Ok(both)
    }

    /// Boots once each way, in turn.
    pub fn measure(&self) -> Result<Pair> {
        Ok(Pair {
            bare: time(Command::new(qemu::PROGRAM).args(&self.bare_arguments))?,
            ours: time(Command::new(&self.this).args(&self.ours_arguments))?,
        })
    }
}

/// `cdm boot-time`: prints both times and their ratio.
pub fn boot_time(ctx: &Context, args: &BootTimeArgs) -> Result<ExitCode> {
    let both = BootTime::prepare(ctx, &args.kernel)?;
    let pairs = (0..args.runs)
        .map(|_| both.measure())
        .collect::<Result<Vec<_>>>()?;
    let bare = median(pairs.iter().map(|pair| pair.bare).collect());
    let ours = median(pairs.iter().map(|pair| pair.ours).collect());
    println!("accelerator          {}", both.accel);
    println!("bare QEMU            {:.2} s", bare.as_secs_f64());
    println!("run-vm --exec true   {:.2} s", ours.as_secs_f64());
    println!(
        "ratio                {:.2}",
        ours.as_secs_f64() / bare.as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// The same kernel, first file system and accelerator, and nothing else: the first
/// process turns the machine off.
fn bare_arguments(spec: &VmSpec, parts: &Parts, accel: Accel) -> Vec<String> {
    let accel = match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg,thread=multi",
    };
    [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35",
        "-accel",
        accel,
        "-cpu",
        "max",
        "-smp",
        &spec.smp.to_string(),
        "-m",
        &spec.memory.to_string(),
        "-no-reboot",
        "-kernel",
        &spec.kernel.image.display().to_string(),
        "-initrd",
        &parts.initramfs.display().to_string(),
        "-append",
        "quiet panic=-1 rdinit=/bin/poweroff -- -f",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn time(command: &mut Command) -> Result<Duration> {
    let program = command.get_program().display().to_string();
    let started = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let elapsed = started.elapsed();
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(elapsed)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_what_was_measured() {
        let times = [9, 1, 5].map(Duration::from_secs).to_vec();
        assert_eq!(median(times), Duration::from_secs(5));
    }

    #[test]
    fn a_program_that_fails_is_no_measurement() {
        let error =
            time(Command::new("sh").args(["-c", "echo no >&2; exit 1"])).expect_err("failed");
        assert!(error.to_string().contains("no"), "{error}");
    }
}
