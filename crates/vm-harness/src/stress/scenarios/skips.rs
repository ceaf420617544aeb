// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which scenarios may be skipped, and why. Any other skip is a failure: what does not run proves
//! nothing.

use super::order::{Order, Room};
use crate::build::KernelChoice;
use crate::vm::MemoryType;

/// What a kernel or a type of memory lacks, as the guest names it, and the reason.
const LACKING: &[(Option<KernelChoice>, Option<MemoryType>, &str, &str)] = &[
    (
        Some(KernelChoice::Vanilla),
        None,
        "needs capability move_files",
        "page cache moves to MEMORY_DEVICE_PUBLIC only",
    ),
    (
        Some(KernelChoice::Vanilla),
        None,
        "needs capability move_large",
        "memory of 2 MiB folios that the CPU maps moves whole with the series only",
    ),
    (
        Some(KernelChoice::Vanilla),
        None,
        "needs capability relieve",
        "the kernel asks the driver to bring pages back with the series only",
    ),
    (
        Some(KernelChoice::Vanilla),
        None,
        "needs capability return_hot",
        "the kernel tells what the CPUs use with the series only",
    ),
    (
        None,
        Some(MemoryType::Coherent),
        "needs capability move_files",
        "page cache moves to MEMORY_DEVICE_PUBLIC only",
    ),
    (
        None,
        Some(MemoryType::Private),
        "needs capability ",
        "private memory cannot be mapped by the CPU",
    ),
];

/// What follows from how the run was asked for.
const ASKED: &[(&str, &str)] = &[
    ("needs memory type ", "the run asks for another type"),
    (
        "runs by itself only",
        "the run asks for something beside it",
    ),
];

/// Why a scenario may be skipped that gives this reason.
pub fn declared(kernel: &KernelChoice, order: &Order, reason: &str) -> Option<String> {
    let lacking = LACKING.iter().find(|(k, memory_type, needs, _)| {
        k.as_ref().is_none_or(|k| k == kernel)
            && memory_type.is_none_or(|memory_type| order.memory_type == Some(memory_type))
            && reason.starts_with(needs)
    });
    if let Some((_, _, _, why)) = lacking {
        return Some((*why).to_owned());
    }
    let there_are = format!("devices, there are {}", order.devices);
    if reason.ends_with(&there_are) {
        return Some("the run asks for fewer devices".to_owned());
    }
    let asked = ASKED.iter().find(|(start, _)| reason.starts_with(start));
    let is_asked = match asked {
        Some(("runs by itself only", _)) => order.all_at_once || order.room == Room::Scarce,
        Some(_) => order.memory_type.is_some(),
        None => false,
    };
    asked.filter(|_| is_asked).map(|(_, why)| (*why).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::order::Length;
    use super::*;

    fn order(devices: u8, all_at_once: bool, memory_type: Option<MemoryType>) -> Order {
        Order {
            names: Vec::new(),
            seed: 1,
            length: Length::Seconds(1),
            devices,
            memory_type,
            room: Room::Plenty,
            shard: None,
            all_at_once,
        }
    }

    #[test]
    fn skip_is_declared_only_where_it_must_be() {
        let public = &KernelChoice::Public;
        let vanilla = &KernelChoice::Vanilla;
        let files = "needs capability move_files";
        let plain = order(2, false, None);
        assert!(declared(vanilla, &plain, files).is_some());
        assert!(declared(public, &plain, files).is_none());
        let coherent = order(2, false, Some(MemoryType::Coherent));
        assert!(declared(public, &coherent, files).is_some());
        let devices = "needs 3 devices, there are 2";
        assert!(declared(public, &plain, devices).is_some());
        // There should have been three.
        assert!(declared(public, &order(3, false, None), devices).is_none());
        let alone = "runs by itself only";
        assert!(declared(public, &plain, alone).is_none());
        assert!(declared(public, &order(2, true, None), alone).is_some());
        let scarce = Order {
            room: Room::Scarce,
            ..order(2, false, None)
        };
        assert!(declared(public, &scarce, alone).is_some());
        let memory = "needs memory type private";
        assert!(declared(public, &plain, memory).is_none());
        assert!(declared(public, &coherent, memory).is_some());
        assert!(declared(vanilla, &plain, "needs file /proc/swaps").is_none());
    }
}
