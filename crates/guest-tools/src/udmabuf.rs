// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DMA buffers of memory files, which the kernel pins by memfd_pin_folios(): by
//! the page cache, where the other long-term pins go by the page table.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

use crate::memory::PAGE_BYTES;
use crate::skip::skip;

mod uapi {
    /// `struct udmabuf_create` of linux/udmabuf.h.
    #[repr(C)]
    pub struct Create {
        pub memfd: u32,
        pub flags: u32,
        pub offset: u64,
        pub size: u64,
    }

    nix::ioctl_write_ptr!(create, b'u', 0x42, Create);
}

/// A DMA buffer of some pages of a memfd, and with it a long-term pin of them, until it is closed.
pub fn dma_buffer(memfd: &File, pages: Range<usize>) -> Result<File> {
    const PATH: &str = "/dev/udmabuf";
    let Ok(maker) = File::options().read(true).write(true).open(PATH) else {
        return skip(format!("the kernel has no {PATH} (CONFIG_UDMABUF)"));
    };
    fcntl(memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).context("cannot seal")?;
    let request = uapi::Create {
        memfd: memfd.as_raw_fd() as u32,
        flags: 0,
        offset: (pages.start * PAGE_BYTES) as u64,
        size: (pages.len() * PAGE_BYTES) as u64,
    };
    // SAFETY: the request is read only.
    let fd = unsafe { uapi::create(maker.as_raw_fd(), &raw const request) }
        .context("no DMA buffer of memory in the device")?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}
