// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which outcomes the threads of a test can have if they take turns: those that no
//! memory model forbids. All others are weak at best.

use std::collections::BTreeSet;

use crate::shape::{Access, LOCATIONS_MAX, Test};

/// How far an interleaving is.
#[derive(Clone)]
struct State {
    /// The next access of each thread.
    next: Vec<usize>,
    reads: Vec<Vec<u64>>,
    memory: [u64; LOCATIONS_MAX],
}

/// The outcomes of all interleavings.
pub fn outcomes(test: &Test) -> BTreeSet<Vec<u64>> {
    let mut found = BTreeSet::new();
    let start = State {
        next: vec![0; test.threads.len()],
        reads: vec![Vec::new(); test.threads.len()],
        memory: [0; LOCATIONS_MAX],
    };
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        let mut is_over = true;
        for (number, thread) in test.threads.iter().enumerate() {
            if let Some(&access) = thread.accesses.get(state.next[number]) {
                is_over = false;
                let mut state = state.clone();
                state.next[number] += 1;
                step(&mut state.memory, &mut state.reads[number], access);
                open.push(state);
            }
        }
        if is_over {
            let ends = test.ends.iter().map(|&location| state.memory[location]);
            found.insert(state.reads.concat().into_iter().chain(ends).collect());
        }
    }
    found
}

fn step(memory: &mut [u64; LOCATIONS_MAX], reads: &mut Vec<u64>, access: Access) {
    let Some(location) = access.location() else {
        return;
    };
    let found = memory[location];
    if access.reads() {
        reads.push(found);
    }
    memory[location] = match access {
        Access::Store { value, .. } | Access::Swap { value, .. } => value,
        Access::Add { addend, .. } => found.wrapping_add(addend),
        Access::CompareSwap { expected, new, .. } if expected == found => new,
        _ => found,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TESTS;

    fn of(name: &str) -> Vec<Vec<u64>> {
        let test = TESTS.iter().find(|test| test.name == name).unwrap();
        outcomes(test).into_iter().collect()
    }

    #[test]
    fn message_passing_has_three_outcomes_that_are_in_order() {
        assert_eq!(of("MP+release+acquire"), [[0, 0], [0, 1], [1, 1]]);
    }

    #[test]
    fn one_of_two_compare_swaps_wins() {
        // What each found, and what was stored.
        assert_eq!(of("CAS+CAS"), [[0, 1, 1], [2, 0, 2]]);
    }

    #[test]
    fn two_additions_are_two() {
        assert_eq!(of("ADD+ADD"), [[0, 1, 2], [1, 0, 2]]);
    }
}
