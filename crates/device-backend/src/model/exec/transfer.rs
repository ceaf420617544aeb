// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that stream over their operands: FILL, COPY, CHECKSUM, COMPARE, one chunk
//! at a time.

use super::Progress;
use crate::model::access::ByteStream;
use crate::model::operand::Operand;
use crate::model::request::FillPattern;
use cdm_protocol::COMPARE_EQUAL;

/// Size of a bounce buffer: stays in the second-level cache, two of them too. A multiple of
/// every element that FILL has.
const BOUNCE_BYTES: usize = 64 << 10;

/// Stores the pattern all over the destination; it runs on across borders of ranges.
pub fn fill(destination: &mut impl ByteStream, pattern: &FillPattern) -> Progress {
    let element = pattern.element();
    let mut bounce = vec![0u8; BOUNCE_BYTES];
    for chunk in bounce.chunks_mut(element.len()) {
        chunk.copy_from_slice(element);
    }
    let mut done = 0u64;
    loop {
        let (count, stop) = destination.write_all(&bounce);
        done += count as u64;
        match stop {
            Some(stop) => return Progress::stopped(stop, done),
            None if count < bounce.len() => return Progress::finished(0, done),
            None => {}
        }
    }
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
    let mut bounce = vec![0u8; BOUNCE_BYTES];
    let mut crc = 0;
    let mut done = 0u64;
    loop {
        match source.read(&mut bounce) {
            Ok(0) => return Progress::finished(crc.into(), done),
            Ok(count) => {
                crc = crc32c::crc32c_append(crc, &bounce[..count]);
                done += count as u64;
            }
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
