// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A first-come, first-served lock.
//!
//! A queue's worker takes its turn again for each chain. With an ordinary mutex it
//! could win every race, and a RESET or a stopped ring would wait for ever.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The lock; it protects whatever its holders agree on.
#[derive(Debug, Default)]
pub struct Turn {
    numbers: Mutex<Numbers>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    serving: u64,
}

/// Having one's turn.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct TurnGuard<'a>(&'a Turn);

impl Turn {
    /// Waits until everybody who came before is done.
    pub fn take(&self) -> TurnGuard<'_> {
        let mut numbers = self.numbers();
        let own = numbers.next;
        numbers.next += 1;
        while numbers.serving != own {
            numbers = self
                .changed
                .wait(numbers)
                .unwrap_or_else(PoisonError::into_inner);
        }
        TurnGuard(self)
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // Nothing panics while the numbers are locked.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        let mut numbers = self.0.numbers();
        numbers.serving += 1;
        // Nobody to wake is the rule, and waking costs a system call even so.
        let is_awaited = numbers.serving != numbers.next;
        drop(numbers);
        if is_awaited {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn one_holder_at_a_time() {
        let turn = Turn::default();
        let (inside, entries) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _turn = turn.take();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        entries.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(entries.into_inner(), 2000);
    }

    #[test]
    fn who_takes_turn_after_turn_lets_others_in() {
        let turn = Turn::default();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _turn = turn.take();
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let start = Instant::now();
            for _ in 0..20 {
                drop(turn.take());
            }
            stop.store(true, Ordering::Relaxed);
            // Each wait is for one holder of 1 ms; a lost race each time would never end.
            assert!(start.elapsed() < Duration::from_secs(10));
        });
    }
}
