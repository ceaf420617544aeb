// SPDX-License-Identifier: GPL-2.0-only

//! Who copies, the CPU or the device: whoever was found to be faster. Pure logic.
//!
//! Both have their turns at first. From then on the faster one copies, and the other one is tried
//! again now and then, since a host may be busy for a while, and a device hang once. Such a try is
//! paid for: it comes when what it is expected to cost is a small part of the time that copies
//! have taken since the last one. So a device that is slow, or does not answer, costs next to
//! nothing in the long run.

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copier {
    /// The CPU.
    Cpu,
    /// The device.
    Engine,
}

/// Which way contents go; each has costs of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the system to a device.
    In,
    /// From a device to the system.
    Out,
    /// From one device to another.
    Across,
}

impl Way {
    /// How many there are.
    pub const COUNT: usize = 3;

    /// Its number, from zero.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Turns that both have had together before anybody is preferred.
const TURNS: u32 = 8;
/// Copies between two tries of the slower one, at least.
const COPIES_BETWEEN: u32 = 16;
/// The device is preferred if it takes less than so many eighths of the CPU's time: it takes time
/// of another CPU.
const EIGHTHS: u64 = 7;
/// A try may cost a part of the time that copies took since the last one: one of so many.
const SHARE: u64 = 128;
/// How many times as long as expected a copy counts at most: a host that was busy for a moment
/// says little about the next copy.
const SURPRISE: u64 = 4;

/// What is known of copies of one size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// Nanoseconds that a copy takes; zero if that is not known.
    cpu_ns: u64,
    engine_ns: u64,
    turns: u32,
    /// Time that copies took since the slower one was tried, and how many they were.
    since_ns: u64,
    since: u32,
}

impl Choice {
    /// Nothing is known yet.
    pub const fn new() -> Self {
        Self {
            cpu_ns: 0,
            engine_ns: 0,
            turns: 0,
            since_ns: 0,
            since: 0,
        }
    }

    /// Who is to make the next copy.
    pub fn pick(&mut self) -> Copier {
        if self.turns < TURNS {
            self.turns += 1;
            return match self.turns % 2 {
                1 => Copier::Cpu,
                _ => Copier::Engine,
            };
        }
        let faster = self.faster();
        let excess_ns = self.cpu_ns.abs_diff(self.engine_ns);
        if self.since < COPIES_BETWEEN || self.since_ns / SHARE < excess_ns {
            return faster;
        }
        self.since = 0;
        self.since_ns = 0;
        match faster {
            Copier::Cpu => Copier::Engine,
            Copier::Engine => Copier::Cpu,
        }
    }

    /// A copy was made, and took so long.
    pub fn note(&mut self, by: Copier, ns: u64) {
        self.since = self.since.saturating_add(1);
        self.since_ns = self.since_ns.saturating_add(ns);
        let known = match by {
            Copier::Cpu => &mut self.cpu_ns,
            Copier::Engine => &mut self.engine_ns,
        };
        *known = match *known {
            0 => ns,
            known if ns < known => (known + ns) / 2,
            known => known + (ns.min(known.saturating_mul(SURPRISE)) - known) / 4,
        };
    }

    /// The device did not copy, which took so long; the CPU has to do it yet.
    pub fn failed(&mut self, ns: u64) {
        self.since = 0;
        self.since_ns = 0;
        self.engine_ns = self.cpu_ns.saturating_add(self.engine_ns.max(ns));
    }

    fn faster(&self) -> Copier {
        if self.engine_ns < self.cpu_ns / 8 * EIGHTHS {
            Copier::Engine
        } else {
            Copier::Cpu
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Makes copies that take so long; how many of them the device made, and the time of all.
    fn copies(choice: &mut Choice, count: u32, cpu_ns: u64, engine_ns: u64) -> (u32, u64) {
        let (mut by_engine, mut sum) = (0, 0);
        for _ in 0..count {
            let by = choice.pick();
            let ns = match by {
                Copier::Cpu => cpu_ns,
                Copier::Engine => engine_ns,
            };
            choice.note(by, ns);
            by_engine += u32::from(by == Copier::Engine);
            sum += ns;
        }
        (by_engine, sum)
    }

    #[test]
    fn both_have_turns_at_first_and_then_the_faster_one_copies() {
        let mut choice = Choice::new();
        assert_eq!(copies(&mut choice, TURNS, 600_000, 300_000).0, TURNS / 2);
        let (by_engine, _) = copies(&mut choice, 10_000, 600_000, 300_000);
        assert!(by_engine > 9_800, "{by_engine} by the device");
        let mut choice = Choice::new();
        copies(&mut choice, TURNS, 300_000, 600_000);
        let (by_engine, _) = copies(&mut choice, 10_000, 300_000, 600_000);
        assert!((1..200).contains(&by_engine), "{by_engine} by the device");
    }

    #[test]
    fn device_that_is_only_a_little_faster_is_not_preferred() {
        let mut choice = Choice::new();
        let (by_engine, _) = copies(&mut choice, 10_000, 600_000, 560_000);
        assert!(by_engine < 1_000, "{by_engine} by the device");
    }

    #[test]
    fn host_that_gets_busy_or_idle_changes_the_choice() {
        let mut choice = Choice::new();
        copies(&mut choice, 1_000, 600_000, 300_000);
        copies(&mut choice, 100, 600_000, 1_200_000);
        let (by_engine, _) = copies(&mut choice, 1_000, 600_000, 1_200_000);
        assert!(by_engine < 50, "{by_engine} by the slow device");
        copies(&mut choice, 2_000, 600_000, 300_000);
        let (by_engine, _) = copies(&mut choice, 1_000, 600_000, 300_000);
        assert!(by_engine > 900, "{by_engine} by the fast device");
    }

    #[test]
    fn one_slow_copy_does_not_change_the_choice() {
        let mut choice = Choice::new();
        copies(&mut choice, 1_000, 600_000, 300_000);
        choice.note(Copier::Engine, 30_000_000);
        let (by_engine, _) = copies(&mut choice, 100, 600_000, 300_000);
        assert!(by_engine > 90, "{by_engine} by the device");
    }

    #[test]
    fn device_that_hangs_is_not_asked_for_as_long_as_that_would_cost() {
        let mut choice = Choice::new();
        copies(&mut choice, 1_000, 600_000, 300_000);
        choice.failed(30_000_000_000);
        let (by_engine, sum) = copies(&mut choice, 1_000_000, 600_000, 300_000);
        assert!(sum < SHARE * 30_000_000_000);
        assert_eq!(by_engine, 0);
    }

    #[test]
    fn device_that_refused_once_is_asked_again_soon() {
        let mut choice = Choice::new();
        copies(&mut choice, 1_000, 600_000, 300_000);
        choice.failed(100_000);
        copies(&mut choice, 1_000, 600_000, 300_000);
        let (by_engine, _) = copies(&mut choice, 1_000, 600_000, 300_000);
        assert!(by_engine > 900, "{by_engine} by the device");
    }

    proptest! {
        /// Whatever the device costs, copies take at most a fiftieth more than by the CPU alone,
        /// but for the first turns.
        #[test]
        fn choosing_costs_next_to_nothing(cpu_ns in 10_000u64..10_000_000, times in 1u64..10_000) {
            let engine_ns = cpu_ns * times / 100;
            let mut choice = Choice::new();
            copies(&mut choice, TURNS, cpu_ns, engine_ns);
            let (_, sum) = copies(&mut choice, 5_000, cpu_ns, engine_ns);
            prop_assert!(sum <= 5_000 * cpu_ns / 50 * 51, "{sum}");
        }
    }
}
