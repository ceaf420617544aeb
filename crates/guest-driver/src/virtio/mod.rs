// SPDX-License-Identifier: GPL-2.0-only

//! A device with its queues, live.
//!
//! Facility: virtqueues, as a whole. C header: `linux/virtio_config.h`. Contexts: set up and
//! taken down in process context under the device lock; the queues' callback runs in hard
//! interrupt context, takes buffers off the ring and signals. Lock order: as for a queue.
//! Invariant: from start to stop the device finds the queues, and a callback the transport.

mod bus;
mod queue;
mod request;

use core::ptr::NonNull;

use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};
use kernel::sync::Arc;
use kernel::types::ForeignOwnable;

use crate::events::{EventSink, Taken};
use crate::{sva, sys, wire};

pub(crate) use bus::{Driver, LeftRunning, Registration, VirtioDevice};
pub(crate) use queue::{Look, Queue, FULL_MS};
pub(crate) use request::{Draft, Request, Signals, Standing, Unanswered};
use request::{INPUT_BYTES, NOT_WRITTEN};

/// No limit for an answer.
pub(crate) const UNLIMITED_MS: u32 = u32::MAX;

/// The queues of a device, live.
///
/// # Invariants
///
/// - From [`Transport::start`] to [`Transport::stop`] the device's `priv` points here
///   and the device knows the queues.
/// - `queues` never changes.
pub(crate) struct Transport {
    vdev: VirtioDevice,
    queues: KVec<Pin<KBox<Queue>>>,
    events: Arc<EventSink>,
    /// The device is past answering.
    is_gone: Atomic<bool>,
    /// Milliseconds that the device has for an answer.
    answer_ms: Atomic<u32>,
}

impl Transport {
    /// Sets up `names.len()` queues and tells the device that the driver is ready.
    ///
    /// EBUSY if an earlier transport was left running, because the device did not answer or
    /// its memory is in use for good; see `Live::leak` and `Device::strand` in `device/`.
    pub(crate) fn start(
        vdev: VirtioDevice,
        names: &[&'static CStr],
        events: Arc<EventSink>,
    ) -> Result<Arc<Self>> {
        // SAFETY: The device is valid.
        if !unsafe { sys::cdm_vdev_priv(vdev.as_ptr()) }.is_null() {
            return Err(EBUSY);
        }
        let mut pointers = KVec::with_capacity(names.len(), GFP_KERNEL)?;
        let mut vqs: KVec<*mut sys::virtqueue> = KVec::with_capacity(names.len(), GFP_KERNEL)?;
        let mut queues = KVec::with_capacity(names.len(), GFP_KERNEL)?;
        for name in names {
            pointers.push(name.as_char_ptr(), GFP_KERNEL)?;
            vqs.push(core::ptr::null_mut(), GFP_KERNEL)?;
        }
        // SAFETY: The device is valid; both arrays have as many entries as announced.
        let err = unsafe {
            sys::cdm_vdev_find_vqs(
                vdev.as_ptr(),
                names.len() as u32,
                vqs.as_mut_ptr(),
                pointers.as_ptr(),
                Some(Self::interrupt),
            )
        };
        if let Err(err) = kernel::error::to_result(err) {
            // Some queues may be enabled already, and would be in the way of the next try.
            // SAFETY: The device is valid, and maps nothing yet.
            unsafe { sys::virtio_reset_device(vdev.as_ptr()) };
            return Err(err);
        }
        let wrapped = vqs.iter().try_for_each(|vq| -> Result {
            let queue = Queue::new(NonNull::new(*vq).ok_or(ENODEV)?);
            queues.push(KBox::pin_init(queue, GFP_KERNEL)?, GFP_KERNEL)?;
            Ok(())
        });
        let this = wrapped.and_then(|()| {
            let this = Self {
                vdev,
                queues,
                events,
                is_gone: Atomic::new(false),
                answer_ms: Atomic::new(UNLIMITED_MS),
            };
            Ok(Arc::new(this, GFP_KERNEL)?)
        });
        let this = match this {
            Ok(this) => this,
            Err(err) => {
                // SAFETY: The device is valid, and maps nothing yet.
                unsafe { sys::virtio_reset_device(vdev.as_ptr()) };
                // SAFETY: The queues were found, and the device is reset.
                unsafe { sys::cdm_vdev_del_vqs(vdev.as_ptr()) };
                return Err(err);
            }
        };
        // INVARIANT: The callback finds the transport from here on. The reference that
        // `priv` has is taken back in `stop`.
        // SAFETY: The device is valid, and `priv` is the driver's.
        unsafe { sys::cdm_vdev_set_priv(vdev.as_ptr(), this.clone().into_foreign()) };
        // SAFETY: The device is valid, and its queues are set up.
        unsafe { sys::cdm_vdev_ready(vdev.as_ptr()) };
        Ok(this)
    }

    /// Number of queues.
    pub(crate) fn num_queues(&self) -> usize {
        self.queues.len()
    }

    /// A queue by its index.
    pub(crate) fn queue(&self, index: usize) -> Result<&Queue> {
        Ok(self.queues.get(index).ok_or(ENODEV)?)
    }

    /// Whether the device is past answering.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Acquire)
    }

    /// The device does not answer any more: waiters give up, and nobody asks it again.
    ///
    /// Answers that come all the same are taken, so that what they release is released.
    pub(crate) fn declare_gone(&self) {
        self.is_gone.store(true, Release);
        for queue in &self.queues {
            queue.refuse();
        }
    }

    /// From here on a device that takes longer than `ms` milliseconds for an answer is gone.
    /// Before, who waits for it decides how long.
    pub(crate) fn limit_answers(&self, ms: u32) {
        self.answer_ms.store(ms, Relaxed);
    }

    /// Milliseconds that the device has for an answer.
    pub(crate) fn answer_ms(&self) -> u32 {
        self.answer_ms.load(Relaxed)
    }

    /// Asks a device again that did not answer: it may have come back.
    pub(crate) fn ask_again(&self) {
        self.is_gone.store(false, Release);
        for queue in &self.queues {
            queue.accept();
        }
    }

    /// Whether the device itself goes away, with its memory, and not only its driver. False also
    /// once the machine goes down, which waits for nobody.
    pub(crate) fn is_leaving(&self) -> bool {
        // SAFETY: The device is valid.
        unsafe { sys::cdm_vdev_is_leaving(self.vdev.as_ptr()) }
    }

    /// Times that the device was told of commands.
    pub(crate) fn kicks(&self) -> u64 {
        let queues = self.queues.iter();
        let commands = queues.skip(wire::QUEUE_FIRST_COMMAND.into());
        commands.map(|queue| queue.kicks()).sum()
    }

    /// Takes what the device has given back on the command queues, without its interrupt.
    pub(crate) fn take_answers(&self) {
        for queue in self.queues.iter().skip(wire::QUEUE_FIRST_COMMAND.into()) {
            queue.take_answers();
        }
    }

    /// Resets the device, takes the buffers back and deletes the queues.
    ///
    /// No SHMEM mapping may be under way, and nobody may need the mapped memory. The device
    /// answers: the kernel waits for the reset without a limit, and QEMU, which has the
    /// backend stop for it, holds the whole machine meanwhile.
    pub(crate) fn stop(&self) {
        self.close();
        // SAFETY: The device is valid. After the reset no callback runs any more.
        unsafe { sys::virtio_reset_device(self.vdev.as_ptr()) };
        self.reclaim();
    }

    /// The same for power-off, where the queues stay allocated.
    pub(crate) fn shut_down(&self) {
        self.close();
        self.vdev.shut_down();
    }

    /// Lets the device run on without a driver: neither asks it for anything nor hears it.
    ///
    /// The queues, this value and what they point to stay for good, and `priv` tells the
    /// next driver so. True if the module stays, too; false if it is being unloaded.
    pub(crate) fn leave_running(&self) -> bool {
        self.close();
        // SAFETY: The device is valid, and is being removed from its driver.
        unsafe { sys::cdm_vdev_leave_running(self.vdev.as_ptr()) }
    }

    fn close(&self) {
        self.declare_gone();
        for queue in &self.queues {
            queue.close();
        }
    }

    fn reclaim(&self) {
        for queue in &self.queues {
            queue.reclaim();
        }
        // SAFETY: The device is valid and reset; the queues are closed, so no call on
        // them follows.
        unsafe { sys::cdm_vdev_del_vqs(self.vdev.as_ptr()) };
        // SAFETY: The device is valid.
        let this = unsafe { sys::cdm_vdev_priv(self.vdev.as_ptr()) };
        // SAFETY: The device is valid, and no callback is left to read `priv`.
        unsafe { sys::cdm_vdev_set_priv(self.vdev.as_ptr(), core::ptr::null_mut()) };
        if !this.is_null() {
            // SAFETY: `start` put a reference there.
            drop(unsafe { Arc::<Self>::from_foreign(this) });
        }
    }

    /// Gives the device a buffer for an event.
    pub(crate) fn lend_event_buffer(&self, buffer: &Arc<Request>) {
        buffer.written.store(NOT_WRITTEN, Release);
        if let Ok(queue) = self.queue(wire::QUEUE_EVENT.into()) {
            // A closed queue takes no buffer; then there was a last event.
            let _ = queue.try_submit(buffer);
        }
    }

    /// A queue has used buffers. Hard interrupt context.
    ///
    /// # Safety
    ///
    /// The transport calls it with a queue that `start` found.
    unsafe extern "C" fn interrupt(vq: *mut sys::virtqueue) {
        // SAFETY: The callback gets a valid queue, whose device is valid.
        let this = unsafe { sys::cdm_vdev_priv(sys::cdm_vq_vdev(vq)) };
        if this.is_null() {
            return;
        }
        // SAFETY: `priv` has a reference to a transport until after the reset, which
        // waits for callbacks.
        let this = unsafe { Arc::<Self>::borrow(this) };
        // SAFETY: The queue is valid.
        let index = unsafe { sys::cdm_vq_index(vq) };
        let Ok(queue) = this.queue(index as usize) else {
            return;
        };
        if index != u32::from(wire::QUEUE_EVENT) {
            queue.take_answers();
            return;
        }
        queue.drain(|request, written| {
            request
                .written
                .store(written.min(INPUT_BYTES as u32), Release);
            match this.events.take(&request) {
                Taken::Done => this.lend_event_buffer(&request),
                Taken::PassOn(device) => request.pass_on(device),
                Taken::Note(device) => {
                    if let Some(report) = request.answer() {
                        sva::note(device, &report);
                    }
                    this.lend_event_buffer(&request);
                }
            }
        });
    }
}
