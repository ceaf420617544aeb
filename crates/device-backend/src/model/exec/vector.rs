// SPDX-License-Identifier: Apache-2.0 OR MIT

//! SUM and AXPY: arithmetic on vectors of numbers.
//!
//! Elements are taken in the order of their places, one after another, with one rounding
//! an operation. That costs the parallelism of a tree of partial sums and buys a result
//! that every device, and a plain loop on the CPU, agrees on to the bit.

use super::Progress;
use crate::model::access::ByteStream;
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

/// Adds the elements of the source, of `total` bytes, to `initial`.
pub fn sum(
    source: &mut impl ByteStream,
    total: u64,
    elements: Elements,
    initial: u64,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let number = elements.number;
    let mut sum = match number {
        Number::U32 | Number::U64 => initial,
        Number::F32 => bits(float(initial)),
    };
    let mut bounce = vec![0u8; PIECE_BYTES as usize];
    let mut done = 0;
    for piece in elements.pieces(total, PIECE_BYTES) {
        if cancelled() {
            return Progress::cancelled(done);
        }
        let bytes = &mut bounce[..piece.read as usize];
        if let (_, Some(stop)) = source.read_all(bytes) {
            return Progress::stopped(stop, done);
        }
        source.skip(piece.skip);
        for chunk in bytes.chunks(elements.stride as usize) {
            sum = plus(number, sum, element(&chunk[..number.bytes()]));
        }
        done += piece.read + piece.skip;
    }
    Progress::finished(sum, done)
}

/// What AXPY goes over in step: the destination is read and written.
pub struct AxpyStreams<S, O, N> {
    /// The source.
    pub source: S,
    /// The destination, to be read.
    pub old: O,
    /// The destination, to be written.
    pub new: N,
}

/// Adds `factor` times each element of the source, of `total` bytes, to the element of the
/// destination in the same place, and leaves what is between elements alone.
pub fn axpy<S: ByteStream, O: ByteStream, N: ByteStream>(
    streams: AxpyStreams<S, O, N>,
    total: u64,
    elements: Elements,
    factor: u64,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let AxpyStreams {
        mut source,
        mut old,
        mut new,
    } = streams;
    let (number, width) = (elements.number, elements.number.bytes());
    let new_value = |x: u64, y: u64| match number {
        Number::U32 | Number::U64 => factor.wrapping_mul(x).wrapping_add(y),
        // Two operations, two roundings: never a fused one.
        Number::F32 => bits(float(factor) * float(x) + float(y)),
    };
    let mut x_bounce = vec![0u8; PIECE_BYTES as usize];
    let mut y_bounce = vec![0u8; PIECE_BYTES as usize];
    let mut done = 0;
    for piece in elements.pieces(total, PIECE_BYTES) {
        if cancelled() {
            return Progress::cancelled(done);
        }
        let (x_bytes, y_bytes) = (
            &mut x_bounce[..piece.read as usize],
            &mut y_bounce[..piece.read as usize],
        );
        let moved = [source.read_all(x_bytes), old.read_all(y_bytes)];
        if let Some(stop) = moved.into_iter().find_map(|(_, stop)| stop) {
            return Progress::stopped(stop, done);
        }
        let stride = elements.stride as usize;
        for (x, y) in x_bytes.chunks(stride).zip(y_bytes.chunks_mut(stride)) {
            let value = new_value(element(&x[..width]), element(&y[..width]));
            y[..width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        // At once if there is nothing between elements.
        let step = if stride == width {
            y_bytes.len()
        } else {
            stride
        };
        let mut written = 0;
        for y in y_bytes.chunks(step) {
            let count = if stride == width { y.len() } else { width };
            let (count, stop) = new.write_all(&y[..count]);
            if let Some(stop) = stop {
                return Progress::stopped(stop, done + written + count as u64);
            }
            new.skip((y.len() - count) as u64);
            written += y.len() as u64;
        }
        source.skip(piece.skip);
        old.skip(piece.skip);
        new.skip(piece.skip);
        done += piece.read + piece.skip;
    }
    Progress::finished(0, done)
}
