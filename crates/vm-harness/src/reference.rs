// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm reference`: what is written from code and committed, compared with the code or written
//! anew: the pages about command lines, and the C header of the wire contract.
//!
//! Only a program itself knows its arguments, and most are not linked to this one. So each has a
//! test that knows how to do either (crates/cli-reference), as the contract has, and this runs
//! those tests.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::command::run_logged;
use crate::context::Context;
use crate::test::cargo;

/// Packages with programs that have pages, and the one with the header.
const PACKAGES: [&str; 4] = [
    "cdm-cli-reference",
    "cdm-guest-tools",
    "cdm-protocol",
    "cdm-vm-harness",
];
/// How the names of the tests begin.
const TESTS: &str = "reference_";
/// Has the tests write the pages; crates/cli-reference reads it.
const RECORD: &str = "CDM_RECORD_REFERENCE";

/// Arguments of `cdm reference`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just reference
  just reference --record

The pages are in docs/reference/cli, the manual pages in docs/reference/man, the header is
crates/device-protocol/include/cdm_device.h.

Exit status: 0 they are what the code says, 1 they are not, or a program does not compile, 2 could not run.")]
pub struct ReferenceArgs {
    /// Write pages and header
    #[arg(long)]
    record: bool,
}

/// `cdm reference`.
pub fn run(ctx: &Context, args: &ReferenceArgs) -> Result<ExitCode> {
    let mut command = cargo(ctx);
    command.arg("test").arg("--locked");
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command.args(["--lib", "--bins", "--tests", TESTS]);
    command.env_remove(RECORD);
    if args.record {
        command.env(RECORD, "1");
    }
    let log = ctx.logs().join("reference.log");
    let task = ctx
        .progress
        .task("asking the programs for their arguments", Some(&log));
    let done = run_logged(&mut command, "cargo test", &log, |line| {
        if let Some(what) = line.trim_start().strip_prefix("Compiling ") {
            task.set_detail(what);
        }
    });
    drop(task);
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            ctx.progress.say(format!("{error:#}"));
            Ok(ExitCode::FAILURE)
        }
    }
}
