// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm package`: what a distribution installs.

pub(crate) mod debian;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::cache;
use crate::context::Context;

/// Arguments of `cdm package`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just package
  just package --to /tmp/packages

Two packages for Debian: cdm-backend is the device's process, where QEMU and libvirt look for
such programs, and cdm-dkms the driver's source, which DKMS builds for each kernel that has
CONFIG_RUST. Prints their paths.")]
pub struct PackageArgs {
    /// Write the packages into DIR
    #[arg(long, value_name = "DIR", default_value = "target/packages")]
    to: PathBuf,
}

/// `cdm package`.
pub fn run(ctx: &Context, args: &PackageArgs) -> Result<ExitCode> {
    let to = std::path::absolute(&args.to)
        .with_context(|| format!("cannot tell where {} is", args.to.display()))?;
    cache::create_folder(&to)?;
    for package in debian::build(ctx, &to)? {
        println!("{}", package.display());
    }
    Ok(ExitCode::SUCCESS)
}
