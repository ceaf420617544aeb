// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A request's way through the device, from being taken off a ring to being given back:
//! the one place where it is counted, and where faults happen to it.

use super::adapter::Shared;
use super::chain::Chain;
use super::command::with_status;
use super::guest_view::GuestView;
use super::ring::{Broken, Ring};
use crate::fault::{Effects, Leave};
use crate::model::{Picoseconds, Traffic};
use crate::telemetry::{Ended, UNKNOWN};
use cdm_control_protocol::FaultKind;
use cdm_protocol::Completion;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// What a worker did at a ring.
#[derive(Debug, PartialEq, Eq)]
pub enum Served {
    /// Took a request; there may be more.
    One,
    /// There is none.
    Nothing,
    /// A fault keeps it from taking the next one.
    Stalled,
}

/// A request that was taken.
#[derive(Debug)]
#[must_use = "a request that was taken is given back"]
pub struct Passage {
    queue: u16,
    opcode: &'static str,
    began: Instant,
    effects: Effects,
    traffic: Traffic,
    simulated: Option<Picoseconds>,
    /// How long it waits after it was carried out.
    late: Duration,
}

/// A chain that is given back after the next one of its queue.
#[derive(Debug)]
pub struct Held {
    chain: Chain,
    used_bytes: u32,
}

impl Passage {
    /// Whether a fault keeps a queue from taking the request that waits there.
    pub fn is_barred(shared: &Shared, queue: u16, ring: &Ring<'_>) -> bool {
        let opcode = || ring.peek()?.opcode(ring.guest());
        ring.with_waiting(|waiting| waiting > 0) && shared.faults.look(queue, opcode)
    }

    /// Begins when the request has been taken off the ring.
    pub fn begin(shared: &Shared, queue: u16, chain: &Chain, guest: &GuestView) -> Self {
        Self {
            queue,
            opcode: UNKNOWN,
            began: Instant::now(),
            effects: shared.faults.take(queue, || chain.opcode(guest)),
            traffic: Traffic::default(),
            simulated: None,
            late: Duration::ZERO,
        }
    }

    /// Says which operation it is.
    pub fn is_for(&mut self, opcode: Option<&'static str>) {
        self.opcode = opcode.unwrap_or(UNKNOWN);
    }

    /// Says what it did to memory, and how long that takes on a link that takes time.
    pub fn did(&mut self, traffic: &Traffic, simulated: Option<Picoseconds>) {
        self.traffic = *traffic;
        self.simulated = simulated;
    }

    /// Says that it is an INVALIDATE, which has a fault of its own.
    pub fn is_invalidation(&mut self, shared: &Shared) {
        if let Some(late) = shared.faults.delay_invalidation(self.queue) {
            self.effects.hits.push(FaultKind::LateInvalidation);
            self.late = late;
        }
    }

    /// Waits as long as a fault wants it, though it is carried out. Not longer than the faults
    /// are there and the ring is running: whoever stops it waits for this.
    pub fn wait_if_late(&self, shared: &Shared, ring: &Ring<'_>) {
        let end = Instant::now() + self.late;
        while Instant::now() < end && shared.faults.are_any() && ring.is_running() {
            shared.faults.wait();
        }
    }

    /// What it ends with instead of being carried out.
    pub fn refusal(&self) -> Option<Completion> {
        self.effects.refusal.map(with_status)
    }

    /// Gives the request back with its completion, as a driver may expect it or not.
    pub fn give_back(
        self,
        shared: &Shared,
        ring: &Ring<'_>,
        chain: Chain,
        completion: &Completion,
        guest: &GuestView,
    ) -> Result<(), Broken> {
        shared.telemetry.ended(&Ended {
            queue: self.queue,
            opcode: self.opcode,
            began: self.began,
            completion,
            hits: &self.effects.hits,
            traffic: &self.traffic,
            simulated: self.simulated,
        });
        let mut bytes = [0; size_of::<Completion>()];
        bytes.copy_from_slice(completion.as_bytes());
        let mut written = bytes.len();
        let mut used_bytes = written as u32;
        let mut times = 1;
        let mut is_late = false;
        for leave in &self.effects.leave {
            match *leave {
                Leave::Drop => times = 0,
                Leave::Duplicate => times = 2,
                // Only with a successor in sight: else it would be a request that is dropped.
                Leave::Reorder => is_late = ring.with_waiting(|waiting| waiting > 0),
                Leave::Truncate(count) => {
                    written = written.min(count as usize);
                    used_bytes = count;
                }
                Leave::Corrupt { offset, change } => {
                    if let Some(byte) = bytes.get_mut(offset as usize) {
                        *byte ^= change;
                    }
                }
                Leave::WrongLength(count) => used_bytes = count,
            }
        }
        if times == 0 {
            return Ok(());
        }
        chain.answer(&bytes[..written], guest);
        let held = &shared.held[usize::from(self.queue)];
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if is_late && held.is_none() {
            *held = Some(Held { chain, used_bytes });
            return Ok(());
        }
        for _ in 0..times {
            ring.push_used(&chain, used_bytes)?;
        }
        match held.take() {
            Some(held) => ring.push_used(&held.chain, held.used_bytes),
            None => Ok(()),
        }
    }
}
