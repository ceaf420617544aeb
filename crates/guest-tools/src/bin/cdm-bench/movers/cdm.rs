// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The subject: this project's driver, by its own ioctl.

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Migration, Residency};
use cdm_guest_tools::range::AddressRange;

use super::{Mover, Task};
use crate::memory::{self, PageSize};

/// The driver.
pub struct Cdm {
    device: Device,
    whole: AddressRange,
    parts: Vec<AddressRange>,
    pages: PageSize,
}

impl Cdm {
    /// Takes the device `number`.
    pub fn new(task: &Task<'_>, number: u32) -> Result<Self> {
        let device = Device::open(number)
            .with_context(|| format!("cannot open /dev/cdm{number}: is the driver loaded?"))?;
        Ok(Self {
            device,
            whole: task.memory.range(),
            parts: memory::parts(task.memory, task.threads),
            pages: task.pages,
        })
    }

    fn migrate(&self, part: usize, direction: Direction) -> Result<()> {
        let range = self.parts[part];
        let done = self.device.migrate(0, range, direction)?;
        judge(&done, range.pages(), self.pages)
    }
}

/// Fails unless each page moved, and as part of a folio of the size that is measured.
pub fn judge(done: &Migration, pages: u64, size: PageSize) -> Result<()> {
    let large = match size {
        PageSize::Small => 0,
        PageSize::Huge => pages,
    };
    ensure!(
        done.moved == pages && done.large == large,
        "{pages} pages should have moved, {large} of them in 2 MiB folios: {done:?}"
    );
    Ok(())
}

impl Mover for Cdm {
    fn there(&self, part: usize) -> Result<()> {
        self.migrate(part, Direction::ToDevice)
    }

    fn back(&self, part: usize) -> Result<()> {
        self.migrate(part, Direction::ToSystem)
    }

    fn expect_there(&self) -> Result<()> {
        let found = self.device.residency(0, self.whole)?;
        expect_all_here(&found, self.whole.pages(), self.pages)
    }
}

/// Fails unless all pages are in the device that was asked, in folios of this size.
pub fn expect_all_here(found: &Residency, pages: u64, size: PageSize) -> Result<()> {
    let large = match size {
        PageSize::Small => 0,
        PageSize::Huge => pages,
    };
    ensure!(
        found.this_device == pages && found.large == large,
        "{pages} pages should be in the device, {large} of them in 2 MiB folios: {found:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migration_of_less_or_of_other_folios_is_no_measurement() {
        let done = |moved, large| Migration {
            asked: 512,
            moved,
            large,
            ..Migration::default()
        };
        assert!(judge(&done(512, 0), 512, PageSize::Small).is_ok());
        assert!(judge(&done(512, 512), 512, PageSize::Huge).is_ok());
        assert!(judge(&done(511, 0), 512, PageSize::Small).is_err());
        assert!(judge(&done(512, 0), 512, PageSize::Huge).is_err());
        assert!(judge(&done(512, 512), 512, PageSize::Small).is_err());
    }

    #[test]
    fn memory_that_is_not_all_in_the_device_is_no_measurement() {
        let found = |this_device, large| Residency {
            this_device,
            large,
            ..Residency::default()
        };
        assert!(expect_all_here(&found(512, 512), 512, PageSize::Huge).is_ok());
        assert!(expect_all_here(&found(512, 0), 512, PageSize::Huge).is_err());
        assert!(expect_all_here(&found(511, 0), 512, PageSize::Small).is_err());
        assert!(expect_all_here(&found(512, 0), 512, PageSize::Small).is_ok());
    }
}
