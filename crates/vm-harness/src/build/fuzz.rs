// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Programs that feed the device what libFuzzer thinks of (crates/device-backend/fuzz).
//!
//! The flags are those of cargo-fuzz with `--sanitizer none`: coverage for libFuzzer, and
//! all of Rust's own checks. Debian's compiler has the coverage pass and no runtime of a
//! sanitizer; what memory errors unsafe code could make is the business of its comments.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::cargo::set_environment;
use crate::command::run_logged;
use crate::context::Context;

/// Where the programs' package is.
pub const FOLDER: &str = "crates/device-backend/fuzz";

/// The one platform; named so that the flags do not reach build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What makes cargo-fuzz's instrumentation.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// What the programs can tell of what an input reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instrumentation {
    /// What libFuzzer wants to know.
    Edges,
    /// For llvm-cov, too, which knows the lines.
    Lines,
}

impl Instrumentation {
    /// Each is built in a folder of its own.
    fn flavour(self) -> &'static str {
        match self {
            Self::Edges => "fuzz",
            Self::Lines => "fuzz-lines",
        }
    }

    fn flags(self) -> String {
        let more = match self {
            Self::Edges => None,
            Self::Lines => Some("-Cinstrument-coverage"),
        };
        let all: Vec<&str> = FLAGS.iter().copied().chain(more).collect();
        all.join("\x1f")
    }
}

/// Builds all of them, and returns the folder that they are in.
pub fn fuzz_programs(ctx: &Context, with: Instrumentation, log: &Path) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    set_environment(&mut command, ctx, with.flavour());
    let task = ctx.progress.task("building the fuzzers", Some(log));
    let folder = ctx.repo.join(FOLDER);
    command
        .current_dir(&folder)
        .args(["build", "--release", "--locked", "--bins"])
        .args(["--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", with.flags())
        // libFuzzer itself, which is C++.
        .env("CXX", "clang++");
    let target = command
        .get_envs()
        .find_map(|(name, value)| (name == "CARGO_TARGET_DIR").then_some(value?))
        .map(PathBuf::from)
        .unwrap_or_else(|| folder.join("target"));
    run_logged(&mut command, "cargo build of the fuzzers", log, |line| {
        if let Some(crate_name) = line.trim_start().strip_prefix("Compiling ") {
            task.set_detail(crate_name);
        }
    })?;
    Ok(target.join(TARGET).join("release"))
}
