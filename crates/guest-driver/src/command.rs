// SPDX-License-Identifier: GPL-2.0-only

//! Requests to the device and their answers; the commands of the driver itself.
//!
//! Facility: none of its own; policy over [`crate::virtio`]. Contexts: process
//! context, inside the device's gate for commands. Lock order: the queue's lock.
//! Invariant: what the driver has the device work on is its own until the device is done with
//! it, or is not asked any more. What processes ask for is in [`crate::run`].

use kernel::prelude::*;
use kernel::sync::Arc;
use zerocopy::IntoBytes;

use crate::device::Device;
use crate::done::Wait;
use crate::engine::Engine;
use crate::plan::{Answer, Job, Next, Operands, Request, Step};
use crate::recovery::{Patience, Recovery};
use crate::sys;
use crate::virtio::{self, Draft, Queue, Signals, Standing, Transport, Unanswered, FULL_MS};
use crate::wire::{
    CommandHeader, CommandTag, Completion, ControlOpcode, ControlRequest, Opcode, Range, Status,
    FLAG_TAGGED, FLAG_UNORDERED, QUEUE_CONTROL, RANGES_MAX,
};

/// How long the device may take for a control request. It maps memory in less than a
/// millisecond, but an emulated machine on a loaded host may stand still for seconds.
pub(crate) const CONTROL_MS: u32 = 30_000;
/// How long a waiter with a signal waits for its command to stop. One that has begun does
/// within a millisecond; one behind others' commands is left to itself.
pub(crate) const CANCEL_MS: u32 = 1_000;
/// How often a waiter looks whether the device is still there, and gets on.
pub(crate) const LOOK_MS: u32 = 500;
/// How often the driver has a device do what it needs for itself, if it does not answer.
const TRIES: u32 = 2;

/// The control queue.
pub(crate) struct Control {
    transport: Arc<Transport>,
}

impl Control {
    pub(crate) fn new(transport: Arc<Transport>) -> Self {
        Self { transport }
    }

    /// Sends a request and waits for its answer, deaf to signals; the result of it.
    ///
    /// ETIMEDOUT if there is no answer in time. The device may still work on the
    /// request then, and its buffers stay with the queue.
    pub(crate) fn call(&self, opcode: ControlOpcode, arg0: u64, arg1: u64) -> Result<u64> {
        let completion = self.send_within(CONTROL_MS, &head(opcode, 0, arg0, arg1))?;
        if completion.status != Status::OK {
            return Err(EIO);
        }
        Ok(completion.result.get())
    }

    /// The first memory from an offset on that has failed, and how much of it follows; the
    /// length of the device memory if there is none.
    ///
    /// EIO for a refusal; else errors as for [`Control::call`], or with a `recovery` as for
    /// [`Control::demand`].
    pub(crate) fn find_bad(
        &self,
        recovery: Option<&Arc<Recovery>>,
        from: u64,
    ) -> Result<(u64, u64)> {
        let header = head(ControlOpcode::FIND_BAD, 0, from, 0);
        let completion = match recovery {
            Some(recovery) => self.ask(recovery, &header)?,
            None => self.send_within(CONTROL_MS, &header)?,
        };
        if completion.status != Status::OK {
            return Err(EIO);
        }
        Ok((completion.result.get(), completion.bytes_done.get()))
    }

    /// CANCEL of the command with that tag on a queue.
    pub(crate) fn cancel(&self, tag: u64, queue: usize) -> Result {
        let header = head(ControlOpcode::CANCEL, 0, tag, queue as u64);
        if self.send_within(CANCEL_MS, &header)?.status != Status::OK {
            return Err(EIO);
        }
        Ok(())
    }

    /// BIND of an address space; the status of the answer. Errors as for [`Control::demand`].
    pub(crate) fn bind(&self, recovery: &Arc<Recovery>, pasid: u32) -> Result<Status> {
        let header = head(ControlOpcode::BIND, pasid, 0, 0);
        Ok(self.ask(recovery, &header)?.status)
    }

    /// COUNT_ACCESSES of an address space; status and errors as for [`Control::bind`].
    pub(crate) fn count_accesses(
        &self,
        recovery: &Arc<Recovery>,
        pasid: u32,
        threshold: u64,
    ) -> Result<Status> {
        let header = head(ControlOpcode::COUNT_ACCESSES, pasid, threshold, 0);
        Ok(self.ask(recovery, &header)?.status)
    }

    /// Sends a request that was made before, so that nothing is allocated, and waits for its
    /// answer as somebody waits for a command: a device that gives none is reset, or gone.
    ///
    /// ECANCELED if it was reset instead of answering; ETIMEDOUT if it does not answer any more,
    /// ENODEV if it is not asked any more.
    pub(crate) fn demand(
        &self,
        recovery: &Arc<Recovery>,
        standing: &mut Standing,
        header: &ControlRequest,
    ) -> Result<Status> {
        let completion: Completion = standing.send(header.as_bytes(), |request| {
            self.lend(request).map_err(Unanswered::NotLent)?;
            self.wait(recovery, request).map_err(Unanswered::Lost)
        })?;
        Ok(completion.status)
    }

    /// Sends a request; errors as for [`Control::demand`], and EIO for an answer that is too short.
    fn ask(&self, recovery: &Arc<Recovery>, header: &ControlRequest) -> Result<Completion> {
        let request = request(header)?;
        self.lend(&request)?;
        self.wait(recovery, &request)?;
        request.answer().ok_or(EIO)
    }

    /// Gives the device the answer to a page request, if the queue has room for it now; EBUSY if
    /// not. Nobody waits for what the device says to that.
    pub(crate) fn respond(&self, response: &Arc<virtio::Request>) -> Result {
        self.transport
            .queue(QUEUE_CONTROL.into())?
            .try_submit(response)
    }

    fn send_within(&self, ms: u32, header: &ControlRequest) -> Result<Completion> {
        let request = request(header)?;
        let limit = self.transport.answer_ms().min(ms);
        let queue = self.transport.queue(QUEUE_CONTROL.into())?;
        queue.submit_within(&request, limit)?;
        request.wait(limit)?;
        request.answer().ok_or(EIO)
    }

    /// Gives the device a request, when the queue has room for it.
    fn lend(&self, request: &Arc<virtio::Request>) -> Result {
        let queue = self.transport.queue(QUEUE_CONTROL.into())?;
        // A RESET would find no room either.
        queue.submit_within(request, self.transport.answer_ms().min(CONTROL_MS))
    }

    /// Waits until the device answered a request that it has; errors as for [`wait`].
    fn wait(&self, recovery: &Arc<Recovery>, request: &virtio::Request) -> Result {
        let queue = self.transport.queue(QUEUE_CONTROL.into())?;
        let mut patience = Patience::new(recovery, queue).of_at_most(CONTROL_MS);
        wait(request, &mut patience, Signals::Ignored)
    }
}

/// A control request for the device.
fn request(header: &ControlRequest) -> Result<Arc<virtio::Request>> {
    let mut output = KVec::new();
    output.extend_from_slice(header.as_bytes(), GFP_KERNEL)?;
    virtio::Request::new(output)
}

/// A control request for the address space `pasid`, or for none.
pub(crate) fn head(opcode: ControlOpcode, pasid: u32, arg0: u64, arg1: u64) -> ControlRequest {
    ControlRequest {
        opcode,
        flags: 0.into(),
        pasid: pasid.into(),
        arg0: arg0.into(),
        arg1: arg1.into(),
    }
}

/// What a process is told whose command a RESET ended.
pub(crate) fn was_reset(device: &Device) -> Error {
    if device.gate().is_shut() {
        ENODEV
    } else {
        EIO
    }
}

/// Has the device work for the driver itself: deaf to signals, and again after a RESET.
///
/// The memory is the driver's until this returns. EIO if the device cannot do it, or had to be
/// reset for it more than once; ENODEV if it is not asked any more; ETIMEDOUT if it does not
/// answer, and then it may still come to touch the memory.
pub(crate) fn run_for_driver(engine: &Engine, request: &Request, operands: Operands<'_>) -> Result {
    let mut tries = 0;
    loop {
        match once(engine, request, operands, || draft(operands.ranges())) {
            // Somebody reset the device, who may do so as often as he likes.
            Err(err) if err == ECANCELED => {}
            Err(err) if err == ETIME => {
                tries += 1;
                if tries == TRIES {
                    return Err(EIO);
                }
            }
            Ok(answer) if answer.status != Status::OK => return Err(EIO),
            done => return done.map(drop),
        }
    }
}

/// The same, tried once, with room that the caller makes; ECANCELED after a RESET.
pub(crate) fn run_once_for_driver(
    engine: &Engine,
    request: &Request,
    operands: Operands<'_>,
    room: impl FnMut() -> Result<Draft>,
) -> Result {
    match once(engine, request, operands, room) {
        Ok(answer) if answer.status != Status::OK => Err(EIO),
        Err(err) if err == ETIME => Err(EIO),
        done => done.map(drop),
    }
}

/// Takes a request through the device, command by command, deaf to signals; `room` makes room for
/// each. ECANCELED after a RESET, ETIME after one because there was no answer to this, ETIMEDOUT
/// as for [`run_for_driver`].
pub(crate) fn once(
    engine: &Engine,
    request: &Request,
    operands: Operands<'_>,
    mut room: impl FnMut() -> Result<Draft>,
) -> Result<Answer> {
    let mut job = Job::new(request, operands);
    loop {
        if let Some(answer) = job.answer() {
            return Ok(answer);
        }
        let Some((request, step)) = make(engine, &mut job, operands, room()?)? else {
            continue;
        };
        let queue = engine.queue_of_cpu();
        let mut patience = submit(engine, &request, &step, queue)?;
        let done = wait(&request, &mut patience, Signals::Ignored)
            .and_then(|()| finish(engine, &request, queue));
        match done {
            Err(err) if err == ECANCELED && patience.is_worn() => return Err(ETIME),
            done => job.complete(&step, &done?, operands),
        }
    }
}

/// Bytes of a command before its ranges, at most.
const HEAD_BYTES: usize = size_of::<CommandHeader>() + size_of::<CommandTag>();

/// A request with room for a command on so many ranges.
pub(crate) fn draft(ranges: usize) -> Result<Draft> {
    let bytes = HEAD_BYTES + ranges.min(RANGES_MAX) * size_of::<Range>();
    Draft::new(KVec::with_capacity(bytes, GFP_KERNEL)?, GFP_KERNEL)
}

/// Writes the next command of a job into a draft that has room for it; `None` if the job has its
/// answer. Nothing is allocated.
pub(crate) fn make(
    engine: &Engine,
    job: &mut Job<'_>,
    operands: Operands<'_>,
    mut draft: Draft,
) -> Result<Option<(Arc<virtio::Request>, Step)>> {
    let tag = engine.has_tags().then_some(draft.token());
    let output = draft.output();
    output.extend_from_slice(&[0; size_of::<CommandHeader>()], GFP_NOWAIT)?;
    if let Some(tag) = tag {
        let tag = CommandTag { tag: tag.into() };
        output.extend_from_slice(tag.as_bytes(), GFP_NOWAIT)?;
    }
    let next = job.next(operands, |range: Range| {
        output.extend_from_slice(range.as_bytes(), GFP_NOWAIT)
    })?;
    let mut step = match next {
        Next::Done(_) => return Ok(None),
        Next::Submit(step) => step,
    };
    let mut flags = step.header.flags.get();
    if tag.is_some() {
        flags |= FLAG_TAGGED;
    }
    let keeps_order = if job.is_on_addresses() {
        // Pages are waited for, and nobody else shall wait for that: the driver keeps the order.
        flags |= FLAG_UNORDERED;
        false
    } else if engine.is_in_order() {
        flags &= !FLAG_UNORDERED;
        false
    } else {
        true
    };
    if !keeps_order && step.header.opcode == Opcode::FENCE {
        step.header.opcode = Opcode::NOP;
    }
    step.header.flags = flags.into();
    output[..size_of::<CommandHeader>()].copy_from_slice(step.header.as_bytes());
    Ok(Some((draft.finish(), step)))
}

/// The patience of who waits for something on a queue of commands.
pub(crate) fn patience<'a>(engine: &'a Engine, index: usize, queue: &'a Queue) -> Patience<'a> {
    let patience = Patience::new(engine.recovery(), queue);
    if engine.process_queue() == Some(index) {
        patience.with_pages()
    } else {
        patience
    }
}

/// A command is about to be put on a queue.
pub(crate) fn trace_submit(engine: &Engine, request: &virtio::Request, step: &Step, queue: usize) {
    let ranges = u32::from(step.header.num_src.get()) + u32::from(step.header.num_dst.get());
    // SAFETY: Takes values only.
    unsafe {
        sys::cdm_trace_command_submit(
            engine.number(),
            queue as u32,
            request.token(),
            step.header.opcode.get().into(),
            ranges,
            step.bytes,
        )
    };
}

/// Gives the device one command, deaf to signals; waits for room on the queue.
///
/// EIO if not even a RESET makes room; ENODEV.
fn submit<'a>(
    engine: &'a Engine,
    request: &Arc<virtio::Request>,
    step: &Step,
    index: usize,
) -> Result<Patience<'a>> {
    let queue = engine.transport().queue(index)?;
    trace_submit(engine, request, step, index);
    let mut for_room = None;
    loop {
        match queue.try_submit(request) {
            Err(err) if err == EBUSY => {}
            done => {
                done?;
                return Ok(patience(engine, index, queue));
            }
        }
        let for_room = for_room.get_or_insert_with(|| ForRoom::new(patience(engine, index, queue)));
        for_room.wait()?;
    }
}

/// A wait for room on a queue that others have filled.
pub(crate) struct ForRoom<'a> {
    patience: Patience<'a>,
    is_last: bool,
}

impl<'a> ForRoom<'a> {
    pub(crate) fn new(patience: Patience<'a>) -> Self {
        Self {
            patience,
            is_last: false,
        }
    }

    /// Waits a little, deaf to signals.
    ///
    /// ENODEV if the device is past answering; EIO if not even a RESET made room.
    pub(crate) fn wait(&mut self) -> Result {
        if self.is_last {
            // All that is on it is lost, and takes room until the device is bound anew.
            return Err(EIO);
        }
        // SAFETY: Process context, no lock held that an interrupt takes.
        unsafe { sys::msleep(FULL_MS) };
        match self.patience.wear(FULL_MS) {
            Err(err) if err == ETIMEDOUT => return Err(ENODEV),
            waited => self.is_last = waited.is_err(),
        }
        Ok(())
    }
}

/// Waits until the device answered a command, or a control request.
///
/// EINTR after a signal, if they are heard, and ETIMEDOUT if the device is past answering: what
/// it was given stays with it then. ECANCELED if a RESET did not bring that back either.
pub(crate) fn wait(
    request: &virtio::Request,
    patience: &mut Patience<'_>,
    signals: Signals,
) -> Result {
    loop {
        match request.look(LOOK_MS, signals) {
            Wait::Done => return Ok(()),
            Wait::Interrupted => return Err(EINTR),
            Wait::TimedOut => match patience.wear(LOOK_MS) {
                // What a RESET brings back is there before it is done.
                Err(_) if request.is_done() => {}
                waited => waited?,
            },
        }
    }
}

/// The completion of a command that the device is done with; ECANCELED if a RESET ended it.
fn finish(engine: &Engine, request: &virtio::Request, queue: usize) -> Result<Completion> {
    let completion = completion(engine, request, queue)?;
    if completion.status == Status::CANCELLED {
        return Err(ECANCELED);
    }
    Ok(completion)
}

/// The same, also of a command that was cancelled.
pub(crate) fn completion(
    engine: &Engine,
    request: &virtio::Request,
    queue: usize,
) -> Result<Completion> {
    let Some(completion) = request.answer::<Completion>() else {
        // The device gave the buffer back without an answer, as a reset does.
        return Err(if engine.transport().is_gone() {
            ENODEV
        } else {
            EIO
        });
    };
    // SAFETY: Takes values only.
    unsafe {
        sys::cdm_trace_command_done(
            engine.number(),
            queue as u32,
            request.token(),
            completion.status.get().into(),
            completion.result.get(),
            completion.bytes_done.get(),
        )
    };
    Ok(completion)
}

// A command with the most ranges is one slab object, so it is contiguous for the device.
const _: () = assert!(HEAD_BYTES + RANGES_MAX * size_of::<Range>() <= 16384);
