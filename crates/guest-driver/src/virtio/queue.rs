// SPDX-License-Identifier: GPL-2.0-only

//! One virtqueue.
//!
//! Facility: virtqueues. C header: `linux/virtio.h`. Contexts: buffers are added in process
//! context and in the queue's callback, and taken off in the callback, in hard interrupt
//! context. Lock order: `Queue::ring`, taken in interrupts, then `Request::parked`. Invariant:
//! the device has exactly the requests that the ring holds a reference to.
//!
//! Who waits may look for the answers instead of sleeping: [`Queue::expect`]. Meanwhile the device
//! is asked for no interrupt, and who looks takes the answers of all.

use core::ptr::NonNull;

use kernel::prelude::*;
use kernel::sync::{new_spinlock_irq, Arc, SpinLockIrq};
use kernel::types::ForeignOwnable;

use super::request::Request;
use crate::look::Habit;
use crate::sys;

/// Between two looks whether a full queue has room.
pub(crate) const FULL_MS: u32 = 10;

/// State of a queue under its lock.
struct Ring {
    /// The queue may be used at all.
    is_open: bool,
    /// Requests may be added.
    takes_more: bool,
    /// Requests that the device has.
    lent: u64,
    /// Requests that it gave back.
    answered: u64,
    /// Times that it was told of requests.
    kicks: u64,
    /// Waiters that look for answers; without any, the device is asked for interrupts.
    lookers: u32,
    /// When answers come.
    habit: Habit,
}

/// One virtqueue.
///
/// # Invariants
///
/// - `vq` is valid until [`Transport`] deletes it, which is after `is_open` went false.
/// - Every call on `vq` is made under `ring`.
/// - Each token on `vq` is a reference to a [`Request`].
#[pin_data]
pub(crate) struct Queue {
    vq: NonNull<sys::virtqueue>,
    #[pin]
    ring: SpinLockIrq<Ring>,
}

// SAFETY: `vq` is only used under `ring`.
unsafe impl Send for Queue {}
// SAFETY: As above.
unsafe impl Sync for Queue {}

impl Queue {
    pub(super) fn new(vq: NonNull<sys::virtqueue>) -> impl PinInit<Self> {
        pin_init!(Self {
            vq,
            ring <- new_spinlock_irq!(Ring {
                is_open: true,
                takes_more: true,
                lent: 0,
                answered: 0,
                kicks: 0,
                lookers: 0,
                habit: Habit::new(),
            }),
        })
    }

    /// Adds a request to the ring, EBUSY if no descriptor is free; the caller holds the lock that
    /// `ring` comes from.
    fn add(&self, ring: &mut Ring, request: &Arc<Request>) -> Result {
        if !ring.is_open || !ring.takes_more {
            return Err(ENODEV);
        }
        let token = request.clone().into_foreign();
        // SAFETY: The lock is held. Both buffers stay allocated and untouched while the
        // ring has the reference in `token`; they are slab memory, so contiguous.
        let err = unsafe {
            sys::cdm_vq_add(
                self.vq.as_ptr(),
                request.output().as_ptr().cast_mut().cast(),
                request.output().len() as u32,
                request.input.get().cast(),
                request.input_bytes as u32,
                token,
            )
        };
        if err == 0 {
            ring.lent += 1;
            return Ok(());
        }
        // SAFETY: The ring did not take the token.
        drop(unsafe { Arc::<Request>::from_foreign(token) });
        let err = Error::from_errno(err);
        Err(if err == ENOSPC { EBUSY } else { err })
    }

    /// Tells the device of what was added; the caller holds the lock that `ring` comes from.
    fn tell(&self, ring: &mut Ring) {
        if ring.is_open {
            ring.kicks += 1;
            // SAFETY: The lock is held and the queue is open, so the device is not reset.
            unsafe { sys::virtqueue_kick(self.vq.as_ptr()) };
        }
    }

    /// Lends a request to the device, EBUSY if there is no room. The device need not know before
    /// the next [`kick`](Self::kick), which has to come.
    pub(crate) fn try_add(&self, request: &Arc<Request>) -> Result {
        self.add(&mut self.ring.lock(), request)
    }

    /// Tells the device of what was added.
    pub(crate) fn kick(&self) {
        self.tell(&mut self.ring.lock());
    }

    /// Lends a request to the device if there is room, EBUSY if not.
    pub(crate) fn try_submit(&self, request: &Arc<Request>) -> Result {
        let mut ring = self.ring.lock();
        self.add(&mut ring, request)?;
        self.tell(&mut ring);
        Ok(())
    }

    /// Lends a request to the device if it has no other one of this queue, EBUSY if it has: what is
    /// there first may take as long as a process likes.
    pub(crate) fn try_submit_alone(&self, request: &Arc<Request>) -> Result {
        let mut ring = self.ring.lock();
        if ring.lent != 0 {
            return Err(EBUSY);
        }
        self.add(&mut ring, request)?;
        self.tell(&mut ring);
        Ok(())
    }

    /// Lends a request to the device, deaf to signals; ETIMEDOUT if there is no room for `ms`
    /// milliseconds.
    pub(crate) fn submit_within(&self, request: &Arc<Request>, ms: u32) -> Result {
        let mut waited = 0;
        loop {
            match self.try_submit(request) {
                Err(err) if err == EBUSY && waited < ms => {}
                Err(err) if err == EBUSY => return Err(ETIMEDOUT),
                done => return done,
            }
            // SAFETY: Process context, no lock held that an interrupt takes.
            unsafe { sys::msleep(FULL_MS) };
            waited += FULL_MS;
        }
    }

    /// Requests that the device gave back so far, and requests that it has.
    pub(crate) fn answered_and_lent(&self) -> (u64, u64) {
        let ring = self.ring.lock();
        (ring.answered, ring.lent)
    }

    /// Times that the device was told of requests.
    pub(super) fn kicks(&self) -> u64 {
        self.ring.lock().kicks
    }

    /// Takes the next used buffer off the ring: the request and the bytes written.
    fn take_used(&self) -> Option<(Arc<Request>, u32)> {
        let mut ring = self.ring.lock();
        if !ring.is_open {
            return None;
        }
        let mut written = 0;
        // SAFETY: The lock is held and the queue is open.
        let token = unsafe { sys::virtqueue_get_buf(self.vq.as_ptr(), &mut written) };
        if token.is_null() {
            return None;
        }
        ring.lent -= 1;
        ring.answered += 1;
        drop(ring);
        // SAFETY: By the type invariant; the ring gave the reference up.
        Some((unsafe { Arc::<Request>::from_foreign(token) }, written))
    }

    /// Hands every used buffer to `each`.
    pub(super) fn drain(&self, mut each: impl FnMut(Arc<Request>, u32)) {
        while let Some((request, written)) = self.take_used() {
            each(request, written);
        }
    }

    /// Gets ready to look for an answer that is expected soon, if it is: from here on the device
    /// need not interrupt for it. To be called before the device is told of the request.
    pub(crate) fn expect(&self) -> Option<Look<'_>> {
        let mut ring = self.ring.lock();
        let window_ns = ring.habit.window_ns();
        if window_ns == 0 || !ring.is_open {
            return None;
        }
        ring.lookers += 1;
        if ring.lookers == 1 {
            // After an interrupt the kernel takes the device for silent, and would not silence it;
            // to enable them makes it forget that.
            // SAFETY: The lock is held and the queue is open.
            unsafe { sys::virtqueue_enable_cb(self.vq.as_ptr()) };
            // SAFETY: As above.
            unsafe { sys::virtqueue_disable_cb(self.vq.as_ptr()) };
        }
        Some(Look {
            queue: self,
            window_ns,
        })
    }

    /// An answer has come to one that slept for it, after so long.
    pub(crate) fn slept(&self, after_ns: u64) {
        self.ring.lock().habit.slept(after_ns);
    }

    /// A waiter looks no more.
    fn look_no_more(&self) {
        let mut ring = self.ring.lock();
        ring.lookers -= 1;
        if ring.lookers > 0 || !ring.is_open {
            return;
        }
        // SAFETY: The lock is held and the queue is open.
        let is_empty = unsafe { sys::virtqueue_enable_cb(self.vq.as_ptr()) };
        drop(ring);
        if !is_empty {
            // No interrupt may come for what is there already.
            self.take_answers();
        }
    }

    /// Takes what the device has given back of requests, without its interrupt.
    pub(super) fn take_answers(&self) {
        self.drain(|request, written| request.finish(written));
    }

    /// No request from here on; answers still come.
    pub(super) fn refuse(&self) {
        self.ring.lock().takes_more = false;
    }

    /// Requests again.
    pub(super) fn accept(&self) {
        self.ring.lock().takes_more = true;
    }

    /// Neither request nor answer from here on.
    pub(super) fn close(&self) {
        self.ring.lock().is_open = false;
    }

    /// Gives back what the device never answered. The device is reset.
    pub(super) fn reclaim(&self) {
        loop {
            let ring = self.ring.lock();
            // SAFETY: The lock is held; the device is reset, so the ring is the driver's.
            let token = unsafe { sys::virtqueue_detach_unused_buf(self.vq.as_ptr()) };
            drop(ring);
            if token.is_null() {
                return;
            }
            // SAFETY: By the type invariant; the ring gave the reference up.
            unsafe { Arc::<Request>::from_foreign(token) }.finish(0);
        }
    }
}

/// A waiter that looks for answers, as long as this lives.
#[must_use = "the device makes no interrupt as long as it lives"]
pub(crate) struct Look<'a> {
    queue: &'a Queue,
    window_ns: u64,
}

impl Look<'_> {
    /// Takes answers of the device until `is_enough`, or until it is time to sleep for them;
    /// whether it is enough. `is_enough` does not sleep.
    pub(crate) fn until(&self, is_enough: impl Fn() -> bool) -> bool {
        // SAFETY: Process context; `cdm_look_end` follows, and nothing sleeps before.
        let begin_ns = unsafe { sys::cdm_look_begin() };
        let is_found = loop {
            self.queue.take_answers();
            if is_enough() {
                break true;
            }
            // SAFETY: Reads a clock, between begin and end of a look.
            if !unsafe { sys::cdm_look_on(begin_ns, self.window_ns) } {
                break false;
            }
        };
        // SAFETY: The look that began above.
        unsafe { sys::cdm_look_end() };
        let mut ring = self.queue.ring.lock();
        if is_found {
            ring.habit.found();
        } else {
            ring.habit.looked_in_vain();
        }
        is_found
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.queue.look_no_more();
    }
}
