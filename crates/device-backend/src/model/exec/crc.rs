// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The CRC of memory that others write to at the same time.
//!
//! The crate that knows the processor's best instructions wants a reference, and none may be
//! formed into shared memory. So bytes are copied to a buffer that stays in the first-level cache,
//! and while the CRC goes over that, what comes next is fetched: copying waits for memory and the
//! CRC for the processor, and one after the other they would take as long as both.

use crate::model::task::CHUNK_BYTES;
use crc_fast::{CrcAlgorithm, Digest, checksum_combine};
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::sync::OnceLock;
use vm_memory::VolatileSlice;

/// Bytes that are copied at once.
const BUFFER_BYTES: usize = 8 << 10;
/// Bytes that the CRC goes over at once: little enough that fetching goes on evenly.
const STEP_BYTES: usize = 2 << 10;
/// How far ahead of the CRC memory is fetched.
const AHEAD_BYTES: usize = 2 * BUFFER_BYTES;
/// What is fetched at once.
const LINE_BYTES: usize = 64;

/// CRC-32C of bytes that come in pieces.
pub struct Crc {
    digest: Digest,
    buffer: [u8; BUFFER_BYTES],
}

impl Crc {
    /// That of no bytes.
    pub fn new() -> Self {
        Self {
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
            buffer: [0; BUFFER_BYTES],
        }
    }

    /// Goes over the next bytes.
    pub fn take(&mut self, piece: VolatileSlice<'_>) {
        for begin in (0..piece.len()).step_by(BUFFER_BYTES) {
            let Ok(rest) = piece.offset(begin) else {
                return;
            };
            let count = rest.copy_to(&mut self.buffer[..]);
            for (index, step) in self.buffer[..count].chunks(STEP_BYTES).enumerate() {
                fetch(piece, begin + index * STEP_BYTES + AHEAD_BYTES);
                self.digest.update(step);
            }
        }
    }

    /// The CRC of all so far.
    pub fn value(&self) -> u64 {
        self.digest.finalize()
    }
}

/// The CRC of bytes with the CRC `first`, and behind them `bytes` bytes with the CRC `second`.
///
/// The general way takes some microseconds, and a large command has many chunks. What a chunk's
/// length of zeroes makes of a CRC is linear in its bits, and remembered.
pub fn join(first: u32, second: u32, bytes: u64) -> u32 {
    static AFTER_A_CHUNK: OnceLock<[u32; 32]> = OnceLock::new();
    match (first, bytes) {
        (0, _) => second,
        (_, CHUNK_BYTES) => {
            let of_bits = AFTER_A_CHUNK
                .get_or_init(|| std::array::from_fn(|bit| combine(1 << bit, 0, bytes)));
            let set = (0..32).filter(|bit| first >> bit & 1 == 1);
            set.fold(second, |crc, bit| crc ^ of_bits[bit])
        }
        _ => combine(first, second, bytes),
    }
}

fn combine(first: u32, second: u32, bytes: u64) -> u32 {
    let (first, second) = (first.into(), second.into());
    // A CRC has 32 bits.
    checksum_combine(CrcAlgorithm::Crc32Iscsi, first, second, bytes) as u32
}

/// Has a step's bytes of a slice brought near, from `begin` on, as far as there are any.
fn fetch(slice: VolatileSlice<'_>, begin: usize) {
    let Ok(rest) = slice.offset(begin) else {
        return;
    };
    let guard = rest.ptr_guard();
    for offset in (0..guard.len().min(STEP_BYTES)).step_by(LINE_BYTES) {
        // SAFETY: a hint, which neither loads nor faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(guard.as_ptr().wrapping_add(offset).cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_crc_is_that_of_all_pieces_in_a_row(
            lengths in prop::collection::vec(0usize..3 * BUFFER_BYTES, 0..4), seed: u8,
        ) {
            let mut parts: Vec<Vec<u8>> = lengths
                .iter()
                .map(|&bytes| (0..bytes).map(|byte| (byte as u8).wrapping_mul(seed)).collect())
                .collect();
            let expected = crc32c::crc32c(&parts.concat());
            let mut crc = Crc::new();
            for part in &mut parts {
                crc.take(VolatileSlice::from(part.as_mut_slice()));
            }
            prop_assert_eq!(crc.value(), u64::from(expected));
        }

        #[test]
        fn joined_crcs_are_those_of_all_bytes(
            first: u32, second: u32, bytes in prop_oneof![Just(CHUNK_BYTES), 0..CHUNK_BYTES],
        ) {
            let expected = crc32c::crc32c_combine(first, second, bytes as usize);
            // No bytes have one CRC alone.
            let second = if bytes == 0 { 0 } else { second };
            let expected = if bytes == 0 { first } else { expected };
            prop_assert_eq!(join(first, second, bytes), expected);
        }
    }
}
