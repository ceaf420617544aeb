// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl info`.

use std::fmt::Write;
use std::fs;

use anyhow::Context;
use cdm_guest_tools::device::Device;
use cdm_guest_tools::size::Size;

use crate::report::{self, DeviceInfo, HotPages, Info};
use crate::{Verdict, open};

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
        let query = open(number)?.query().with_context(|| {
            format!("device {number} does not answer: see 'dmesg' for what the driver says")
        })?;
        devices.push(DeviceInfo::new(&query, hot_pages(number)));
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
    let figure = |name: &str| {
        let text = fs::read_to_string(format!("/sys/class/misc/cdm{number}/{name}"));
        text.ok().and_then(|text| text.trim().parse().ok())
    };
    HotPages {
        to_device: figure("pages_hot_to_device").unwrap_or_default(),
        to_system: figure("pages_hot_to_system").unwrap_or_default(),
    }
}

/// The table for people: one row a device, then the topology of each.
fn table(devices: &[DeviceInfo]) -> String {
    if devices.is_empty() {
        return "no device: is the module loaded? try 'modprobe cdm', then 'dmesg'\n".into();
    }
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<7} {:<9} {:<16} {:>10} {:>10} {:>10} {:>5} {:>11} {:>11}",
        "DEVICE", "MEMORY", "BASE", "TOTAL", "FREE", "METADATA", "NODE", "TO DEVICE", "TO SYSTEM"
    );
    for device in devices {
        let node = match device.numa_node {
            -1 => "none".into(),
            node => node.to_string(),
        };
        let _ = writeln!(
            text,
            "{:<7} {:<9} {:<16} {:>10} {:>10} {:>10} {node:>5} {:>11} {:>11}",
            device.device,
            device.memory_type,
            device.base,
            Size(device.bytes_total),
            Size(device.bytes_free),
            Size(device.bytes_metadata),
            device.pages_to_device,
            device.pages_to_system,
        );
    }
    for device in devices {
        let _ = writeln!(
            text,
            "device {}: hot pages: {} to device, {} to system; can {}; protocol {}, {}; {} pool(s), {} command queue(s); link x{} at {} MT/s; \
             agents: {} home, {} request, {} slave",
            device.device,
            device.pages_hot_to_device,
            device.pages_hot_to_system,
            device.capabilities.join(", "),
            device.protocol,
            device.features.join(", "),
            device.pools,
            device.command_queues,
            device.link.width_lanes,
            device.link.speed_mts,
            device.agents.home,
            device.agents.request,
            device.agents.slave,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_guest_tools::uapi;

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
            DeviceInfo::new(&small, HotPages::default()),
            DeviceInfo::new(&large, HotPages::default()),
        ];
        let text = table(&devices);
        let widths: Vec<usize> = text.lines().take(3).map(str::len).collect();
        assert_eq!(widths[0], widths[1], "{text}");
        assert_eq!(widths[1], widths[2], "{text}");
        assert!(text.contains("63 GiB"), "{text}");
    }

    #[test]
    fn no_device_says_what_to_try() {
        assert!(table(&[]).contains("modprobe cdm"));
    }
}
