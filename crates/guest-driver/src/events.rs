// SPDX-License-Identifier: GPL-2.0-only

//! What the device reports on its own account.
//!
//! Facility: none; [`crate::virtio`] delivers the events. Contexts: hard interrupt; the device
//! is made known, and forgotten, in process context. Lock order: `EventSink::device` and
//! `EventSink::failed`, never both, are innermost but for the workqueue's own, with interrupts
//! off. Invariant: an event is counted, or its work queued, before its buffer goes back to the
//! device.
//!
//! A QUEUE_ERROR says that the device dropped a chain: the driver wrote a request that
//! a device cannot answer. It is counted and logged, at a limited rate, and that is
//! all. A RESET would not bring the chain back and would fail the commands of
//! everybody else; the one process that waits for the lost answer can be interrupted.
//!
//! A PAGE_REQUEST is for a worker, as it faults pages in, and its buffer goes along: the device
//! gets it back when the request is answered. So the buffers limit what is under way.
//!
//! A MEMORY_ERROR is for [`crate::memory_error`], in process context. An interrupt has no
//! room for a list, so it only notes between which offsets memory has failed; which of it,
//! the device is asked again.
//!
//! An ACCESS_REPORT is noted, and its buffer goes back at once: what is done about it takes its
//! time, and page requests must not want for buffers meanwhile.

use core::ops::Range;

use kernel::device::Device as KernelDevice;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_spinlock_irq, Arc, SpinLockIrq};

use crate::device::Device;
use crate::virtio::Request;
use crate::wire::{Event, EventKind, MemoryError};
use crate::{sys, work};

/// What is to be done about an event.
pub(crate) enum Taken {
    /// Nothing more.
    Done,
    /// A worker has to see it, on behalf of this device.
    PassOn(Arc<Device>),
    /// This device notes the access report.
    Note(Arc<Device>),
}

/// Memory that failed and is still to be dealt with.
struct Failed {
    /// From the lowest to the highest offset.
    range: Option<Range<u64>>,
    /// Who deals with it; none before the device is ready, and after it has gone.
    device: Option<Arc<Device>>,
}

/// Receiver of a device's events.
#[pin_data]
pub(crate) struct EventSink {
    dev: ARef<KernelDevice>,
    number: u32,
    queue_errors: Atomic<u64>,
    /// Who serves page requests and access reports, as long as there may be any.
    #[pin]
    device: SpinLockIrq<Option<Arc<Device>>>,
    #[pin]
    failed: SpinLockIrq<Failed>,
}

impl EventSink {
    pub(crate) fn new(dev: ARef<KernelDevice>, number: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            dev,
            number,
            queue_errors: Atomic::new(0),
            device <- new_spinlock_irq!(None),
            failed <- new_spinlock_irq!(Failed {
                range: None,
                device: None,
            }),
        })
    }

    /// Page requests and access reports are for `device` from here on; for nobody if there is none.
    pub(crate) fn serve(&self, device: Option<Arc<Device>>) {
        let old = core::mem::replace(&mut *self.device.lock(), device);
        // Not under the lock: it may be the last reference.
        drop(old);
    }

    /// Requests that the device dropped, as far as it said so.
    pub(crate) fn queue_errors(&self) -> u64 {
        self.queue_errors.load(Relaxed)
    }

    /// Takes an event from the buffer that it came in.
    pub(crate) fn take(&self, buffer: &Request) -> Taken {
        let Some(event) = buffer.answer::<Event>() else {
            return Taken::Done;
        };
        match event.kind {
            EventKind::QUEUE_ERROR => self.take_queue_error(&event),
            EventKind::MEMORY_ERROR => {
                if let Some(error) = buffer.answer() {
                    self.take_memory_error(&error);
                }
            }
            EventKind::PAGE_REQUEST => {
                if let Some(device) = &*self.device.lock() {
                    return Taken::PassOn(device.clone());
                }
            }
            EventKind::ACCESS_REPORT => {
                if let Some(device) = &*self.device.lock() {
                    return Taken::Note(device.clone());
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

    fn take_memory_error(&self, error: &MemoryError) {
        let (address, bytes) = (error.address.get(), error.bytes.get());
        // SAFETY: The device reference keeps the device valid.
        unsafe {
            sys::cdm_warn_memory_error(sys::raw_device(&self.dev), self.number, address, bytes)
        };
        self.note_failed(address..address.saturating_add(bytes));
        self.have_failed_looked_at();
    }

    /// Memory between these offsets is to be looked at, sooner or later.
    pub(crate) fn note_failed(&self, range: Range<u64>) {
        let mut failed = self.failed.lock();
        failed.range = Some(match failed.range.take() {
            Some(before) => before.start.min(range.start)..before.end.max(range.end),
            None => range,
        });
    }

    fn have_failed_looked_at(&self) {
        let failed = self.failed.lock();
        if let (Some(_), Some(device)) = (&failed.range, &failed.device) {
            // If it is queued already it comes to this, too. The reference that is dropped then
            // is not the last one: that of `failed` stays as long as the lock is held.
            let _ = work::queue().enqueue::<_, 0>(device.clone());
        }
    }

    /// Where memory has failed that nobody has looked at yet; it counts as looked at.
    pub(crate) fn take_failed(&self) -> Option<Range<u64>> {
        self.failed.lock().range.take()
    }

    /// From here on `device` deals with memory that fails, also with what has failed already.
    pub(crate) fn attach(&self, device: Arc<Device>) {
        self.failed.lock().device = Some(device);
        self.have_failed_looked_at();
    }

    /// Nobody deals with it any more. Process context.
    pub(crate) fn detach(&self) {
        let device = self.failed.lock().device.take();
        drop(device);
    }
}
