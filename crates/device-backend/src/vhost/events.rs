// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The event queue: what the driver did not ask about, and what the device asks the driver.

use super::chain::Chain;
use super::guest_view::GuestView;
use super::ring::{Broken, Ring};
use super::vring::Vring;
use crate::model::Device;
use cdm_protocol::{
    AccessReport, Event, EventKind, PageRequest, QUEUE_SIZE, REPORT_BUFFERS_SPARED,
};
use std::sync::{Mutex, PoisonError};
use zerocopy::IntoBytes;

/// Most memory errors that are told at a time.
const MEMORY_ERRORS_AT_ONCE: usize = 8;

/// Events on their way.
#[derive(Debug, Default)]
pub struct Events {
    /// Queue errors that found no buffer.
    lost: Mutex<u64>,
    /// Access reports that found none that they may take.
    lost_reports: Mutex<u64>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The driver has it.
    Told,
    /// The driver has put no buffer there that is large enough.
    NoBuffer,
    /// The event queue is not in use.
    Stopped,
}

impl Events {
    /// Reports that something is wrong with queue number `queue`, or counts the report as
    /// lost if the driver has no buffer for it. The caller has the event queue's turn.
    ///
    /// True if the driver was told.
    pub fn queue_error(&self, queue: u16, vring: &Vring, guest: &GuestView) -> bool {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event {
            kind: EventKind::QUEUE_ERROR,
            queue: queue.into(),
            reserved: 0.into(),
            lost: (*lost).into(),
        };
        // No event for a broken event queue: it would be the first victim.
        let is_told = deliver(vring, event.as_bytes(), guest, 0) == Delivery::Told;
        *lost = if is_told { 0 } else { lost.saturating_add(1) };
        is_told
    }

    /// Tells the driver of a granule that is used much, unless that would take a buffer that page
    /// requests may need; then it counts as lost. The caller has the event queue's turn.
    ///
    /// True if the driver was told.
    pub fn report_accesses(&self, report: AccessReport, vring: &Vring, guest: &GuestView) -> bool {
        let lost = self.lost_reports.lock();
        let mut lost = lost.unwrap_or_else(PoisonError::into_inner);
        let report = AccessReport {
            lost: (*lost).into(),
            ..report
        };
        let delivery = deliver(vring, report.as_bytes(), guest, REPORT_BUFFERS_SPARED);
        let is_told = delivery == Delivery::Told;
        *lost = if is_told { 0 } else { lost.saturating_add(1) };
        is_told
    }
}

/// Asks the driver for pages. A request that finds no buffer is not counted as lost: the command
/// that made it tells. The caller has the event queue's turn.
pub fn request_pages(request: &PageRequest, vring: &Vring, guest: &GuestView) -> Delivery {
    deliver(vring, request.as_bytes(), guest, 0)
}

/// Delivers an event and leaves the driver's last `spared` buffers alone.
fn deliver(vring: &Vring, event: &[u8], guest: &GuestView, spared: u16) -> Delivery {
    let ring = Ring::new(vring, guest);
    // The caller has the queue's turn, so nobody else takes one meanwhile.
    let tries = match spared {
        0 => QUEUE_SIZE,
        _ => ring.with_waiting(|waiting| waiting.saturating_sub(spared)),
    };
    let is_told = place(&ring, event, guest, tries).unwrap_or(false);
    ring.notify();
    match is_told {
        true => Delivery::Told,
        false if ring.is_running() => Delivery::NoBuffer,
        false => Delivery::Stopped,
    }
}

/// Tells of memory that has failed as long as there are buffers, but of no more than a few pieces:
/// the rest is told after the driver's next request, and page requests find room meanwhile. What
/// finds none stays with the device. The caller has the event queue's turn.
pub fn tell_memory_errors(device: &Device, vring: &Vring, guest: &GuestView) {
    let ring = Ring::new(vring, guest);
    for _ in 0..MEMORY_ERRORS_AT_ONCE {
        let Some(error) = device.take_memory_error() else {
            break;
        };
        if place(&ring, error.as_bytes(), guest, QUEUE_SIZE).unwrap_or(false) {
            continue;
        }
        device.keep_memory_error(&error);
        // Nobody else asks to hear of new buffers; they may be there by now.
        if !ring.enable_kicks().unwrap_or(false) {
            break;
        }
    }
    ring.notify();
}

/// Writes an event into the first buffer that is large enough, of `tries`; false if there is none.
fn place(ring: &Ring<'_>, event: &[u8], guest: &GuestView, tries: u16) -> Result<bool, Broken> {
    // No more than a ring holds: rings laid over each other refill themselves for ever.
    for _ in 0..tries.min(QUEUE_SIZE) {
        let Some((chain, ())) = ring.pop(|| ())? else {
            break;
        };
        let fits = Chain::has_room(&chain, event.len(), guest);
        if fits {
            chain.answer(event, guest);
        }
        // An event is no longer than a page.
        let bytes = if fits { event.len() as u32 } else { 0 };
        ring.push_used(&chain, bytes)?;
        if fits {
            return Ok(true);
        }
    }
    Ok(false)
}
