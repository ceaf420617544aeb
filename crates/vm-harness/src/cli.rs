// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line: one subcommand for each recipe, each with its arguments
//! defined next to the code that obeys them.

use std::process::ExitCode;

use anyhow::Result;
use cdm_harness::{Context, build, clean, doctor, series_check, stress, test, vm};
use clap::{Parser, Subcommand};

/// Build, boot and test a virtual machine with a coherent memory device.
#[derive(Debug, Parser)]
#[command(
    name = "cdm",
    bin_name = "cdm",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest with the device and open a shell in it
    RunVm(vm::RunVmArgs),
    /// Measure how long it takes to a command in a guest, against a bare QEMU boot
    BootTime(vm::BootTimeArgs),
    /// Run all checks and tests; the last line counts them
    Test(test::TestArgs),
    /// Run the kernel's own suite for device memory, or everything at once for a while
    Stress(stress::StressArgs),
    /// Build and boot the kernel after each patch of the series
    SeriesCheck(series_check::SeriesCheckArgs),
    /// Tell what this machine has and lacks, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Build everything that a guest needs, and boot nothing
    Build(build::BuildArgs),
    /// Build a guest kernel and print where it is
    Kernel(build::KernelArgs),
    /// Remove what was built from the cache
    Clean(clean::CleanArgs),
}

impl Command {
    /// Runs the subcommand. The exit code is 0 for done and 1 for a check that
    /// failed; an error means that it could not run.
    pub fn run(self, ctx: &Context) -> Result<ExitCode> {
        match self {
            Self::RunVm(args) => vm::run_vm(ctx, args),
            Self::BootTime(args) => vm::boot_time(ctx, &args),
            Self::Test(args) => test::run(ctx, args),
            Self::Stress(args) => stress::run(ctx, &args),
            Self::SeriesCheck(args) => series_check::run(ctx, &args),
            Self::Doctor(args) => doctor::run(ctx, &args),
            Self::Build(args) => build::run(ctx, &args),
            Self::Kernel(args) => build::run_kernel(ctx, &args),
            Self::Clean(args) => clean::run(ctx, &args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_help_with_an_example() {
        for sub in Cli::command().get_subcommands_mut() {
            let help = sub.render_long_help().to_string();
            assert!(
                help.contains("Example"),
                "{} shows no example:\n{help}",
                sub.get_name()
            );
        }
    }
}
