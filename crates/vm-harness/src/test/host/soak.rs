// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `just soak`, which goes on where it was.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::left::Leftovers;
use super::subject::{Ended, Subject};
use crate::test::run::Run;

/// What is drawn from: a scenario that needs neither a disk nor swap.
const SCENARIO: &str = "address_space::mappings_cut_moved_and_protected_keep_their_words";

/// Runs a soak of so many hours, and gives what it has printed and written.
fn soak(run: &Run, logs: &Path, hours: &str, more: &[&str]) -> Result<(Ended, Value)> {
    let left = Leftovers::watch()?;
    let logs_argument = logs.display().to_string();
    let first = [
        "soak",
        SCENARIO,
        "--seed",
        "7",
        "--hours",
        hours,
        "--keep-logs",
        &logs_argument,
    ];
    let ended = Subject::start(run, &left, &[&first[..], more].concat())?.finish()?;
    ensure!(ended.code == Some(0), "{ended}");
    left.expect_none()?;
    let file = logs.join("results.json");
    let text =
        fs::read_to_string(&file).with_context(|| format!("no {}: {ended}", file.display()))?;
    Ok((ended, serde_json::from_str(&text)?))
}

fn number(results: &Value, name: &str) -> Result<u64> {
    let value = results[name].as_u64();
    value.with_context(|| format!("the results tell no {name}: {results}"))
}

/// The first soak is over after its first draw, which takes longer than it was asked for. The second
/// one is asked for a second more than that took.
pub fn resumed(run: &Run) -> Result<()> {
    let folder = tempfile::tempdir_in(run.folder())?;
    let (_, before) = soak(run, &folder.path().join("1"), "0.0003", &[])?;
    ensure!(number(&before, "draws")? == 1, "{before}");
    ensure!(before["complete"] == true && before["good"] == true);
    let hours = (number(&before, "seconds")? + 1) as f64 / 3600.0;
    let more = ["--resume"];
    let (ended, after) = soak(run, &folder.path().join("2"), &hours.to_string(), &more)?;
    ensure!(ended.stdout.contains("1 draws, "), "{ended}");
    ensure!(
        !ended.stdout.contains(" draw 0: "),
        "the first draw was done again: {ended}"
    );
    ensure!(number(&after, "draws")? == 2, "{after}");
    ensure!(after["complete"] == true && after["good"] == true);
    let operations = |results: &Value| number(&results["figures"], "operations");
    ensure!(
        operations(&after)? > operations(&before)?,
        "{before}, {after}"
    );
    Ok(())
}
