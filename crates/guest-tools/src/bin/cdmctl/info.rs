// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl info`.

use anyhow::Context;
use cdm_guest_tools::device::Device;
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::size::Size;

use crate::report::{self, Copied, DeviceInfo, HotPages, Info};
use crate::table::{self, figures, words};
use crate::{Verdict, figure, open, query};

const EXAMPLES: &str = "\
Examples:
  cdmctl info
  cdmctl info --json

The JSON document is described in docs/reference/cdmctl.md.";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let numbers = Device::numbers().context("cannot list /dev: is it mounted?")?;
    let mut devices = Vec::new();
    for number in numbers {
        let query = query(&open(number)?)?;
        devices.push(DeviceInfo::new(&query, hot_pages(number), copied(number)));
    }
    if args.json {
        report::print(&Info {
            version: report::VERSION,
            devices,
        })?;
    } else {
        print!("{}", table(&devices));
    }
    Ok(Verdict::Done)
}

/// What moved by itself; nothing of a driver that moves nothing by itself.
fn hot_pages(number: u32) -> HotPages {
    HotPages {
        to_device: attribute(number, "pages_hot_to_device"),
        to_system: attribute(number, "pages_hot_to_system"),
    }
}

/// Who copied; nothing of a driver that does not tell.
fn copied(number: u32) -> Copied {
    Copied {
        by_cpu: attribute(number, "bytes_copied_by_cpu"),
        by_engine: attribute(number, "bytes_copied_by_engine"),
    }
}

/// A figure of the driver, or zero if it has none of that name.
fn attribute(number: u32, name: &str) -> u64 {
    figure(&format!("/sys/class/misc/cdm{number}/{name}")).unwrap_or_default()
}

/// The tables for people: one row a device, then what there is to know of each.
fn table(devices: &[DeviceInfo]) -> String {
    if devices.is_empty() {
        return "no device: is the module loaded? try 'modprobe cdm', then 'dmesg'\n".into();
    }
    let columns = [
        words("DEVICE"),
        words("MEMORY"),
        words("BASE"),
        figures("TOTAL"),
        figures("FREE"),
        figures("METADATA"),
        figures("NODE"),
        figures("TO DEVICE"),
        figures("TO SYSTEM"),
    ];
    let rows: Vec<_> = devices.iter().map(row).collect();
    let facts: Vec<_> = devices.iter().flat_map(facts).collect();
    table::text(&columns, &rows)
        + "\n"
        + &table::text(&["DEVICE", "FACT", "VALUE"].map(words), &facts)
}

fn row(device: &DeviceInfo) -> Vec<String> {
    let node = match device.numa_node {
        -1 => "none".into(),
        node => node.to_string(),
    };
    vec![
        device.device.to_string(),
        device.memory_type.clone(),
        device.base.clone(),
        Size(device.bytes_total).to_string(),
        Size(device.bytes_free).to_string(),
        Size(device.bytes_metadata).to_string(),
        node,
        pages(device.pages_to_device),
        pages(device.pages_to_system),
    ]
}

/// What does not fit beside the others; lists stand at the end of a line.
fn facts(device: &DeviceInfo) -> impl Iterator<Item = Vec<String>> {
    let (link, agents) = (&device.link, &device.agents);
    let facts = [
        ("hot to device", pages(device.pages_hot_to_device)),
        ("hot to system", pages(device.pages_hot_to_system)),
        (
            "copied by CPUs",
            Size(device.bytes_copied_by_cpu).to_string(),
        ),
        (
            "copied by engines",
            Size(device.bytes_copied_by_engine).to_string(),
        ),
        ("can", device.capabilities.join(", ")),
        ("protocol", device.protocol.clone()),
        ("features", device.features.join(", ")),
        ("pools", device.pools.to_string()),
        ("command queues", device.command_queues.to_string()),
        (
            "link",
            format!("x{} at {} MT/s", link.width_lanes, link.speed_mts),
        ),
        ("home agents", agents.home.to_string()),
        ("request agents", agents.request.to_string()),
        ("slave agents", agents.slave.to_string()),
    ];
    let number = device.device.to_string();
    facts
        .into_iter()
        .map(move |(fact, value)| vec![number.clone(), fact.to_owned(), value])
}

/// Pages that moved, as the memory that they are.
fn pages(pages: u64) -> String {
    Size(pages * PAGE_BYTES as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_guest_tools::uapi;
    use cdm_protocol::FEATURE_ATOMICS;

    #[test]
    fn columns_stay_aligned_whatever_the_values() {
        let small = uapi::cdm_query {
            memory_type: uapi::CDM_MEMORY_PUBLIC,
            ..Default::default()
        };
        let large = uapi::cdm_query {
            memory_type: uapi::CDM_MEMORY_COHERENT,
            base: 0x38_0000_0000,
            bytes_total: (64 << 30) - (1 << 30),
            bytes_free: (63 << 30) - 4096,
            numa_node: -1,
            device: 3,
            pages_to_device: 12_345_678,
            ..Default::default()
        };
        let devices = [
            DeviceInfo::new(&small, HotPages::default(), Copied::default()),
            DeviceInfo::new(&large, HotPages::default(), Copied::default()),
        ];
        let text = table(&devices);
        let widths: Vec<usize> = text.lines().take(3).map(str::len).collect();
        assert_eq!(widths[0], widths[1], "{text}");
        assert_eq!(widths[1], widths[2], "{text}");
        assert!(text.contains("63 GiB"), "{text}");
        assert!(text.contains("47.1 GiB"), "{text}");
    }

    #[test]
    fn each_fact_of_each_device_has_a_line_that_names_the_device() {
        let query = uapi::cdm_query {
            device: 3,
            device_features: FEATURE_ATOMICS,
            num_command_queues: 2,
            ..Default::default()
        };
        let hot = HotPages {
            to_device: 512,
            to_system: 0,
        };
        let copied = Copied {
            by_cpu: 4096,
            by_engine: 2 << 20,
        };
        let text = table(&[DeviceInfo::new(&query, hot, copied)]);
        for line in [
            "3       features           atomics",
            "3       command queues     2",
            "3       hot to device      2 MiB",
            "3       hot to system      0 B",
            "3       copied by CPUs     4 KiB",
            "3       copied by engines  2 MiB",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}: {text}");
        }
    }

    #[test]
    fn no_device_says_what_to_try() {
        assert!(table(&[]).contains("modprobe cdm"));
    }
}
