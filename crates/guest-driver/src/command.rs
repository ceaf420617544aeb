// SPDX-License-Identifier: GPL-2.0

//! Requests to the device and their answers.
//!
//! Facility: none of its own; policy over [`crate::virtio`]. Contexts: process
//! context, inside the device's gate for commands. Lock order: `Control::turn`, then
//! the queue's lock. Invariant: memory that a command names stays pinned until the
//! device is done with it, whoever waits or not.

use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};
use zerocopy::IntoBytes;

use crate::device::Device;
use crate::pins::Operands;
use crate::plan::{Answer, Job, Next, Request};
use crate::sys;
use crate::virtio::{self, Transport};
use crate::wire::{
    self, CommandHeader, Completion, ControlOpcode, ControlRequest, Range, Status, QUEUE_CONTROL,
    QUEUE_FIRST_COMMAND, RANGES_MAX,
};

/// How long the device may take for a control request. It maps memory in less than a
/// millisecond, but an emulated machine on a loaded host may stand still for seconds.
const CONTROL_MS: u32 = 30_000;

/// The control queue, one request at a time.
#[pin_data]
pub(crate) struct Control {
    transport: Arc<Transport>,
    #[pin]
    turn: Mutex<()>,
}

impl Control {
    pub(crate) fn new(transport: Arc<Transport>) -> impl PinInit<Self> {
        pin_init!(Self {
            transport,
            turn <- new_mutex!((), "cdm::Control::turn"),
        })
    }

    /// Sends a request and waits for its answer, deaf to signals; the result of it.
    ///
    /// ETIMEDOUT if there is no answer in time. The device may still work on the
    /// request then, and its buffers stay with the queue.
    pub(crate) fn call(&self, opcode: ControlOpcode, arg0: u64, arg1: u64) -> Result<u64> {
        let completion = self.send(opcode, arg0, arg1, false)?;
        if completion.status != Status::OK {
            return Err(EIO);
        }
        Ok(completion.result.get())
    }

    /// RESET on behalf of a process, which may be interrupted.
    pub(crate) fn reset(&self) -> Result {
        let completion = self.send(ControlOpcode::RESET, 0, 0, true)?;
        if completion.status != Status::OK {
            return Err(EIO);
        }
        Ok(())
    }

    fn send(
        &self,
        opcode: ControlOpcode,
        arg0: u64,
        arg1: u64,
        is_interruptible: bool,
    ) -> Result<Completion> {
        let header = ControlRequest {
            opcode,
            flags: 0.into(),
            reserved: 0.into(),
            arg0: arg0.into(),
            arg1: arg1.into(),
        };
        let mut output = KVec::new();
        output.extend_from_slice(header.as_bytes(), GFP_KERNEL)?;
        let request = virtio::Request::new(output)?;
        let turn = self.turn.lock();
        if self.transport.is_gone() {
            return Err(ENODEV);
        }
        self.transport
            .queue(QUEUE_CONTROL.into())?
            .try_submit(&request)?;
        if is_interruptible {
            request.wait_interruptible(&self.transport)?;
        } else {
            request.wait(CONTROL_MS)?;
        }
        drop(turn);
        request.answer().ok_or(EIO)
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
    let operands = Operands::pin(request, device.region())?;
    let answer = loop {
        let mut output = KVec::new();
        output.extend_from_slice(&[0; size_of::<CommandHeader>()], GFP_KERNEL)?;
        let next = job.next(operands.source(), operands.destination(), |range: Range| {
            output.extend_from_slice(range.as_bytes(), GFP_KERNEL)
        })?;
        let step = match next {
            Next::Done(answer) => break answer,
            Next::Submit(step) => step,
        };
        output[..size_of::<CommandHeader>()].copy_from_slice(step.header.as_bytes());
        if device.gate().is_shut() {
            return Err(ENODEV);
        }
        let completion = submit(device, output, &step.header, step.bytes, &operands)?;
        if completion.status == Status::CANCELLED {
            device.counters().answered(false);
            return Err(EIO);
        }
        job.complete(&step, &completion);
    };
    device.counters().answered(answer.status == Status::OK);
    Ok(answer)
}

/// Gives the device one command and waits for its completion.
fn submit(
    device: &Device,
    output: KVec<u8>,
    header: &CommandHeader,
    bytes: u64,
    operands: &Arc<Operands>,
) -> Result<Completion> {
    let transport = device.transport();
    let request = virtio::Request::new(output)?;
    // SAFETY: Returns a number; which CPU this is may change at any time, and need not
    // be exact.
    let cpu = unsafe { sys::cdm_cpu() } as usize;
    let first = usize::from(QUEUE_FIRST_COMMAND);
    let index = first + cpu % (transport.num_queues() - first);
    let ranges = u32::from(header.num_src.get()) + u32::from(header.num_dst.get());
    let (number, token) = (device.number(), request.token());
    // SAFETY: Takes values only.
    unsafe {
        sys::cdm_trace_command_submit(
            number,
            index as u32,
            token,
            header.opcode.get().into(),
            ranges,
            bytes,
        )
    };
    transport.queue(index)?.submit(&request)?;
    if let Err(err) = request.wait_interruptible(transport) {
        // The device may be at it still: the pins go when it is done.
        device.counters().abandoned();
        request.abandon(operands.clone());
        return Err(err);
    }
    let Some(completion) = request.answer::<Completion>() else {
        // The device gave the buffer back without an answer, as a reset does.
        return Err(if transport.is_gone() { ENODEV } else { EIO });
    };
    // SAFETY: Takes values only.
    unsafe {
        sys::cdm_trace_command_done(
            number,
            index as u32,
            token,
            completion.status.get().into(),
            completion.result.get(),
            completion.bytes_done.get(),
        )
    };
    Ok(completion)
}

// A command with the most ranges is one slab object, so it is contiguous for the device.
const _: () = assert!(size_of::<CommandHeader>() + RANGES_MAX * size_of::<wire::Range>() <= 16384);
