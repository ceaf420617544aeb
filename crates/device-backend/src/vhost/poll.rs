// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How long to look for work before going to sleep.
//!
//! To be woken costs more than a short command takes, at both ends. So a thread that has run out of
//! work looks for more first, if the last time tells that it comes soon: as long as twice what it
//! took to come, and never longer than [`LONGEST`]. A look that finds nothing is the last one,
//! until work comes soon again: who has nothing to do sleeps.
//!
//! Where others wait for the processor, looking keeps it from whoever would bring the work. The
//! processor is not offered to them between two looks: who does that gets it back after
//! milliseconds, and who sleeps when there is work. Instead, each look in vain lets twice as much
//! work come the ordinary way before the next one.

use std::hint;
use std::time::{Duration, Instant};

/// Longest look: some five times what waking a thread takes.
pub const LONGEST: Duration = Duration::from_micros(50);

/// Looks between two at the clock.
const LOOKS: u32 = 32;
/// Most times that work comes the ordinary way between two looks, as a power of two.
const PATIENCE_MAX: u32 = 10;

/// What is known of when work comes.
#[derive(Debug, Default)]
pub struct Poll {
    window: Duration,
    /// When it ran out of work the last time, unless work was found since.
    idle_since: Option<Instant>,
    /// Looks in vain since one was not.
    in_vain: u32,
    /// How often work comes the ordinary way before the next look.
    spared: u32,
}

impl Poll {
    /// Looks for work, as long as it may; whether there is some. To be called when there is none.
    pub fn look(&mut self, mut is_there: impl FnMut() -> bool) -> bool {
        let begin = Instant::now();
        self.idle_since = Some(begin);
        while begin.elapsed() < self.window {
            for _ in 0..LOOKS {
                if is_there() {
                    self.idle_since = None;
                    self.in_vain = 0;
                    return true;
                }
                hint::spin_loop();
            }
        }
        if !self.window.is_zero() {
            self.in_vain = (self.in_vain + 1).min(PATIENCE_MAX);
            self.spared = 1 << self.in_vain;
        }
        self.window = Duration::ZERO;
        false
    }

    /// Notes that work has come to a thread that slept, or was about to.
    pub fn woken(&mut self) {
        if self.spared > 0 {
            self.spared -= 1;
        } else if let Some(since) = self.idle_since {
            self.window = window_after(since.elapsed());
        }
        self.idle_since = None;
    }
}

/// How long to look the next time, if work took so long to come.
fn window_after(gap: Duration) -> Duration {
    match gap <= LONGEST {
        true => (2 * gap).min(LONGEST),
        false => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// One that has learnt that work comes soon.
    fn eager() -> Poll {
        Poll {
            window: LONGEST,
            ..Poll::default()
        }
    }

    #[test]
    fn who_knows_nothing_does_not_look() {
        let mut looks = 0;
        let found = Poll::default().look(|| {
            looks += 1;
            true
        });
        assert!(!found && looks == 0);
    }

    #[test]
    fn work_that_came_soon_is_looked_for_and_work_that_came_late_is_not() {
        assert_eq!(window_after(LONGEST / 4), LONGEST / 2);
        assert_eq!(window_after(LONGEST), LONGEST);
        assert_eq!(
            window_after(LONGEST + Duration::from_nanos(1)),
            Duration::ZERO
        );
    }

    #[test]
    fn a_look_ends_by_itself_and_is_not_repeated_when_nothing_came() {
        let mut poll = eager();
        let begin = Instant::now();
        assert!(!poll.look(|| false));
        assert!(begin.elapsed() >= LONGEST);
        let mut looks = 0;
        assert!(!poll.look(|| {
            looks += 1;
            false
        }));
        assert_eq!(looks, 0);
    }

    #[test]
    fn work_that_was_found_keeps_one_looking() {
        let mut poll = eager();
        for _ in 0..3 {
            assert!(poll.look(|| true));
        }
    }

    #[test]
    fn one_that_was_woken_late_does_not_look_any_more() {
        let mut poll = Poll::default();
        assert!(!poll.look(|| false));
        thread::sleep(2 * LONGEST);
        poll.woken();
        assert_eq!(poll.window, Duration::ZERO);
    }

    #[test]
    fn looks_in_vain_become_rare_and_one_that_finds_work_makes_them_usual_again() {
        let mut poll = eager();
        // Work comes at once, but only to who sleeps.
        let mut looks = 0;
        for _ in 0..2000 {
            let mut has_looked = false;
            assert!(!poll.look(|| {
                has_looked = true;
                false
            }));
            looks += u32::from(has_looked);
            poll.woken();
        }
        assert!((1..=PATIENCE_MAX + 1).contains(&looks), "{looks} looks");
        poll.window = LONGEST;
        assert!(poll.look(|| true));
        assert_eq!(poll.in_vain, 0);
    }
}
