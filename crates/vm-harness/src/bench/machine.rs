// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest of all benchmarks, in which everybody who is compared has a place.
//!
//! The kernel's test device is there beside the driver. That is against the rule of the kernel's
//! suite (docs/stress.md), and no harm here: the driver has no nodes of that suite then, and each
//! turn is of a process that has opened the one device alone.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::build::Kernel;
use crate::stress::hmm::device;
use crate::test::Session;
use crate::vm::{ByteSize, MemoryType, VmSpec};

/// Room for the largest memory that moves, for what fakes device memory in the guest's own, and
/// for the two copies that test_hmm makes of it.
pub const MEMORY: ByteSize = ByteSize(3 << 30);
/// Room for the largest memory that moves from node to node.
const SECOND_NODE: ByteSize = ByteSize(768 << 20);
/// Memory goes from one to the other, too.
const DEVICES: u8 = 2;
/// Room for the largest memory that moves, twice.
const DEVICE_MEMORY: ByteSize = ByteSize(1 << 30);

/// The machine.
pub fn spec(kernel: Kernel) -> Result<VmSpec> {
    let config = fs::read_to_string(&kernel.config)
        .with_context(|| format!("cannot read {}", kernel.config.display()))?;
    ensure!(
        config.lines().any(|line| line == "CONFIG_DEVICE_PUBLIC=y"),
        "the kernel '{}' has no MEMORY_DEVICE_PUBLIC, which is what is measured; use --kernel \
         public, or a tree with the series",
        kernel.choice
    );
    let mut spec = VmSpec::new(kernel);
    spec.memory = MEMORY;
    spec.second_node = Some(SECOND_NODE);
    spec.devices = DEVICES;
    spec.device_memory = DEVICE_MEMORY;
    spec.plain_memory = Some(device::UPSTREAM_MEMORY);
    spec.null_disk = true;
    spec.files = vec![device::upstream_file(&spec.kernel)?];
    spec.memory_types = vec![MemoryType::Public];
    Ok(spec)
}

/// Brings in whom the device is compared with.
pub fn prepare(session: &mut Session<'_>) -> Result<()> {
    device::load_upstream(MemoryType::Coherent, session)
        .context("test_hmm, which the device is compared with, cannot be loaded")
}
