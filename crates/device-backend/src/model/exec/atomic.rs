// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Atomic commands: one naturally aligned word that the guest's CPUs may update at
//! the same time, with instructions that are atomic towards ours.

use super::Progress;
use crate::model::request::AtomicWidth;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vm_memory::VolatileSlice;

// The words are little-endian, as the guest's are, and no atomic addition is known for others.
#[cfg(target_endian = "big")]
compile_error!("the device's atomics are written for little-endian hosts");

/// Additions between two looks at the cancellation: some 20 us.
const PIECE_ADDITIONS: u32 = 4096;

/// A word of shared memory, ready for atomic access.
///
/// # Invariants
///
/// The slice is `width` bytes long and starts at a multiple of that.
#[derive(Clone, Copy, Debug)]
pub struct Word<'m> {
    slice: VolatileSlice<'m>,
    width: AtomicWidth,
}

impl<'m> Word<'m> {
    /// Checks length and alignment in this process.
    pub fn new(slice: VolatileSlice<'m>, width: AtomicWidth) -> Option<Self> {
        let bytes = width.bytes() as usize;
        let is_aligned = slice.ptr_guard().as_ptr().addr().is_multiple_of(bytes);
        // INVARIANT: both halves are checked here.
        (slice.len() == bytes && is_aligned).then_some(Self { slice, width })
    }

    /// Adds `addend` and returns what was there; narrow values are zero-extended.
    fn fetch_add(&self, addend: u64) -> u64 {
        let guard = self.slice.ptr_guard_mut();
        match self.width {
            AtomicWidth::Four => {
                // SAFETY: by the invariant the pointer is aligned and valid for four bytes while
                // the guard lives. Whoever else uses these bytes (the guest, another worker) does
                // so through other mappings, raw copies or atomics, never through a Rust
                // reference, and every bit pattern is a u32.
                let word = unsafe { AtomicU32::from_ptr(guard.as_ptr().cast()) };
                word.fetch_add(addend as u32, Ordering::SeqCst).into()
            }
            AtomicWidth::Eight => {
                // SAFETY: as above, with eight bytes and u64.
                let word = unsafe { AtomicU64::from_ptr(guard.as_ptr().cast()) };
                word.fetch_add(addend, Ordering::SeqCst)
            }
        }
    }

    /// Stores `new` if the word is `expected`; says what was there, as `Ok` if it was stored.
    fn compare_swap(&self, expected: u64, new: u64) -> Result<u64, u64> {
        const ORDER: Ordering = Ordering::SeqCst;
        let guard = self.slice.ptr_guard_mut();
        match self.width {
            AtomicWidth::Four => {
                // SAFETY: as in fetch_add.
                let word = unsafe { AtomicU32::from_ptr(guard.as_ptr().cast()) };
                word.compare_exchange(expected as u32, new as u32, ORDER, ORDER)
                    .map(u64::from)
                    .map_err(u64::from)
            }
            AtomicWidth::Eight => {
                // SAFETY: as in fetch_add.
                let word = unsafe { AtomicU64::from_ptr(guard.as_ptr().cast()) };
                word.compare_exchange(expected, new, ORDER, ORDER)
            }
        }
    }
}

/// Adds `addend` to the word, `repeat` times.
pub fn fetch_add(
    word: &Word<'_>,
    addend: u64,
    repeat: u32,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let mut before_last = 0;
    for addition in 0..repeat {
        if addition.is_multiple_of(PIECE_ADDITIONS) && cancelled() {
            return Progress::cancelled(u64::from(addition) * word.width.bytes());
        }
        before_last = word.fetch_add(addend);
    }
    Progress::finished(before_last, u64::from(repeat) * word.width.bytes())
}

/// Stores `new` in the word if it holds `expected`.
pub fn compare_swap(
    word: &Word<'_>,
    expected: u64,
    new: u64,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    if cancelled() {
        return Progress::cancelled(0);
    }
    match word.compare_swap(expected, new) {
        Ok(found) => Progress::finished(found, word.width.bytes()),
        Err(found) => Progress::finished(found, 0),
    }
}
