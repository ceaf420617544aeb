// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Single accesses, counted when they are made.

use super::traffic::{Access, Flow, Side, Traffic};
use std::cell::Cell;

/// Single accesses of each kind to each side.
///
/// Counting one costs two stores. What stands between two accesses of a PROGRAM must be little:
/// a CPU's store buffer holds some 50 stores, so more of them would be a barrier to what a
/// program stores, and a litmus test of store buffering would show nothing.
#[derive(Debug, Default)]
pub struct Singles {
    own: Kinds,
    link: Kinds,
}

#[derive(Debug, Default)]
struct Kinds {
    reads: Cell<Flow>,
    writes: Cell<Flow>,
    atomics: Cell<Flow>,
}

impl Singles {
    /// Counts some more.
    #[inline]
    pub fn add(&self, side: Side, access: Access, flow: Flow) {
        let kinds = match side {
            Side::Own => &self.own,
            Side::Link => &self.link,
        };
        let counted = match access {
            Access::Read => &kinds.reads,
            Access::Write => &kinds.writes,
            Access::Atomic => &kinds.atomics,
        };
        let mut sum = counted.get();
        sum += flow;
        counted.set(sum);
    }

    /// All of them.
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for (side, kinds) in [(Side::Own, &self.own), (Side::Link, &self.link)] {
            traffic.add_singles(side, Access::Read, kinds.reads.get());
            traffic.add_singles(side, Access::Write, kinds.writes.get());
            traffic.add_singles(side, Access::Atomic, kinds.atomics.get());
        }
        traffic
    }
}
