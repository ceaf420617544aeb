// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own test of pins, lib/gup_test.c; its header is not among the
//! installed ones, so what is used of it stands here.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use crate::range::AddressRange;
use crate::skip::skip;

mod uapi {
    /// `struct pin_longterm_test` of mm/gup_test.h.
    #[repr(C)]
    pub struct PinLongterm {
        pub address: u64,
        pub bytes: u64,
        pub flags: u32,
    }

    nix::ioctl_write_ptr!(start, b'g', 7, PinLongterm);
    nix::ioctl_none!(stop, b'g', 8);
}

/// Pins pages to write to them.
pub const USE_WRITE: u32 = 1;
/// Pins them without a lock on the address space, where that will do.
pub const USE_FAST: u32 = 2;

/// Pins memory for long.
#[derive(Debug)]
pub struct Pinner {
    file: File,
}

impl Pinner {
    /// One that has nothing pinned.
    pub fn open() -> Result<Self> {
        const PATH: &str = "/sys/kernel/debug/gup_test";
        match File::options().read(true).write(true).open(PATH) {
            Ok(file) => Ok(Self { file }),
            Err(_) => skip(format!("the kernel has no {PATH} (CONFIG_GUP_TEST)")),
        }
    }

    /// Has the kernel pin memory of this process until [`Self::unpin`]: all of it, or nothing.
    pub fn pin(&self, range: AddressRange, flags: u32) -> nix::Result<()> {
        let request = uapi::PinLongterm {
            address: range.start(),
            bytes: range.bytes(),
            flags,
        };
        // SAFETY: the request is read only; the test neither reads nor writes what it pins.
        unsafe { uapi::start(self.file.as_raw_fd(), &raw const request) }.map(drop)
    }

    /// Lets go of it.
    pub fn unpin(&self) -> Result<()> {
        // SAFETY: the request has no argument.
        unsafe { uapi::stop(self.file.as_raw_fd()) }.context("gup_test cannot unpin")?;
        Ok(())
    }
}
