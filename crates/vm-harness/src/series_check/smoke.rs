// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a kernel of the series must be able to do at every point of it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use cdm_agent_protocol::ModuleState;

use crate::build::Kernel;
use crate::context::Context;
use crate::test::Session;
use crate::vm::{ByteSize, VmSpec};

/// Tests of cdm-guest-tests that hold on any kernel: the driver does with each what it can.
pub const TESTS: [&str; 2] = [
    "migration::contents_are_equal_after_a_round_trip",
    "fork::writes_on_both_sides_keep_both_right",
];

/// Boots the kernel with the driver, and returns the type of the device memory.
pub fn run(ctx: &Context, kernel: &Kernel, logs: PathBuf) -> Result<String> {
    let mut spec = VmSpec::new(kernel.clone());
    // As in the machine that these tests run on otherwise.
    spec.devices = 2;
    spec.device_memory = ByteSize(256 << 20);
    let mut session = Session::new(ctx, spec, logs);
    if let ModuleState::Failed(reason) = &session.vm()?.greeting().module {
        bail!("the driver does not load: {reason}");
    }
    let info = session.text("cdmctl info --json")?;
    let info: serde_json::Value = serde_json::from_str(&info).context("'cdmctl info --json'")?;
    let memory_type = info["devices"][0]["memory_type"]
        .as_str()
        .context("the device does not say what type its memory has")?
        .to_owned();
    let chosen: Vec<String> = TESTS.iter().map(|test| format!("--exact {test}")).collect();
    let output = session.exec(&format!("cdm-guest-tests {}", chosen.join(" ")))?;
    ensure!(
        output.status.success(),
        "pages do not move as they should: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    session.judge_log()?;
    session.end()?;
    Ok(memory_type)
}
