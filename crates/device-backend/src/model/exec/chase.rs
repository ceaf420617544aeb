// SPDX-License-Identifier: Apache-2.0 OR MIT

//! POINTER_CHASE: each word tells where the next one is, so that no load can begin
//! before the one before it has ended.

use super::Progress;
use crate::model::access::{Uses, WordAccess};
use crate::model::request::AtomicWidth;
use std::sync::atomic::Ordering;

/// Hops between two looks at the cancellation: less than a millisecond, even if each of
/// them misses every cache.
const PIECE_HOPS: u32 = 1024;
/// Bytes of a pointer.
const POINTER_BYTES: u64 = 8;

/// Follows pointers, `hops` times, from `first` on. A pointer's value is `base` more than
/// the offset of the word it points to.
pub fn chase(
    words: &impl WordAccess,
    first: u64,
    base: u64,
    hops: u32,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let mut pointer = first;
    for hop in 0..hops {
        let done = u64::from(hop) * POINTER_BYTES;
        if hop.is_multiple_of(PIECE_HOPS) && cancelled() {
            return Progress::cancelled(done);
        }
        let offset = pointer.wrapping_sub(base);
        let loaded = words.with(offset, AtomicWidth::Eight, Uses::READ, |word| {
            word.load(Ordering::Relaxed)
        });
        match loaded {
            Ok(next) => pointer = next,
            Err(stop) => return Progress::stopped(stop, done),
        }
    }
    Progress::finished(pointer, u64::from(hops) * POINTER_BYTES)
}
