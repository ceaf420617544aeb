// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How fast the guest's clock ticks under TCG.
//!
//! A guest of QEMU's translator reads the host's time stamp counter, and at boot its kernel finds
//! out how fast that is by counting it against an emulated timer (`arch/x86/kernel/tsc.c`). On a
//! host with more to do than it has processors the timer comes late, and a guest has been seen
//! whose clock was 18 times too fast from then on, and every timeout in it as much too short. The
//! host can do better, so the kernel is told (`tsc_early_khz=`); it compares later, and takes over
//! no value that is more than one percent off.

use std::arch::x86_64::_rdtsc;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks; what is read between them is off by some millionths.
const STRETCH: Duration = Duration::from_millis(20);
/// Readings of which the shortest counts, as nobody was in between.
const READINGS: usize = 8;

/// The counter at a time.
#[derive(Clone, Copy)]
struct Look {
    count: u64,
    at: Instant,
}

impl Look {
    fn now() -> Self {
        let reading = || {
            let before = counter();
            let at = Instant::now();
            let after = counter();
            (after.wrapping_sub(before), before, at)
        };
        let shortest = (0..READINGS)
            .map(|_| reading())
            .min_by_key(|(took, ..)| *took);
        let (took, before, at) = shortest.unwrap_or_else(reading);
        Self {
            count: before.wrapping_add(took / 2),
            at,
        }
    }
}

fn counter() -> u64 {
    // SAFETY: reads a register; every x86-64 has it.
    unsafe { _rdtsc() }
}

/// Ticks of the host's counter in a millisecond; measured once.
pub fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let first = Look::now();
        thread::sleep(STRETCH);
        rate(first, Look::now())
    })
}

fn rate(first: Look, second: Look) -> u64 {
    let ticks = u128::from(second.count.wrapping_sub(first.count));
    let nanoseconds = (second.at - first.at).as_nanos().max(1);
    u64::try_from((ticks * 1_000_000 + nanoseconds / 2) / nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_ticks_by_time_whatever_the_counter_began_with() {
        let first = Look {
            count: u64::MAX - 99,
            at: Instant::now(),
        };
        let second = Look {
            count: 25_999_900,
            at: first.at + Duration::from_millis(10),
        };
        assert_eq!(rate(first, second), 2_600_000);
    }

    #[test]
    fn two_measurements_agree() {
        let once = || {
            let first = Look::now();
            thread::sleep(STRETCH);
            rate(first, Look::now())
        };
        // The best of a few: somebody may always come between a reading and its time.
        let differs = |one: u64, other: u64| one.abs_diff(other) * 1000 / one.max(1);
        let differences = (0..20).map(|_| differs(once(), khz()));
        assert_eq!(differences.min(), Some(0));
    }
}
