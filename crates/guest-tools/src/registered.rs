// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that io_uring holds as a buffer, by long-term pins (FOLL_LONGTERM).

use std::ops::Range;

use anyhow::{Context, Result};
use io_uring::IoUring;

use crate::memory::Mapping;

/// Such a buffer; let go of on drop.
pub struct Registered {
    ring: IoUring,
}

impl Registered {
    /// Registers some pages of a mapping.
    pub fn new(memory: &Mapping, pages: Range<usize>) -> Result<Self> {
        let ring = IoUring::new(2).context("io_uring_setup: is CONFIG_IO_URING on?")?;
        let range = memory.page_range(pages.start, pages.len());
        let buffer = libc::iovec {
            iov_base: range.start() as *mut libc::c_void,
            iov_len: range.bytes() as usize,
        };
        // SAFETY: no request ever uses the buffer, so it does not matter when the memory goes.
        unsafe { ring.submitter().register_buffers(&[buffer]) }
            .context("cannot register a buffer")?;
        Ok(Self { ring })
    }

    /// Lets go of them.
    pub fn unregister(self) -> Result<()> {
        self.ring
            .submitter()
            .unregister_buffers()
            .context("cannot unregister the buffer")
    }
}
