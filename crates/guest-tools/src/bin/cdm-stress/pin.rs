// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that is pinned for long, as a buffer of io_uring is (FOLL_LONGTERM).

use anyhow::{Context, Result};
use cdm_guest_tools::range::AddressRange;
use io_uring::IoUring;

/// A pinned range; unpinned on drop.
pub struct Pin {
    _ring: IoUring,
    /// Operations after which the owner lets go.
    pub left: usize,
}

impl Pin {
    /// Pins a range of this process.
    pub fn new(range: AddressRange, left: usize) -> Result<Self> {
        let ring = IoUring::new(2).context("io_uring_setup")?;
        let buffer = libc::iovec {
            iov_base: range.start() as *mut libc::c_void,
            iov_len: range.bytes() as usize,
        };
        // SAFETY: no request ever uses the buffer, so it does not matter when the memory goes.
        unsafe { ring.submitter().register_buffers(&[buffer]) }
            .with_context(|| format!("cannot pin {range}"))?;
        Ok(Self { _ring: ring, left })
    }
}
