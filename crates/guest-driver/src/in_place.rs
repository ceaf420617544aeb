// SPDX-License-Identifier: GPL-2.0-only

//! Commands of a process on memory that may be private: worked on where it is.
//!
//! Facility: none of its own; policy over [`crate::mirror`]. Contexts: process context,
//! inside the device's gate. Lock order: `Mirror::follower`, then as for a command.
//!
//! Pages of private memory cannot be pinned, as [`crate::pins`] does it: pinning is access by
//! the kernel, which brings them back to system memory. So the device finds them through a
//! page table of its own, a window at a time, and every change of a mapping waits for the
//! window. A window is what goes into one command if no two pages are neighbours: one or two
//! megabytes at most. A signal ends a command between windows.
//!
//! Invariant: the device is done with a window when its lock is dropped.

use kernel::prelude::*;

use crate::batch::{PageRange, PAGE_BYTES};
use crate::command;
use crate::device::Device;
use crate::fault::Want;
use crate::mirror::AddressSpace;
use crate::plan::{in_pages, Answer, Job, Next, Operands, Request, Segment, Step};
use crate::table::Access;
use crate::wire::{Completion, Range, RANGES_MAX};

/// The memory of the current process, for commands on it.
pub(crate) struct Memory<'a> {
    device: &'a Device,
    space: AddressSpace,
}

impl<'a> Memory<'a> {
    pub(crate) fn of_current(device: &'a Device) -> Result<Self> {
        let current = kernel::current!();
        let space = AddressSpace::new(current.mm().ok_or(ESRCH)?)?;
        Ok(Self { device, space })
    }

    /// Carries out a request on what was named, whose job has no answer yet, and which can be
    /// cut. What the job has come to by then, it tells after an error, too.
    ///
    /// EFAULT, EINTR, ENOMEM, ENODEV as the interface says; EIO if the device was reset.
    pub(crate) fn run(
        &self,
        request: &Request,
        named: Operands<'_>,
        job: &mut Job<'_>,
    ) -> Result<Answer> {
        // The pages in the order of the operands; where each is shows when it is used.
        let (source, destination) = (cut(named.source)?, cut(named.destination)?);
        let pages = Operands {
            source: &source,
            destination: &destination,
        };
        let writes = if request.writes_destination() {
            Access::Write
        } else {
            Access::Read
        };
        let mut ranges = KVec::with_capacity(RANGES_MAX, GFP_KERNEL)?;
        loop {
            if self.device.gate().is_shut() {
                return Err(ENODEV);
            }
            ranges.clear();
            let next = job.next(pages, |range: Range| ranges.push(range, GFP_KERNEL))?;
            let step = match next {
                Next::Done(answer) => return Ok(answer),
                Next::Submit(step) => step,
            };
            let (sources, destinations) = ranges.split_at(step.header.num_src.get().into());
            let answer = self.window(&step, sources, destinations, writes)?;
            let completion = Completion {
                status: answer.status,
                reserved: 0.into(),
                range_index: answer.range_index.into(),
                result: answer.result.into(),
                bytes_done: answer.bytes_done.into(),
            };
            job.complete(&step, &completion, pages);
        }
    }

    /// One window: faulted in until the device finds all of it.
    fn window(
        &self,
        step: &Step,
        sources: &[Range],
        destinations: &[Range],
        writes: Access,
    ) -> Result<Answer> {
        let engine = self.device.engine();
        let request = Request::of(&step.header);
        let mut source = KVec::with_capacity(sources.len(), GFP_KERNEL)?;
        let mut destination = KVec::with_capacity(destinations.len(), GFP_KERNEL)?;
        loop {
            let mut draft = Some(command::draft(RANGES_MAX)?);
            self.map(sources, Access::Read)?;
            self.map(destinations, writes)?;
            source.clear();
            destination.clear();

            let table = self.space.mirror().lock();
            let resolve = |ranges: &[Range], access, found: &mut KVec<Segment>| {
                ranges.iter().all(|range| {
                    table.resolve(range.address.get(), range.bytes.get(), access, found)
                })
            };
            let is_complete = resolve(sources, Access::Read, &mut source)
                && resolve(destinations, writes, &mut destination);
            if !is_complete {
                continue;
            }
            let found = Operands {
                source: &source,
                destination: &destination,
            };
            let room = || draft.take().ok_or(EIO);
            let done = command::once(engine, &request, found, room);
            if matches!(done, Err(err) if err == ETIMEDOUT) {
                engine.forsake(&destination);
            }
            drop(table);
            return match done {
                Err(err) if err == ECANCELED || err == ETIME => {
                    Err(command::was_reset(self.device))
                }
                Err(err) if err == ETIMEDOUT => Err(ENODEV),
                done => done,
            };
        }
    }

    /// Lets the device access the pages that these ranges lie in, each in one.
    fn map(&self, ranges: &[Range], access: Access) -> Result {
        let want = if access == Access::Read {
            Want::Read
        } else {
            Want::Write
        };
        let mut ranges = ranges.iter().map(|range| {
            let address = range.address.get();
            address - address % PAGE_BYTES
        });
        let Some(mut first) = ranges.next() else {
            return Ok(());
        };
        let mut last = first;
        loop {
            let next = ranges.next();
            if let Some(page) = next {
                if page == last || last.checked_add(PAGE_BYTES) == Some(page) {
                    last = page;
                    continue;
                }
            }
            let run = PageRange::new(first, last - first + PAGE_BYTES).ok_or(EFAULT)?;
            match self.space.map(self.device.region(), run, want, false) {
                Err(err) if err == EPERM => return Err(EFAULT),
                done => done?,
            }
            let Some(page) = next else { return Ok(()) };
            (first, last) = (page, page);
        }
    }
}

/// An operand in pieces that lie in one page each.
fn cut(operand: &[Segment]) -> Result<KVVec<Segment>> {
    let mut pieces = KVVec::with_capacity(in_pages(operand).count(), GFP_KERNEL)?;
    for piece in in_pages(operand) {
        pieces.push(piece, GFP_KERNEL)?;
    }
    Ok(pieces)
}
