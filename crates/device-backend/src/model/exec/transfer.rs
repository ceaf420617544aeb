// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that stream over their operands: FILL, COPY, CHECKSUM, COMPARE, one chunk
//! at a time.

use super::Progress;
use crate::model::operand::Operand;
use crate::model::request::FillPattern;
use cdm_protocol::COMPARE_EQUAL;

/// Size of a bounce buffer: stays in the second-level cache, two of them too.
const BOUNCE_BYTES: usize = 64 << 10;

/// Stores the pattern all over the destination; it runs on across borders of ranges.
pub fn fill(destination: &Operand<'_>, pattern: &FillPattern) -> Progress {
    let element = pattern.element();
    // One element longer than a piece, so that a piece can begin at any phase of the pattern.
    let mut bounce = vec![0u8; BOUNCE_BYTES + element.len()];
    for chunk in bounce.chunks_mut(element.len()) {
        chunk.copy_from_slice(&element[..chunk.len()]);
    }
    let mut done = 0u64;
    for piece in destination.pieces(BOUNCE_BYTES) {
        let phase = (done % element.len() as u64) as usize;
        piece.copy_from(&bounce[phase..phase + piece.len()]);
        done += piece.len() as u64;
    }
    Progress::finished(0, done)
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

/// CRC-32C of the source.
pub fn checksum(source: &Operand<'_>) -> Progress {
    let mut bounce = vec![0u8; BOUNCE_BYTES];
    let mut crc = 0;
    let mut done = 0u64;
    for piece in source.pieces(BOUNCE_BYTES) {
        let bytes = &mut bounce[..piece.len()];
        piece.copy_to(bytes);
        crc = crc32c::crc32c_append(crc, bytes);
        done += piece.len() as u64;
    }
    Progress::finished(crc.into(), done)
}

/// Offset of the first byte in which the operands differ.
pub fn compare(source: &Operand<'_>, destination: &Operand<'_>) -> Progress {
    let mut left_bounce = vec![0u8; BOUNCE_BYTES];
    let mut right_bounce = vec![0u8; BOUNCE_BYTES];
    let mut done = 0u64;
    for (left, right) in source.pairs(destination, BOUNCE_BYTES) {
        let left_bytes = &mut left_bounce[..left.len()];
        let right_bytes = &mut right_bounce[..right.len()];
        left.copy_to(left_bytes);
        right.copy_to(right_bytes);
        if left_bytes != right_bytes {
            let equal = left_bytes
                .iter()
                .zip(&*right_bytes)
                .take_while(|(l, r)| l == r);
            let first_difference = done + equal.count() as u64;
            // The byte that differs was looked at too.
            return Progress::finished(first_difference, first_difference)
                .touching(first_difference + 1);
        }
        done += left.len() as u64;
    }
    Progress::finished(COMPARE_EQUAL, done)
}
