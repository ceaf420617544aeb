// SPDX-License-Identifier: GPL-2.0

//! Commands of a process on memory that may be private: worked on where it is.
//!
//! Facility: none of its own; policy over [`crate::mirror`]. Contexts: process context,
//! inside the device's gate. Lock order: `Mirror::follower`, then as for a command.
//!
//! Pages of private memory cannot be pinned, as [`crate::pins`] does it: pinning is access by
//! the kernel, which brings them back to system memory. So the device finds them through a
//! page table of its own, a window at a time, and every change of a mapping waits for the
//! window. A signal ends a command between windows, and none is longer than a megabyte.
//!
//! Invariant: the device is done with a window when its lock is dropped.

use kernel::prelude::*;

use crate::batch::{PageRange, PAGE_BYTES};
use crate::command;
use crate::device::Device;
use crate::fault::Want;
use crate::mirror::AddressSpace;
use crate::plan::{Answer, Job, Request};
use crate::table::Access;
use crate::wire::{Opcode, Status, COMPARE_EQUAL, RANGES_MAX};

/// Bytes of an operand that are worked on at a time: one command, whatever pages they are in.
const WINDOW_BYTES: u64 = (RANGES_MAX as u64 / 2 - 1) * PAGE_BYTES;
/// Pages that such a window touches, at most.
const WINDOW_PAGES: usize = RANGES_MAX / 2;

/// Carries out a valid request of the current process, whose job has no answer yet.
///
/// EFAULT, EINTR, ENOMEM, ENODEV as the interface says; EIO if the device was reset.
pub(crate) fn run(device: &Device, request: &Request) -> Result<Answer> {
    if request.is_indivisible() {
        // It would have to be held under the notifier's lock, and may wait for the CPU.
        return Err(EOPNOTSUPP);
    }
    // A window ends where an element does.
    let whole_bytes = match request.unit() {
        0 => WINDOW_BYTES,
        unit if unit > WINDOW_BYTES => return Ok(Answer::refusal(Status::MISALIGNED)),
        unit => WINDOW_BYTES - WINDOW_BYTES % unit,
    };
    let misaligned = request.width != 0 && !request.length.is_multiple_of(request.width.into());
    if misaligned && request.length > whole_bytes {
        // The device would refuse the last window only, with the others done.
        return Ok(Answer::refusal(Status::MISALIGNED));
    }
    let current = kernel::current!();
    let space = AddressSpace::new(current.mm().ok_or(ESRCH)?)?;
    let opcode = request.opcode;
    let (is_carried, is_compare) = (
        opcode == u32::from(Opcode::CHECKSUM.get()) || opcode == u32::from(Opcode::SUM.get()),
        opcode == u32::from(Opcode::COMPARE.get()),
    );
    let mut window = *request;
    let mut bytes_done = 0;
    let mut at = 0;
    loop {
        if device.gate().is_shut() {
            return Err(ENODEV);
        }
        window.length = (request.length - at).min(whole_bytes);
        let mut answer = self::window(device, &space, &window)?;
        bytes_done += answer.bytes_done;
        answer.bytes_done = bytes_done;
        let differs = is_compare && answer.result != COMPARE_EQUAL;
        if answer.status == Status::OK && differs {
            answer.result += at;
        }
        at += window.length;
        if answer.status != Status::OK || differs || at == request.length {
            return Ok(answer);
        }
        if is_carried {
            window.arg0 = answer.result;
        }
        for operand in [&mut window.source, &mut window.destination] {
            if *operand != 0 {
                *operand += window.length;
            }
        }
    }
}

/// One window: faulted in until the device finds all of it.
fn window(device: &Device, space: &AddressSpace, request: &Request) -> Result<Answer> {
    let writes = if request.writes_destination() {
        Access::Write
    } else {
        Access::Read
    };
    let mut source = KVec::with_capacity(WINDOW_PAGES, GFP_KERNEL)?;
    let mut destination = KVec::with_capacity(WINDOW_PAGES, GFP_KERNEL)?;
    loop {
        let mut draft = Some(command::draft(RANGES_MAX)?);
        map(device, space, request.source, request.length, Access::Read)?;
        map(device, space, request.destination, request.length, writes)?;
        source.clear();
        destination.clear();

        let table = space.mirror().lock();
        let is_complete = table.resolve(request.source, request.length, Access::Read, &mut source)
            && table.resolve(
                request.destination,
                request.length,
                writes,
                &mut destination,
            );
        if !is_complete {
            continue;
        }
        let room = || draft.take().ok_or(EIO);
        let mut job = Job::new(request);
        let done = command::once(device.engine(), &mut job, &source, &destination, room);
        if matches!(done, Err(err) if err == ETIMEDOUT) {
            device.engine().forsake(&destination);
        }
        drop(table);
        return match done {
            Err(err) if err == ECANCELED || err == ETIME => Err(command::was_reset(device)),
            Err(err) if err == ETIMEDOUT => Err(ENODEV),
            done => done,
        };
    }
}

/// Lets the device access an operand, if there is one.
fn map(device: &Device, space: &AddressSpace, address: u64, length: u64, access: Access) -> Result {
    if address == 0 {
        return Ok(());
    }
    let first = address & !(PAGE_BYTES - 1);
    let end = (address + length)
        .checked_next_multiple_of(PAGE_BYTES)
        .ok_or(EFAULT)?;
    let range = PageRange::new(first, end - first).ok_or(EFAULT)?;
    let want = if access == Access::Read {
        Want::Read
    } else {
        Want::Write
    };
    match space.map(device.region(), range, want, false) {
        Err(err) if err == EPERM => Err(EFAULT),
        done => done,
    }
}
