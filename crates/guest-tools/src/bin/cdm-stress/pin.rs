// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that is pinned for long, as a buffer of io_uring is (FOLL_LONGTERM).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cdm_guest_tools::range::AddressRange;
use io_uring::IoUring;

use crate::patience::HANGS;

const POLL: Duration = Duration::from_millis(1);

/// A pinned range; unpinned on drop.
pub struct Pin {
    ring: IoUring,
    /// Operations after which the owner lets go.
    pub left: usize,
}

impl Pin {
    /// Pins a range of this process.
    pub fn new(range: AddressRange, left: usize) -> Result<Self> {
        // A ring that goes wakes up the threads that ever used it, and one that waits for the device
        // would give up as if for a signal. This one is through with waiting then.
        let made = thread::scope(|scope| scope.spawn(|| Self::make_ring(range)).join());
        let ring = made.map_err(|_| anyhow!("the thread that pins panicked"))?;
        Ok(Self {
            ring: ring.with_context(|| format!("cannot pin {range}"))?,
            left,
        })
    }

    /// The ring, of which the range is buffer 0. Whoever uses it is woken up when it goes, so it
    /// should be a thread that is through with waiting then.
    pub fn ring(&mut self) -> &mut IoUring {
        &mut self.ring
    }

    fn make_ring(range: AddressRange) -> Result<IoUring> {
        let ring = IoUring::new(2).context("io_uring_setup")?;
        let buffer = libc::iovec {
            iov_base: range.start() as *mut libc::c_void,
            iov_len: range.bytes() as usize,
        };
        let started = Instant::now();
        loop {
            // SAFETY: whoever has a request use the buffer keeps the memory until it is through;
            // besides that it does not matter when it goes.
            match unsafe { ring.submitter().register_buffers(&[buffer]) } {
                Ok(()) => return Ok(ring),
                // A page that somebody else holds for a moment cannot leave its device. EFAULT is
                // what io_uring makes of it if it has got some of the pages.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EFAULT))
                        && started.elapsed() < HANGS =>
                {
                    thread::sleep(POLL);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
