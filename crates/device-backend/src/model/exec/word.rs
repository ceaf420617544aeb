// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Naturally aligned words that others use at the same time: the guest's CPUs, with
//! instructions that are atomic towards ours, and other engines of the device.

use crate::model::atomics::AtomicUnit;
use crate::model::request::AtomicWidth;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vm_memory::VolatileSlice;

// The words are little-endian, as the guest's are, and no atomic addition is known for others.
#[cfg(target_endian = "big")]
compile_error!("the device's atomics are written for little-endian hosts");

/// A word of shared memory, ready for atomic access. Narrow values are zero-extended, and
/// the high bits of what is stored do not count.
#[derive(Clone, Copy, Debug)]
pub struct Word<'m> {
    cell: Cell<'m>,
    /// What carries out atomics on it, if the link does not.
    unit: Option<&'m AtomicUnit>,
}

/// Where the word is.
#[derive(Clone, Copy, Debug)]
enum Cell<'m> {
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
        let cell = match width {
            // SAFETY: aligned and four bytes long, as was just checked, and mapped as long as the
            // slice may be used (the guard of a slice in plain mappings keeps nothing). Whoever
            // else uses these bytes (the guest, another worker) does so through other mappings,
            // raw copies or atomics, never through a plain Rust reference, and every bit pattern
            // is a u32.
            AtomicWidth::Four => Cell::Four(unsafe { AtomicU32::from_ptr(pointer.cast()) }),
            // SAFETY: as above, with eight bytes and u64.
            AtomicWidth::Eight => Cell::Eight(unsafe { AtomicU64::from_ptr(pointer.cast()) }),
        };
        Some(Self { cell, unit: None })
    }

    /// The same word behind a link without atomics: the device's own unit carries them out, as
    /// a load and a store.
    pub fn through(self, unit: &'m AtomicUnit) -> Self {
        Self {
            unit: Some(unit),
            ..self
        }
    }

    /// What is there.
    pub fn load(self, order: Ordering) -> u64 {
        self.cell.load(order)
    }

    /// Puts `value` there.
    pub fn store(self, value: u64, order: Ordering) {
        // Not between the halves of what another engine does.
        let _turn = self.unit.map(|unit| unit.turn(self.cell.place()));
        self.cell.store(value, order);
    }

    /// Adds `addend` and returns what was there.
    pub fn fetch_add(self, addend: u64, order: Ordering) -> u64 {
        match (self.unit, self.cell) {
            (Some(unit), _) => self.change(unit, order, |found| Some(found.wrapping_add(addend))),
            (None, Cell::Four(word)) => word.fetch_add(addend as u32, order).into(),
            (None, Cell::Eight(word)) => word.fetch_add(addend, order),
        }
    }

    /// Puts `value` there and returns what was there.
    pub fn swap(self, value: u64, order: Ordering) -> u64 {
        match (self.unit, self.cell) {
            (Some(unit), _) => self.change(unit, order, |_| Some(value)),
            (None, Cell::Four(word)) => word.swap(value as u32, order).into(),
            (None, Cell::Eight(word)) => word.swap(value, order),
        }
    }

    /// Stores `new` if the word is `expected`; says what was there, as `Ok` if it was stored.
    ///
    /// If it was not, the access is a load: it has the part of `order` that loads have.
    pub fn compare_swap(self, expected: u64, new: u64, order: Ordering) -> Result<u64, u64> {
        match (self.unit, self.cell) {
            (Some(unit), _) => {
                let expected = self.cell.narrow(expected);
                let found = self.change(unit, order, |found| (found == expected).then_some(new));
                match found == expected {
                    true => Ok(found),
                    false => Err(found),
                }
            }
            (None, Cell::Four(word)) => word
                .compare_exchange(expected as u32, new as u32, order, load_part(order))
                .map(u64::from)
                .map_err(u64::from),
            (None, Cell::Eight(word)) => {
                word.compare_exchange(expected, new, order, load_part(order))
            }
        }
    }

    /// Loads, and stores what comes of it, if anything does; what was there. It is atomic as long
    /// as everybody else who stores there is an engine of this device.
    fn change(
        self,
        unit: &AtomicUnit,
        order: Ordering,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> u64 {
        let turn = unit.turn(self.cell.place());
        let found = self.cell.load(load_part(order));
        turn.cross_the_link();
        if let Some(new) = change(found) {
            self.cell.store(new, store_part(order));
        }
        found
    }
}

impl Cell<'_> {
    fn load(self, order: Ordering) -> u64 {
        match self {
            Self::Four(word) => word.load(order).into(),
            Self::Eight(word) => word.load(order),
        }
    }

    fn store(self, value: u64, order: Ordering) {
        match self {
            Self::Four(word) => word.store(value as u32, order),
            Self::Eight(word) => word.store(value, order),
        }
    }

    /// As much of a value as the word can hold.
    fn narrow(self, value: u64) -> u64 {
        match self {
            Self::Four(_) => u64::from(value as u32),
            Self::Eight(_) => value,
        }
    }

    /// Its address in this process, which has guest memory mapped once.
    fn place(self) -> usize {
        match self {
            Self::Four(word) => word.as_ptr().addr(),
            Self::Eight(word) => word.as_ptr().addr(),
        }
    }
}

/// The part of an order that loads have.
fn load_part(order: Ordering) -> Ordering {
    match order {
        Ordering::SeqCst => Ordering::SeqCst,
        Ordering::Acquire | Ordering::AcqRel => Ordering::Acquire,
        _ => Ordering::Relaxed,
    }
}

/// The part of an order that stores have.
fn store_part(order: Ordering) -> Ordering {
    match order {
        Ordering::SeqCst => Ordering::SeqCst,
        Ordering::Release | Ordering::AcqRel => Ordering::Release,
        _ => Ordering::Relaxed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDERS: [Ordering; 5] = [
        Ordering::Relaxed,
        Ordering::Acquire,
        Ordering::Release,
        Ordering::AcqRel,
        Ordering::SeqCst,
    ];

    /// What an operation finds, and what it leaves in eight bytes.
    fn outcome(
        operation: u8,
        width: AtomicWidth,
        order: Ordering,
        [before, expected, operand]: [u64; 3],
        unit: Option<&AtomicUnit>,
    ) -> (Result<u64, u64>, u64) {
        let memory = AtomicU64::new(before);
        // SAFETY: the memory outlives the slice, and is used by atomics alone.
        let slice = unsafe { VolatileSlice::new(memory.as_ptr().cast(), width.bytes() as usize) };
        let word = Word::new(slice, width).unwrap();
        let word = unit.map_or(word, |unit| word.through(unit));
        let found = match operation {
            0 => Ok(word.fetch_add(operand, order)),
            1 => Ok(word.swap(operand, order)),
            _ => word.compare_swap(expected, operand, order),
        };
        (found, memory.into_inner())
    }

    proptest! {
        #[test]
        fn unit_of_the_device_does_what_the_link_does(
            operation in 0u8..3,
            is_wide in any::<bool>(),
            order in prop::sample::select(&ORDERS[..]),
            (before, other, operand) in any::<(u64, u64, u64)>(),
            kind in 0u8..3,
        ) {
            let width = if is_wide { AtomicWidth::Eight } else { AtomicWidth::Four };
            // As it is found, in its low half at least, or not.
            let expected = match kind {
                0 => before,
                1 => before & 0xffff_ffff | other << 32,
                _ => other,
            };
            let values = [before, expected, operand];
            let unit = AtomicUnit::new();
            let carried = outcome(operation, width, order, values, None);
            let divided = outcome(operation, width, order, values, Some(&unit));
            prop_assert_eq!(divided, carried);
        }
    }
}
