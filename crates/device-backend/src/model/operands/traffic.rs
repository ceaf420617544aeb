// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The accesses that an operation makes, whatever this process did in its place: no bounce
//! buffer and no look ahead counts.

use super::{Operands, Way};
use crate::model::exec::Progress;
use crate::model::link::{Access, Side, Traffic};
use crate::model::request::{Elements, Operation};

/// What an operation goes over, if it is a vector.
pub fn elements(operation: &Operation) -> Option<Elements> {
    match *operation {
        Operation::Sum { elements, .. } | Operation::Axpy { elements, .. } => Some(elements),
        _ => None,
    }
}

/// Accesses of a piece of a command that came so far; `source_bytes` is the source's length.
pub fn traffic(
    operation: &Operation,
    source_bytes: u64,
    operands: &impl Operands,
    progress: &Progress,
) -> Traffic {
    let touched = progress.touched;
    let mut traffic = Traffic::default();
    let mut stream = |way, access, bytes| {
        let flows = operands.flows(way, elements(operation), bytes);
        for side in [Side::Own, Side::Link] {
            traffic.add_stream(side, access, flows.of(side));
        }
    };
    match *operation {
        Operation::Nop
        | Operation::FetchAdd { .. }
        | Operation::CompareSwap { .. }
        | Operation::PointerChase { .. } => {}
        Operation::Fill(_) => stream(Way::New, Access::Write, touched),
        Operation::Copy => {
            stream(Way::Source, Access::Read, touched);
            stream(Way::New, Access::Write, touched);
        }
        Operation::Checksum { .. } | Operation::Sum { .. } | Operation::Histogram { .. } => {
            stream(Way::Source, Access::Read, touched);
        }
        Operation::Compare => {
            stream(Way::Source, Access::Read, touched);
            stream(Way::Old, Access::Read, touched);
        }
        Operation::Axpy { .. } => {
            stream(Way::Source, Access::Read, touched);
            stream(Way::Old, Access::Read, touched);
            stream(Way::New, Access::Write, touched);
        }
        Operation::Program { .. } => stream(Way::Source, Access::Read, source_bytes),
    }
    let words = operands.words_traffic();
    traffic += match *operation {
        // No counter waits for another one.
        Operation::Histogram { .. } => words.as_stream(),
        _ => words,
    };
    traffic
}
