// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm`: the command behind every recipe of the justfile.

#[cfg(test)]
mod ci_files;
mod cli;
mod completions;

use std::process::ExitCode;

use cdm_harness::{Context, build};
use clap::Parser;

/// Exit code for "could not run": something is missing or was refused. A check
/// that ran and failed is 1.
const COULD_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if build::rootfs::is_asked() {
        return match cli.command.wants_rootfs() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
    }
    let run = Context::from_environment().and_then(|ctx| cli.command.run(&ctx));
    match run {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cdm: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}
