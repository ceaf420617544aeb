// SPDX-License-Identifier: Apache-2.0 OR MIT

//! userfaultfd(2), as much of it as tests use
//! (Documentation/admin-guide/mm/userfaultfd.rst).

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::memory::{Mapping, PAGE_BYTES};

/// From linux/userfaultfd.h.
mod uapi {
    pub const API: u64 = 0xAA;
    pub const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    pub const FEATURE_MOVE: u64 = 1 << 16;
    pub const REGISTER_MODE_MISSING: u64 = 1 << 0;
    pub const REGISTER_MODE_WP: u64 = 1 << 1;
    pub const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
    pub const EVENT_PAGEFAULT: u8 = 0x12;
    pub const PAGEFAULT_FLAG_WP: u64 = 1 << 1;
    /// Bytes of `struct uffd_msg`; the event is the first of them, the flags are the third word's.
    pub const MESSAGE_BYTES: usize = 32;

    #[repr(C)]
    pub struct Api {
        pub api: u64,
        pub features: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    pub struct Range {
        pub start: u64,
        pub len: u64,
    }

    #[repr(C)]
    pub struct Register {
        pub range: Range,
        pub mode: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    pub struct WriteProtect {
        pub range: Range,
        pub mode: u64,
    }

    #[repr(C)]
    pub struct Copy {
        pub dst: u64,
        pub src: u64,
        pub len: u64,
        pub mode: u64,
        pub copied: i64,
    }

    #[repr(C)]
    pub struct Move {
        pub dst: u64,
        pub src: u64,
        pub len: u64,
        pub mode: u64,
        pub moved: i64,
    }

    nix::ioctl_readwrite!(api, 0xAA, 0x3F, Api);
    nix::ioctl_readwrite!(register, 0xAA, 0x00, Register);
    nix::ioctl_read!(unregister, 0xAA, 0x01, Range);
    nix::ioctl_readwrite!(copy, 0xAA, 0x03, Copy);
    nix::ioctl_readwrite!(move_pages, 0xAA, 0x05, Move);
    nix::ioctl_readwrite!(write_protect, 0xAA, 0x06, WriteProtect);
}

/// Watches a mapping for faults that this process answers.
#[derive(Debug)]
pub struct Userfault {
    file: File,
}

fn range(memory: &Mapping) -> uapi::Range {
    uapi::Range {
        start: memory.address(),
        len: memory.bytes() as u64,
    }
}

impl Userfault {
    /// Faults on pages of `memory` that are not there wait for this process.
    pub fn watch_missing(memory: &Mapping) -> Result<Self> {
        Self::watch(memory, uapi::FEATURE_MOVE, uapi::REGISTER_MODE_MISSING)
    }

    /// Stores to pages of `memory` that are protected wait for this process.
    pub fn watch_writes(memory: &Mapping) -> Result<Self> {
        let feature = uapi::FEATURE_PAGEFAULT_FLAG_WP;
        Self::watch(memory, feature, uapi::REGISTER_MODE_WP)
    }

    fn watch(memory: &Mapping, features: u64, mode: u64) -> Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes flags alone.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd as i32) };
        let mut api = uapi::Api {
            api: uapi::API,
            features,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the structure of the request.
        unsafe { uapi::api(file.as_raw_fd(), &raw mut api) }.context("UFFDIO_API")?;
        let mut request = uapi::Register {
            range: range(memory),
            mode,
            ioctls: 0,
        };
        // SAFETY: as above; whoever touches the memory waits for this process.
        unsafe { uapi::register(file.as_raw_fd(), &raw mut request) }.context("UFFDIO_REGISTER")?;
        Ok(Self { file })
    }

    /// Watches `memory` no longer.
    pub fn leave(&self, memory: &Mapping) -> Result<()> {
        let mut range = range(memory);
        // SAFETY: the kernel reads the structure of the request.
        unsafe { uapi::unregister(self.file.as_raw_fd(), &raw mut range) }
            .context("UFFDIO_UNREGISTER")?;
        Ok(())
    }

    /// Moves the pages of `source` to the same places of `target`, which has none there.
    pub fn move_memory(&self, source: &Mapping, target: &Mapping) -> Result<()> {
        let (moved, stopped) = self.move_pages(source, target, 0..source.pages());
        if let Some(error) = stopped {
            return Err(error).with_context(|| format!("UFFDIO_MOVE, after {moved} pages"));
        }
        ensure!(moved == source.pages(), "{moved} pages moved");
        Ok(())
    }

    /// Moves some pages of `source` to the same places of `target`; how many it got to, and why it
    /// did not get to all of them.
    pub fn move_pages(
        &self,
        source: &Mapping,
        target: &Mapping,
        pages: Range<usize>,
    ) -> (usize, Option<std::io::Error>) {
        let from = source.page_range(pages.start, pages.len());
        let mut request = uapi::Move {
            dst: target.page_range(pages.start, pages.len()).start(),
            src: from.start(),
            len: from.bytes(),
            mode: 0,
            moved: 0,
        };
        // SAFETY: both ranges are mappings of this process that only atomics access, and what moved
        // reads as zeroes in the source afterwards.
        let result = unsafe { uapi::move_pages(self.file.as_raw_fd(), &raw mut request) };
        // What it got to is told as well where it failed; only if that is nothing it is the error.
        let moved = usize::try_from(request.moved).unwrap_or(0) / PAGE_BYTES;
        (moved, result.err().map(Into::into))
    }

    /// Protects `memory` against stores, or lets them happen again.
    pub fn protect(&self, memory: &Mapping, protect: bool) -> Result<()> {
        self.protect_range(range(memory), protect)
    }

    /// The same for one page.
    pub fn protect_page(&self, memory: &Mapping, page: usize, protect: bool) -> Result<()> {
        let range = memory.page_range(page, 1);
        let range = uapi::Range {
            start: range.start(),
            len: range.bytes(),
        };
        self.protect_range(range, protect)
    }

    fn protect_range(&self, range: uapi::Range, protect: bool) -> Result<()> {
        let mut request = uapi::WriteProtect {
            range,
            mode: if protect {
                uapi::WRITEPROTECT_MODE_WP
            } else {
                0
            },
        };
        // SAFETY: the kernel reads the structure of the request.
        unsafe { uapi::write_protect(self.file.as_raw_fd(), &raw mut request) }
            .context("UFFDIO_WRITEPROTECT")?;
        Ok(())
    }

    /// Address of any fault that is reported within `limit`, if one is.
    pub fn wait_for_any(&self, limit: Duration) -> Result<Option<u64>> {
        Ok(self.wait_for_fault(limit)?.map(|(_, address)| address))
    }

    /// Whether a store to protected memory is reported within `limit`.
    pub fn wait_for_write(&self, limit: Duration) -> Result<bool> {
        let fault = self.wait_for_fault(limit)?;
        Ok(fault.is_some_and(|(flags, _)| flags & uapi::PAGEFAULT_FLAG_WP != 0))
    }

    /// Address of the access to a missing page that is reported within `limit`, if one is.
    pub fn wait_for_missing(&self, limit: Duration) -> Result<Option<u64>> {
        self.wait_for_any(limit)
    }

    /// Flags and address of a fault.
    fn wait_for_fault(&self, limit: Duration) -> Result<Option<(u64, u64)>> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(limit)?).context("poll")? == 0 {
            return Ok(None);
        }
        let mut message = [0; uapi::MESSAGE_BYTES];
        match (&self.file).read_exact(&mut message) {
            Ok(()) => {}
            // Whoever waited does so no longer: the fault was answered for another one.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("cannot read the fault"),
        }
        let word =
            |at: usize| -> Result<u64> { Ok(u64::from_ne_bytes(message[at..at + 8].try_into()?)) };
        ensure!(message[0] == uapi::EVENT_PAGEFAULT, "event {}", message[0]);
        Ok(Some((word(8)?, word(16)?)))
    }

    /// Fills a missing page, and lets whoever waits for it go on.
    pub fn fill_page(&self, address: u64, contents: &Mapping) -> Result<()> {
        let page = address & !(PAGE_BYTES as u64 - 1);
        self.copy(page, contents.address()).context("UFFDIO_COPY")
    }

    /// Fills a missing page of `memory` with the same page of `source`, and lets whoever waits for
    /// it go on. False if it was not missing any more.
    pub fn copy_page(&self, memory: &Mapping, source: &Mapping, page: usize) -> Result<bool> {
        let (to, from) = (memory.page_range(page, 1), source.page_range(page, 1));
        loop {
            match self.copy(to.start(), from.start()) {
                Ok(()) => return Ok(true),
                Err(Errno::EEXIST) => return Ok(false),
                // The address space is being changed.
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error).context("UFFDIO_COPY"),
            }
        }
    }

    fn copy(&self, to: u64, from: u64) -> nix::Result<()> {
        let mut request = uapi::Copy {
            dst: to,
            src: from,
            len: PAGE_BYTES as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the kernel copies a page of a mapping, which only atomics access, to a page of a
        // watched one that is not there yet.
        unsafe { uapi::copy(self.file.as_raw_fd(), &raw mut request) }.map(drop)
    }
}
