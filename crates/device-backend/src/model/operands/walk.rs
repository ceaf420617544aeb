// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What was gone over of an operand, by where it lay.

use crate::model::link::{Flow, Side};
use crate::model::operand::Operand;
use crate::model::request::Elements;
use std::collections::VecDeque;

/// Operations look no further ahead than a bounce buffer.
const LOOK_AHEAD_BYTES: u64 = 64 << 10;

/// Accesses to each side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flows {
    own: Flow,
    link: Flow,
}

impl Flows {
    /// Those to one side.
    pub fn of(&self, side: Side) -> Flow {
        match side {
            Side::Own => self.own,
            Side::Link => self.link,
        }
    }

    fn add(&mut self, run: &Run, elements: Option<Elements>) {
        match run.side {
            Side::Own => self.own += run.flow(elements),
            Side::Link => self.link += run.flow(elements),
        }
    }
}

/// Bytes that follow each other in the operand and in memory.
#[derive(Clone, Copy, Debug)]
struct Run {
    side: Side,
    /// Where it lies: pages are mapped as pages, so all that matters of an address is here.
    address: u64,
    /// Its place in the operand.
    from: u64,
    to: u64,
}

impl Run {
    /// Elements each on their own if there are gaps between them, else lines.
    fn flow(&self, elements: Option<Elements>) -> Flow {
        match elements.filter(|elements| !elements.is_dense()) {
            Some(elements) => {
                let (accesses, bytes) = elements.within(self.from, self.to);
                Flow { accesses, bytes }
            }
            None => Flow::lines(self.address, self.to - self.from),
        }
    }

    /// Whether `next` is what follows.
    fn goes_on_with(&self, next: &Self) -> bool {
        let bytes = self.to - self.from;
        self.side == next.side && self.to == next.from && self.address + bytes == next.address
    }
}

/// The slices of an operand that begins at `from` of a whole one.
fn runs<'o>(operand: &'o Operand<'_>, mut from: u64) -> impl Iterator<Item = Run> + 'o {
    let slices = operand.slices().iter().zip(operand.sides());
    slices.map(move |(slice, &side)| {
        let run = Run {
            side,
            address: slice.ptr_guard().as_ptr().addr() as u64,
            from,
            to: from + slice.len() as u64,
        };
        from = run.to;
        run
    })
}

/// Adds those of the first `bytes` bytes.
fn sum(
    mut flows: Flows,
    runs: impl Iterator<Item = Run>,
    elements: Option<Elements>,
    bytes: u64,
) -> Flows {
    for run in runs {
        if run.from < bytes {
            let to = run.to.min(bytes);
            flows.add(&Run { to, ..run }, elements);
        }
    }
    flows
}

/// Accesses to the first `bytes` bytes of an operand that stays where it is.
pub fn flows(operand: &Operand<'_>, elements: Option<Elements>, bytes: u64) -> Flows {
    sum(Flows::default(), runs(operand, 0), elements, bytes)
}

/// Where an operand lay that does not stay where it is, piece by piece.
#[derive(Debug, Default)]
pub struct Trail {
    elements: Option<Elements>,
    /// Those that an operation has come past for certain.
    past: Flows,
    /// The others, first ones first.
    recent: VecDeque<Run>,
}

impl Trail {
    /// Nothing yet.
    pub fn new(elements: Option<Elements>) -> Self {
        Self {
            elements,
            ..Self::default()
        }
    }

    /// Went over `operand`, which is what lay at `from` just now. Ranges are told apart, even
    /// those that lie one behind the other.
    pub fn push(&mut self, operand: &Operand<'_>, from: u64, begins_range: bool) {
        for run in runs(operand, from) {
            let is_apart = begins_range && run.from == from;
            match self.recent.back_mut() {
                // Else what a lease cut would count as two lines.
                Some(last) if !is_apart && last.goes_on_with(&run) => last.to = run.to,
                _ => self.recent.push_back(run),
            }
            while let Some(first) = self.recent.front()
                && first.to + LOOK_AHEAD_BYTES <= run.from
            {
                self.past.add(first, self.elements);
                self.recent.pop_front();
            }
        }
    }

    /// Accesses to the first `bytes` bytes.
    pub fn flows(&self, bytes: u64) -> Flows {
        sum(self.past, self.recent.iter().copied(), self.elements, bytes)
    }
}
