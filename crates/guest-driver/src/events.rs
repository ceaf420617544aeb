// SPDX-License-Identifier: GPL-2.0

//! What the device reports on its own account.
//!
//! Facility: none; [`crate::virtio`] delivers the events. Contexts: hard interrupt.
//! Invariant: an event is counted before its buffer goes back to the device.
//!
//! A QUEUE_ERROR says that the device dropped a chain: the driver wrote a request that
//! a device cannot answer. It is counted and logged, at a limited rate, and that is
//! all. A RESET would not bring the chain back and would fail the commands of
//! everybody else; the one process that waits for the lost answer can be interrupted.

use kernel::device::Device;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{Atomic, Relaxed};

use crate::sys;
use crate::wire::{Event, EventKind};

/// Receiver of a device's events.
pub(crate) struct EventSink {
    dev: ARef<Device>,
    number: u32,
    queue_errors: Atomic<u64>,
}

impl EventSink {
    pub(crate) fn new(dev: ARef<Device>, number: u32) -> Self {
        Self {
            dev,
            number,
            queue_errors: Atomic::new(0),
        }
    }

    /// Requests that the device dropped, as far as it said so.
    pub(crate) fn queue_errors(&self) -> u64 {
        self.queue_errors.load(Relaxed)
    }

    /// Takes an event.
    pub(crate) fn take(&self, event: &Event) {
        if event.kind != EventKind::QUEUE_ERROR {
            // SAFETY: The device reference keeps the device valid.
            unsafe {
                sys::cdm_warn_unknown_event(
                    sys::raw_device(&self.dev),
                    self.number,
                    event.kind.get().into(),
                )
            };
            return;
        }
        let lost = event.lost.get();
        self.queue_errors.add(lost.saturating_add(1), Relaxed);
        // SAFETY: The device reference keeps the device valid.
        unsafe {
            sys::cdm_warn_queue_error(
                sys::raw_device(&self.dev),
                self.number,
                event.queue.get().into(),
                lost,
            )
        };
    }
}
