// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Serving a command queue.

use super::adapter::Shared;
use super::chain::Malformed;
use super::ring::{Broken, Ring};
use crate::model::{Command, Request};
use cdm_protocol::{Completion, QUEUE_FIRST_COMMAND, Status};
use vhost_user_backend::VringMutex;
use zerocopy::FromZeros;

/// Work above which the driver hears of the commands before first: below it, an interrupt
/// costs more than the waiting.
const LONG_COMMAND_BYTES: u64 = 64 << 10;

/// The rings that a command worker needs.
#[derive(Clone, Copy)]
pub struct CommandRings<'a> {
    /// The command queue itself.
    pub command: &'a VringMutex,
    /// For errors that no completion can tell.
    pub event: &'a VringMutex,
}

/// Takes and carries out one command of queue number `index` among the command queues.
///
/// True if there was one. The caller has the queue's turn.
pub fn serve_one(shared: &Shared, index: u16, rings: CommandRings<'_>) -> Result<bool, Broken> {
    let guest = shared.guest();
    let ring = Ring::new(rings.command, &guest);
    let queue = &shared.device.queues()[usize::from(index)];
    let Some((chain, ticket)) = ring.pop(|| queue.take())? else {
        return Ok(false);
    };
    if !chain.has_room(size_of::<Completion>(), &guest) {
        let given_back = ring.push_used(&chain, 0);
        queue.finish(&with_status(Status::MALFORMED));
        shared
            .events
            .queue_error(QUEUE_FIRST_COMMAND + index, rings.event, &guest);
        return given_back.map(|()| true);
    }
    let completion = if queue.is_cancelled(ticket) {
        with_status(Status::CANCELLED)
    } else {
        match chain.request(&guest) {
            Err(Malformed) => with_status(Status::MALFORMED),
            Ok(request) => {
                let command = Command::parse(&Request::new(&request.bytes, request.total));
                if command.bytes() > LONG_COMMAND_BYTES {
                    ring.notify();
                }
                let cancelled = || queue.is_cancelled(ticket);
                shared.device.execute(&command, &*guest, &cancelled)
            }
        }
    };
    chain.complete(&completion, &guest);
    let given_back = ring.push_used(&chain, size_of::<Completion>() as u32);
    queue.finish(&completion);
    given_back.map(|()| true)
}

/// A completion that says nothing but its status.
pub fn with_status(status: Status) -> Completion {
    Completion {
        status,
        ..Completion::new_zeroed()
    }
}
