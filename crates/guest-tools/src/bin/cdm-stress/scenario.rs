// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a scenario is: a name, a property that must hold, what it needs, what makes it count, and
//! what it does.

use std::path::Path;

use anyhow::Result;
use cdm_guest_tools::device::memory_type_name;
use cdm_guest_tools::uapi;
use serde::Serialize;

use crate::counts::{Count, Counts};
use crate::stage::Stage;

/// One scenario.
pub struct Scenario {
    /// `family::what_happens`.
    pub name: &'static str,
    /// What must hold, in one sentence.
    pub property: &'static str,
    /// What must be there for it to run at all.
    pub needs: Needs,
    /// Whether it takes away what others need, such as the module, so that it runs by itself only.
    pub alone: bool,
    /// Operations below which it does not end, however little time it was given.
    pub operations: u64,
    /// What there must be of it at least, or it has tested nothing.
    pub least: &'static [Least],
    /// What it does. It runs in a process and a control group of its own, and is over when the
    /// stage says so ([`Stage::round`]).
    pub body: fn(&Stage) -> Result<()>,
}

impl Scenario {
    /// Its family.
    pub fn family(&self) -> &'static str {
        self.name.split("::").next().unwrap_or(self.name)
    }
}

/// A number that does not depend on how fast the machine is.
#[derive(Clone, Copy, Debug)]
pub enum Least {
    /// So many for each thousand operations.
    PerThousand(Count, u64),
    /// So many in all: no more than what the least number of operations brings for certain.
    InAll(Count, u64),
}

impl Least {
    /// What is counted.
    pub fn count(self) -> Count {
        match self {
            Self::PerThousand(count, _) | Self::InAll(count, _) => count,
        }
    }

    /// The least number where there were so many operations.
    pub fn of(self, operations: u64) -> u64 {
        match self {
            Self::PerThousand(_, number) => operations * number / 1000,
            Self::InAll(_, number) => number,
        }
    }
}

/// What a scenario needs; where it is not there, the scenario is skipped and says so.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// What driver and kernel must be able to do (`CDM_CAN_*`).
    pub capabilities: u32,
    /// Devices, at least.
    pub devices: usize,
    /// Memory types of the devices, any of them; empty for all types.
    pub memory_types: &'static [u32],
    /// Files of the kernel's that must be there, such as /sys/kernel/mm/ksm/run.
    pub files: &'static [&'static str],
}

impl Needs {
    /// A device.
    pub const DEVICE: Self = Self {
        capabilities: 0,
        devices: 1,
        memory_types: &[],
        files: &[],
    };

    /// The first thing that is not there.
    pub fn unmet(&self, machine: &Machine) -> Option<String> {
        let missing = self.capabilities & !machine.capabilities;
        let name = CAPABILITIES.iter().find(|(bit, _)| missing & bit != 0);
        if missing != 0 {
            return Some(format!(
                "needs capability {}",
                name.map_or("unknown", |(_, name)| *name)
            ));
        }
        if machine.devices < self.devices {
            return Some(format!(
                "needs {} devices, there are {}",
                self.devices, machine.devices
            ));
        }
        if !self.memory_types.is_empty() && !self.memory_types.contains(&machine.memory_type) {
            let names: Vec<String> = self
                .memory_types
                .iter()
                .map(|number| memory_type_name(*number))
                .collect();
            return Some(format!("needs memory type {}", names.join(" or ")));
        }
        let file = self.files.iter().find(|file| !Path::new(file).exists());
        file.map(|file| format!("needs file {file}"))
    }
}

/// What the machine has that a scenario may need.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// What driver and kernel can do, all devices alike.
    pub capabilities: u32,
    /// Number of devices.
    pub devices: usize,
    /// Memory type of the devices.
    pub memory_type: u32,
}

/// Names of capabilities as skips name them.
const CAPABILITIES: &[(u32, &str)] = &[
    (uapi::CDM_CAN_MOVE_LARGE, "move_large"),
    (uapi::CDM_CAN_MOVE_FILES, "move_files"),
    (uapi::CDM_CAN_RELIEVE, "relieve"),
    (uapi::CDM_CAN_CPU_ACCESS, "cpu_access"),
    (uapi::CDM_CAN_BIND, "bind"),
    (uapi::CDM_CAN_BATCH, "batch"),
    (uapi::CDM_CAN_MOVE_HOT, "move_hot"),
    (uapi::CDM_CAN_RETURN_HOT, "return_hot"),
];

/// What the list tells of a scenario.
#[derive(Serialize)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// What must hold.
    pub property: &'static str,
    /// Devices that it needs.
    pub devices: usize,
    /// Whether it cannot run beside others.
    pub alone: bool,
}

impl From<&Scenario> for Listed {
    fn from(scenario: &Scenario) -> Self {
        Self {
            name: scenario.name,
            property: scenario.property,
            devices: scenario.needs.devices,
            alone: scenario.alone,
        }
    }
}

/// What is there too rarely: name, number, least number.
pub fn below_minimum(scenario: &Scenario, counts: &Counts) -> Vec<(&'static str, u64, u64)> {
    let operations = counts.get(Count::Operations);
    let own = [Least::InAll(Count::Operations, scenario.operations)];
    own.iter()
        .chain(scenario.least)
        .filter(|least| counts.can_be(least.count()))
        .map(|least| {
            let count = least.count();
            (count.name(), counts.get(count), least.of(operations))
        })
        .filter(|(_, found, least)| found < least)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        capabilities: uapi::CDM_CAN_MOVE_FILES,
        devices: 2,
        memory_type: uapi::CDM_MEMORY_PUBLIC,
    };

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Needs::DEVICE.unmet(&MACHINE), None);
        let cases = [
            (
                Needs {
                    capabilities: uapi::CDM_CAN_MOVE_FILES | uapi::CDM_CAN_BIND,
                    ..Needs::DEVICE
                },
                "capability bind",
            ),
            (
                Needs {
                    devices: 3,
                    ..Needs::DEVICE
                },
                "3 devices, there are 2",
            ),
            (
                Needs {
                    memory_types: &[uapi::CDM_MEMORY_PRIVATE],
                    ..Needs::DEVICE
                },
                "memory type private",
            ),
            (
                Needs {
                    files: &["/nonexistent"],
                    ..Needs::DEVICE
                },
                "file /nonexistent",
            ),
        ];
        for (needs, expected) in cases {
            let unmet = needs.unmet(&MACHINE).expect(expected);
            assert!(unmet.contains(expected), "{unmet}");
        }
    }

    #[test]
    fn minimum_goes_by_operations_and_not_by_time() {
        assert_eq!(Least::PerThousand(Count::Fork, 10).of(500), 5);
        assert_eq!(Least::InAll(Count::Fork, 10).of(500), 10);
    }

    #[test]
    fn scenario_that_did_too_little_is_found() {
        let scenario = Scenario {
            name: "family::name",
            property: "nothing",
            needs: Needs::DEVICE,
            alone: false,
            operations: 100,
            least: &[
                Least::PerThousand(Count::Fork, 10),
                Least::PerThousand(Count::FilePagesToDevice, 1000),
            ],
            body: |_| Ok(()),
        };
        let counts = Counts::new(0).unwrap();
        let below = |counts: &Counts| -> Vec<&str> {
            let below = below_minimum(&scenario, counts);
            below.into_iter().map(|(name, ..)| name).collect()
        };
        assert_eq!(below(&counts), ["operations"], "nothing was done");
        counts.add(Count::Operations, 200);
        assert_eq!(below(&counts), ["forks"], "files cannot move here");
        counts.add(Count::Fork, 2);
        assert!(below(&counts).is_empty());
        let with_files = Counts::new(uapi::CDM_CAN_MOVE_FILES).unwrap();
        with_files.add(Count::Operations, 200);
        with_files.add(Count::Fork, 2);
        assert_eq!(below(&with_files), ["file_pages_to_device"]);
    }
}
