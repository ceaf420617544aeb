// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Operands that stay where they are.

use super::walk::{self, Flows};
use super::{Ahead, Operands, Part, Way};
use crate::model::access::{ByteStream, WordAccess};
use crate::model::exec::{self, OneWord, Progress, Word, Words};
use crate::model::link::{Singles, Traffic};
use crate::model::memory::Memory;
use crate::model::operand::Operand;
use crate::model::request::{AtomicWidth, Elements, Extent, Place, Refusal};
use crate::model::translation::{Access, Frame};
use cdm_protocol::Status;

/// Device memory and guest memory.
pub struct Near<'m> {
    source: Operand<'m>,
    destination: Operand<'m>,
    first_source: usize,
    first_destination: usize,
    /// What was made of their words.
    words: Singles,
}

impl<'m> Near<'m> {
    /// Finds the memory behind both lists.
    pub fn resolve(
        memory: Memory<'m>,
        source: Part<'_>,
        destination: Part<'_>,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            source: resolve(memory, source)?,
            destination: resolve(memory, destination)?,
            first_source: source.first_index,
            first_destination: destination.first_index,
            words: Singles::default(),
        })
    }
}

/// Finds the memory behind a list. Ranges of processes have none that lasts.
fn resolve<'m>(memory: Memory<'m>, part: Part<'_>) -> Result<Operand<'m>, Refusal> {
    let mut operand = Operand::default();
    for (index, &Extent { place, bytes }) in part.list.iter().enumerate() {
        let resolved = match place {
            Place::Device(address) => memory.resolve(Frame::Device(address), bytes, &mut operand),
            Place::Guest(address) => memory.resolve(Frame::Guest(address), bytes, &mut operand),
            Place::Process(..) => Ok(()),
        };
        resolved.map_err(|status| Refusal::of_range(status, part.first_index + index))?;
    }
    Ok(operand)
}

impl<'m> Near<'m> {
    /// The words of an operand whose first range has index `first_index`.
    fn words<'o>(
        &'o self,
        operand: &'o Operand<'m>,
        first_index: usize,
    ) -> Result<Words<'o, 'm>, Refusal> {
        let words = Words::new(operand, &self.words);
        words.ok_or(Refusal::of_range(Status::MISALIGNED, first_index))
    }
}

impl Operands for Near<'_> {
    fn source(&self, _: Ahead) -> impl ByteStream {
        self.source.stream()
    }

    fn destination(&self, _: Access, _: Ahead) -> impl ByteStream {
        self.destination.stream()
    }

    fn source_words(&self) -> Result<impl WordAccess, Refusal> {
        self.words(&self.source, self.first_source)
    }

    fn destination_words(&self) -> Result<impl WordAccess, Refusal> {
        self.words(&self.destination, self.first_destination)
    }

    fn word(&self, width: AtomicWidth) -> Result<impl WordAccess, Refusal> {
        let slice = self.destination.pieces(8).next();
        let word = slice.and_then(|slice| Word::new(slice, width));
        let found = word.zip(self.destination.sides().first());
        let misaligned = Refusal::of_range(Status::MISALIGNED, self.first_destination);
        let (word, &side) = found.ok_or(misaligned)?;
        Ok(OneWord {
            word,
            side,
            counted: &self.words,
        })
    }

    fn copy(&self) -> Progress {
        exec::copy(&self.source, &self.destination)
    }

    fn flows(&self, way: Way, elements: Option<Elements>, bytes: u64) -> Flows {
        let operand = match way {
            Way::Source => &self.source,
            Way::Old | Way::New => &self.destination,
        };
        walk::flows(operand, elements, bytes)
    }

    fn words_traffic(&self) -> Traffic {
        self.words.traffic()
    }
}
