// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Serving the control queue.

use super::adapter::Shared;
use super::chain::{self, Chain, Malformed};
use super::command::{self, CommandRings, with_status};
use super::guest_view::GuestView;
use super::mapper::MapError;
use super::passage::{Passage, Served};
use super::ring::{Broken, Ring};
use super::vring::Vring;
use crate::model::{ControlStep, Line, Request};
use cdm_protocol::{
    Completion, ControlOpcode, QUEUE_CONTROL, QUEUE_EVENT, QUEUE_FIRST_COMMAND, Status,
};
use std::sync::Arc;
use tracing::{debug, warn};

/// Takes and carries out one control request. `vrings` are all queues of the device.
///
/// The caller has the control queue's turn.
pub fn serve_one(shared: &Arc<Shared>, vrings: &[Vring]) -> Result<Served, Broken> {
    let guest = shared.guest();
    let control = &vrings[usize::from(QUEUE_CONTROL)];
    let ring = Ring::new(control, &guest);
    if Passage::is_barred(shared, QUEUE_CONTROL, &ring) {
        return Ok(Served::Stalled);
    }
    let Some((chain, ())) = ring.pop(|| ())? else {
        return Ok(Served::Nothing);
    };
    let mut passage = Passage::begin(shared, QUEUE_CONTROL, &chain, &guest);
    if !chain.has_room(size_of::<Completion>(), &guest) {
        let given_back = ring.push_used(&chain, 0);
        let event = &vrings[usize::from(QUEUE_EVENT)];
        shared.queue_error(QUEUE_CONTROL, event, &guest);
        return given_back.map(|()| Served::One);
    }
    let Some(completion) = carry_out(shared, &chain, &guest, vrings, &mut passage) else {
        return Ok(Served::Nothing);
    };
    passage.wait_if_late(shared, &ring);
    passage.give_back(shared, &ring, chain, &completion, &guest)?;
    Ok(Served::One)
}

/// The completion; none if the guest has stopped the queue meanwhile and has its memory back.
fn carry_out(
    shared: &Arc<Shared>,
    chain: &Chain,
    guest: &GuestView,
    vrings: &[Vring],
    passage: &mut Passage,
) -> Option<Completion> {
    let request = match chain.request(guest) {
        Ok(request) => request,
        Err(Malformed) => return Some(with_status(Status::MALFORMED)),
    };
    let opcode = chain::opcode(&request.bytes).map(ControlOpcode);
    passage.is_for(opcode.and_then(ControlOpcode::name));
    if opcode == Some(ControlOpcode::INVALIDATE) {
        passage.is_invalidation(shared);
    }
    if let Some(refusal) = passage.refusal() {
        return Some(refusal);
    }
    let device = &shared.device;
    match device.control(&Request::new(&request.bytes, request.total)) {
        ControlStep::Complete(completion) => Some(completion),
        ControlStep::MapMemory => {
            let result = shared.mapper.map(device.pool());
            if let Err(error) = &result {
                warn!(%error, "MAP_MEMORY failed");
            }
            let completion = device.finish_map(result.is_ok());
            (!matches!(result, Err(MapError::Stopped))).then_some(completion)
        }
        ControlStep::CancelCommand { index, tag } => {
            let vring = &vrings[usize::from(QUEUE_FIRST_COMMAND + index)];
            let queue = &device.queues()[usize::from(index)];
            let cancel = |waiting| queue.cancel_one(tag, waiting);
            Some(device.finish_cancel(Ring::new(vring, guest).with_waiting(cancel)))
        }
        ControlStep::CancelCommands => Some(device.finish_reset(cancel_commands(shared, vrings))),
    }
}

/// Fails every outstanding command and waits until each has its completion.
///
/// The queues' own workers may sleep, with chains in the ring that were never announced;
/// so this worker goes through what is left itself, in turn with them.
fn cancel_commands(shared: &Arc<Shared>, vrings: &[Vring]) -> u64 {
    let queues = shared.device.queues();
    let rings = || (0u16..).zip(&vrings[usize::from(QUEUE_FIRST_COMMAND)..]);
    // All lines first, so that no queue works on while another is waited for.
    let lines: Vec<Line> = {
        let guest = shared.guest();
        rings()
            .zip(queues)
            .map(|((_, vring), queue)| {
                Ring::new(vring, &guest).with_waiting(|waiting| queue.cancel_posted(waiting))
            })
            .collect()
    };
    let event = &vrings[usize::from(QUEUE_EVENT)];
    let mut cancelled = 0;
    for (((index, vring), queue), line) in rings().zip(queues).zip(&lines) {
        let rings = CommandRings {
            command: vring,
            event,
        };
        while !queue.is_taken(line) {
            let _turn = shared.turns[usize::from(QUEUE_FIRST_COMMAND + index)].take();
            if queue.is_taken(line) {
                break;
            }
            match command::serve_one(shared, index, rings) {
                Ok(Served::One) => {}
                // The driver took its chains back, or the ring was stopped: nothing is left. (No
                // fault holds a queue up whose next command is below a line.)
                Ok(Served::Nothing | Served::Stalled) | Err(Broken) => {
                    queue.wait_for_line(line);
                    queue.forget_line();
                    break;
                }
            }
        }
        // What other threads had taken.
        queue.wait_for_line(line);
        Ring::new(vring, &shared.guest()).notify();
        cancelled += queue.cancelled_since(line);
    }
    debug!(cancelled, "reset by the driver");
    cancelled
}
