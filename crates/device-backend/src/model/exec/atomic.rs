// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Atomic commands, and the atomic words that other commands use, where they stay where they are.

use super::{Progress, Word};
use crate::model::access::{Stop, Uses, WordAccess};
use crate::model::link::{Access, Side, Singles};
use crate::model::operand::Operand;
use crate::model::request::AtomicWidth;
use cdm_protocol::Status;
use std::sync::atomic::Ordering;
use vm_memory::VolatileSlice;

/// Additions between two looks at the cancellation, with one lease: some us, or a hundred of them
/// over a link without atomics.
const PIECE_ADDITIONS: u32 = 256;

/// The words of an operand, by their offset in it.
///
/// # Invariants
///
/// Each slice starts at a multiple of eight and is a multiple of eight bytes long, so a
/// word at a multiple of its width lies in one of them. `starts` are their offsets.
#[derive(Debug)]
pub struct Words<'o, 'm> {
    slices: &'o [VolatileSlice<'m>],
    sides: &'o [Side],
    starts: Vec<u64>,
    bytes: u64,
    /// What was made of them.
    counted: &'o Singles,
}

impl<'o, 'm> Words<'o, 'm> {
    /// Checks lengths and alignment in this process. Accesses are counted in `counted`.
    pub fn new(operand: &'o Operand<'m>, counted: &'o Singles) -> Option<Self> {
        let slices = operand.slices();
        let mut bytes = 0;
        let mut starts = Vec::with_capacity(slices.len());
        for slice in slices {
            let address = slice.ptr_guard().as_ptr().addr();
            // INVARIANT: checked here.
            if !address.is_multiple_of(8) || !slice.len().is_multiple_of(8) {
                return None;
            }
            starts.push(bytes);
            bytes += slice.len() as u64;
        }
        Some(Self {
            slices,
            sides: operand.sides(),
            starts,
            bytes,
            counted,
        })
    }

    /// The word at `offset`, if it is a multiple of `width` inside the operand, and where it is.
    fn at(&self, offset: u64, width: AtomicWidth) -> Option<(Word<'m>, Side)> {
        if offset >= self.bytes || !offset.is_multiple_of(width.bytes()) {
            return None;
        }
        let index = self.starts.partition_point(|&start| start <= offset) - 1;
        let inside = usize::try_from(offset - self.starts[index]).ok()?;
        let bytes = width.bytes() as usize;
        let word = Word::new(self.slices[index].subslice(inside, bytes).ok()?, width)?;
        Some((word, self.sides[index]))
    }
}

impl WordAccess for Words<'_, '_> {
    fn with<T>(
        &self,
        offset: u64,
        width: AtomicWidth,
        uses: Uses,
        action: impl FnOnce(Word<'_>) -> T,
    ) -> Result<T, Stop> {
        let found = self.at(offset, width);
        let (word, side) = found.ok_or(Stop::from(Status::BAD_POINTER))?;
        uses.count(self.counted, side, width);
        Ok(action(word))
    }

    fn prepare(&self, _: u64, _: AtomicWidth, _: Access) -> Result<(), Stop> {
        Ok(())
    }
}

/// An operand that is one word, at offset zero.
#[derive(Clone, Copy, Debug)]
pub struct OneWord<'o, 'm> {
    /// The word.
    pub word: Word<'m>,
    /// Where it is.
    pub side: Side,
    /// Where accesses are counted.
    pub counted: &'o Singles,
}

impl WordAccess for OneWord<'_, '_> {
    fn with<T>(
        &self,
        offset: u64,
        width: AtomicWidth,
        uses: Uses,
        action: impl FnOnce(Word<'_>) -> T,
    ) -> Result<T, Stop> {
        if offset != 0 {
            return Err(Status::BAD_POINTER.into());
        }
        uses.count(self.counted, self.side, width);
        Ok(action(self.word))
    }

    fn prepare(&self, _: u64, _: AtomicWidth, _: Access) -> Result<(), Stop> {
        Ok(())
    }
}

/// Adds `addend` to the operand's first word, `repeat` times.
pub fn fetch_add(
    words: &impl WordAccess,
    width: AtomicWidth,
    addend: u64,
    repeat: u32,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let (mut before_last, mut additions) = (0, 0);
    while additions < repeat {
        let done = u64::from(additions) * width.bytes();
        if cancelled() {
            return Progress::cancelled(done);
        }
        let count = PIECE_ADDITIONS.min(repeat - additions);
        let uses = Uses {
            access: Access::Atomic,
            times: count.into(),
        };
        let added = words.with(0, width, uses, |word| {
            for _ in 0..count {
                before_last = word.fetch_add(addend, Ordering::SeqCst);
            }
        });
        if let Err(stop) = added {
            return Progress::stopped(stop, done);
        }
        additions += count;
    }
    Progress::finished(before_last, u64::from(repeat) * width.bytes())
}

/// Stores `new` in the operand's first word if it holds `expected`.
pub fn compare_swap(
    words: &impl WordAccess,
    width: AtomicWidth,
    expected: u64,
    new: u64,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    if cancelled() {
        return Progress::cancelled(0);
    }
    let swapped = words.with(0, width, Uses::ATOMIC, |word| {
        word.compare_swap(expected, new, Ordering::SeqCst)
    });
    match swapped {
        Ok(Ok(found)) => Progress::finished(found, width.bytes()),
        Ok(Err(found)) => Progress::finished(found, 0),
        Err(stop) => Progress::stopped(stop, 0),
    }
}
