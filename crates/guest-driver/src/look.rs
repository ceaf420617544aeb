// SPDX-License-Identifier: GPL-2.0-only

//! How long who waits for an answer looks for it before it sleeps. Pure logic.
//!
//! To sleep until an interrupt comes costs more than a short command takes, on hardware, and much
//! more where the interrupt goes through an emulator. So a waiter looks first, if the last answer
//! came within [`LONGEST_NS`], and no longer than that. How long exactly the last one took tells
//! little: of many commands that were given at once, most are answered when they are looked for.
//! Looking keeps the CPU from others, so each look in vain lets twice as many answers come by
//! interrupt before the next look.

/// Longest look: twice what an answer takes that comes by interrupt, in an emulated machine.
pub const LONGEST_NS: u64 = 200_000;
/// Most answers that come by interrupt between two looks, as a power of two.
const PATIENCE_MAX: u32 = 10;

/// What is known of when answers come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habit {
    /// The last answer that tells something came soon.
    is_quick: bool,
    /// Looks in vain since one was not.
    in_vain: u32,
    /// Answers that come by interrupt before the next look.
    spared: u32,
}

impl Habit {
    /// That of a queue that has had no answer yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to look now; zero to sleep at once.
    pub fn window_ns(&self) -> u64 {
        match self.is_quick && self.spared == 0 {
            true => LONGEST_NS,
            false => 0,
        }
    }

    /// A look has found an answer.
    pub fn found(&mut self) {
        self.in_vain = 0;
    }

    /// A look has found none.
    pub fn looked_in_vain(&mut self) {
        self.in_vain = (self.in_vain + 1).min(PATIENCE_MAX);
        self.spared = 1 << self.in_vain;
    }

    /// An answer has come to one that slept, after so long.
    pub fn slept(&mut self, after_ns: u64) {
        if self.spared > 0 {
            self.spared -= 1;
        } else {
            self.is_quick = after_ns <= LONGEST_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_nothing_sleeps_at_once() {
        assert_eq!(Habit::new().window_ns(), 0);
    }

    #[test]
    fn answers_that_come_soon_are_looked_for_and_late_ones_are_not() {
        let mut habit = Habit::new();
        habit.slept(LONGEST_NS);
        assert_eq!(habit.window_ns(), LONGEST_NS);
        habit.found();
        assert_eq!(habit.window_ns(), LONGEST_NS);
        habit.slept(LONGEST_NS + 1);
        assert_eq!(habit.window_ns(), 0);
    }

    #[test]
    fn looks_in_vain_become_rare_and_one_that_finds_makes_them_usual_again() {
        let mut habit = Habit::new();
        let mut looks = 0;
        for _ in 0..3000 {
            if habit.window_ns() > 0 {
                looks += 1;
                habit.looked_in_vain();
            }
            habit.slept(10);
        }
        assert!((2..=PATIENCE_MAX + 2).contains(&looks), "{looks} looks");
        while habit.window_ns() == 0 {
            habit.slept(10);
        }
        habit.found();
        habit.looked_in_vain();
        assert_eq!(habit.spared, 2);
    }
}
