// SPDX-License-Identifier: Apache-2.0 OR MIT

//! HISTOGRAM: how many elements of a vector fall into each bin.

use super::{Progress, Words};
use crate::model::link::Access;
use crate::model::operand::Operand;
use crate::model::request::{AtomicWidth, Bins};
use std::sync::atomic::Ordering;

/// Bytes between two looks at the cancellation, and size of the bounce buffer.
const PIECE_BYTES: usize = 64 << 10;

/// Counts the source's elements of `width` bytes, then adds the counts to the counters.
///
/// The counters change only when all is counted, so a cancelled command changes none.
pub fn histogram(
    source: &Operand<'_>,
    counters: &Words<'_, '_>,
    width: usize,
    bins: Bins,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let mut counts = vec![0u64; bins.count as usize];
    let mut outside = 0u64;
    let mut bounce = vec![0u8; PIECE_BYTES];
    let mut stream = source.stream();
    let mut done = 0;
    loop {
        if cancelled() {
            return Progress::cancelled(0).touching(done);
        }
        let bytes = stream.read(&mut bounce);
        if bytes == 0 {
            break;
        }
        for element in bounce[..bytes].chunks_exact(width) {
            let mut value = [0; 8];
            value[..width].copy_from_slice(element);
            let bin = bins.bin_of(u64::from_le_bytes(value));
            match bin.and_then(|bin| counts.get_mut(bin)) {
                Some(count) => *count += 1,
                None => outside += 1,
            }
        }
        done += bytes as u64;
    }
    for (offset, count) in (0..).step_by(8).zip(counts) {
        if count == 0 {
            continue;
        }
        if let Some(counter) = counters.at(offset, AtomicWidth::Eight, Access::Atomic) {
            counter.fetch_add(count, Ordering::SeqCst);
        }
    }
    Progress::finished(outside, done)
}
