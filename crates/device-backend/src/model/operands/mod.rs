// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The operands of a piece of work, and the operation on them.
//!
//! There are two kinds. [`Near`] operands are found before the first byte is moved and stay
//! where they are: device memory and guest memory that the driver named. [`Far`] ones are, in part
//! at least, memory of processes, which is found page by page and may move at any time.

mod far;
mod near;
mod traffic;
mod walk;

pub use far::{Far, Walked};
pub use near::Near;

use super::access::{ByteStream, WordAccess};
use super::exec::{self, Progress};
use super::link::Traffic;
use super::request::{AtomicWidth, Code, Elements, Extent, Operation, Refusal};
use super::translation::Access;
use cdm_protocol::Instruction;
use traffic::traffic;
use walk::Flows;

/// What of an operand is asked for beside what is needed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Nothing: what follows may not be needed.
    Nothing,
    /// All that follows.
    All,
}

/// A stream over an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over the source, to read it.
    Source,
    /// Over the destination, to read it.
    Old,
    /// Over the destination, to write it.
    New,
}

/// Both operands of a piece of work.
pub trait Operands {
    /// The source, to be read.
    fn source(&self, ahead: Ahead) -> impl ByteStream;
    /// The destination.
    fn destination(&self, access: Access, ahead: Ahead) -> impl ByteStream;
    /// Words of the source.
    fn source_words(&self) -> Result<impl WordAccess, Refusal>;
    /// Words of the destination.
    fn destination_words(&self) -> Result<impl WordAccess, Refusal>;
    /// The only word of the destination.
    fn word(&self, width: AtomicWidth) -> Result<impl WordAccess, Refusal>;
    /// Copies source to destination.
    fn copy(&self) -> Progress;
    /// Accesses of a stream over `elements`, or over all bytes, to the first `bytes` bytes, as
    /// far as it came.
    fn flows(&self, way: Way, elements: Option<Elements>, bytes: u64) -> Flows;
    /// Accesses to words so far.
    fn words_traffic(&self) -> Traffic;
}

/// The part of a list that a piece of work is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Its ranges.
    pub list: &'a [Extent],
    /// Index of the first of them in the command.
    pub first_index: usize,
}

/// Carries an operation out; what it did to memory as well.
pub fn carry_out(
    operation: Operation,
    source_bytes: u64,
    operands: &impl Operands,
    cancelled: &dyn Fn() -> bool,
) -> Result<(Progress, Traffic), Refusal> {
    let progress = operate(operation, source_bytes, operands, cancelled)?;
    let traffic = traffic(&operation, source_bytes, operands, &progress);
    Ok((progress, traffic))
}

fn operate(
    operation: Operation,
    source_bytes: u64,
    operands: &impl Operands,
    cancelled: &dyn Fn() -> bool,
) -> Result<Progress, Refusal> {
    let all = Ahead::All;
    Ok(match operation {
        Operation::Nop => Progress::finished(0, 0),
        Operation::Fill(pattern) => {
            exec::fill(&mut operands.destination(Access::Write, all), &pattern)
        }
        Operation::Copy => operands.copy(),
        // The task puts the CRCs of its chunks together.
        Operation::Checksum { .. } => exec::checksum(&mut operands.source(all)),
        Operation::Compare => {
            let mut destination = operands.destination(Access::Read, all);
            exec::compare(&mut operands.source(all), &mut destination)
        }
        Operation::FetchAdd {
            width,
            addend,
            repeat,
        } => exec::fetch_add(&operands.word(width)?, width, addend, repeat, cancelled),
        Operation::CompareSwap {
            width,
            expected,
            new,
        } => exec::compare_swap(&operands.word(width)?, width, expected, new, cancelled),
        Operation::Sum { elements, initial } => {
            let ahead = if elements.are_sparse() {
                Ahead::Nothing
            } else {
                all
            };
            let mut source = operands.source(ahead);
            exec::sum(&mut source, source_bytes, elements, initial, cancelled)
        }
        Operation::Axpy { elements, factor } => {
            let ahead = if elements.are_sparse() {
                Ahead::Nothing
            } else {
                all
            };
            let streams = exec::AxpyStreams {
                source: operands.source(ahead),
                old: operands.destination(Access::Write, ahead),
                new: operands.destination(Access::Write, ahead),
            };
            exec::axpy(streams, source_bytes, elements, factor, cancelled)
        }
        Operation::PointerChase { first, base, hops } => {
            exec::chase(&operands.source_words()?, first, base, hops, cancelled)
        }
        Operation::Histogram { width, bins } => {
            let counters = operands.destination_words()?;
            exec::histogram(&mut operands.source(all), &counters, width, bins, cancelled)
        }
        Operation::Program {
            instructions,
            argument,
            limit,
        } => {
            let words = operands.destination_words()?;
            // Read once, before the first instruction may change it.
            let mut bytes = vec![0; instructions as usize * size_of::<Instruction>()];
            if let (_, Some(stop)) = operands.source(all).read_all(&mut bytes) {
                return Ok(Progress::stopped(stop, 0));
            }
            let code = Code::parse(&bytes)?;
            exec::program(&code, &words, argument, limit, cancelled)
        }
    })
}
