// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Removes what was built from the cache.
use crate::Context;
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
/// Arguments of `cdm clean`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  just clean\n  just clean --all")]
pub struct CleanArgs {
    /// Remove the toolbox and downloaded tools too
    #[arg(long)]
    all: bool,
}
/// x
pub fn run(_ctx: &Context, _args: &CleanArgs) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
