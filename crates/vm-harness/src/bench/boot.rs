// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Group `boot`: from the command to a shell, by the same hand as `cdm boot-time`.

use anyhow::Result;
use cdm_agent_protocol::{SUBJECT, Sample, Unit};

use crate::vm::BootTime;

/// Name of the group.
pub const NAME: &str = "boot";
/// A QEMU that boots the same kernel and turns itself off, and nothing else.
const REFERENCE: &str = "bare-qemu";

/// Measures a round.
pub fn round(both: &BootTime, round: u32) -> Result<Vec<Sample>> {
    let pair = both.measure()?;
    let sample = |(by, time): (&str, std::time::Duration)| Sample {
        name: format!("{NAME}/run-vm"),
        by: by.to_owned(),
        unit: Unit::Milliseconds,
        round,
        value: time.as_secs_f64() * 1e3,
    };
    Ok([(SUBJECT, pair.ours), (REFERENCE, pair.bare)]
        .map(sample)
        .into())
}
