// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Chances dealt out of a deck of cards: of however few, each kind has its share.

use cdm_guest_tools::random::Random;

/// Cards of each kind as often as its weight says, dealt in any order and then again.
pub struct Deck<T> {
    cards: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    /// A deck by kinds and their weights, of which there is at least one.
    pub fn new(weights: &[(T, usize)]) -> Self {
        let cards = weights
            .iter()
            .flat_map(|(kind, weight)| std::iter::repeat_n(*kind, *weight))
            .collect();
        Self {
            cards,
            left: Vec::new(),
        }
    }

    /// The next card.
    pub fn deal(&mut self, random: &mut Random) -> T {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
        }
        let index = random.below(self.left.len());
        self.left.swap_remove(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_of_the_deck_has_every_kind_as_often_as_it_weighs() {
        let mut deck = Deck::new(&[('a', 3), ('b', 1)]);
        let mut random = Random::new(1);
        for _ in 0..10 {
            let dealt: Vec<char> = (0..4).map(|_| deck.deal(&mut random)).collect();
            let times = dealt.iter().filter(|kind| **kind == 'a').count();
            assert_eq!(times, 3, "{dealt:?}");
        }
    }
}
