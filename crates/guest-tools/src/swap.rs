// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Swap space, which is memory of the guest: a disk of the kernel's own (brd).

use std::ffi::CString;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::module;

/// The disk in memory that the programs swap to.
const SWAP: &str = "/dev/ram0";

/// Swap space; off again on drop.
pub struct Swap;

impl Swap {
    /// From now on.
    pub fn start() -> Result<Self> {
        module::load_of_kernel("brd")?;
        let made = Command::new("mkswap")
            .arg(SWAP)
            .output()
            .context("cannot start mkswap")?;
        ensure!(
            made.status.success(),
            "mkswap {SWAP}: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        // SAFETY: the path is a string that ends with a zero.
        let result = unsafe { libc::swapon(Self::path().as_ptr(), 0) };
        ensure!(result == 0, "swapon: {}", std::io::Error::last_os_error());
        Ok(Self)
    }

    fn path() -> CString {
        CString::new(SWAP).expect("no zero inside")
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: as in `start`. Failure shows in the tests behind this one.
        let _ = unsafe { libc::swapoff(Self::path().as_ptr()) };
    }
}
