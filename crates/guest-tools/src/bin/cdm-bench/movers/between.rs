// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From one device of this driver to another: memory is in the first one before and after.

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::range::AddressRange;

use super::{Mover, Task, cdm};
use crate::memory::{self, PageSize};

/// Two devices.
pub struct Between {
    devices: [Device; 2],
    whole: AddressRange,
    parts: Vec<AddressRange>,
    pages: PageSize,
}

impl Between {
    /// Takes the first two devices, and has the memory in the first one.
    pub fn new(task: &Task<'_>) -> Result<Self> {
        let open = |number: u32| {
            let device = Device::open(number);
            device.with_context(|| format!("cannot open /dev/cdm{number}: are there two devices?"))
        };
        let between = Self {
            devices: [open(0)?, open(1)?],
            whole: task.memory.range(),
            parts: memory::parts(task.memory, task.threads),
            pages: task.pages,
        };
        for part in 0..task.threads {
            between.back(part)?;
        }
        Ok(between)
    }

    fn migrate(&self, part: usize, device: usize) -> Result<()> {
        let range = self.parts[part];
        let done = self.devices[device].migrate(0, range, Direction::ToDevice)?;
        cdm::judge(&done, range.pages(), self.pages)
    }

    fn expect_in(&self, device: usize) -> Result<()> {
        let found = self.devices[device].residency(0, self.whole)?;
        cdm::expect_all_here(&found, self.whole.pages(), self.pages)
    }
}

impl Mover for Between {
    fn there(&self, part: usize) -> Result<()> {
        self.migrate(part, 1)
    }

    fn back(&self, part: usize) -> Result<()> {
        self.migrate(part, 0)
    }

    fn expect_there(&self) -> Result<()> {
        self.expect_in(1)
    }

    fn expect_back(&self, memory: &Mapping, _pages: PageSize) -> Result<()> {
        ensure!(memory.range() == self.whole, "it moved other memory");
        self.expect_in(0)
    }
}
