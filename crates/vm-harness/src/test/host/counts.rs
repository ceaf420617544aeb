// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counts of instructions: what makes them worth comparing is that they do not change by themselves.

use anyhow::{Result, ensure};

use super::super::run::Run;
use super::left::Leftovers;
use super::subject::Subject;

/// Two runs of one build count the same.
pub fn twice(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let count = || -> Result<String> {
        let arguments = ["bench-backend", "--instructions", "parse"];
        let ended = Subject::start(run, &left, &arguments)?.finish()?;
        ensure!(ended.code == Some(0), "{ended}");
        Ok(ended.stdout)
    };
    let counts = [count()?, count()?];
    ensure!(
        counts[0].contains("parse/NOP") && counts[0].contains(" instructions"),
        "nothing was counted:\n{}",
        counts[0]
    );
    ensure!(
        counts[0] == counts[1],
        "two runs count differently:\n{}\n{}",
        counts[0],
        counts[1]
    );
    left.expect_none()
}
