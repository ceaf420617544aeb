// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm deny`: licences, origin and known faults of the crates that are built in, by cargo-deny.
//!
//! No package of the toolbox has that program, so cargo builds the one release that is named here,
//! once, into the cache.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::build::set_environment;
use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;

/// The release that `deny.toml` is written for.
const VERSION: &str = "0.20.2";
const PROGRAM: &str = "cargo-deny";

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// Whether a crate has a known fault; its list is fetched from GitHub
    Advisories,
    /// Crates that are there twice, and dependencies of any version
    Bans,
    /// Whether each crate's licence is one of those in deny.toml
    Licenses,
    /// Whether each crate comes from where crates of Rust come from
    Sources,
}

impl Check {
    /// Those that need nothing from the network but the crates themselves.
    pub const OF_THE_LOCK_FILE: [Self; 3] = [Self::Bans, Self::Licenses, Self::Sources];

    const fn name(self) -> &'static str {
        match self {
            Self::Advisories => "advisories",
            Self::Bans => "bans",
            Self::Licenses => "licenses",
            Self::Sources => "sources",
        }
    }
}

/// Arguments of `cdm deny`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just deny
  just deny advisories

The first run builds cargo-deny, which takes some minutes. What is allowed is in deny.toml.
Exit status: 0 nothing found, 2 something found or could not run.")]
pub struct DenyArgs {
    /// What to look at (default: all)
    #[arg(value_name = "CHECK")]
    checks: Vec<Check>,
}

/// `cdm deny`.
pub fn run(ctx: &Context, args: &DenyArgs) -> Result<ExitCode> {
    let checks = match args.checks.as_slice() {
        [] => Check::value_variants(),
        some => some,
    };
    check(ctx, checks, &ctx.logs().join("deny.log"))?;
    let names: Vec<_> = checks.iter().map(|check| check.name()).collect();
    println!("{}: nothing found", names.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// Looks at all that `Cargo.lock` names.
pub fn check(ctx: &Context, checks: &[Check], log: &Path) -> Result<()> {
    let program = installed(ctx)?;
    let mut deny = Command::new(program);
    set_environment(&mut deny, ctx, "check");
    deny.args(["--log-level", "error", "--locked", "check"])
        .args(checks.iter().map(|check| check.name()));
    run_logged(&mut deny, PROGRAM, log, |_| {})
}

fn installed(ctx: &Context) -> Result<PathBuf> {
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox).text("version", VERSION);
    let what = "building cargo-deny";
    let folder = cache::entry(ctx, PROGRAM, &key.finish(), what, |folder| {
        let log = ctx.logs().join("cargo-deny.log");
        let task = ctx.progress.task(what, Some(&log));
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let mut cargo = Command::new("cargo");
        cargo
            .args(["install", PROGRAM, "--version", VERSION, "--locked"])
            .args(["--no-default-features", "--no-track", "--root"])
            .arg(folder)
            .env("CARGO_TARGET_DIR", scratch.path())
            .current_dir(scratch.path());
        run_logged(&mut cargo, what, &log, |line| task.set_detail(line.trim()))
    })?;
    Ok(folder.join("bin").join(PROGRAM))
}
