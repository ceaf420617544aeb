// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm ide`: what rust-analyzer needs to know of the driver, which no cargo builds, and of the
//! rest, whose tools are in the toolbox.

mod project;
mod settings;
mod sysroot;

pub use project::Built;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::build::{self, KernelOptions};
use crate::cache;
use crate::context::Context;
use crate::results;

/// The driver's description, where editors look for one.
const PROJECT: &str = "crates/guest-driver/rust-project.json";
/// Settings of the editor that most people have; others take the same ones.
const SETTINGS: &str = ".vscode/settings.json";

/// Arguments of `cdm ide`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just ide                        the driver as it is built for the 'public' kernel
  just ide --kernel vanilla
  just ide --check                what the editor calls on each save")]
pub struct IdeArgs {
    #[command(flatten)]
    kernel: KernelOptions,

    /// Check the workspace and print messages for the editor
    #[arg(long)]
    check: bool,

    /// Write into the folder DIR instead of the repository
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// `cdm ide`.
pub fn run(ctx: &Context, args: &IdeArgs) -> Result<ExitCode> {
    if args.check {
        return check(ctx);
    }
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    let module = build::rust_analyzer(ctx, &kernel)?;
    let text = project::with_driver(&module, &project::Place::of(ctx)?)?;
    let out = args.out.as_deref().unwrap_or(&ctx.repo);
    let project = out.join(PROJECT);
    write(&project, &text)?;
    let settings = out.join(SETTINGS);
    let old = fs::read_to_string(&settings).ok();
    let wanted = settings::wanted(&ctx.repo.join("ci/just"));
    match settings::merged(old.as_deref(), &wanted) {
        Some(text) => write(&settings, &text)?,
        None => ctx.progress.say(format!(
            "cdm: {} is no plain JSON and stays as it is; add to it: {wanted:#}",
            settings.display()
        )),
    }
    println!("{}", project.display());
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        cache::create_folder(parent)?;
    }
    results::write(path, text)
}

/// Has cargo check everything, with its messages on standard output. A folder of its own keeps
/// builds from waiting for the editor.
fn check(ctx: &Context) -> Result<ExitCode> {
    let mut cargo = Command::new("cargo");
    build::set_environment(&mut cargo, ctx, "ide");
    let status = cargo
        .args(["check", "--workspace", "--all-targets", "--keep-going"])
        .args(["--message-format=json", "--locked"])
        .stdin(Stdio::null())
        .status()
        .context("cargo is part of the toolbox; 'ci/just doctor' tells what is missing")?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
