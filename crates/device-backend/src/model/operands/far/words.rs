// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The words of an operand that is memory of processes, each with a lease of its own.

use super::{Far, Part, Stretch};
use crate::model::access::{Stop, Uses, WordAccess};
use crate::model::exec::Word;
use crate::model::link::{Access, Side};
use crate::model::request::{AtomicWidth, Place};
use cdm_protocol::Status;
use vm_memory::VolatileSlice;

/// See [`WordAccess`].
///
/// The form of a command has it that a word at a multiple of its width lies in one range.
pub struct FarWords<'f, 'a> {
    far: &'f Far<'a>,
    part: Part<'a>,
    /// Offset of each range in the operand.
    starts: Vec<u64>,
    bytes: u64,
}

impl<'f, 'a> FarWords<'f, 'a> {
    /// The words of a list.
    pub fn new(far: &'f Far<'a>, part: Part<'a>) -> Self {
        let (mut bytes, mut starts) = (0, Vec::with_capacity(part.list.len()));
        for extent in part.list {
            starts.push(bytes);
            bytes += extent.bytes;
        }
        Self {
            far,
            part,
            starts,
            bytes,
        }
    }

    /// Does something to the word at `offset`; its place.
    fn reach(
        &self,
        offset: u64,
        width: AtomicWidth,
        access: Access,
        action: impl FnOnce(VolatileSlice<'_>, Side) -> Result<(), Status>,
    ) -> Result<Place, Stop> {
        if offset >= self.bytes || !offset.is_multiple_of(width.bytes()) {
            return Err(Status::BAD_POINTER.into());
        }
        let index = self.starts.partition_point(|&start| start <= offset) - 1;
        let stretch = Stretch {
            place: self.part.list[index]
                .place
                .plus(offset - self.starts[index]),
            bytes: width.bytes(),
            ahead: width.bytes(),
            access: self.far.needed_for(access),
        };
        let mut outcome = Ok(());
        let reached = self
            .far
            .with_word(stretch, |slice, side| outcome = action(slice, side));
        reached
            .and(outcome)
            .map(|()| stretch.place)
            .map_err(|status| Stop::of_range(status, self.part.first_index + index))
    }
}

impl WordAccess for FarWords<'_, '_> {
    fn with<T>(
        &self,
        offset: u64,
        width: AtomicWidth,
        uses: Uses,
        action: impl FnOnce(Word<'_>) -> T,
    ) -> Result<T, Stop> {
        let mut outcome = None;
        let mut across = 0;
        let place = self.reach(offset, width, uses.access, |slice, side| {
            let word = Word::new(slice, width).ok_or(Status::PAGE_ERROR)?;
            let counted = &self.far.walked.words;
            let word = match (side, self.far.unit) {
                (Side::Link, Some(unit)) => {
                    for half in uses.over_a_link_without_atomics() {
                        half.count(counted, side, width);
                        across += half.times;
                    }
                    word.through(unit)
                }
                _ => {
                    uses.count(counted, side, width);
                    if side == Side::Link {
                        across += uses.times;
                    }
                    word
                }
            };
            outcome = Some(action(word));
            Ok(())
        })?;
        if across > 0 {
            self.far.note_word(place, across);
        }
        // Whoever reaches a word does something to it.
        outcome.ok_or(Status::PAGE_ERROR.into())
    }

    fn prepare(&self, offset: u64, width: AtomicWidth, access: Access) -> Result<(), Stop> {
        self.reach(offset, width, access, |_, _| Ok(()))?;
        Ok(())
    }
}
