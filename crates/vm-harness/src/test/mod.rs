// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs all checks and tests.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::context::Context;

/// Arguments of `cdm test`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  just test")]
pub struct TestArgs {}

/// `cdm test`.
pub fn run(_ctx: &Context, _args: TestArgs) -> Result<ExitCode> {
    bail!("not available yet")
}
