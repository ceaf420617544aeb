// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who serves `/dev/hmm_dmirror0` and its siblings: this project's driver, or
//! upstream's module for a test of it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use super::super::Suite;
use super::PROGRAM;
use crate::build::{self, Kernel};
use crate::context::Context;
use crate::test::Session;
use crate::vm::{ByteSize, FileCopy, MemoryType, VmSpec};

/// Upstream's module: where kbuild leaves it, and where it is in the guest.
const MODULE: &str = "lib/test_hmm.ko";
const MODULE_IN_GUEST: &str = "/root/test_hmm.ko";

/// Its parameters for the memory of two coherent and, with the series, of two public devices.
const COHERENT_PARAMETERS: [&str; 2] = ["spm_addr_dev0", "spm_addr_dev1"];
const PUBLIC_PARAMETERS: [&str; 2] = ["spm_addr_dev2", "spm_addr_dev3"];

/// Memory of one coherent device of upstream's module (its DEVMEM_CHUNK_SIZE).
const CHUNK: u64 = 256 << 20;
/// What two of them need together.
const CHUNKS: u64 = 2;

/// Upstream's private devices take what they hold from the guest's own memory, and the largest
/// buffers of the suite are as large as a chunk.
const GUEST_MEMORY: ByteSize = ByteSize(3 << 30);

/// The devices of this project: 0 and 1 private, 2 and 3 of the type that is asked for. Each has
/// room for the largest buffers and what else a test has there.
const DEVICES: u8 = 4;
const DEVICE_MEMORY: ByteSize = ByteSize(512 << 20);

/// Types of memory to run a suite with: the one that is asked for, or all that there are.
pub fn memory_types(
    suite: Suite,
    kernel: &Kernel,
    wanted: Option<MemoryType>,
) -> Result<Vec<MemoryType>> {
    let config = fs::read_to_string(&kernel.config)
        .with_context(|| format!("cannot read {}", kernel.config.display()))?;
    let has_public = config.lines().any(|line| line == "CONFIG_DEVICE_PUBLIC=y");
    ensure!(
        has_public || wanted != Some(MemoryType::Public),
        "the kernel '{}' has no MEMORY_DEVICE_PUBLIC; use --memory-type coherent or private, or \
         leave the option away",
        kernel.choice
    );
    let offers_public = match suite {
        Suite::HmmTestsUpstream => has_public && module_offers_public(kernel)?,
        _ => has_public,
    };
    ensure!(
        offers_public || wanted != Some(MemoryType::Public),
        "lib/test_hmm.c of the kernel '{}' has no device with MEMORY_DEVICE_PUBLIC; use \
         --suite hmm-tests",
        kernel.choice
    );
    if let Some(one) = wanted {
        return Ok(vec![one]);
    }
    let mut types = vec![MemoryType::Private, MemoryType::Coherent];
    if offers_public {
        types.push(MemoryType::Public);
    }
    Ok(types)
}

/// Whether upstream's module, as the series changes it, can have public memory.
fn module_offers_public(kernel: &Kernel) -> Result<bool> {
    let path = module(kernel)?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parameter = PUBLIC_PARAMETERS[0].as_bytes();
    Ok(bytes.windows(parameter.len()).any(|part| part == parameter))
}

/// Upstream's module, as kbuild left it.
fn module(kernel: &Kernel) -> Result<PathBuf> {
    let path = kernel.objects.join(MODULE);
    ensure!(
        path.is_file(),
        "the kernel '{}' was built without {MODULE} (CONFIG_TEST_HMM=m)",
        kernel.choice
    );
    Ok(path)
}

/// How the suite's variants for a type of memory end. What it calls coherent is what the CPU can
/// map, and this project's devices 2 and 3 have whichever type of that is asked for; upstream's
/// module has further devices for public memory, and the suite variants for them.
pub fn variant_suffix(suite: Suite, memory_type: MemoryType) -> &'static str {
    match (suite, memory_type) {
        (_, MemoryType::Private) => "_private",
        (Suite::HmmTestsUpstream, MemoryType::Public) => "_public",
        (_, MemoryType::Coherent | MemoryType::Public) => "_coherent",
    }
}

/// Upstream's module, for a guest.
pub fn upstream_file(kernel: &Kernel) -> Result<FileCopy> {
    Ok(FileCopy {
        host: module(kernel)?,
        guest: MODULE_IN_GUEST.to_owned(),
    })
}

/// Plain memory that a machine needs for upstream's devices whose memory the CPU can map.
pub const UPSTREAM_MEMORY: ByteSize = ByteSize(CHUNKS * CHUNK);

/// What the guest needs besides its own programs.
pub fn files(ctx: &Context, suite: Suite, kernel: &Kernel) -> Result<Vec<FileCopy>> {
    let copy = |host, guest: &str| FileCopy {
        host,
        guest: guest.to_owned(),
    };
    let mut files = vec![copy(build::hmm_tests(ctx, kernel)?, PROGRAM)];
    if suite == Suite::HmmTestsUpstream {
        files.push(upstream_file(kernel)?);
    }
    Ok(files)
}

/// The machine for a suite.
pub fn shape(suite: Suite, memory_type: MemoryType, spec: &mut VmSpec) {
    spec.memory = GUEST_MEMORY;
    if suite == Suite::HmmTestsUpstream {
        spec.devices = 0;
        spec.load_module = false;
        spec.plain_memory = Some(UPSTREAM_MEMORY);
    } else {
        spec.devices = DEVICES;
        spec.device_memory = DEVICE_MEMORY;
        spec.module_params = vec!["dmirror=1".to_owned()];
        spec.memory_types = vec![
            MemoryType::Private,
            MemoryType::Private,
            memory_type,
            memory_type,
        ];
    }
}

/// Makes sure that the devices are there, and whose they are.
pub fn prepare(suite: Suite, memory_type: MemoryType, session: &mut Session<'_>) -> Result<()> {
    if suite == Suite::HmmTestsUpstream {
        load_upstream(memory_type, session)?;
    }
    let (served_by, other) = match suite {
        Suite::HmmTestsUpstream => ("test_hmm", "cdm"),
        _ => ("cdm", "test_hmm"),
    };
    let numbers = match (suite, memory_type) {
        (_, MemoryType::Private) => "0 1",
        // Upstream's module makes only those that it is given memory for.
        (Suite::HmmTestsUpstream, MemoryType::Public) => "4 5",
        _ => "2 3",
    };
    session
        .text(&format!(
            "[ -e /sys/module/{served_by} ] || {{ echo {served_by} is not loaded >&2; exit 1; }}; \
             [ ! -e /sys/module/{other} ] || {{ echo {other} is loaded >&2; exit 1; }}; \
             for n in {numbers}; do [ -c /dev/hmm_dmirror$n ] || \
             {{ echo there is no /dev/hmm_dmirror$n >&2; exit 1; }}; done"
        ))
        .context("the suite has no device to run on")?;
    Ok(())
}

/// Loads upstream's module, for memory that the CPU can map on the memory behind the plain BAR.
pub fn load_upstream(memory_type: MemoryType, session: &mut Session<'_>) -> Result<()> {
    let names = match memory_type {
        MemoryType::Private => None,
        MemoryType::Coherent => Some(COHERENT_PARAMETERS),
        MemoryType::Public => Some(PUBLIC_PARAMETERS),
    };
    let parameters = match names {
        None => String::new(),
        Some([first, second]) => {
            // The third line of `resource` is BAR 2, which holds the memory.
            let resource = session.text(
                "for d in /sys/bus/pci/devices/*; do \
                 if [ \"$(cat $d/vendor) $(cat $d/device)\" = '0x1af4 0x1110' ]; then \
                 echo 1 > $d/enable; sed -n 3p $d/resource; fi; done",
            )?;
            let start = bar_start(&resource, CHUNKS * CHUNK)?;
            format!("{first}={start:#x} {second}={:#x}", start + CHUNK)
        }
    };
    session.text(&format!("insmod {MODULE_IN_GUEST} {parameters}"))?;
    Ok(())
}

/// Where a BAR begins, by its line in `resource`: start, end and flags.
fn bar_start(line: &str, bytes: u64) -> Result<u64> {
    let numbers: Vec<u64> = line
        .split_whitespace()
        .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
        .collect();
    match numbers[..] {
        [start, end, _] if start > 0 && end.checked_sub(start) == Some(bytes - 1) => Ok(start),
        _ => bail!(
            "the plain BAR should hold {} bytes, and the guest says '{}'",
            bytes,
            line.trim()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_taken_only_where_it_holds_what_is_needed() {
        let line = "0x0000000380000000 0x000000039fffffff 0x000000000014220c\n";
        assert_eq!(bar_start(line, 512 << 20).expect("fits"), 0x3_8000_0000);
        assert!(bar_start(line, 256 << 20).is_err());
        for none in ["", "0x0 0x0 0x0"] {
            let error = bar_start(none, 512 << 20).expect_err("no BAR");
            assert!(error.to_string().contains("plain BAR"), "{error}");
        }
    }

    #[test]
    fn each_type_of_memory_has_its_variants() {
        for (suite, memory_type, suffix) in [
            (Suite::HmmTests, MemoryType::Private, "_private"),
            (Suite::HmmTests, MemoryType::Public, "_coherent"),
            (Suite::HmmTestsUpstream, MemoryType::Coherent, "_coherent"),
            (Suite::HmmTestsUpstream, MemoryType::Public, "_public"),
        ] {
            assert_eq!(variant_suffix(suite, memory_type), suffix);
        }
    }
}
