// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own test of device memory, lib/test_hmm.c; its header is not among the
//! installed ones, so what is used of it stands here.
//!
//! Its migration to the device ends by reading all of the memory back through the device's page
//! table and copying it to the caller, and the kernel's benchmark has that in its figure. So the
//! figure is given as that benchmark takes it, and once more without what such a reading costs by
//! itself.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::range::AddressRange;

use super::{Mover, Task};
use crate::memory::{self, PageSize};

mod uapi {
    /// `struct hmm_dmirror_cmd` of lib/test_hmm_uapi.h.
    #[derive(Default)]
    #[repr(C)]
    pub struct Command {
        pub address: u64,
        pub buffer: u64,
        pub pages: u64,
        pub pages_done: u64,
        pub faults: u64,
    }

    nix::ioctl_readwrite!(read, b'H', 0x00, Command);
    nix::ioctl_readwrite!(migrate_to_device, b'H', 0x02, Command);
    nix::ioctl_readwrite!(migrate_to_system, b'H', 0x03, Command);
    nix::ioctl_readwrite!(snapshot, b'H', 0x04, Command);

    /// Bits of what a snapshot says of a page: mapped as 2 MiB,
    pub const PMD: u8 = 0x04;
    /// and in this device, by the type of its memory.
    pub const PRIVATE_HERE: u8 = 0x20;
    pub const COHERENT_HERE: u8 = 0x40;
    pub const PLACE: u8 = 0xf0;
}

/// Its names among the movers, by the type of its memory.
pub const PRIVATE: &str = "test_hmm-private";
pub const COHERENT: &str = "test_hmm-coherent";
/// The private one on a kernel without the series.
pub const UNPATCHED: &str = "test_hmm-unpatched";

/// Type of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MEMORY_DEVICE_PRIVATE, faked by memory of the system.
    Private,
    /// MEMORY_DEVICE_COHERENT, in memory behind a PCI BAR.
    Coherent,
}

impl Kind {
    fn node(self) -> &'static str {
        match self {
            Self::Private => "/dev/hmm_dmirror0",
            Self::Coherent => "/dev/hmm_dmirror2",
        }
    }

    fn here(self) -> u8 {
        match self {
            Self::Private => uapi::PRIVATE_HERE,
            Self::Coherent => uapi::COHERENT_HERE,
        }
    }
}

/// One of its devices.
pub struct TestHmm {
    file: File,
    kind: Kind,
    whole: AddressRange,
    parts: Vec<AddressRange>,
    pages: PageSize,
    /// Where it copies what it reads.
    buffer: Mapping,
}

type Call = unsafe fn(i32, *mut uapi::Command) -> nix::Result<i32>;

impl TestHmm {
    /// Takes the device with this type of memory.
    pub fn new(task: &Task<'_>, kind: Kind) -> Result<Self> {
        let path = kind.node();
        let file = File::options().read(true).write(true).open(path);
        let file = file.with_context(|| {
            format!("cannot open {path}: is test_hmm loaded, with memory for coherent devices?")
        })?;
        let buffer = Mapping::huge_aligned(task.memory.bytes())?;
        buffer.fill(u64::MAX);
        Ok(Self {
            file,
            kind,
            whole: task.memory.range(),
            parts: memory::parts(task.memory, task.threads),
            pages: task.pages,
            buffer,
        })
    }

    fn call(&self, range: AddressRange, call: Call) -> Result<()> {
        let pages = range.pages();
        let mut command = uapi::Command {
            address: range.start(),
            buffer: self.buffer.address() + (range.start() - self.whole.start()),
            pages,
            ..uapi::Command::default()
        };
        // SAFETY: the module reads and writes this structure, and writes no more into the buffer
        // than the range is long, which lies inside the memory that the buffer is as long as.
        unsafe { call(self.file.as_raw_fd(), &raw mut command) }?;
        let done = command.pages_done;
        ensure!(done == pages, "test_hmm did {done} of {pages} pages");
        Ok(())
    }
}

impl Mover for TestHmm {
    fn there(&self, part: usize) -> Result<()> {
        self.call(self.parts[part], uapi::migrate_to_device)
    }

    fn back(&self, part: usize) -> Result<()> {
        self.call(self.parts[part], uapi::migrate_to_system)
    }

    fn besides(&self) -> Option<Result<()>> {
        Some(self.call(self.whole, uapi::read))
    }

    fn expect_there(&self) -> Result<()> {
        self.call(self.whole, uapi::snapshot)?;
        let found = self
            .buffer
            .read_bytes(self.whole.bytes() as usize / PAGE_BYTES);
        expect_places(&found, self.kind, self.pages)
    }
}

/// Fails unless a snapshot says of each page that it is in the device, in a folio of this size.
fn expect_places(found: &[u8], kind: Kind, pages: PageSize) -> Result<()> {
    let is_good = |place: &&u8| {
        **place & uapi::PLACE == kind.here()
            && (**place & uapi::PMD != 0) == (pages == PageSize::Huge)
    };
    let good = found.iter().filter(is_good).count();
    ensure!(
        good == found.len(),
        "{good} of {} pages are in the device of test_hmm in folios of {pages}",
        found.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_elsewhere_or_in_another_folio_is_found() {
        let expect = |found: &[u8], pages| expect_places(found, Kind::Coherent, pages);
        assert!(expect(&[0x42, 0x41], PageSize::Small).is_ok());
        assert!(expect(&[0x46, 0x46], PageSize::Huge).is_ok());
        assert!(expect(&[0x42, 0x02], PageSize::Small).is_err());
        assert!(expect(&[0x46, 0x42], PageSize::Huge).is_err());
        assert!(expect(&[0x46, 0x42], PageSize::Small).is_err());
        assert!(expect_places(&[0x22], Kind::Private, PageSize::Small).is_ok());
        // That of another device of test_hmm.
        assert!(expect(&[0x52], PageSize::Small).is_err());
    }
}
