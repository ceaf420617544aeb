// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What must be the same before a test and after it, whatever it did.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::device::Device;
use crate::memory::{HUGE_PAGE_BYTES, PAGE_BYTES};
use crate::vmstat;
use crate::wait::wait_until_nothing;

/// How long the kernel may take to give freed device pages back.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// The state of the kernel's page counts and of every device.
pub struct Snapshot {
    devices: Vec<DeviceState>,
    vm: vmstat::Snapshot,
}

/// What of a device comes back to what it was.
struct DeviceState {
    number: u32,
    free_pages: u64,
    /// Processes whose addresses the device uses, and with them all that it translates.
    address_spaces: u64,
    /// Pages that are never to be used again.
    failed_pages: u64,
}

impl DeviceState {
    fn failed_since(&self, device: &Device) -> Result<u64> {
        let now = device.query()?.pages_poisoned;
        now.checked_sub(self.failed_pages).with_context(|| {
            let before = self.failed_pages;
            format!(
                "{before} pages of device {} had failed, now {now}",
                self.number
            )
        })
    }
}

impl Snapshot {
    /// Reads it all.
    pub fn take() -> Result<Self> {
        let mut devices = Vec::new();
        for number in Device::numbers()? {
            let device =
                Device::open(number).with_context(|| format!("cannot open device {number}"))?;
            devices.push(DeviceState {
                number,
                free_pages: free_pages(&device)?,
                address_spaces: figure(&device, "address_spaces")?,
                failed_pages: device.query()?.pages_poisoned,
            });
        }
        Ok(Self {
            devices,
            vm: vmstat::Snapshot::take()?,
        })
    }

    /// Waits until everything is as it was, and fails if it does not come to that.
    pub fn compare(&self) -> Result<()> {
        self.compare_but_for_failed(0)
    }

    /// The same after so many pages of all devices together have failed.
    pub fn compare_but_for_failed(&self, pages: u64) -> Result<()> {
        let mut all_failed = 0;
        for before in &self.devices {
            let number = before.number;
            let device = Device::open(number)
                .with_context(|| format!("device {number} is gone, which was there before"))?;
            let failed = before.failed_since(&device)?;
            expect_free_pages(&device, before.free_pages - failed)?;
            expect_address_spaces(&device, before.address_spaces)?;
            expect_figures_that_fit(&device)?;
            all_failed += failed;
        }
        ensure!(
            all_failed == pages,
            "{all_failed} pages of devices have failed, not {pages}"
        );
        self.vm.compare()
    }

    /// Pages of all devices that have failed since.
    pub fn failed_since(&self) -> Result<u64> {
        let mut devices = self.devices.iter();
        devices.try_fold(0, |sum, before| {
            Ok(sum + before.failed_since(&Device::open(before.number)?)?)
        })
    }
}

/// Pages of `device` that are free.
pub fn free_pages(device: &Device) -> Result<u64> {
    Ok(device.query()?.bytes_free / PAGE_BYTES as u64)
}

/// Waits until `device` has `expected` free pages.
pub fn expect_free_pages(device: &Device, expected: u64) -> Result<()> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let free = free_pages(device)?;
        if free == expected {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "device {} has {free} free pages, not {expected}, after {SETTLE_LIMIT:?}",
                device.number()
            );
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a device uses the addresses of as many processes as it did.
fn expect_address_spaces(device: &Device, expected: u64) -> Result<()> {
    wait_until_nothing(SETTLE_LIMIT, || {
        let found = figure(device, "address_spaces")?;
        Ok((found != expected).then(|| {
            let number = device.number();
            format!("device {number} has {found} address spaces, not {expected}")
        }))
    })
}

/// A figure of the driver's about a device.
fn figure(device: &Device, name: &str) -> Result<u64> {
    let text = debugfs(device, name)?;
    text.trim()
        .parse()
        .with_context(|| format!("{name}: {text}"))
}

/// Expects that the driver's figures of a device, which nobody uses meanwhile, agree with each
/// other.
fn expect_figures_that_fit(device: &Device) -> Result<()> {
    let figure = |name: &str| figure(device, name);
    let query = device.query()?;
    let total = query.bytes_total / PAGE_BYTES as u64;
    let (free, in_use) = (figure("pages_free")?, figure("pages_in_use")?);
    let poisoned = figure("pages_poisoned")?;
    ensure!(
        free + in_use + poisoned == total,
        "device {}: {free} free pages, {in_use} in use and {poisoned} poisoned are not {total}",
        device.number()
    );
    let blocks = free_blocks(&debugfs(device, "free_blocks")?)?;
    let in_blocks: u64 = blocks.iter().map(|(order, count)| count << order).sum();
    ensure!(
        in_blocks == free,
        "device {}: the free blocks have {in_blocks} pages, {free} are free: {blocks:?}",
        device.number()
    );
    if free == total {
        // Neighbours that are free have grown together again, however they were cut.
        let start = query.base + query.bytes_metadata;
        let huge = HUGE_PAGE_BYTES as u64;
        let whole = (start + query.bytes_total) / huge - start.div_ceil(huge);
        let found = blocks.iter().find(|(order, _)| *order == HUGE_ORDER);
        ensure!(
            found.is_some_and(|(_, count)| *count == whole),
            "device {}: a free device should have {whole} blocks of 2 MiB: {blocks:?}",
            device.number()
        );
    }
    Ok(())
}

/// Order of a block of 2 MiB.
const HUGE_ORDER: u32 = (HUGE_PAGE_BYTES / PAGE_BYTES).ilog2();

/// Number of free blocks by order, a line each.
fn free_blocks(text: &str) -> Result<Vec<(u32, u64)>> {
    text.lines()
        .map(|line| {
            let (order, count) = line
                .split_once(' ')
                .with_context(|| format!("'{line}' is no order with a number"))?;
            Ok((order.parse()?, count.parse()?))
        })
        .collect()
}

/// What a file of the device in debugfs holds.
fn debugfs(device: &Device, name: &str) -> Result<String> {
    let path = format!("/sys/kernel/debug/cdm/cdm{}/{name}", device.number());
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_blocks_are_read_by_order() {
        assert_eq!(free_blocks("0 3\n9 126\n").unwrap(), [(0, 3), (9, 126)]);
        assert!(free_blocks("0 3\nmany\n").is_err());
        assert_eq!(HUGE_ORDER, 9);
    }
}
