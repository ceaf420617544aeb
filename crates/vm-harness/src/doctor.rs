// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What this machine has and lacks.
use crate::Context;
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
/// Arguments of `cdm doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  just doctor\n  just doctor --json")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}
/// x
pub fn run(_ctx: &Context, _args: &DoctorArgs) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
