// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random numbers for tests: the same everywhere for one seed.

use std::ops::Range;

/// xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        // The state must not be zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// Whether something happens that happens once in `odds` times.
    pub fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    /// A piece of `0..length` that is not empty; `length` is not zero.
    pub fn piece(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length);
        start..start + 1 + self.below(length - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            [random.number(), random.number(), random.number()]
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }

    #[test]
    fn pieces_lie_inside_and_are_not_empty() {
        let mut random = Random::new(0);
        for _ in 0..1000 {
            let piece = random.piece(5);
            assert!(!piece.is_empty() && piece.end <= 5, "{piece:?}");
        }
        assert_eq!(random.piece(1), 0..1);
    }
}
