// SPDX-License-Identifier: GPL-2.0-only

//! One-shot event with bounded and interruptible waits.
//!
//! Facility: `struct completion`. C header: `linux/completion.h`.
//! Contexts: [`Done::signal`] anywhere, waits in process context. Lock order: the
//! completion's own lock is innermost. Invariant: once signalled, always signalled, until its
//! one user rearms it.
//!
//! `kernel::sync::Completion` has neither of these waits.

use kernel::prelude::*;
use kernel::types::Opaque;

use crate::sys;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The event came.
    Done,
    /// The time was up.
    TimedOut,
    /// A signal came.
    Interrupted,
}

/// An event that happens once, or once after each [`Done::rearm`].
///
/// # Invariants
///
/// `inner` is an initialised `struct completion`.
#[pin_data]
pub(crate) struct Done {
    #[pin]
    inner: Opaque<sys::completion>,
}

// SAFETY: A `struct completion` may be used from any thread.
unsafe impl Send for Done {}
// SAFETY: All operations on a `struct completion` lock it.
unsafe impl Sync for Done {}

impl Done {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: `init_completion()` initialises it.
            inner <- Opaque::ffi_init(|slot: *mut sys::completion| {
                // SAFETY: `slot` is valid for writing a `struct completion`.
                unsafe { sys::init_completion(slot) }
            }),
        })
    }

    /// The event has yet to come again. Nobody waits for it, or signals it, meanwhile.
    pub(crate) fn rearm(&self) {
        // SAFETY: By the type invariant.
        unsafe { sys::cdm_completion_rearm(self.inner.get()) }
    }

    /// The event has come; wakes everybody who waits.
    pub(crate) fn signal(&self) {
        // SAFETY: By the type invariant.
        unsafe { sys::complete_all(self.inner.get()) }
    }

    /// Waits, deaf to signals, for at most `ms` milliseconds.
    pub(crate) fn wait(&self, ms: u32) -> Wait {
        // SAFETY: Plain arithmetic.
        let jiffies = unsafe { sys::cdm_jiffies_of_ms(ms) };
        // SAFETY: By the type invariant; callers are in process context.
        match unsafe { sys::wait_for_completion_timeout(self.inner.get(), jiffies) } {
            0 => Wait::TimedOut,
            _ => Wait::Done,
        }
    }

    /// Waits for at most `ms` milliseconds or until a signal comes.
    pub(crate) fn wait_interruptible(&self, ms: u32) -> Wait {
        // SAFETY: Plain arithmetic.
        let jiffies = unsafe { sys::cdm_jiffies_of_ms(ms) };
        // SAFETY: By the type invariant; callers are in process context.
        match unsafe { sys::wait_for_completion_interruptible_timeout(self.inner.get(), jiffies) } {
            0 => Wait::TimedOut,
            1.. => Wait::Done,
            _ => Wait::Interrupted,
        }
    }
}
