// SPDX-License-Identifier: GPL-2.0

//! What the device reports on its own account.
//!
//! Facility: none; [`crate::virtio`] delivers the events. Contexts: hard interrupt; the device
//! is made known, and forgotten, in process context. Lock order: `EventSink::device`, innermost,
//! with interrupts off. Invariant: an event is counted before its buffer goes back to the device.
//!
//! A QUEUE_ERROR says that the device dropped a chain: the driver wrote a request that
//! a device cannot answer. It is counted and logged, at a limited rate, and that is
//! all. A RESET would not bring the chain back and would fail the commands of
//! everybody else; the one process that waits for the lost answer can be interrupted.
//!
//! A PAGE_REQUEST is for a worker, as it faults pages in, and its buffer goes along: the device
//! gets it back when the request is answered. So the buffers limit what is under way.

use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_spinlock_irq, Arc, SpinLockIrq};

use crate::device::Device;
use crate::sys;
use crate::wire::{Event, EventKind};

/// What is to be done about an event.
pub(crate) enum Taken {
    /// Nothing more.
    Done,
    /// A worker has to see it, on behalf of this device.
    PassOn(Arc<Device>),
}

/// Receiver of a device's events.
#[pin_data]
pub(crate) struct EventSink {
    dev: ARef<kernel::device::Device>,
    number: u32,
    queue_errors: Atomic<u64>,
    /// Who serves page requests, as long as there may be any.
    #[pin]
    device: SpinLockIrq<Option<Arc<Device>>>,
}

impl EventSink {
    pub(crate) fn new(dev: ARef<kernel::device::Device>, number: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            dev,
            number,
            queue_errors: Atomic::new(0),
            device <- new_spinlock_irq!(None),
        })
    }

    /// Page requests are for `device` from here on; for nobody if there is none.
    pub(crate) fn serve(&self, device: Option<Arc<Device>>) {
        let old = core::mem::replace(&mut *self.device.lock(), device);
        // Not under the lock: it may be the last reference.
        drop(old);
    }

    /// Requests that the device dropped, as far as it said so.
    pub(crate) fn queue_errors(&self) -> u64 {
        self.queue_errors.load(Relaxed)
    }

    /// Takes an event.
    pub(crate) fn take(&self, event: &Event) -> Taken {
        match event.kind {
            EventKind::QUEUE_ERROR => self.take_queue_error(event),
            EventKind::PAGE_REQUEST => {
                if let Some(device) = &*self.device.lock() {
                    return Taken::PassOn(device.clone());
                }
            }
            // SAFETY: The device reference keeps the device valid.
            kind => unsafe {
                sys::cdm_warn_unknown_event(
                    sys::raw_device(&self.dev),
                    self.number,
                    kind.get().into(),
                )
            },
        }
        Taken::Done
    }

    fn take_queue_error(&self, event: &Event) {
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
