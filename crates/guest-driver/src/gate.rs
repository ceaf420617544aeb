// SPDX-License-Identifier: GPL-2.0-only

//! Who is inside a device, and when nobody is any more.
//!
//! Facility: SRCU. C header: `linux/srcu.h`. Contexts: process context; whoever is
//! inside may sleep. Lock order: outermost; taken before the mmap lock. Invariant:
//! when [`Gate::wait`] says so after [`Gate::shut`], nobody is inside and nobody will be.

use kernel::new_srcu;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::srcu::Guard;
use kernel::sync::Srcu;

use crate::sys;

/// Between two looks whether everybody has left.
const LOOK_MS: u32 = 10;

/// The gate of a device.
#[pin_data]
pub(crate) struct Gate {
    is_closed: Atomic<bool>,
    #[pin]
    inside: Srcu,
}

impl Gate {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            is_closed: Atomic::new(false),
            inside <- new_srcu!("cdm::Gate::inside"),
        }? Error)
    }

    /// Goes in; ENODEV if the gate is closed.
    pub(crate) fn enter(&self) -> Result<Guard<'_>> {
        let guard = self.inside.read_lock();
        if self.is_closed.load(Relaxed) {
            return Err(ENODEV);
        }
        Ok(guard)
    }

    /// Lets nobody in from here on.
    pub(crate) fn shut(&self) {
        // SRCU orders this before whoever comes in after `wait` began.
        self.is_closed.xchg(true, Full);
    }

    /// Whether whoever is inside should hurry out.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_closed.load(Relaxed)
    }

    /// Waits until everybody who is inside has left; false if somebody has not after `ms`
    /// milliseconds. A page fault that user space serves, or a server of files, has no end
    /// that the driver could bring about.
    pub(crate) fn wait(&self, ms: u32) -> bool {
        let srcu = core::ptr::from_ref(&self.inside)
            .cast_mut()
            .cast::<sys::srcu_struct>();
        // SAFETY: An `Srcu` is nothing but its initialised `struct srcu_struct`.
        let cookie = unsafe { sys::start_poll_synchronize_srcu(srcu) };
        let mut waited = 0;
        loop {
            // SAFETY: As above.
            if unsafe { sys::poll_state_synchronize_srcu(srcu, cookie) } {
                return true;
            }
            if waited >= ms {
                return false;
            }
            // SAFETY: Process context, no lock held.
            unsafe { sys::msleep(LOOK_MS) };
            waited += LOOK_MS;
        }
    }
}
