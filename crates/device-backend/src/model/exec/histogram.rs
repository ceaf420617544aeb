// SPDX-License-Identifier: Apache-2.0 OR MIT

//! HISTOGRAM: how many elements of a vector fall into each bin.

use super::Progress;
use crate::model::access::{ByteStream, Uses, WordAccess};
use crate::model::link::Access;
use crate::model::request::{AtomicWidth, Bins};
use std::sync::atomic::Ordering;

/// Bytes between two looks at the cancellation, and size of the bounce buffer.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes of a counter.
const COUNTER_BYTES: u64 = 8;

/// Counts the source's elements of `width` bytes, then adds the counts to the counters.
///
/// The counters change only when all is counted, so a cancelled command changes none. Those
/// that are memory of a process may be taken away in between; all of them are looked for first.
pub fn histogram(
    source: &mut impl ByteStream,
    counters: &impl WordAccess,
    width: usize,
    bins: Bins,
    cancelled: &dyn Fn() -> bool,
) -> Progress {
    let mut counts = vec![0u64; bins.count as usize];
    let mut outside = 0u64;
    let mut bounce = vec![0u8; PIECE_BYTES];
    let mut done = 0;
    loop {
        if cancelled() {
            return Progress::cancelled(0).touching(done);
        }
        // Whole elements, unless the source ends early for a reason.
        let (bytes, stop) = source.read_all(&mut bounce);
        if let Some(stop) = stop {
            return Progress::stopped(stop, 0).touching(done + bytes as u64);
        }
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
    let full = || {
        let offsets = (0..).step_by(COUNTER_BYTES as usize);
        let all = offsets.zip(counts.iter().copied());
        all.filter(|(_, count)| *count != 0)
    };
    let eight = AtomicWidth::Eight;
    for (offset, _) in full() {
        if let Err(stop) = counters.prepare(offset, eight, Access::Atomic) {
            return Progress::stopped(stop, 0).touching(done);
        }
    }
    for (offset, count) in full() {
        let added = counters.with(offset, eight, Uses::ATOMIC, |counter| {
            counter.fetch_add(count, Ordering::SeqCst);
        });
        if let Err(stop) = added {
            return Progress::stopped(stop, 0).touching(done);
        }
    }
    Progress::finished(outside, done)
}
