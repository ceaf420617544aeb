// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The fuzzers, for a short fixed time: that they run, and find nothing near the seeds.

use anyhow::{Result, ensure};

use super::run::Run;
use super::table::Table;
use crate::build::{self, Instrumentation};
use crate::fuzz::{self, Target};

/// The stage `fuzz`.
pub const FUZZ: Table = Table {
    name: "fuzz",
    rows: &[
        ("fuzz::chains", |run| short_run(run, Target::Chains)),
        ("fuzz::commands", |run| short_run(run, Target::Commands)),
        ("fuzz::pages", |run| short_run(run, Target::Pages)),
        ("fuzz::config", |run| short_run(run, Target::Config)),
        ("fuzz::control_socket", |run| {
            short_run(run, Target::ControlSocket)
        }),
    ],
};

/// Time for each: enough for some ten thousand inputs.
const SECONDS: u64 = 5;

fn short_run(run: &Run, target: Target) -> Result<()> {
    let programs = build::fuzz_programs(run.ctx(), Instrumentation::Edges, &run.log("fuzz-build"))?;
    // A corpus of its own, so that each run begins with the seeds, and ends with its logs.
    let corpus = run.folder().join("fuzz");
    let log = run.log(&format!("fuzz-{}", target.name()));
    let figures = fuzz::feed(run.ctx(), &programs, target, SECONDS, &corpus, &log)?;
    ensure!(
        figures.executions > 100 && figures.coverage > 0,
        "{figures:?}"
    );
    Ok(())
}
