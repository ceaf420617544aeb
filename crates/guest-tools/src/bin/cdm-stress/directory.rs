// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where the memory of every worker is at the moment, for those that move it
//! under their hands.

use std::process;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use anyhow::{Context, Result};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::random::Random;
use cdm_guest_tools::range::AddressRange;

/// Entries of the table; what has no room in it is not moved by others.
const ENTRIES: usize = 256;
/// Words of an entry: process, start, end. The first word of the table counts them.
const ENTRY_WORDS: usize = 3;

/// The table, in memory that all processes share. An entry may be out of date, or half of one and
/// half of another: whoever uses it asks the kernel to move a range, which harms nobody.
pub struct Directory {
    memory: Mapping,
}

impl Directory {
    /// An empty table.
    pub fn new() -> Result<Self> {
        let bytes = (1 + ENTRIES * ENTRY_WORDS) * size_of::<u64>();
        let memory = Mapping::shared(bytes).context("cannot share a table")?;
        Ok(Self { memory })
    }

    /// Takes the next `count` entries.
    pub fn claim(&self, count: usize) -> Result<Slots<'_>> {
        let first = self.memory.words()[0].fetch_add(count as u64, SeqCst) as usize;
        let available = ENTRIES.saturating_sub(first).min(count);
        Ok(Slots {
            directory: self,
            first,
            count: available,
        })
    }

    /// Some entry: a process and a range of it.
    pub fn pick(&self, random: &mut Random) -> Option<(i32, AddressRange)> {
        let used = (self.memory.words()[0].load(SeqCst) as usize).min(ENTRIES);
        if used == 0 {
            return None;
        }
        let index = 1 + random.below(used) * ENTRY_WORDS;
        let word = |offset: usize| self.memory.words()[index + offset].load(Relaxed);
        let range = AddressRange::new(word(1), word(2))?;
        Some((word(0) as i32, range))
    }
}

/// Entries of one worker.
pub struct Slots<'a> {
    directory: &'a Directory,
    first: usize,
    count: usize,
}

impl Slots<'_> {
    /// Says where a region is now.
    pub fn publish(&self, slot: usize, range: AddressRange) {
        if slot >= self.count {
            return;
        }
        let index = 1 + (self.first + slot) * ENTRY_WORDS;
        let words = &self.directory.memory.words()[index..index + ENTRY_WORDS];
        words[0].store(process::id().into(), Relaxed);
        words[1].store(range.start(), Relaxed);
        words[2].store(range.end(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_is_picked() {
        let directory = Directory::new().unwrap();
        let mut random = Random::new(1);
        assert_eq!(directory.pick(&mut random), None);
        let slots = directory.claim(1).unwrap();
        let range = AddressRange::new(0x1000, 0x3000).unwrap();
        slots.publish(0, range);
        let picked = directory.pick(&mut random);
        assert_eq!(picked, Some((process::id() as i32, range)));
    }

    #[test]
    fn entries_beyond_the_table_are_left_out() {
        let directory = Directory::new().unwrap();
        directory.claim(ENTRIES).unwrap();
        let slots = directory.claim(2).unwrap();
        slots.publish(1, AddressRange::new(0x1000, 0x2000).unwrap());
        assert_eq!(directory.pick(&mut Random::new(2)), None);
    }
}
