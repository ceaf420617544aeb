// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm behaviour-table`: what memory in the device can do, type by type, as tests
//! find it. Which test stands for which row is data (`docs/reference/behaviour.toml`).
//!
//! A test that fails here is no failure of the run: that it fails on one type and
//! not on another is what the table tells.

mod page;
mod run;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::context::Context;
use crate::git::Commit;
use crate::results;
use crate::runs;

pub(crate) use self::page::check;
use self::page::{Document, PAGE};
use self::table::Table;

/// Arguments of `cdm behaviour-table`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just behaviour-table
  just behaviour-table --record

Runs the tests that docs/reference/behaviour.toml names in a guest for each column, and prints the table.
With --record it goes to docs/reference/behaviour.md, and the results to docs/results/behaviour.json.

Exit status: 0 there is a table, 2 could not run.")]
pub struct BehaviourTableArgs {
    /// Write the table and its results into docs
    #[arg(long)]
    record: bool,
}

/// `cdm behaviour-table`.
pub fn run(ctx: &Context, args: &BehaviourTableArgs) -> Result<ExitCode> {
    let commit = Commit::of_run(ctx, args.record)?;
    let table = Table::read(&ctx.repo)?;
    let folder = runs::folder(ctx, runs::GUESTS, None)?;
    let mut columns = Vec::new();
    for column in &table.column {
        columns.push(run::column(ctx, column, &table.tests(), &folder)?);
    }
    let document = Document::new(&commit, columns);
    let page = document.page(&table)?;
    let json = serde_json::to_string_pretty(&document)?;
    results::write(&folder.join("results.json"), &json)?;
    print!("{page}");
    if args.record {
        results::write(&ctx.repo.join(PAGE), &page)?;
        results::write(&ctx.repo.join("docs/results/behaviour.json"), &json)?;
    }
    ctx.progress
        .say(format!("logs and results: {}", folder.display()));
    Ok(ExitCode::SUCCESS)
}
