// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which scenarios may be skipped, and why. Any other skip is a failure: what does not run proves
//! nothing.

use anyhow::{Result, ensure};

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

/// Scenarios that a kernel does not survive: kernel, scenario, the patch of the series that mends
/// it, and what happens without. They run all the same where they are called
/// by name.
const WITHOUT: &[(KernelChoice, &str, &str, &str)] = &[
    (
        KernelChoice::Vanilla,
        "mixed::everything",
        CLEAR_FLAGS,
        UNLOCKED,
    ),
    (
        KernelChoice::Vanilla,
        "address_space::locked_pages_move_and_are_unlocked_in_the_end",
        CLEAR_FLAGS,
        UNLOCKED,
    ),
    (
        KernelChoice::Vanilla,
        "moves::against_evictions",
        LEAVE_ALONE,
        TWICE,
    ),
    (
        KernelChoice::Vanilla,
        "moves::into_full_devices",
        LEAVE_ALONE,
        TWICE,
    ),
    (
        KernelChoice::Vanilla,
        "pressure::merged_pages",
        NOT_MERGED,
        MERGED,
    ),
];

const CLEAR_FLAGS: &str = "mm-memremap-clear-stale-folio-flags-when-device-memo";
const UNLOCKED: &str = "pages that are unlocked in the device count as locked for good";
const LEAVE_ALONE: &str = "mm-migrate_device-leave-anonymous-folios-alone";
const TWICE: &str = "a page that two evict at a time moves twice now and then";
const NOT_MERGED: &str = "mm-migrate_device-leave-pages-alone-that-KSM-has-mer";
const MERGED: &str = "migrate_vma_setup() takes the page table entry of a page away that KSM has merged, and \
                      the kernel may not find it again; whoever touches the page faults for ever";

/// Why a scenario is not begun on a kernel, if it is not: `called` are those that were called by name.
pub fn not_begun(kernel: &KernelChoice, called: &[String], scenario: &str) -> Option<String> {
    if called.iter().any(|name| name == scenario) {
        return None;
    }
    WITHOUT
        .iter()
        .find(|(k, name, ..)| k == kernel && *name == scenario)
        .map(|(_, _, patch, why)| format!("{why} without {patch}"))
}

/// Refuses a table that speaks of scenarios that are not there.
pub fn check<'a>(scenarios: impl Iterator<Item = &'a str>) -> Result<()> {
    let names: Vec<&str> = scenarios.collect();
    for (_, scenario, ..) in WITHOUT {
        ensure!(
            names.contains(scenario),
            "the table of skips names '{scenario}', which is no scenario"
        );
    }
    Ok(())
}

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
    use std::fs;
    use std::path::Path;

    use super::super::order::Length;
    use super::*;

    #[test]
    fn scenario_that_a_kernel_does_not_survive_runs_only_when_it_is_called() {
        let (kernel, scenario, ..) = &WITHOUT[0];
        let begun = |kernel, called: &[String]| not_begun(kernel, called, scenario).is_none();
        assert!(!begun(kernel, &[]));
        assert!(!begun(kernel, &["other::one".to_owned()]));
        assert!(begun(&KernelChoice::Public, &[]));
        assert!(begun(kernel, &[(*scenario).to_owned()]));
    }

    #[test]
    fn table_that_names_a_scenario_that_is_gone_is_refused() {
        assert!(check(WITHOUT.iter().map(|(_, scenario, ..)| *scenario)).is_ok());
        assert!(check(std::iter::once("gone::since")).is_err());
    }

    #[test]
    fn patches_that_are_named_are_of_the_series() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/kernel/patches/series");
        let series = fs::read_to_string(path).expect("a series");
        for (_, scenario, patch, _) in WITHOUT {
            let is_there = series.lines().any(|line| line.contains(patch));
            assert!(is_there, "{scenario}: no patch '{patch}'");
        }
    }

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
