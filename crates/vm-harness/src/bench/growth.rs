// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Group `growth`: what a device costs by how much memory it has, and what several devices and
//! processes come to at once. Each size has a machine of its own, and so have the four devices.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use cdm_agent_protocol::{SUBJECT, Sample, Unit};

use super::guest;
use crate::build::Kernel;
use crate::context::Context;
use crate::progress::Task;
use crate::test::Session;
use crate::vm::{ByteSize, MemoryType, VmSpec, footprint};

/// Name of the group.
pub const NAME: &str = "growth";
/// What the program in the guest measures of it: the first in a machine for each size.
const PROBE: &str = "probe";
const SCALING: &str = "scaling";
/// Groups of that program which are parts of this one.
pub const PARTS: [&str; 2] = [PROBE, SCALING];

const GIB: u64 = 1 << 30;
/// Memory of the device.
const SIZES: [ByteSize; 5] = [
    ByteSize(GIB / 4),
    ByteSize(GIB),
    ByteSize(4 * GIB),
    ByteSize(16 * GIB),
    ByteSize(64 * GIB),
];
/// With the largest one, these machines alone would take longer than all of a quick run may.
const QUICK_SIZES: [ByteSize; 2] = [SIZES[1], SIZES[3]];
/// Room for the struct pages of the largest one, which the reference has in the guest's memory.
const MEMORY: ByteSize = ByteSize(2 * GIB);

/// Devices that move memory at once.
const DEVICES: u8 = 4;
const DEVICE_MEMORY: ByteSize = ByteSize(GIB / 4);
/// What is brought into the device before its backend is looked at.
const TOUCHED: ByteSize = ByteSize(64 << 20);

/// Who a figure of so many is compared with: the same of one, as often.
const LINEAR: &str = "linear";
const ONE: &str = "one";

/// What a round is measured with.
pub struct Growth<'a> {
    /// Repository and progress.
    pub ctx: &'a Context,
    /// What the machines boot.
    pub kernel: Kernel,
    /// A folder for their logs.
    pub logs: PathBuf,
    /// Whether fewer sizes will do.
    pub quick: bool,
}

impl Growth<'_> {
    /// Machines that a round takes.
    pub fn machines(&self) -> usize {
        self.sizes().len() + 1
    }

    fn sizes(&self) -> &'static [ByteSize] {
        match self.quick {
            true => &QUICK_SIZES,
            false => &SIZES,
        }
    }

    /// Measures a round; `arguments` are those of the program for a group.
    pub fn round(
        &self,
        round: u32,
        arguments: impl Fn(&str) -> Vec<String>,
        progress: &Task,
    ) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for size in self.sizes() {
            progress.set_detail(format!("{NAME}: round {}: a device of {size}", round + 1));
            let mut spec = self.spec();
            spec.memory = MEMORY;
            spec.device_memory = *size;
            spec.load_module = false;
            let mut session = self.session(spec, &format!("round{round}-{size}"));
            samples.extend(guest::measure(&mut session, &arguments(PROBE), progress)?);
            samples.extend(resident(&mut session, *size, round)?);
            session.judge_log()?;
            session.end()?;
            progress.advance();
        }
        let mut spec = self.spec();
        spec.devices = DEVICES;
        spec.device_memory = DEVICE_MEMORY;
        let mut session = self.session(spec, &format!("round{round}-devices"));
        samples.extend(guest::measure(&mut session, &arguments(SCALING), progress)?);
        session.judge_log()?;
        session.end()?;
        progress.advance();
        samples.extend(derived(&samples));
        Ok(samples)
    }

    fn spec(&self) -> VmSpec {
        let mut spec = VmSpec::new(self.kernel.clone());
        spec.memory_types = vec![MemoryType::Public];
        spec
    }

    fn session(&self, spec: VmSpec, name: &str) -> Session<'_> {
        Session::new(self.ctx, spec, self.logs.join(NAME).join(name))
    }
}

/// What the backend takes once memory was brought into its device, and how much of the device that
/// can account for: the struct pages, and that memory.
fn resident(session: &mut Session<'_>, size: ByteSize, round: u32) -> Result<Vec<Sample>> {
    session.text("insmod /lib/modules/cdm.ko memory_type=public")?;
    session.text(&format!("cdmctl run checksum --size {}", TOUCHED.0))?;
    let info: serde_json::Value = serde_json::from_str(&session.text("cdmctl info --json")?)?;
    let metadata = info["devices"][0]["bytes_metadata"]
        .as_u64()
        .context("'cdmctl info --json' tells no bytes_metadata")?;
    let backends = session.vm()?.backends();
    let pid = backends.first().context("there is no backend")?.pid();
    let resident = footprint::touched_bytes(pid)? + footprint::own_bytes(pid)?;
    let sample = |by: &str, bytes: u64| Sample {
        name: format!("{NAME}/resident/{size}iB"),
        by: by.to_owned(),
        unit: Unit::Mebibytes,
        round,
        value: bytes as f64 / f64::from(1 << 20),
    };
    Ok(vec![
        sample(SUBJECT, resident),
        sample("touched", metadata + TOUCHED.0),
    ])
}

/// What each size would cost if it went by that of 1 GiB, and what one device or process came to
/// in the same round, for all that are more.
fn derived(samples: &[Sample]) -> Vec<Sample> {
    let of_subject = || samples.iter().filter(|sample| sample.by == SUBJECT);
    let like = |sample: &Sample, last: &str| {
        let prefix = sample.name.rsplit_once('/')?.0;
        let wanted = format!("{prefix}/{last}");
        let is_it = |other: &&Sample| other.name == wanted && other.round == sample.round;
        of_subject().find(is_it).map(|other| other.value)
    };
    let reference = |sample: &Sample| {
        let (_, last) = sample.name.rsplit_once('/')?;
        let (by, value) = match (last.strip_suffix("GiB"), last.split_once('-')) {
            (Some(gibibytes), _) => {
                let times: f64 = gibibytes.parse().ok()?;
                (
                    LINEAR,
                    (times > 1.0).then_some(like(sample, "1GiB")? * times)?,
                )
            }
            (None, Some((count, what))) => {
                let value = like(sample, &format!("1-{what}"))?;
                (ONE, (count != "1").then_some(value)?)
            }
            (None, None) => return None,
        };
        Some(Sample {
            by: by.to_owned(),
            value,
            ..sample.clone()
        })
    };
    of_subject().filter_map(reference).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, by: &str, round: u32, value: f64) -> Sample {
        Sample {
            name: name.into(),
            by: by.into(),
            unit: Unit::Mebibytes,
            round,
            value,
        }
    }

    #[test]
    fn size_is_held_against_as_many_times_what_one_gibibyte_took_in_that_round() {
        let samples = [
            sample("growth/probe/256MiB", SUBJECT, 1, 9.0),
            sample("growth/probe/1GiB", SUBJECT, 0, 7.0),
            sample("growth/probe/1GiB", SUBJECT, 1, 2.0),
            sample("growth/probe/64GiB", SUBJECT, 1, 100.0),
            sample("growth/probe/64GiB", "memset", 1, 50.0),
            sample("growth/resident/64GiB", SUBJECT, 1, 1.0),
        ];
        assert_eq!(
            derived(&samples),
            [sample("growth/probe/64GiB", LINEAR, 1, 128.0)]
        );
    }

    #[test]
    fn many_are_held_against_one_of_that_round_and_that_way() {
        let samples = [
            sample("growth/processes/to-device/1-process", SUBJECT, 0, 5.0),
            sample("growth/processes/to-system/1-process", SUBJECT, 0, 6.0),
            sample("growth/processes/to-system/16-process", SUBJECT, 0, 12.0),
            sample("growth/processes/to-system/16-process", "memcpy", 0, 13.0),
        ];
        assert_eq!(
            derived(&samples),
            [sample("growth/processes/to-system/16-process", ONE, 0, 6.0)]
        );
    }

    #[test]
    fn quick_run_has_what_all_sizes_are_held_against_and_one_more() {
        let one = ByteSize(GIB);
        assert!(SIZES.contains(&one) && QUICK_SIZES.contains(&one));
        assert!(QUICK_SIZES.iter().any(|size| *size > one));
        assert!(QUICK_SIZES.iter().all(|size| SIZES.contains(size)));
    }
}
