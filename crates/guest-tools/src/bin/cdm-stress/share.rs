// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages of a mapping that one thread alone decides on, while others move them and have the pages
//! next to them.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, bail};
use cdm_guest_tools::memory::{Mapping, Mismatch, PAGE_BYTES, WORD_BYTES};
use cdm_guest_tools::random::Random;

use crate::contents::Contents;
use crate::counts::Count;
use crate::stage::Stage;

const WORDS: usize = PAGE_BYTES / WORD_BYTES;

/// Some pages, and what must be in each.
pub struct Share<'a> {
    memory: &'a Mapping,
    pages: Vec<(usize, Contents)>,
}

impl<'a> Share<'a> {
    fn new(memory: &'a Mapping, pages: impl Iterator<Item = usize>) -> Self {
        Self {
            memory,
            pages: pages.map(|page| (page, Contents::Zeroes)).collect(),
        }
    }

    /// Every so many pages of memory that is new: the neighbours are others', also in one folio.
    pub fn interleaved(memory: &'a Mapping, index: usize, count: usize) -> Self {
        Self::new(memory, (index..memory.pages()).step_by(count))
    }

    /// Some pages in a row of memory that is new.
    pub fn block(memory: &'a Mapping, pages: Range<usize>) -> Self {
        Self::new(memory, pages)
    }

    /// Number of its pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// What must be in its page `place`.
    pub fn contents(&self, place: usize) -> Contents {
        self.pages[place].1
    }

    /// Notes what somebody else stored in some of its pages.
    pub fn set(&mut self, places: Range<usize>, contents: impl Fn(usize) -> Contents) {
        for place in places {
            self.pages[place].1 = contents(place);
        }
    }

    /// Stores something new in its page `place`.
    pub fn rewrite(&mut self, stage: &Stage, place: usize, seed: u64) {
        let (page, contents) = &mut self.pages[place];
        self.memory.fill_pattern_pages(seed, *page..*page + 1);
        *contents = Contents::pattern(seed, *page);
        stage.add(Count::Rewrite, 1);
    }

    /// Compares its page `place` with what must be there.
    pub fn check(&self, stage: &Stage, place: usize) -> Result<()> {
        stage.add(Count::Verified, 1);
        let (page, contents) = self.pages[place];
        let words = &self.memory.words()[page * WORDS..(page + 1) * WORDS];
        for (index, word) in words.iter().enumerate() {
            let (found, expected) = (word.load(Relaxed), contents.word(index));
            if found != expected {
                let offset = page * PAGE_BYTES + index * WORD_BYTES;
                let mismatch = Mismatch {
                    offset,
                    expected,
                    found,
                };
                return Err(mismatch).context("wrong contents");
            }
        }
        Ok(())
    }

    /// Compares all of it.
    pub fn check_all(&self, stage: &Stage) -> Result<()> {
        (0..self.pages.len()).try_for_each(|place| self.check(stage, place))
    }

    /// Compares `count` of its pages, and stores something new in each.
    pub fn work(&mut self, stage: &Stage, random: &mut Random, count: usize) -> Result<()> {
        if self.pages.is_empty() {
            bail!("a share of no pages");
        }
        for _ in 0..count {
            let place = random.below(self.pages.len());
            self.check(stage, place)?;
            self.rewrite(stage, place, random.number());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Length, tests::stage};

    #[test]
    fn shares_do_not_touch_each_other_and_find_what_is_wrong() {
        let memory = Mapping::anonymous(7 * PAGE_BYTES).unwrap();
        let stage = stage(Length::Rounds(1));
        let mut shares: Vec<_> = (0..2)
            .map(|index| Share::interleaved(&memory, index, 2))
            .collect();
        assert_eq!((shares[0].len(), shares[1].len()), (4, 3));
        let mut random = Random::new(1);
        for share in &mut shares {
            share.work(&stage, &mut random, 50).unwrap();
        }
        shares.iter().for_each(|s| s.check_all(&stage).unwrap());
        memory.word(3 * PAGE_BYTES + 8).fetch_xor(1, Relaxed);
        shares[0].check_all(&stage).unwrap();
        let error = shares[1].check_all(&stage).unwrap_err();
        assert!(format!("{error:#}").contains("page 3"), "{error:#}");
    }
}
