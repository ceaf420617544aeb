// SPDX-License-Identifier: GPL-2.0

//! Requests to the device and their answers.
//!
//! Facility: none of its own; policy over [`crate::virtio`]. Contexts: process
//! context, inside the device's gate for commands. Lock order: the queue's lock.
//! Invariant: memory that a command names stays pinned until the device is done with it,
//! whoever waits or not.

use kernel::prelude::*;
use kernel::sync::Arc;
use zerocopy::IntoBytes;

use crate::device::Device;
use crate::done::Wait;
use crate::engine::Engine;
use crate::in_place;
use crate::pins::Operands;
use crate::plan::{Answer, Job, Next, Request, Segment, Step};
use crate::recovery::{Patience, Recovery};
use crate::sva::Binding;
use crate::sys;
use crate::virtio::{self, Draft, Signals, Standing, Transport, Unanswered, FULL_MS};
use crate::wire::{
    CommandHeader, CommandTag, Completion, ControlOpcode, ControlRequest, Range, Status,
    FLAG_TAGGED, FLAG_UNORDERED, QUEUE_CONTROL, RANGES_MAX,
};

/// How long the device may take for a control request. It maps memory in less than a
/// millisecond, but an emulated machine on a loaded host may stand still for seconds.
pub(crate) const CONTROL_MS: u32 = 30_000;
/// How long a waiter with a signal waits for its command to stop. One that has begun does
/// within a millisecond; one behind others' commands is left to itself.
const CANCEL_MS: u32 = 1_000;
/// How often a waiter looks whether the device is still there, and gets on.
const LOOK_MS: u32 = 500;
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
    fn cancel(&self, tag: u64, queue: usize) -> Result {
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

/// Carries out a valid request of the current process.
///
/// EFAULT, EINTR, ENOMEM, ENODEV as the interface says; EIO if the device was reset.
pub(crate) fn run(device: &Device, request: &Request) -> Result<Answer> {
    let mut job = Job::new(request);
    if let Some(answer) = job.answer() {
        device.counters().answered(false);
        return Ok(answer);
    }
    let done = if device.region().is_cpu_addressable() {
        run_pinned(device, request, &mut job)
    } else {
        in_place::run(device, request)
    };
    match &done {
        Ok(answer) => device.counters().answered(answer.status == Status::OK),
        Err(err) if *err == EIO => device.counters().answered(false),
        Err(_) => {}
    }
    done
}

/// The same for memory that stays where it is because it is pinned.
fn run_pinned(device: &Device, request: &Request, job: &mut Job) -> Result<Answer> {
    let operands = Operands::pin(request, device.region())?;
    let give = |request: Arc<virtio::Request>, step: &Step| {
        if device.gate().is_shut() {
            return Err(ENODEV);
        }
        let queue = device.engine().queue_of_cpu();
        let mut lent = submit(device.engine(), &request, step, queue, Signals::Heard)?;
        match wait(&request, &mut lent.patience, Signals::Heard) {
            Ok(()) => finish(device.engine(), &request, &lent),
            // The device is done with it, whether it came back or not.
            Err(err) if err == ECANCELED => Err(ECANCELED),
            Err(err) => {
                device.counters().abandoned();
                if err != EINTR || !cancel(device, &request, lent.queue) {
                    // The device may be at it still: the pins go when it is done.
                    request.abandon(operands.clone());
                    lent.patience.park(request);
                }
                Err(if err == ETIMEDOUT { ENODEV } else { err })
            }
        }
    };
    let (source, destination) = (operands.source(), operands.destination());
    let room = || draft(source.len() + destination.len());
    match carry_out(device.engine(), job, source, destination, room, give) {
        Err(err) if err == ECANCELED || err == ETIME => Err(was_reset(device)),
        done => done,
    }
}

/// Carries out a valid request of the current process on addresses of its own, which are bound.
///
/// EINTR, ENOMEM, ENODEV as the interface says; EIO if the device was reset.
pub(crate) fn run_on_addresses(
    device: &Device,
    binding: &Binding,
    request: &Request,
) -> Result<Answer> {
    let done = run_bound(device, binding, request);
    match &done {
        Ok(answer) => device.counters().answered(answer.status == Status::OK),
        Err(err) if *err == EIO => device.counters().answered(false),
        Err(_) => {}
    }
    done
}

/// The same without the counters. Nothing is kept for the device: what it may access, it is
/// told and told to forget, whoever waits or not.
fn run_bound(device: &Device, binding: &Binding, request: &Request) -> Result<Answer> {
    let queue = device.engine().process_queue().ok_or(EOPNOTSUPP)?;
    let _command = binding.begin_command();
    let mut job = Job::on_addresses(request, binding.pasid());
    let source = request.source_addresses();
    let destination = request.destination_addresses();
    let (source, destination) = (source.as_slice(), destination.as_slice());
    let give = |request: Arc<virtio::Request>, step: &Step| {
        if device.gate().is_shut() {
            return Err(ENODEV);
        }
        let mut lent = submit(device.engine(), &request, step, queue, Signals::Heard)?;
        match wait(&request, &mut lent.patience, Signals::Heard) {
            Ok(()) => finish(device.engine(), &request, &lent),
            Err(err) if err == ECANCELED => Err(ECANCELED),
            Err(err) => {
                device.counters().abandoned();
                if err == EINTR {
                    cancel(device, &request, queue);
                }
                Err(if err == ETIMEDOUT { ENODEV } else { err })
            }
        }
    };
    let room = || draft(source.len() + destination.len());
    match carry_out(device.engine(), &mut job, source, destination, room, give) {
        Err(err) if err == ECANCELED || err == ETIME => Err(was_reset(device)),
        done => done,
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

/// Has the device stop a command that nobody waits for any more; whether it is done with it.
fn cancel(device: &Device, request: &virtio::Request, queue: usize) -> bool {
    let is_heard =
        device.engine().has_tags() && device.control().cancel(request.token(), queue).is_ok();
    is_heard && request.wait(CANCEL_MS).is_ok()
}

/// Has the device work for the driver itself: deaf to signals, and again after a RESET.
///
/// The memory is the driver's until this returns. EIO if the device cannot do it, or had to be
/// reset for it more than once; ENODEV if it is not asked any more; ETIMEDOUT if it does not
/// answer, and then it may still come to touch the memory.
pub(crate) fn run_for_driver(
    engine: &Engine,
    request: &Request,
    source: &[Segment],
    destination: &[Segment],
) -> Result {
    let ranges = source.len() + destination.len();
    let mut tries = 0;
    loop {
        let mut job = Job::new(request);
        match once(engine, &mut job, source, destination, || draft(ranges)) {
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
    source: &[Segment],
    destination: &[Segment],
    room: impl FnMut() -> Result<Draft>,
) -> Result {
    match once(engine, &mut Job::new(request), source, destination, room) {
        Ok(answer) if answer.status != Status::OK => Err(EIO),
        Err(err) if err == ETIME => Err(EIO),
        done => done.map(drop),
    }
}

/// Takes a job through the device, deaf to signals; ECANCELED after a RESET, ETIME after one
/// because this job had no answer, ETIMEDOUT as for [`run_for_driver`].
pub(crate) fn once(
    engine: &Engine,
    job: &mut Job,
    source: &[Segment],
    destination: &[Segment],
    room: impl FnMut() -> Result<Draft>,
) -> Result<Answer> {
    let give = |request: Arc<virtio::Request>, step: &Step| {
        let queue = engine.queue_of_cpu();
        let mut lent = submit(engine, &request, step, queue, Signals::Ignored)?;
        match wait(&request, &mut lent.patience, Signals::Ignored) {
            Ok(()) => finish(engine, &request, &lent),
            Err(err) if err == ECANCELED && lent.patience.is_worn() => Err(ETIME),
            Err(err) => Err(err),
        }
    };
    carry_out(engine, job, source, destination, room, give)
}

/// Bytes of a command before its ranges, at most.
const HEAD_BYTES: usize = size_of::<CommandHeader>() + size_of::<CommandTag>();

/// A request with room for a command on so many ranges.
pub(crate) fn draft(ranges: usize) -> Result<Draft> {
    let bytes = HEAD_BYTES + ranges.min(RANGES_MAX) * size_of::<Range>();
    Draft::new(KVec::with_capacity(bytes, GFP_KERNEL)?, GFP_KERNEL)
}

/// Takes a job through the device, command by command: `draft` makes room for each, and
/// `give` submits it and waits for its completion.
///
/// What `give` gives is not of a command that a RESET ended.
fn carry_out(
    engine: &Engine,
    job: &mut Job,
    source: &[Segment],
    destination: &[Segment],
    mut draft: impl FnMut() -> Result<Draft>,
    mut give: impl FnMut(Arc<virtio::Request>, &Step) -> Result<Completion>,
) -> Result<Answer> {
    loop {
        if let Some(answer) = job.answer() {
            return Ok(answer);
        }
        let mut draft = draft()?;
        let tag = engine.has_tags().then_some(draft.token());
        let output = draft.output();
        // The room was made before; nothing is allocated from here on.
        output.extend_from_slice(&[0; size_of::<CommandHeader>()], GFP_NOWAIT)?;
        if let Some(tag) = tag {
            let tag = CommandTag { tag: tag.into() };
            output.extend_from_slice(tag.as_bytes(), GFP_NOWAIT)?;
        }
        let next = job.next(source, destination, |range: Range| {
            output.extend_from_slice(range.as_bytes(), GFP_NOWAIT)
        })?;
        let mut step = match next {
            Next::Done(answer) => return Ok(answer),
            Next::Submit(step) => step,
        };
        let mut flags = step.header.flags.get();
        if tag.is_some() {
            flags |= FLAG_TAGGED;
        }
        if job.is_on_addresses() {
            // Pages are waited for, and nobody else shall wait for that.
            flags |= FLAG_UNORDERED;
        }
        step.header.flags = flags.into();
        output[..size_of::<CommandHeader>()].copy_from_slice(step.header.as_bytes());
        let completion = give(draft.finish(), &step)?;
        job.complete(&step, &completion);
    }
}

/// A command that the device has.
struct Lent<'a> {
    queue: usize,
    patience: Patience<'a>,
}

/// Gives the device one command; waits for room on the queue.
///
/// EINTR after a signal, if they are heard; EIO if not even a RESET makes room; ENODEV.
fn submit<'a>(
    engine: &'a Engine,
    request: &Arc<virtio::Request>,
    step: &Step,
    queue: usize,
    signals: Signals,
) -> Result<Lent<'a>> {
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
    let lender = engine.transport().queue(queue)?;
    let patience = || {
        let patience = Patience::new(engine.recovery(), lender);
        if engine.process_queue() == Some(queue) {
            patience.with_pages()
        } else {
            patience
        }
    };
    let mut for_room = patience();
    let mut is_last = false;
    loop {
        match lender.try_submit(request) {
            Err(err) if err == EBUSY && !is_last => {}
            // All that is on it is lost, and takes room until the device is bound anew.
            Err(err) if err == EBUSY => return Err(EIO),
            done => break done?,
        }
        if signals == Signals::Heard && kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        // SAFETY: Process context, no lock held that an interrupt takes.
        unsafe { sys::msleep(FULL_MS) };
        match for_room.wear(FULL_MS) {
            Err(err) if err == ETIMEDOUT => return Err(ENODEV),
            waited => is_last = waited.is_err(),
        }
    }
    Ok(Lent {
        queue,
        patience: patience(),
    })
}

/// Waits until the device answered a command, or a control request.
///
/// EINTR after a signal, if they are heard, and ETIMEDOUT if the device is past answering: what
/// it was given stays with it then. ECANCELED if a RESET did not bring that back either.
fn wait(request: &virtio::Request, patience: &mut Patience<'_>, signals: Signals) -> Result {
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

/// The completion of a command that the device is done with; ECANCELED if a RESET ended it, and
/// ETIME if this command was the reason for that.
fn finish(engine: &Engine, request: &virtio::Request, lent: &Lent<'_>) -> Result<Completion> {
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
            lent.queue as u32,
            request.token(),
            completion.status.get().into(),
            completion.result.get(),
            completion.bytes_done.get(),
        )
    };
    match completion.status {
        Status::CANCELLED if lent.patience.is_worn() => Err(ETIME),
        Status::CANCELLED => Err(ECANCELED),
        _ => Ok(completion),
    }
}

// A command with the most ranges is one slab object, so it is contiguous for the device.
const _: () = assert!(HEAD_BYTES + RANGES_MAX * size_of::<Range>() <= 16384);
