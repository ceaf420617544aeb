// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Boots machines.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::build::KernelOptions;
use crate::context::Context;

/// Arguments of `cdm run-vm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  just run-vm")]
pub struct RunVmArgs {
    #[command(flatten)]
    pub kernel: KernelOptions,
}

/// `cdm run-vm`.
pub fn run_vm(_ctx: &Context, _args: RunVmArgs) -> Result<ExitCode> {
    bail!("not available yet")
}
