// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What it costs that the driver comes to a device: the time, most of which the kernel takes to make
//! its struct pages, and the guest's own memory that is gone then.
//!
//! The driver must not be loaded yet. It is taken out after each turn.

use std::ffi::CStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::Device;
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::{module, vmstat};

use crate::contest::{Contest, Setting, Turn};
use crate::sample::{Measured, SUBJECT, Unit};

/// What the kernel keeps of each page: `sizeof(struct page)`.
const STRUCT_PAGE_BYTES: usize = 64;
/// As much memory is set at once.
const SET_BYTES: usize = 4 << 20;
/// And at most so much in all.
const SET_MAX: usize = 64 << 20;
/// The type that is measured.
const IN_DEVICE: &CStr = c"memory_type=public";
/// The same, with the struct pages in the guest's own memory.
const IN_GUEST: &CStr = c"memory_type=public altmap=N";
/// How long nodes of the driver may be in use by whoever looks at new ones.
const UNLOAD_LIMIT: Duration = Duration::from_secs(20);

/// The contest of the group.
pub fn contests(_: &Setting) -> Vec<Contest> {
    let turn = |by, measure: fn() -> Result<Vec<Measured>>| Turn {
        by,
        measure: Box::new(measure),
    };
    vec![Contest {
        name: "probe".to_owned(),
        turns: vec![
            turn(SUBJECT, || load(SUBJECT, IN_DEVICE)),
            turn("without-altmap", || load("without-altmap", IN_GUEST)),
            turn("memset", memset),
        ],
    }]
}

/// Loads the driver, and takes it out again.
fn load(by: &'static str, parameters: &CStr) -> Result<Vec<Measured>> {
    let device_bytes = device_bytes()?;
    let before = vmstat::free_pages()?;
    let start = Instant::now();
    module::load(parameters)?;
    let took = start.elapsed();
    let after = vmstat::free_pages()?;
    let device = Device::open(0).context("there is no /dev/cdm0: did the driver fail to probe?")?;
    let found = device.query()?.bytes_total;
    // An open node would keep the driver in.
    drop(device);
    ensure!(
        found <= device_bytes && found >= device_bytes / 64 * 63,
        "the driver has {found} bytes of a device of {device_bytes}"
    );
    module::unload_for_good(UNLOAD_LIMIT)?;
    let spent = before.saturating_sub(after) * PAGE_BYTES as u64;
    Ok(vec![
        time(by, device_bytes, took),
        Measured {
            name: name(device_bytes, "guest-memory"),
            by,
            unit: Unit::Mebibytes,
            value: spent as f64 / f64::from(1 << 20),
        },
    ])
}

/// Sets as many bytes as the struct pages have, in memory of the guest that is there already: for
/// a large device the time for some of them stands for that for all.
fn memset() -> Result<Vec<Measured>> {
    let device_bytes = device_bytes()?;
    let bytes = device_bytes as usize / PAGE_BYTES * STRUCT_PAGE_BYTES;
    let some = bytes.min(SET_MAX);
    let memory = Mapping::anonymous(SET_BYTES)?;
    memory.fill(1);
    let start = Instant::now();
    for at in (0..some).step_by(SET_BYTES) {
        // SAFETY: the memory is mapped and at least as long, and nobody has a reference to it.
        unsafe {
            libc::memset(
                memory.address() as *mut libc::c_void,
                (at / SET_BYTES) as i32 & 0xff,
                SET_BYTES.min(some - at),
            );
        }
    }
    let all = start.elapsed().mul_f64(bytes as f64 / some as f64);
    Ok(vec![time("memset", device_bytes, all)])
}

fn time(by: &'static str, device_bytes: u64, took: Duration) -> Measured {
    Measured {
        name: name(device_bytes, "probe"),
        by,
        unit: Unit::Milliseconds,
        value: took.as_secs_f64() * 1e3,
    }
}

/// The name of a figure of a device that has so much memory.
fn name(device_bytes: u64, what: &str) -> String {
    match device_bytes >> 30 {
        0 => format!("growth/{what}/{}MiB", device_bytes >> 20),
        gibibytes => format!("growth/{what}/{gibibytes}GiB"),
    }
}

/// Where the kernel lists what is on the PCI bus.
const PCI: &str = "/sys/bus/pci/devices";
/// Vendor and device of the function, as its files have them: 0x1040 and the virtio ID.
const VENDOR: &str = "0x1af4";
const FUNCTION: u32 = 0x1040 + cdm_protocol::VIRTIO_ID;
/// The BAR that is the device memory.
const BAR: usize = 4;

/// How much memory the device has that is on the bus: the length of its BAR.
fn device_bytes() -> Result<u64> {
    for entry in fs::read_dir(PCI).with_context(|| format!("cannot list {PCI}"))? {
        let folder = entry?.path();
        if is_device(&folder)? {
            let resource = folder.join("resource");
            let text = fs::read_to_string(&resource)?;
            return bar_bytes(&text, BAR)
                .with_context(|| format!("{} has no BAR {BAR}", resource.display()));
        }
    }
    bail!("no device on the bus has the ID {FUNCTION:#x}: was the guest given one?")
}

fn is_device(folder: &Path) -> Result<bool> {
    let read = |name| fs::read_to_string(folder.join(name));
    let is_it = read("vendor")?.trim() == VENDOR;
    Ok(is_it && read("device")?.trim() == format!("{FUNCTION:#06x}"))
}

/// The length of a BAR, by what `resource` says: a line of start, end and flags for each.
fn bar_bytes(resource: &str, bar: usize) -> Option<u64> {
    let mut words = resource.lines().nth(bar)?.split_whitespace();
    let mut number = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (start, end) = (number()?, number()?);
    (end > start).then(|| end - start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_device_is_as_long_as_its_bar() {
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let bar = "0x000000fe80000000 0x000000febfffffff 0x000000000014220c\n";
        let text = none.repeat(4) + bar;
        assert_eq!(bar_bytes(&text, 4), Some(1 << 30));
        assert_eq!(bar_bytes(&text, 3), None);
        assert_eq!(bar_bytes(&text, 5), None);
    }

    #[test]
    fn figures_have_the_size_in_the_unit_that_people_use() {
        assert_eq!(name(256 << 20, "probe"), "growth/probe/256MiB");
        assert_eq!(name(64 << 30, "guest-memory"), "growth/guest-memory/64GiB");
    }
}
