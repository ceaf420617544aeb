// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Chance that can be replayed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Words of the random stream that belong to one request: more than it uses.
const WORDS: u128 = 16;

/// What is left to chance about one request.
pub struct Chance(ChaCha8Rng);

impl Chance {
    /// For request number `request` of a queue, whatever was drawn for others.
    ///
    /// ChaCha is specified, so the numbers are the same with every version and machine.
    pub fn new(seed: u64, queue: u16, request: u64) -> Self {
        let mut stream = ChaCha8Rng::seed_from_u64(seed);
        stream.set_stream(queue.into());
        stream.set_word_pos(u128::from(request) * WORDS);
        Self(stream)
    }

    /// Whether this is one of so many.
    pub fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }

    /// A number from 0 up to, not including, `limit`. Small ones are the least bit likelier.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }
}
