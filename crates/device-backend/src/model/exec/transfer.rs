// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that stream over their operands: FILL, COPY, CHECKSUM, COMPARE, one chunk
//! at a time.

use super::Progress;
use super::crc::Crc;
use crate::model::access::ByteStream;
use crate::model::operand::Operand;
use crate::model::request::FillPattern;
use cdm_protocol::COMPARE_EQUAL;
use vm_memory::VolatileSlice;

/// Size of a bounce buffer: stays in the second-level cache, two of them too.
const BOUNCE_BYTES: usize = 64 << 10;

/// Bytes of a pattern that are stored at once: they stay in the first-level cache. Whole words.
const PATTERN_BYTES: usize = 4 << 10;
/// A multiple of every element that FILL has.
const WORD_BYTES: usize = 8;

/// Stores the pattern all over the destination; it runs on across borders of ranges.
pub fn fill(destination: &mut impl ByteStream, pattern: &FillPattern) -> Progress {
    let element = pattern.element();
    let one = element[0];
    let is_uniform = element.iter().all(|&byte| byte == one);
    let mut elements = [0; PATTERN_BYTES + WORD_BYTES];
    if !is_uniform {
        let word: [u8; WORD_BYTES] = std::array::from_fn(|place| element[place % element.len()]);
        elements.as_chunks_mut().0.fill(word);
    }
    let mut done = 0u64;
    let mut store = |piece: VolatileSlice<'_>| {
        if is_uniform {
            set(piece, one);
        } else {
            // A range may end within an element.
            let begun = done as usize % WORD_BYTES;
            let elements = &elements[begun..begun + PATTERN_BYTES];
            for offset in (0..piece.len()).step_by(PATTERN_BYTES) {
                if let Ok(rest) = piece.offset(offset) {
                    rest.copy_from(elements);
                }
            }
        }
        done += piece.len() as u64;
    };
    loop {
        match destination.change(usize::MAX, &mut store) {
            Ok(0) => return Progress::finished(0, done),
            Ok(_) => {}
            Err(stop) => return Progress::stopped(stop, done),
        }
    }
}

/// Stores one byte all over a slice.
fn set(slice: VolatileSlice<'_>, byte: u8) {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the guard's memory is mapped for stores as long as the guard lives, and as long as
    // the slice says. Nobody holds a reference to it, and what others make of it meanwhile is
    // theirs, as with vm-memory's copies.
    unsafe { std::ptr::write_bytes(guard.as_ptr(), byte, guard.len()) };
}

/// Copies source to destination, first bytes first.
pub fn copy(source: &Operand<'_>, destination: &Operand<'_>) -> Progress {
    let mut done = 0u64;
    for (from, to) in source.pairs(destination, usize::MAX) {
        from.copy_to_volatile_slice(to);
        done += from.len() as u64;
    }
    Progress::finished(0, done)
}

/// As [`copy`], where only one of both can be had at a time.
pub fn copy_through_buffer(
    source: &mut impl ByteStream,
    destination: &mut impl ByteStream,
) -> Progress {
    let mut bounce = vec![0u8; BOUNCE_BYTES];
    let mut done = 0u64;
    loop {
        let bytes = match source.read(&mut bounce) {
            Ok(0) => return Progress::finished(0, done),
            Ok(count) => &bounce[..count],
            Err(stop) => return Progress::stopped(stop, done),
        };
        let (count, stop) = destination.write_all(bytes);
        done += count as u64;
        if let Some(stop) = stop {
            return Progress::stopped(stop, done);
        }
    }
}

/// CRC-32C of the source.
pub fn checksum(source: &mut impl ByteStream) -> Progress {
    let mut crc = Crc::new();
    let mut done = 0u64;
    loop {
        match source.look(usize::MAX, &mut |piece| crc.take(piece)) {
            Ok(0) => return Progress::finished(crc.value(), done),
            Ok(count) => done += count as u64,
            Err(stop) => return Progress::stopped(stop, done),
        }
    }
}

/// Offset of the first byte in which the operands differ.
pub fn compare(source: &mut impl ByteStream, destination: &mut impl ByteStream) -> Progress {
    let mut left = vec![0u8; BOUNCE_BYTES];
    let mut right = vec![0u8; BOUNCE_BYTES];
    let mut done = 0u64;
    loop {
        let left = match source.read(&mut left) {
            Ok(0) => return Progress::finished(COMPARE_EQUAL, done),
            Ok(count) => &left[..count],
            Err(stop) => return Progress::stopped(stop, done),
        };
        let (count, stop) = destination.read_all(&mut right[..left.len()]);
        let (left, right) = (&left[..count], &right[..count]);
        if left != right {
            let equal = left.iter().zip(right).take_while(|(l, r)| l == r);
            let first_difference = done + equal.count() as u64;
            // The byte that differs was looked at too.
            return Progress::finished(first_difference, first_difference)
                .touching(first_difference + 1);
        }
        done += count as u64;
        if let Some(stop) = stop {
            return Progress::stopped(stop, done);
        }
    }
}
