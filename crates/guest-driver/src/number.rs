// SPDX-License-Identifier: GPL-2.0-only

//! Numbers of devices: the N of `/dev/cdmN`.
//!
//! Facility: none but an atomic word. Contexts: any. Invariant: a number belongs to at
//! most one device, and the lowest free one is taken, so that a device that comes back
//! gets its name back.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};

/// Numbers there are.
pub(crate) const NUMBERS: usize = u64::BITS as usize;

/// A bit for each number in use.
static IN_USE: Atomic<u64> = Atomic::new(0);

/// A number, as long as the value lives.
pub(crate) struct Number(u32);

impl Number {
    /// The lowest free number; EBUSY if there are 64 devices.
    pub(crate) fn take() -> Result<Self> {
        loop {
            let before = IN_USE.load(Relaxed);
            let number = before.trailing_ones();
            if number == u64::BITS {
                return Err(EBUSY);
            }
            if IN_USE.cmpxchg(before, before | 1 << number, Full).is_ok() {
                return Ok(Self(number));
            }
        }
    }

    pub(crate) fn get(&self) -> u32 {
        self.0
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        loop {
            let before = IN_USE.load(Relaxed);
            if IN_USE
                .cmpxchg(before, before & !(1 << self.0), Full)
                .is_ok()
            {
                return;
            }
        }
    }
}
