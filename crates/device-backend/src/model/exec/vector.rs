// SPDX-License-Identifier: Apache-2.0 OR MIT

//! SUM and AXPY: arithmetic on vectors of numbers.
//!
//! Elements are taken in the order of their places, one after another, with one rounding
//! an operation. That costs the parallelism of a tree of partial sums and buys a result
//! that every device, and a plain loop on the CPU, agrees on to the bit.

use super::Progress;
use crate::model::operand::Operand;
use crate::model::request::{Elements, Number};

/// Bytes between two looks at the cancellation, and size of a bounce buffer.
const PIECE_BYTES: u64 = 64 << 10;

/// The only NaN that results have: what NaN an operation makes is not the same everywhere.
const NAN: u32 = 0x7fc0_0000;

/// Bits of a number, canonical if it is none.
fn bits(value: f32) -> u64 {
    match value.is_nan() {
        true => NAN.into(),
        false => value.to_bits().into(),
    }
}

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// Value of an element, zero-extended.
fn element(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// One element more in a sum.
fn plus(number: Number, sum: u64, element: u64) -> u64 {
    match number {
        Number::U32 | Number::U64 => sum.wrapping_add(element),
        Number::F32 => bits(float(sum) + float(element)),
    }
}

/// Adds the elements of the source to `initial`.
pub fn sum(
    source: &Operand<'_>,
    elements: Elements,
    initial: u64,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let number = elements.number;
    let mut sum = match number {
        Number::U32 | Number::U64 => initial,
        Number::F32 => bits(float(initial)),
    };
    let mut stream = source.stream();
    let mut bounce = vec![0u8; PIECE_BYTES as usize];
    let mut done = 0;
    for piece in elements.pieces(source.bytes(), PIECE_BYTES) {
        if cancelled() {
            return Progress::cancelled(done);
        }
        let bytes = &mut bounce[..piece.read as usize];
        stream.read(bytes);
        stream.skip(piece.skip as usize);
        for chunk in bytes.chunks(elements.stride as usize) {
            sum = plus(number, sum, element(&chunk[..number.bytes()]));
        }
        done += piece.read + piece.skip;
    }
    Progress::finished(sum, done)
}

/// Adds `factor` times each element of the source to the element of the destination in
/// the same place, and leaves what is between elements alone.
pub fn axpy(
    source: &Operand<'_>,
    destination: &Operand<'_>,
    elements: Elements,
    factor: u64,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let (number, width) = (elements.number, elements.number.bytes());
    let new_value = |x: u64, y: u64| match number {
        Number::U32 | Number::U64 => factor.wrapping_mul(x).wrapping_add(y),
        // Two operations, two roundings: never a fused one.
        Number::F32 => bits(float(factor) * float(x) + float(y)),
    };
    let (mut from, mut old, mut new) =
        (source.stream(), destination.stream(), destination.stream());
    let mut x_bounce = vec![0u8; PIECE_BYTES as usize];
    let mut y_bounce = vec![0u8; PIECE_BYTES as usize];
    let mut done = 0;
    for piece in elements.pieces(source.bytes(), PIECE_BYTES) {
        if cancelled() {
            return Progress::cancelled(done);
        }
        let (x_bytes, y_bytes) = (
            &mut x_bounce[..piece.read as usize],
            &mut y_bounce[..piece.read as usize],
        );
        from.read(x_bytes);
        old.read(y_bytes);
        let stride = elements.stride as usize;
        for (x, y) in x_bytes.chunks(stride).zip(y_bytes.chunks_mut(stride)) {
            let value = new_value(element(&x[..width]), element(&y[..width]));
            y[..width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        if stride == width {
            new.write(y_bytes);
        } else {
            for y in y_bytes.chunks(stride) {
                new.write(&y[..width]);
                new.skip(y.len() - width);
            }
        }
        for stream in [&mut from, &mut old, &mut new] {
            stream.skip(piece.skip as usize);
        }
        done += piece.read + piece.skip;
    }
    Progress::finished(0, done)
}
