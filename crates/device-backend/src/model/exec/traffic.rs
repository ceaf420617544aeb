// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The accesses that an operation makes, whatever this process did in its place: no bounce
//! buffer and no look ahead counts.

use super::Progress;
use crate::model::link::{Access, Flow, Side, Traffic};
use crate::model::operand::Operand;
use crate::model::request::{Elements, Operation};
use cdm_protocol::Status;

/// Accesses of a piece of a command that came so far. `words` are those that were counted
/// when they were made.
pub fn traffic(
    operation: &Operation,
    source: &Operand<'_>,
    destination: &Operand<'_>,
    progress: &Progress,
    words: Traffic,
) -> Traffic {
    let touched = progress.touched;
    let mut traffic = Traffic::default();
    match *operation {
        Operation::Nop => {}
        Operation::Fill(_) => stream(&mut traffic, destination, Access::Write, touched),
        Operation::Copy => {
            stream(&mut traffic, source, Access::Read, touched);
            stream(&mut traffic, destination, Access::Write, touched);
        }
        Operation::Checksum { .. } => stream(&mut traffic, source, Access::Read, touched),
        Operation::Compare => {
            stream(&mut traffic, source, Access::Read, touched);
            stream(&mut traffic, destination, Access::Read, touched);
        }
        Operation::FetchAdd { width, .. } => {
            let additions = touched / width.bytes();
            singles(&mut traffic, destination, additions, width.bytes());
        }
        // Its operands go to the word, whether or not it is as expected.
        Operation::CompareSwap { width, .. } => {
            let done = u64::from(progress.status == Status::OK);
            singles(&mut traffic, destination, done, width.bytes());
        }
        Operation::Sum { elements, .. } => {
            vector(&mut traffic, source, Access::Read, elements, touched);
        }
        Operation::Axpy { elements, .. } => {
            vector(&mut traffic, source, Access::Read, elements, touched);
            vector(&mut traffic, destination, Access::Read, elements, touched);
            vector(&mut traffic, destination, Access::Write, elements, touched);
        }
        Operation::PointerChase { .. } => traffic += words,
        // No counter waits for another one.
        Operation::Histogram { .. } => {
            stream(&mut traffic, source, Access::Read, touched);
            traffic += words.as_stream();
        }
        Operation::Program { .. } => {
            stream(&mut traffic, source, Access::Read, source.bytes());
            traffic += words;
        }
    }
    traffic
}

/// The first `bytes` bytes of an operand, line by line.
fn stream(traffic: &mut Traffic, operand: &Operand<'_>, access: Access, bytes: u64) {
    each_slice(operand, bytes, |part| {
        let flow = Flow::lines(part.address, part.to - part.from);
        traffic.add_stream(part.side, access, flow);
    });
}

/// The elements in the first `bytes` bytes of an operand: lines where there is no gap, else
/// each on its own.
fn vector(
    traffic: &mut Traffic,
    operand: &Operand<'_>,
    access: Access,
    elements: Elements,
    bytes: u64,
) {
    if elements.is_dense() {
        return stream(traffic, operand, access, bytes);
    }
    each_slice(operand, bytes, |part| {
        let (accesses, bytes) = elements.within(part.from, part.to);
        traffic.add_stream(part.side, access, Flow { accesses, bytes });
    });
}

/// So many atomics on an operand of one word.
fn singles(traffic: &mut Traffic, operand: &Operand<'_>, count: u64, width: u64) {
    if let Some(&side) = operand.sides().first() {
        traffic.add_singles(side, Access::Atomic, Flow::words(count, width));
    }
}

/// A slice of an operand, as far as it counts.
struct Part {
    side: Side,
    /// Where it lies: pages are mapped as pages, so all that matters of an address is here.
    address: u64,
    /// Its place in the operand.
    from: u64,
    to: u64,
}

/// Goes through the slices that have some of the first `bytes` bytes.
fn each_slice(operand: &Operand<'_>, bytes: u64, mut each: impl FnMut(Part)) {
    let mut from = 0;
    for (slice, &side) in operand.slices().iter().zip(operand.sides()) {
        if from >= bytes {
            break;
        }
        let end = from + slice.len() as u64;
        each(Part {
            side,
            address: slice.ptr_guard().as_ptr().addr() as u64,
            from,
            to: end.min(bytes),
        });
        from = end;
    }
}
