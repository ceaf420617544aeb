// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of a device: RESET, and a driver that is taken from it and comes again, while processes
//! use it. Unplug and plug, reboots, and a device that serves guest after guest are done from
//! outside: `crates/vm-harness/src/stress`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::Device;
use cdm_guest_tools::module::{self, Binding};
use cdm_guest_tools::wait::wait_until;

use crate::counts::Count;
use crate::director::{DIRECTOR, direct};
use crate::patience::HANGS;
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;
use crate::survivor::{Allowed, Survivor};

/// Processes that use the devices meanwhile.
const WORKERS: usize = 3;
/// Commands that they carry out between two events.
const COMMANDS: u64 = 25;

/// Scenarios of this family.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "life::reset_under_load",
        property: "A RESET ends each command with success or EIO, done, not done or done in part, \
                   and changes nothing else in any memory.",
        needs: Needs::DEVICE,
        alone: true,
        operations: 30,
        least: &[
            Least::PerThousand(Count::Reset, 1000),
            Least::PerThousand(Count::CommandsDone, 20_000),
            Least::PerThousand(Count::Verified, 50_000),
            Least::InAll(Count::PagesToDevice, 1000),
            Least::InAll(Count::DeviceStore, 100),
        ],
        body: reset_under_load,
    },
    Scenario {
        name: "life::unbind_and_bind_under_load",
        property: "Memory that is in a device comes home whole when the driver is taken from it, \
                   commands end with success or an error, and the device serves again afterwards.",
        needs: Needs::DEVICE,
        alone: true,
        operations: 10,
        least: &[
            Least::PerThousand(Count::Rebind, 1000),
            Least::PerThousand(Count::CommandsDone, 20_000),
            Least::PerThousand(Count::Verified, 50_000),
            Least::InAll(Count::PagesToDevice, 500),
        ],
        body: unbind_and_bind_under_load,
    },
    Scenario {
        name: "life::unload_and_load_under_load",
        property: "The module goes as soon as no node is open, brings home what all processes have \
                   in all devices, and serves them when it is loaded again.",
        needs: Needs::DEVICE,
        alone: true,
        operations: 8,
        least: &[
            Least::PerThousand(Count::Reload, 1000),
            Least::PerThousand(Count::CommandsDone, 20_000),
            Least::PerThousand(Count::Verified, 50_000),
            Least::InAll(Count::PagesToDevice, 500),
            Least::InAll(Count::Absence, 5),
        ],
        body: unload_and_load_under_load,
    },
];

/// Rounds that a scenario of which the host does a part has at least.
pub const DRIVEN_ROUNDS: u64 = 100;

/// Scenarios of which the host does a part, and which therefore run for it alone.
pub const DRIVEN: &[Scenario] = &[
    Scenario {
        name: "life::unplug_and_plug_under_load",
        property: "A device that is unplugged gives everybody his memory back as it was, and another \
                   one in its place serves.",
        needs: Needs::DEVICE,
        alone: true,
        operations: DRIVEN_ROUNDS,
        least: DRIVEN_LEAST,
        body: |stage| work(stage, ABSENCE),
    },
    Scenario {
        name: "life::reboot_under_load",
        property: "A guest that reboots while its devices work finds them as if they were new.",
        needs: Needs::DEVICE,
        alone: true,
        operations: DRIVEN_ROUNDS,
        least: DRIVEN_LEAST,
        body: |stage| work(stage, Allowed::NOTHING),
    },
    Scenario {
        name: "life::guest_after_guest",
        property: "A device whose process has served other guests serves the next as if it were new.",
        needs: Needs::DEVICE,
        alone: true,
        operations: DRIVEN_ROUNDS,
        least: DRIVEN_LEAST,
        body: |stage| work(stage, Allowed::NOTHING),
    },
];

/// What each of them does at least, whatever the host does meanwhile.
pub const DRIVEN_LEAST: &[Least] = &[
    Least::InAll(Count::CommandsDone, 30),
    Least::InAll(Count::PagesToDevice, 200),
    Least::PerThousand(Count::Verified, 5000),
];

/// What may happen where devices go and come.
const ABSENCE: Allowed = Allowed {
    absence: true,
    // Commands that are under way end with a RESET, too.
    errors: true,
    ..Allowed::NOTHING
};

/// Made by the host when it has done its part.
const END_FILE: &str = "/tmp/cdm-stress.end";

/// Processes that use the devices until the host says that it is enough; their rounds are the
/// operations of the scenario.
pub fn work(stage: &Stage, allowed: Allowed) -> Result<()> {
    stage.processes(WORKERS, |index| {
        let mut survivor = Survivor::new(stage.random(index), stage.counts(), allowed)?;
        let is_enough = || {
            stage.counts().get(Count::Operations) >= DRIVEN_ROUNDS && Path::new(END_FILE).exists()
        };
        while !is_enough() && stage.round() {
            survivor.round()?;
        }
        survivor.verify_all()
    })
}

fn reset_under_load(stage: &Stage) -> Result<()> {
    let devices = stage.devices()?;
    let mut random = stage.random(DIRECTOR);
    let allowed = Allowed {
        errors: true,
        ..Allowed::NOTHING
    };
    direct(stage, WORKERS, COMMANDS, allowed, || {
        let device = &devices[random.below(devices.len())];
        device.reset().context("cannot reset")?;
        stage.add(Count::Reset, 1);
        Ok(())
    })
}

/// Waits until all of these devices have their nodes.
fn await_nodes(numbers: &[u32]) -> Result<()> {
    wait_until(HANGS, "not all devices are back", || {
        Ok(Device::numbers()? == numbers)
    })
}

fn unbind_and_bind_under_load(stage: &Stage) -> Result<()> {
    let numbers = Device::numbers()?;
    let mut random = stage.random(DIRECTOR);
    direct(stage, WORKERS, COMMANDS, ABSENCE, || {
        let number = numbers[random.below(numbers.len())];
        let binding = Binding::of(number)?;
        binding.unbind()?;
        let gone = Device::numbers()?;
        let closed = module::wait_until_dead_nodes_are_closed(HANGS);
        binding.bind()?;
        closed?;
        ensure!(
            !gone.contains(&number),
            "device {number} has a node and no driver"
        );
        stage.add(Count::Rebind, 1);
        await_nodes(&numbers)
    })
}

fn unload_and_load_under_load(stage: &Stage) -> Result<()> {
    let numbers = Device::numbers()?;
    let allowed = Allowed {
        unload: true,
        ..ABSENCE
    };
    direct(stage, WORKERS, COMMANDS, allowed, || {
        let unloaded = module::unload_between_users(HANGS)?;
        let left = Device::numbers()?;
        unloaded.reload()?;
        ensure!(left.is_empty(), "nodes without a module: {left:?}");
        stage.add(Count::Reload, 1);
        await_nodes(&numbers)
    })
}
