// SPDX-License-Identifier: GPL-2.0-only

//! The folder of all devices in debugfs.
//!
//! Facility: debugfs. C header: `linux/debugfs.h`. Contexts: process context. Lock order: its
//! lock is taken under the device lock, and nothing under it. Invariant: it is there as long
//! as the module has devices.

use kernel::debugfs::Dir;
use kernel::prelude::*;

use crate::stats;

// The folder of all devices in debugfs; `Folder` puts it there.
kernel::sync::global_lock! {
    // SAFETY: `Folder::new` initialises it before the first device is probed.
    pub(super) unsafe(uninit) static DEBUGFS: Mutex<Option<Dir>> = None;
}

/// Owner of the folder of all devices in debugfs; the module holds it from load to unload.
pub(crate) struct Folder {
    _figures: [Pin<KBox<stats::Figure>>; 2],
}

impl Folder {
    /// Makes the folder.
    ///
    /// # Safety
    ///
    /// Called once.
    pub(crate) unsafe fn new() -> Result<Self> {
        // SAFETY: Called once, by the function's contract, and before any other use.
        unsafe { DEBUGFS.init() };
        let dir = Dir::new(c"cdm");
        let figures = stats::module_files(&dir)?;
        *DEBUGFS.lock() = Some(dir);
        Ok(Self { _figures: figures })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        *DEBUGFS.lock() = None;
    }
}
