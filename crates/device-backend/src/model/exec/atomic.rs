// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Atomic commands, and the atomic words that other commands use: naturally aligned
//! words that the guest's CPUs may update at the same time, with instructions that are
//! atomic towards ours.

use super::Progress;
use crate::model::access::{Stop, Uses, WordAccess};
use crate::model::link::{Access, Side, Singles};
use crate::model::operand::Operand;
use crate::model::request::AtomicWidth;
use cdm_protocol::Status;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vm_memory::VolatileSlice;

// The words are little-endian, as the guest's are, and no atomic addition is known for others.
#[cfg(target_endian = "big")]
compile_error!("the device's atomics are written for little-endian hosts");

/// Additions between two looks at the cancellation, with one lease: some 5 us, or tens of them if
/// others use the word, too.
const PIECE_ADDITIONS: u32 = 1024;

/// A word of shared memory, ready for atomic access. Narrow values are zero-extended, and
/// the high bits of what is stored do not count.
#[derive(Clone, Copy, Debug)]
pub enum Word<'m> {
    /// 32 bits.
    Four(&'m AtomicU32),
    /// 64 bits.
    Eight(&'m AtomicU64),
}

impl<'m> Word<'m> {
    /// Checks length and alignment in this process.
    pub fn new(slice: VolatileSlice<'m>, width: AtomicWidth) -> Option<Self> {
        let bytes = width.bytes() as usize;
        let pointer = slice.ptr_guard_mut().as_ptr();
        if slice.len() != bytes || !pointer.addr().is_multiple_of(bytes) {
            return None;
        }
        Some(match width {
            // SAFETY: aligned and four bytes long, as was just checked, and mapped as long as the
            // slice may be used (the guard of a slice in plain mappings keeps nothing). Whoever
            // else uses these bytes (the guest, another worker) does so through other mappings,
            // raw copies or atomics, never through a plain Rust reference, and every bit pattern
            // is a u32.
            AtomicWidth::Four => Self::Four(unsafe { AtomicU32::from_ptr(pointer.cast()) }),
            // SAFETY: as above, with eight bytes and u64.
            AtomicWidth::Eight => Self::Eight(unsafe { AtomicU64::from_ptr(pointer.cast()) }),
        })
    }

    /// What is there.
    pub fn load(self, order: Ordering) -> u64 {
        match self {
            Self::Four(word) => word.load(order).into(),
            Self::Eight(word) => word.load(order),
        }
    }

    /// Puts `value` there.
    pub fn store(self, value: u64, order: Ordering) {
        match self {
            Self::Four(word) => word.store(value as u32, order),
            Self::Eight(word) => word.store(value, order),
        }
    }

    /// Adds `addend` and returns what was there.
    pub fn fetch_add(self, addend: u64, order: Ordering) -> u64 {
        match self {
            Self::Four(word) => word.fetch_add(addend as u32, order).into(),
            Self::Eight(word) => word.fetch_add(addend, order),
        }
    }

    /// Puts `value` there and returns what was there.
    pub fn swap(self, value: u64, order: Ordering) -> u64 {
        match self {
            Self::Four(word) => word.swap(value as u32, order).into(),
            Self::Eight(word) => word.swap(value, order),
        }
    }

    /// Stores `new` if the word is `expected`; says what was there, as `Ok` if it was stored.
    ///
    /// If it was not, the access is a load: it has the part of `order` that loads have.
    pub fn compare_swap(self, expected: u64, new: u64, order: Ordering) -> Result<u64, u64> {
        let failure = match order {
            Ordering::SeqCst => Ordering::SeqCst,
            Ordering::Acquire | Ordering::AcqRel => Ordering::Acquire,
            _ => Ordering::Relaxed,
        };
        match self {
            Self::Four(word) => word
                .compare_exchange(expected as u32, new as u32, order, failure)
                .map(u64::from)
                .map_err(u64::from),
            Self::Eight(word) => word.compare_exchange(expected, new, order, failure),
        }
    }
}

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
