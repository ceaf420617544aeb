// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What every test starts with, and the checks that many of them make.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Device, Direction, Migration};
pub use cdm_guest_tools::invariants::{expect_free_pages, free_pages};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::pagemap;
use cdm_guest_tools::range::AddressRange;
pub use cdm_guest_tools::skip::{Skip, skip};
use cdm_guest_tools::uapi::{CDM_CAN_MOVE_FILES, CDM_CAN_MOVE_LARGE, CDM_CAN_RELIEVE, cdm_query};
use nix::sys::mman::MmapAdvise;

/// One test; its name is a claim.
#[derive(Clone, Copy)]
pub struct Test {
    pub group: &'static str,
    pub name: &'static str,
    pub run: fn(&Fixture) -> Result<()>,
}

impl Test {
    pub fn full_name(&self) -> String {
        format!("{}::{}", self.group, self.name)
    }
}

/// Names the tests of a group: the function is the name.
#[macro_export]
macro_rules! tests {
    ($group:literal: $($name:ident),+ $(,)?) => {
        pub const TESTS: &[$crate::fixture::Test] = &[$($crate::fixture::Test {
            group: $group,
            name: stringify!($name),
            run: $name,
        }),+];
    };
}

/// How often a migration is repeated for pages that were busy: the kernel's own short references
/// (per-CPU lists of pages on their way to the LRU) go away by themselves.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The driver's parameter for the largest folios that move whole.
const MAX_ORDER: &str = "/sys/module/cdm/parameters/max_order";

/// The first device, and how to say something about the test.
pub struct Fixture {
    pub device: Device,
    /// As the device was when the test began.
    pub start: cdm_query,
    /// Seed for random sequences.
    pub seed: u64,
    /// Whether the test changed the driver's parameter `max_order`.
    max_order: Mutex<bool>,
    notes: Mutex<Box<dyn Write + Send>>,
}

impl Fixture {
    /// Opens the first device; notes go to `notes`, a line each.
    pub fn new(seed: u64, notes: Box<dyn Write + Send>) -> Result<Self> {
        let device =
            Device::open(0).context("cannot open /dev/cdm0: is the module loaded? see 'dmesg'")?;
        let start = device.query().context("cannot query device 0")?;
        Ok(Self {
            device,
            start,
            seed,
            max_order: Mutex::new(false),
            notes: Mutex::new(notes),
        })
    }

    /// Adds a diagnostic to the result of this test.
    pub fn note(&self, text: impl AsRef<str>) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        // The reader is the runner; without it the result is lost as well.
        let _ = writeln!(notes, "{}", text.as_ref().replace('\n', " "));
    }

    /// Skips the test where page cache does not move.
    pub fn need_files(&self) -> Result<()> {
        match self.start.capabilities & CDM_CAN_MOVE_FILES {
            0 => skip("the kernel moves no page cache to this type of memory"),
            _ => Ok(()),
        }
    }

    /// Skips the test where the kernel has a fault that shows now and then, so that neither outcome
    /// would be a proof. Relief comes with the series that mends it.
    pub fn need_relief(&self, fault: &str) -> Result<()> {
        match self.start.capabilities & CDM_CAN_RELIEVE {
            0 => skip(fault),
            _ => Ok(()),
        }
    }

    /// Physical addresses that pages can have in the device.
    pub fn device_memory(&self) -> Range<u64> {
        device_memory(&self.start)
    }

    /// Pages of the device that are free.
    pub fn free_pages(&self) -> Result<u64> {
        free_pages(&self.device)
    }

    /// Memory of `pages` pages with the pattern of `seed`, in system memory.
    pub fn system_memory(&self, pages: usize, seed: u64) -> Result<Mapping> {
        let memory = Mapping::anonymous(pages * PAGE_BYTES).context("cannot map memory")?;
        memory.fill_pattern(seed);
        Ok(memory)
    }

    /// Memory of `pages` pages with the pattern of `seed`, in the device.
    pub fn resident_memory(&self, pages: usize, seed: u64) -> Result<Mapping> {
        let memory = self.system_memory(pages, seed)?;
        self.move_all(memory.range(), Direction::ToDevice)?;
        Ok(memory)
    }

    /// As `resident_memory`, in pages of their own: a part of a huge page that is given back is
    /// free only when the rest is, or when the driver needs the room.
    pub fn resident_small_pages(&self, pages: usize, seed: u64) -> Result<Mapping> {
        let memory = Mapping::anonymous(pages * PAGE_BYTES).context("cannot map memory")?;
        memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
        memory.fill_pattern(seed);
        self.move_all(memory.range(), Direction::ToDevice)?;
        Ok(memory)
    }

    /// Memory of `count` huge pages with the pattern of `seed`, each in one piece, in system memory.
    pub fn huge_memory(&self, count: usize, seed: u64) -> Result<Mapping> {
        let memory = Mapping::huge_aligned(count * HUGE_PAGE_BYTES).context("cannot map memory")?;
        // What earlier tests left of free memory may be in small pieces.
        fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")?;
        memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
        memory.fill_pattern(seed);
        expect_huge_mapped(memory.range(), memory.bytes() as u64)
            .context("the kernel gave no huge pages to begin with")?;
        Ok(memory)
    }

    /// Lets huge pages move whole also where the kernel is known to be wrong about it, until the end
    /// of the test: what goes wrong then is what the test is there to show.
    pub fn allow_huge(&self) -> Result<()> {
        if self.start.capabilities & CDM_CAN_MOVE_LARGE == 0 {
            fs::write(MAX_ORDER, "9").with_context(|| format!("cannot write to {MAX_ORDER}"))?;
            *self
                .max_order
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = true;
        }
        Ok(())
    }

    /// Memory of `count` huge pages with the pattern of `seed`, each in one block of the device.
    pub fn resident_huge_memory(&self, count: usize, seed: u64) -> Result<Mapping> {
        self.allow_huge()?;
        let memory = self.huge_memory(count, seed)?;
        self.move_all(memory.range(), Direction::ToDevice)?;
        self.expect_blocks_in_device(memory.range())?;
        expect_huge_mapped(memory.range(), memory.bytes() as u64)?;
        Ok(memory)
    }

    /// Expects each 2 MiB of a range of this process in one block of the device that the kernel
    /// treats as one, however the page tables map it.
    pub fn expect_blocks_in_device(&self, range: AddressRange) -> Result<()> {
        self.expect_in_device(range)?;
        let residency = self.device.residency(0, range)?;
        ensure!(
            residency.large == range.pages(),
            "only {} of {} pages are in folios of 2 MiB: {residency:?}",
            residency.large,
            range.pages()
        );
        let huge = HUGE_PAGE_BYTES as u64;
        let pages = physical_addresses(range)?;
        for (block, pages) in pages.chunks(HUGE_PAGE_BYTES / PAGE_BYTES).enumerate() {
            let start = pages[0];
            ensure!(
                start.is_multiple_of(huge),
                "block {block} starts at {start:#x}, which is no multiple of 2 MiB"
            );
            let stray = (start..)
                .step_by(PAGE_BYTES)
                .zip(pages)
                .find(|(expected, page)| expected != *page);
            ensure!(
                stray.is_none(),
                "block {block} is not in one piece: {stray:x?}"
            );
        }
        Ok(())
    }

    /// Moves a range of this process, and expects that every page ends where it should.
    pub fn move_all(&self, range: AddressRange, direction: Direction) -> Result<Migration> {
        let (migration, retries) = move_patiently(&self.device, 0, range, direction)?;
        if retries > 0 {
            self.note(format!("{retries} retries for busy pages"));
        }
        ensure!(
            migration.moved + migration.there == range.pages(),
            "of {} pages not all moved {direction:?}: {migration:?}",
            range.pages()
        );
        Ok(migration)
    }

    /// Expects every page of a range of this process inside the device, by the page tables and by
    /// the driver.
    pub fn expect_in_device(&self, range: AddressRange) -> Result<()> {
        let inside = self.device_memory();
        for (index, address) in physical_addresses(range)?.into_iter().enumerate() {
            ensure!(
                inside.contains(&address),
                "page {index} is at {address:#x}, outside the device's {:#x}-{:#x}",
                inside.start,
                inside.end
            );
        }
        let residency = self.device.residency(0, range)?;
        ensure!(
            residency.this_device == range.pages(),
            "the driver does not find all {} pages in the device: {residency:?}",
            range.pages()
        );
        Ok(())
    }

    /// Expects every page of a range of this process in system memory, by the page tables and by
    /// the driver.
    pub fn expect_in_system(&self, range: AddressRange) -> Result<()> {
        let outside = self.start.base..self.device_memory().end;
        for (index, address) in physical_addresses(range)?.into_iter().enumerate() {
            ensure!(
                !outside.contains(&address),
                "page {index} is at {address:#x}, in the device"
            );
        }
        let residency = self.device.residency(0, range)?;
        ensure!(
            residency.system == range.pages(),
            "the driver does not find all {} pages in system memory: {residency:?}",
            range.pages()
        );
        Ok(())
    }

    /// Expects the number of free pages, which the kernel may take a moment to reach.
    pub fn expect_free_pages(&self, expected: u64) -> Result<()> {
        expect_free_pages(&self.device, expected)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let changed = self.max_order.get_mut();
        if *changed.unwrap_or_else(PoisonError::into_inner) {
            // For the tests behind this one; gone with the module if that is out.
            let _ = fs::write(MAX_ORDER, "-1");
        }
    }
}

/// Physical addresses that pages can have in a device.
pub fn device_memory(query: &cdm_query) -> Range<u64> {
    let start = query.base + query.bytes_metadata;
    start..start + query.bytes_total
}

/// Physical address of each page of a range of this process; every page must be present.
pub fn physical_addresses(range: AddressRange) -> Result<Vec<u64>> {
    let entries = pagemap::own(range).context("cannot read /proc/self/pagemap")?;
    entries
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            entry.physical_address().with_context(|| {
                format!("page {index} of {range} has no entry in the page table: {entry:?}")
            })
        })
        .collect()
}

/// Expects that entries for huge pages map `bytes` of a range of this process.
pub fn expect_huge_mapped(range: AddressRange, bytes: u64) -> Result<()> {
    let found = pagemap::huge_mapped_bytes(range).context("PAGEMAP_SCAN")?;
    ensure!(
        found == bytes,
        "{found} bytes of {range} are mapped by huge entries, not {bytes}"
    );
    Ok(())
}

/// Moves a range and tries again while pages are busy. The result of the last call, with the pages
/// that any call moved; and how often it tried again.
pub fn move_patiently(
    device: &Device,
    pid: i32,
    range: AddressRange,
    direction: Direction,
) -> Result<(Migration, u32)> {
    let mut moved = 0;
    for retry in 0.. {
        let mut migration = device
            .migrate(pid, range, direction)
            .with_context(|| format!("cannot move {range} {direction:?}"))?;
        ensure!(
            migration.adds_up(),
            "the counts do not add up: {migration:?}"
        );
        moved += migration.moved;
        // The kernel's own work for a task, such as the end of an io_uring registration, ends a call
        // early, as a signal does.
        let is_cut = migration.asked < range.pages();
        if (migration.busy == 0 && !is_cut) || retry == BUSY_RETRIES {
            ensure!(!is_cut, "not every page was asked: {migration:?}");
            migration.there -= moved - migration.moved;
            migration.moved = moved;
            return Ok((migration, retry));
        }
        thread::sleep(BUSY_PAUSE);
    }
    unreachable!("the loop ends at BUSY_RETRIES")
}

/// A figure of the first device in debugfs.
pub fn figure(name: &str) -> Result<u64> {
    let path = format!("/sys/kernel/debug/cdm/cdm0/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{path}: {text:?}"))
}

/// Expects one errno.
pub fn expect_errno<T: std::fmt::Debug>(
    result: io::Result<T>,
    errno: nix::errno::Errno,
) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno as i32) => Ok(()),
        Err(error) => bail!("expected {errno}, got: {error}"),
        Ok(value) => bail!("expected {errno}, but the call succeeded: {value:?}"),
    }
}
