// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What comes next in a soak, at random but for the seed: which scenarios, on what machine, for how
//! long. A draw follows from the seed and its number alone, so a run that was interrupted goes on
//! with the same draws, and parts of one soak share its draws among them.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::super::scenarios::Listed;
use super::super::scenarios::order::{Room, Shard};

/// Draws for which one machine serves, where its devices are enough: a boot costs as much as a
/// short scenario.
const DRAWS_PER_MACHINE: u64 = 8;
/// Most devices of a machine.
const MAX_DEVICES: u8 = 4;
/// One draw in so many is of several scenarios at the same time, and one of full devices.
const TOGETHER: u8 = 6;
const SCARCE: u8 = 4;
/// Scenarios at the same time, at most.
const MAX_TOGETHER: usize = 4;
/// Seconds of a draw.
const SECONDS: std::ops::RangeInclusive<u64> = 5..=40;

/// Keeps the sequences for one purpose apart from those for another.
#[derive(Clone, Copy)]
enum Purpose {
    Round = 1,
    Machine,
    Draw,
}

/// One draw.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Draw {
    /// Its number in the soak, from 0 on.
    pub number: u64,
    /// Scenarios, which run at the same time if there are several.
    pub scenarios: Vec<String>,
    /// Where their random sequences begin.
    pub seed: u64,
    /// How long they go on.
    pub seconds: u64,
    /// Devices of the machine.
    pub devices: u8,
    /// How much room they have.
    pub room: Room,
}

/// The scenarios that are drawn from, each once before any comes again.
#[derive(Debug)]
pub struct Deck {
    seed: u64,
    shard: Shard,
    scenarios: Vec<Listed>,
}

impl Deck {
    /// A deck of `scenarios`, which must be some.
    pub fn new(seed: u64, shard: Shard, scenarios: Vec<Listed>) -> Self {
        Self {
            seed,
            shard,
            scenarios,
        }
    }

    /// The draw that comes after `done` others of this part.
    pub fn draw(&self, done: u64) -> Draw {
        let (index, count) = (self.shard.index as u64 - 1, self.shard.count as u64);
        let number = done * count + index;
        let mut random = self.random(Purpose::Draw, number);
        let first = self.scenario(number);
        let mut drawn = vec![first];
        if !first.alone && random.u8(..TOGETHER) == 0 {
            let more = random.usize(1..MAX_TOGETHER);
            let others = self.scenarios.iter();
            let others = others.filter(|other| !other.alone && other.name != first.name);
            drawn.extend(random.choose_multiple(others, more));
        }
        let is_undisturbed = drawn.iter().any(|one| one.alone);
        let room = match random.u8(..SCARCE) {
            0 if !is_undisturbed => Room::Scarce,
            _ => Room::Plenty,
        };
        let machine = done / DRAWS_PER_MACHINE * count + index;
        let devices = self
            .random(Purpose::Machine, machine)
            .u8(1..=MAX_DEVICES)
            .max(drawn.iter().map(|one| one.devices).max().unwrap_or(1));
        Draw {
            number,
            scenarios: drawn.iter().map(|one| one.name.clone()).collect(),
            seed: random.u64(..),
            seconds: random.u64(SECONDS),
            devices,
            room,
        }
    }

    /// The first scenario of a draw: every round goes through all of them, in an order of its own.
    fn scenario(&self, number: u64) -> &Listed {
        let all = self.scenarios.len() as u64;
        let mut order: Vec<&Listed> = self.scenarios.iter().collect();
        self.random(Purpose::Round, number / all)
            .shuffle(&mut order);
        order[(number % all) as usize]
    }

    fn random(&self, purpose: Purpose, number: u64) -> Rng {
        // Seeds that differ a little give sequences that have nothing in common, so a seed is
        // drawn for each purpose, and from there one for each number.
        let mut seeds = Rng::with_seed(self.seed.wrapping_add((purpose as u64) << 32));
        Rng::with_seed(seeds.u64(..).wrapping_add(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn listed(number: usize) -> Listed {
        Listed {
            name: format!("family::number_{number}"),
            property: "It holds.".into(),
            devices: if number == 3 { 3 } else { 1 },
            alone: number == 5,
        }
    }

    fn deck(seed: u64, index: usize, count: usize) -> Deck {
        let scenarios = (0..10).map(listed).collect();
        Deck::new(seed, Shard { index, count }, scenarios)
    }

    #[test]
    fn one_seed_draws_the_same_and_another_one_does_not() {
        let draws = |seed| {
            (0..50)
                .map(|at| deck(seed, 1, 1).draw(at))
                .collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn every_scenario_comes_before_one_comes_again() {
        let deck = deck(1, 1, 1);
        for round in 0..5 {
            let names: BTreeSet<String> = (0..10)
                .map(|at| deck.draw(round * 10 + at).scenarios[0].clone())
                .collect();
            assert_eq!(names.len(), 10);
        }
        let order = |round: u64| (0..10).map(move |at| round * 10 + at);
        let firsts = |round| order(round).map(|at| deck.draw(at).scenarios[0].clone());
        assert!(!firsts(0).eq(firsts(1)), "two rounds in the same order");
    }

    #[test]
    fn parts_draw_what_the_whole_does_and_nothing_twice() {
        let names = |deck: &Deck, count| -> BTreeSet<(u64, Vec<String>)> {
            (0..count)
                .map(|at| deck.draw(at))
                .map(|draw| (draw.number, draw.scenarios))
                .collect()
        };
        let whole = names(&deck(7, 1, 1), 60);
        let parts: Vec<_> = (1..=3).map(|index| names(&deck(7, index, 3), 20)).collect();
        assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), 60);
        assert_eq!(parts.into_iter().flatten().collect::<BTreeSet<_>>(), whole);
    }

    #[test]
    fn machine_has_what_the_scenarios_need_and_serves_several_draws() {
        let deck = deck(3, 1, 1);
        let draws: Vec<Draw> = (0..800).map(|at| deck.draw(at)).collect();
        for draw in &draws {
            let has = |name: &str| draw.scenarios.iter().any(|one| one == name);
            assert!(!has("family::number_3") || draw.devices >= 3, "{draw:?}");
            let is_alone = has("family::number_5");
            assert!(!is_alone || draw.scenarios.len() == 1, "{draw:?}");
            assert!(!is_alone || draw.room == Room::Plenty, "{draw:?}");
            assert!(SECONDS.contains(&draw.seconds), "{draw:?}");
        }
        let devices: BTreeSet<u8> = draws.iter().map(|draw| draw.devices).collect();
        assert_eq!(devices, (1..=MAX_DEVICES).collect());
        let changes = draws
            .windows(2)
            .filter(|two| two[0].devices != two[1].devices);
        assert!(changes.count() < 300);
        let together = draws.iter().filter(|draw| draw.scenarios.len() > 1).count();
        let scarce = draws
            .iter()
            .filter(|draw| draw.room == Room::Scarce)
            .count();
        assert!((60..240).contains(&together), "{together}");
        assert!((100..300).contains(&scarce), "{scarce}");
    }

    #[test]
    fn scenarios_at_the_same_time_are_different_ones() {
        let deck = deck(5, 1, 1);
        for draw in (0..500).map(|at| deck.draw(at)) {
            let names: BTreeSet<&String> = draw.scenarios.iter().collect();
            assert_eq!(names.len(), draw.scenarios.len(), "{draw:?}");
            assert!(names.len() <= MAX_TOGETHER);
        }
    }
}
