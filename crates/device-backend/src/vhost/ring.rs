// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One virtqueue, seen from the device.

use super::chain::Chain;
use super::guest_view::GuestView;
use super::vring::Vring;
use std::ops::DerefMut;
use std::sync::atomic::Ordering;
use tracing::debug;
use vhost_user_backend::VringT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

/// A virtqueue together with the guest memory that it lies in.
pub struct Ring<'a> {
    vring: &'a Vring,
    guest: &'a GuestView,
}

/// The driver's side of the ring makes no sense; nothing more can be taken from it.
#[derive(Debug)]
pub struct Broken;

impl<'a> Ring<'a> {
    /// The ring as it is now; a new one is made for each chain, since memory may change.
    pub fn new(vring: &'a Vring, guest: &'a GuestView) -> Self {
        Self { vring, guest }
    }

    /// Takes the next chain, `None` if there is none or the ring is stopped.
    ///
    /// `on_taken` runs under the ring's lock, in one step with the taking as far as
    /// [`Self::with_waiting`] can see.
    pub fn pop<T>(&self, on_taken: impl FnOnce() -> T) -> Result<Option<(Chain, T)>, Broken> {
        let mut state = self.vring.get_mut();
        if !state.is_enabled() {
            return Ok(None);
        }
        let queue = state.get_queue_mut();
        if self.waiting_in(queue)? == 0 {
            return Ok(None);
        }
        let memory = self.guest.memory().clone();
        // The index says that there is a chain: only an unreadable entry hides it.
        let next = queue.iter(memory).map_err(|_| Broken)?.next();
        let descriptors = next.ok_or(Broken)?;
        let taken = on_taken();
        drop(state);
        Ok(Some((Chain::collect(descriptors), taken)))
    }

    /// The next chain, which stays in the ring; `None` if there is none that can be read.
    pub fn peek(&self) -> Option<Chain> {
        let mut state = self.vring.get_mut();
        if !state.is_enabled() {
            return None;
        }
        let queue = state.get_queue_mut();
        if self.waiting_in(queue).ok()? == 0 {
            return None;
        }
        let next = queue.next_avail();
        let descriptors = queue.iter(self.guest.memory().clone()).ok()?.next();
        queue.set_next_avail(next);
        drop(state);
        descriptors.map(Chain::collect)
    }

    /// The memory that it lies in.
    pub fn guest(&self) -> &'a GuestView {
        self.guest
    }

    /// Whether the driver uses the queue: it is set up, and neither paused nor reset.
    pub fn is_running(&self) -> bool {
        let state = self.vring.get_ref();
        state.is_enabled() && state.get_queue().ready()
    }

    /// Runs `f` with the number of chains that wait in the ring, while none is taken.
    pub fn with_waiting<T>(&self, f: impl FnOnce(u16) -> T) -> T {
        let state = self.vring.get_ref();
        let waiting = if state.is_enabled() {
            // Of a broken ring nothing will be taken.
            self.waiting_in(state.get_queue()).unwrap_or(0)
        } else {
            0
        };
        f(waiting)
    }

    fn waiting_in(&self, queue: &Queue) -> Result<u16, Broken> {
        if !queue.ready() {
            return Ok(0);
        }
        let avail = queue
            .avail_idx(self.guest.memory().as_ref(), Ordering::Acquire)
            .map_err(|_| Broken)?;
        let waiting = avail.0.wrapping_sub(queue.next_avail());
        if waiting > queue.size() {
            return Err(Broken);
        }
        Ok(waiting)
    }

    /// Gives a chain back with `bytes` of answer in it.
    ///
    /// One whose head is outside the descriptor table has no name to be given back by, and
    /// is left.
    pub fn push_used(&self, chain: &Chain, bytes: u32) -> Result<(), Broken> {
        self.with_queue(|queue, guest| {
            if chain.head() >= queue.size() {
                return Ok(());
            }
            queue.add_used(guest.memory().as_ref(), chain.head(), bytes)
        })
    }

    /// Interrupts the driver if it wants to hear of the chains given back since the last time.
    pub fn notify(&self) {
        let mut state = self.vring.get_mut();
        let memory = self.guest.memory().as_ref();
        match state.get_queue_mut().needs_notification(memory) {
            Ok(true) => {
                if let Err(error) = state.signal_used_queue() {
                    debug!(%error, "cannot interrupt the driver");
                }
            }
            Ok(false) => {}
            Err(error) => debug!(%error, "cannot read what the driver wants to be interrupted for"),
        }
    }

    /// Tells the driver not to kick: we are looking anyway.
    pub fn disable_kicks(&self) -> Result<(), Broken> {
        self.with_queue(|queue, guest| queue.disable_notification(guest.memory().as_ref()))
    }

    /// Asks the driver to kick again; true if chains came in meanwhile, unannounced.
    pub fn enable_kicks(&self) -> Result<bool, Broken> {
        let is_enabled = self.vring.get_ref().is_enabled();
        self.with_queue(|queue, guest| {
            if is_enabled && queue.ready() {
                queue.enable_notification(guest.memory().as_ref())
            } else {
                // A stopped ring has nothing for us, whatever its index says.
                Ok(false)
            }
        })
    }

    fn with_queue<T>(
        &self,
        f: impl FnOnce(&mut Queue, &GuestView) -> Result<T, virtio_queue::Error>,
    ) -> Result<T, Broken> {
        let mut state = self.vring.get_mut();
        f(state.deref_mut().get_queue_mut(), self.guest).map_err(|error| {
            debug!(%error, "inconsistent ring");
            Broken
        })
    }
}
