// SPDX-License-Identifier: GPL-2.0-only

//! first.ko: a first driver for coherent device memory. It binds to the device, hotplugs its
//! memory, and moves the page there whose address a process writes to `/dev/first`.

#[macro_use]
extern crate zerocopy_derive;

mod glue;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../crates/device-protocol/src/wire.rs"]
mod wire;

use glue::{Device, Driver, Memory, Move, Registration, Unclaimed};
use kernel::prelude::*;

module! {
    type: First,
    name: "first",
    authors: ["cdm maintainers"],
    description: "A first driver for coherent device memory",
    license: "GPL",
}

/// The module drives devices as long as it is loaded.
struct First(#[allow(dead_code)] Registration<Coherent>);

impl kernel::Module for First {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self(Registration::new(module, wire::VIRTIO_ID)?))
    }
}

/// A device that the driver is bound to. The memory goes first when it is dropped, and waits for
/// its pages; the device stops when nobody uses them any more.
struct Coherent {
    memory: Memory,
    #[allow(dead_code)]
    device: Device,
}

impl Driver for Coherent {
    /// The bus has found a device with the right number, which may be another one all the same.
    fn probe(found: Unclaimed) -> Result<Self> {
        let config: wire::Config = found.config();
        if config.magic != wire::MAGIC || config.version_major != wire::VERSION_MAJOR {
            return Err(ENODEV);
        }
        // From the answer to MAP_MEMORY on, the memory is in the machine.
        let device = found.start()?;
        device.ask(wire::ControlOpcode::MAP_MEMORY.get())?;
        let (base, bytes) = device.region()?;
        let memory = Memory::hotplug(base, bytes)?;
        pr_info!("{} MiB of device memory at {base:#x}\n", bytes >> 20);
        Ok(Self { memory, device })
    }

    /// Moves one page of the calling process into the device.
    fn migrate(&self, address: usize) -> Result {
        // Nobody can change the page from here on: it is locked, and mapped nowhere.
        let mut page = Move::collect(&self.memory, address).ok_or(EFAULT)?;
        page.copy(&self.memory)?;
        // Now the process has it again, in the device.
        page.finish().then_some(()).ok_or(EBUSY)
    }
}
