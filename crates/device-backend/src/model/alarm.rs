// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Waking who waits for the driver.
//!
//! A command may wait for something that a thread of another concern ends: an answer, a
//! cancellation, the end of the rings. Each of them changes its own state first and then rings;
//! who waits counts the rings first and then looks at all those states. So nobody sleeps
//! through a change, and no state needs another one's lock.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What is rung after a change that somebody may wait for.
#[derive(Debug, Default)]
pub struct Alarm {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rings: u64,
    /// Who would hear it: mostly nobody, and then a ring costs no system call.
    waiting: usize,
}

/// A number of rings, counted before looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard(u64);

impl Alarm {
    /// Wakes everybody, to look again.
    pub fn ring(&self) {
        let mut state = self.state();
        state.rings += 1;
        if state.waiting > 0 {
            self.rung.notify_all();
        }
    }

    /// What has been rung so far.
    pub fn heard(&self) -> Heard {
        Heard(self.state().rings)
    }

    /// Waits until it is rung again; not at all if it was since.
    pub fn wait_after(&self, heard: Heard) {
        let mut state = self.state();
        state.waiting += 1;
        while state.rings == heard.0 {
            state = self
                .rung
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    #[test]
    fn ring_between_looking_and_waiting_is_not_slept_through() {
        let alarm = Alarm::default();
        let heard = alarm.heard();
        alarm.ring();
        alarm.wait_after(heard);
    }

    #[test]
    fn everybody_who_waits_sees_the_last_change() {
        let (alarm, value) = (Alarm::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let heard = alarm.heard();
                        if value.load(Ordering::Relaxed) == 1000 {
                            return;
                        }
                        alarm.wait_after(heard);
                    }
                });
            }
            for _ in 0..1000 {
                value.fetch_add(1, Ordering::Relaxed);
                alarm.ring();
            }
        });
    }
}
