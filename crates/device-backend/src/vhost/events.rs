// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The event queue: what the driver did not ask about.

use super::chain::Chain;
use super::guest_view::GuestView;
use super::ring::{Broken, Ring};
use super::vring::Vring;
use cdm_protocol::{Event, EventKind, QUEUE_SIZE};
use std::sync::{Mutex, PoisonError};
use zerocopy::IntoBytes;

/// Events that found no buffer.
#[derive(Debug, Default)]
pub struct Events {
    lost: Mutex<u64>,
}

impl Events {
    /// Reports that something is wrong with queue number `queue`, or counts the report as
    /// lost if the driver has no buffer for it.
    ///
    /// Any worker may call this; the lock keeps events in order.
    /// True if the driver was told.
    pub fn queue_error(&self, queue: u16, vring: &Vring, guest: &GuestView) -> bool {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = Ring::new(vring, guest);
        let event = Event {
            kind: EventKind::QUEUE_ERROR,
            queue: queue.into(),
            reserved: 0.into(),
            lost: (*lost).into(),
        };
        // No event for a broken event queue: it would be the first victim.
        let is_told = Self::deliver(&ring, &event, guest).unwrap_or(false);
        *lost = if is_told { 0 } else { lost.saturating_add(1) };
        ring.notify();
        is_told
    }

    /// Writes the event into the first buffer that is large enough; false if there is none.
    fn deliver(ring: &Ring<'_>, event: &Event, guest: &GuestView) -> Result<bool, Broken> {
        // No more than a ring holds: rings laid over each other refill themselves for ever.
        for _ in 0..QUEUE_SIZE {
            let Some((chain, ())) = ring.pop(|| ())? else {
                break;
            };
            let fits = Chain::has_room(&chain, size_of::<Event>(), guest);
            if fits {
                chain.answer(event.as_bytes(), guest);
            }
            let bytes = if fits { size_of::<Event>() as u32 } else { 0 };
            ring.push_used(&chain, bytes)?;
            if fits {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
