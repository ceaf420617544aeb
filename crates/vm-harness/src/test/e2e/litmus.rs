// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Litmus tests between CPUs and device, each a few thousand times; `just litmus` has
//! the patience for millions.

use anyhow::{Context as _, Result, ensure};

use super::{Session, follows_schema};
use crate::litmus::ask;

/// Instances of each test with each casting. The program goes on for what must be seen.
const INSTANCES: u64 = 20_000;

/// Runs every test in one memory.
fn all_tests_in(session: &mut Session, memory: &str) -> Result<()> {
    let line = format!("cdm-litmus --memory {memory} --instances {INSTANCES} --json");
    let report = ask(session, &line, None)?;
    report.judge(INSTANCES).with_context(|| line)?;
    ensure!(
        report.runs.iter().all(|run| run.memory == memory),
        "it ran in other memory, too"
    );
    let list = session.text("cdm-litmus --list")?;
    for test in list.lines().filter(|line| !line.starts_with(' ')) {
        ensure!(
            report.runs.iter().any(|run| run.test == test),
            "{test} did not run"
        );
    }
    Ok(())
}

/// All locations in the device.
pub fn in_device_memory(session: &mut Session) -> Result<()> {
    all_tests_in(session, "device")
}

/// All locations in system memory.
pub fn in_system_memory(session: &mut Session) -> Result<()> {
    all_tests_in(session, "system")
}

/// The locations of one instance in both.
pub fn in_both_memories(session: &mut Session) -> Result<()> {
    all_tests_in(session, "mixed")
}

/// The report, and what a wrong name leads to.
pub fn report_follows_its_schema(session: &mut Session) -> Result<()> {
    let line = "cdm-litmus --test CoRR --instances 4096 --json";
    let output = session.exec(line)?;
    // What it saw tells why it failed.
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "'{line}' failed: {text}");
    let schema = "cdm-litmus.schema.json";
    let report = follows_schema(session.ctx(), schema, text.as_bytes())?;
    let runs = report["runs"].as_array().map_or(0, Vec::len);
    ensure!(
        runs == 9,
        "three castings in three memories are {runs} runs"
    );
    let output = session.exec("cdm-litmus --test none")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.shell_code() == 2 && said.contains("'none'"),
        "a test that is none ends with {:?}: {said}",
        output.status
    );
    Ok(())
}
