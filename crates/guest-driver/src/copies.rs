// SPDX-License-Identifier: GPL-2.0-only

//! Copies of pages by the device, for memory that the CPU could copy as well.
//!
//! Facility: none of its own; the device's COPY, whose ranges name its own memory and the guest's
//! by their physical addresses. Only the driver makes such ranges; those of a process are made of
//! pages that it has pinned. Contexts: process context; the folios are locked, and it
//! sleeps until the device is done with them. Lock order: as for a command.
//!
//! Invariant: what [`UnderWay::end`] says of the memory holds for good. The device is done with
//! it when there is an answer to this command, or a RESET was answered that began after the
//! command was on its queue. A copy that neither was said of may be written to at any later time.
//!
//! A copy only goes where the device has nothing else to do before it: what a process has it do
//! there may take for ever, and the folios of a copy are locked.

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::command;
use crate::engine::Engine;
use crate::plan::{bytes_of, Job, Operands, Request};
use crate::recovery::Patience;
use crate::virtio::{self, Signals};
use crate::wire::{Completion, Opcode, Status};

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The whole destination is written.
    Whole,
    /// It is not, but the device is done with it.
    Undone,
    /// The device may write to it yet.
    Lost,
}

/// A copy that the device was given.
pub(crate) struct UnderWay<'a> {
    engine: &'a Engine,
    request: Arc<virtio::Request>,
    patience: Patience<'a>,
    queue: usize,
    bytes: u64,
}

impl<'a> UnderWay<'a> {
    /// Gives the device a copy that goes into one command; `None` if it has other things to do, or
    /// cannot be asked.
    pub(crate) fn begin(engine: &'a Engine, operands: Operands<'_>) -> Option<Self> {
        let draft = command::draft(operands.ranges()).ok()?;
        let request = Request {
            opcode: Opcode::COPY.get().into(),
            ..Request::default()
        };
        let mut job = Job::new(&request, operands);
        let (request, step) = command::make(engine, &mut job, operands, draft).ok()??;
        if !job.ends_with(&step) {
            return None;
        }
        let index = engine.queue_of_cpu();
        let queue = engine.transport().queue(index).ok()?;
        queue.try_submit_alone(&request).ok()?;
        command::trace_submit(engine, &request, &step, index);
        Some(Self {
            engine,
            request,
            patience: command::patience(engine, index, queue),
            queue: index,
            bytes: bytes_of(operands.destination),
        })
    }

    /// Waits for the end of it, deaf to signals: what the device works on is not to be left.
    pub(crate) fn end(mut self) -> End {
        match command::wait(&self.request, &mut self.patience, Signals::Ignored) {
            Ok(()) => {}
            Err(err) if err == ECANCELED => return End::Undone,
            // The ring keeps the request.
            Err(_) => return End::Lost,
        }
        match command::completion(self.engine, &self.request, self.queue) {
            Ok(completion) if is_whole(&completion, self.bytes) => return End::Whole,
            Ok(completion) if completion.status != Status::OK => return End::Undone,
            _ => {}
        }
        // That is no answer to this command, be it cut short, or that of another one that came
        // twice: the device may be at it still.
        match self.engine.recovery().settle(self.patience.mark()) {
            Ok(()) => End::Undone,
            Err(_) => {
                // The ring has given it back, so nobody else keeps what the device writes to.
                core::mem::forget(self.request);
                End::Lost
            }
        }
    }
}

/// Whether a completion says that a copy of so many bytes is whole, and nothing else.
fn is_whole(completion: &Completion, bytes: u64) -> bool {
    completion.status == Status::OK
        && completion.reserved.get() == 0
        && completion.range_index.get() == 0
        && completion.result.get() == 0
        && completion.bytes_done.get() == bytes
}
