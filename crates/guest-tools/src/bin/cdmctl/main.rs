// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shows and moves the memory of coherent memory devices, and lets a device
//! work on memory.

mod accelerate;
mod account;
mod batch;
mod buffer;
mod completions;
mod evict;
mod hot;
mod info;
mod migrate;
mod report;
mod residency;
mod run;
mod table;
mod target;
mod top;

use std::fs;
use std::process::ExitCode;

use anyhow::Context;
use cdm_guest_tools::device::Device;
use cdm_guest_tools::uapi::cdm_query;
use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  cdmctl info
  cdmctl migrate --pid 120 --all --to device
  cdmctl residency --pid 120 --all
  cdmctl run checksum --size 64M
  cdmctl top

Exit status: 0 done, 1 a check failed or not every page moved, 2 could not run.";

/// Show and move the memory of coherent memory devices, and let a device work on memory
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show each device, its memory and how much of it is free
    Info(info::Args),
    /// Move pages of a process into a device or back
    Migrate(migrate::Args),
    /// Count the pages of a process by where they are
    Residency(residency::Args),
    /// Bring pages of a device back to ordinary memory, whoever they belong to
    Evict(evict::Args),
    /// Let a device work on a buffer, and print the result
    Run(run::Args),
    /// Let a device use a buffer much, and tell what moved to it for that
    Hot(hot::Args),
    /// Show what devices and processes do, again and again
    Top(top::Args),
    /// Print what a shell needs to complete this tool's arguments
    Completions(completions::Args),
    /// Fail the outstanding commands of a device; its memory stays as it is
    Reset(ResetArgs),
}

#[derive(Args)]
#[command(after_long_help = "Example:\n  cdmctl reset --device 1")]
struct ResetArgs {
    /// Reset device N, of /dev/cdmN
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
}

/// How a command that ran to its end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    CheckFailed,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Info(args) => info::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Residency(args) => residency::run(&args),
        Command::Evict(args) => evict::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Hot(args) => hot::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Reset(args) => reset(&args),
    };
    match result {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::CheckFailed) => ExitCode::from(1),
        Err(error) => {
            eprintln!("cdmctl: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn reset(args: &ResetArgs) -> anyhow::Result<Verdict> {
    open(args.device)?
        .reset()
        .with_context(|| format!("cannot reset device {}: this needs root", args.device))?;
    Ok(Verdict::Done)
}

/// Opens a device, or says which ones there are.
fn open(number: u32) -> anyhow::Result<Device> {
    Device::open(number).with_context(|| {
        let numbers = Device::numbers().unwrap_or_default();
        let next = match numbers.as_slice() {
            [] => {
                "there is no device: is the module loaded? try 'modprobe cdm', then 'dmesg'".into()
            }
            numbers => {
                let list: Vec<_> = numbers.iter().map(u32::to_string).collect();
                format!("devices here: {}; pass one with --device", list.join(", "))
            }
        };
        format!("cannot open /dev/cdm{number} ({next})")
    })
}

/// What a device says of itself.
fn query(device: &Device) -> anyhow::Result<cdm_query> {
    let number = device.number();
    device.query().with_context(|| {
        format!("device {number} does not answer: see 'dmesg' for what the driver says")
    })
}

/// A figure that the driver has in a file; none where there is no such file, or it is not for
/// everybody's eyes.
fn figure(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn reference_pages_are_what_the_command_line_says() {
        cdm_cli_reference::check("cdmctl", Cli::command()).expect("fresh");
    }

    #[test]
    fn arguments_are_defined_consistently() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_shows_an_example_in_its_long_help() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(
                help.contains("Example"),
                "{} --help has no example",
                command.get_name()
            );
        }
    }

    #[test]
    fn every_subcommand_that_tells_anything_tells_it_to_programs_too() {
        // What completions prints is for a program, and reset has nothing to tell.
        const SILENT: [&str; 2] = ["completions", "reset"];
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let has_json = command.get_arguments().any(|arg| arg.get_id() == "json");
            assert_eq!(has_json, !SILENT.contains(&name), "{name}");
        }
    }

    #[test]
    fn short_help_fits_a_screen() {
        for command in Cli::command().get_subcommands_mut() {
            let lines = command.render_help().to_string().lines().count();
            assert!(lines <= 24, "{} -h has {lines} lines", command.get_name());
        }
    }
}
