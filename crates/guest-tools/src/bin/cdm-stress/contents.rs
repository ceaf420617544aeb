// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of a worker, and what must be in each page of it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use cdm_guest_tools::memory::{
    HUGE_PAGE_BYTES, Mapping, Mismatch, PAGE_BYTES, WORD_BYTES, pattern,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::MmapAdvise;

const WORDS: usize = PAGE_BYTES / WORD_BYTES;
/// Regions that [`Region::of_each_kind`] makes.
pub const KINDS: usize = 3;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing was stored since it was new.
    Zeroes,
    /// The pattern of a seed, from one of its words on.
    Pattern { seed: u64, first: usize },
    /// One word over and over.
    Fill(u64),
}

impl Contents {
    /// The pattern of `seed` as it is for page `page`.
    pub fn pattern(seed: u64, page: usize) -> Self {
        let first = page * WORDS;
        Self::Pattern { seed, first }
    }

    /// One of its words.
    pub fn word(self, index: usize) -> u64 {
        match self {
            Self::Zeroes => 0,
            Self::Pattern { seed, first } => pattern(seed, first + index),
            Self::Fill(value) => value,
        }
    }

    /// The bytes of such a page.
    pub fn bytes(self) -> Vec<u8> {
        (0..WORDS)
            .flat_map(|index| self.word(index).to_le_bytes())
            .collect()
    }
}

/// What kind of memory a region is.
pub enum Kind {
    /// Anonymous.
    Anonymous,
    /// A file of the region's own.
    File(File),
    /// A part of a file that all processes map, with a part for each.
    Common(File),
}

/// Memory with known contents.
pub struct Region {
    pub memory: Mapping,
    pub kind: Kind,
    /// Whether it is in pieces of 2 MiB at first.
    pub is_huge: bool,
    /// The pages whose contents this worker decides on.
    pub own: Range<usize>,
    /// What is in each page of `own`.
    contents: Vec<Contents>,
}

/// A new memory file of `bytes` bytes.
pub fn memory_file(bytes: usize) -> Result<File> {
    let fd: OwnedFd = memfd_create(c"cdm-stress", MFdFlags::empty()).context("memfd_create")?;
    let file = File::from(fd);
    file.set_len(bytes as u64)?;
    Ok(file)
}

impl Region {
    fn new(memory: Mapping, kind: Kind, is_huge: bool, own: Range<usize>) -> Result<Self> {
        memory.advise(match is_huge {
            true => MmapAdvise::MADV_HUGEPAGE,
            false => MmapAdvise::MADV_NOHUGEPAGE,
        })?;
        let contents = vec![Contents::Zeroes; own.len()];
        Ok(Self {
            memory,
            kind,
            is_huge,
            own,
            contents,
        })
    }

    /// Anonymous memory of small pages.
    pub fn small(pages: usize) -> Result<Self> {
        let memory = Mapping::anonymous(pages * PAGE_BYTES)?;
        Self::new(memory, Kind::Anonymous, false, 0..pages)
    }

    /// Anonymous memory of huge pages.
    pub fn huge(count: usize) -> Result<Self> {
        let memory = Mapping::huge_aligned(count * HUGE_PAGE_BYTES)?;
        let pages = memory.pages();
        Self::new(memory, Kind::Anonymous, true, 0..pages)
    }

    /// A file of small pages.
    pub fn file(pages: usize) -> Result<Self> {
        let file = memory_file(pages * PAGE_BYTES)?;
        let memory = Mapping::shared_file(&file, pages * PAGE_BYTES)?;
        Self::new(memory, Kind::File(file), false, 0..pages)
    }

    /// A file of huge pages.
    pub fn huge_file(count: usize) -> Result<Self> {
        let bytes = count * HUGE_PAGE_BYTES;
        let file = memory_file(bytes)?;
        let memory = Mapping::huge_aligned_file(&file, bytes)?;
        let pages = memory.pages();
        Self::new(memory, Kind::File(file), true, 0..pages)
    }

    /// What most processes have: small pages, a huge page, and, as the last one, a file.
    pub fn of_each_kind(small_pages: usize) -> Result<[Self; KINDS]> {
        Ok([
            Self::small(small_pages)?,
            Self::huge(1)?,
            Self::file(small_pages)?,
        ])
    }

    /// The whole of a file that others map too, of which `own` is this worker's.
    pub fn common(file: &File, own: Range<usize>) -> Result<Self> {
        let bytes = file.metadata()?.len() as usize;
        let memory = Mapping::huge_aligned_file(file, bytes)?;
        Self::new(memory, Kind::Common(file.try_clone()?), true, own)
    }

    /// The same of a file of hugetlbfs, whose pages have one size whatever is advised.
    pub fn hugetlb(file: &File, own: Range<usize>) -> Result<Self> {
        let memory = Mapping::shared_file(file, file.metadata()?.len() as usize)?;
        Ok(Self {
            memory,
            kind: Kind::Common(file.try_clone()?),
            is_huge: true,
            contents: vec![Contents::Zeroes; own.len()],
            own,
        })
    }

    /// Its file, if it has one.
    pub fn backing(&self) -> Option<&File> {
        match &self.kind {
            Kind::Anonymous => None,
            Kind::File(file) | Kind::Common(file) => Some(file),
        }
    }

    /// What must be in a page of the worker's own.
    pub fn contents(&self, page: usize) -> Contents {
        self.contents[page - self.own.start]
    }

    /// Notes what is in some pages from now on.
    pub fn set(&mut self, pages: Range<usize>, contents: impl Fn(usize) -> Contents) {
        for page in pages {
            self.contents[page - self.own.start] = contents(page);
        }
    }

    /// Stores a new pattern into some pages.
    pub fn rewrite(&mut self, pages: Range<usize>, seed: u64) {
        self.memory.fill_pattern_pages(seed, pages.clone());
        self.set(pages, |page| Contents::pattern(seed, page));
    }

    /// Compares a page with what must be in it.
    pub fn verify(&self, page: usize) -> Result<(), Mismatch> {
        self.verify_in(&self.memory, page)
    }

    /// Compares a page of another mapping of the same memory.
    pub fn verify_in(&self, memory: &Mapping, page: usize) -> Result<(), Mismatch> {
        let contents = self.contents(page);
        for index in 0..WORDS {
            let found = memory.words()[page * WORDS + index].load(Relaxed);
            let expected = contents.word(index);
            if found != expected {
                return Err(Mismatch {
                    offset: page * PAGE_BYTES + index * WORD_BYTES,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Cuts it in two before one of its pages, all of which are its own.
    pub fn split_at(self, page: usize) -> (Self, Self) {
        let Self {
            memory,
            kind,
            is_huge,
            own,
            mut contents,
        } = self;
        assert!(own.start == 0 && own.end == memory.pages() && matches!(kind, Kind::Anonymous));
        let (head, tail) = memory.split_at(page * PAGE_BYTES);
        let behind = contents.split_off(page);
        // Its words are those that it had at its old place.
        let part = |memory: Mapping, contents: Vec<Contents>| Self {
            own: 0..contents.len(),
            kind: Kind::Anonymous,
            memory,
            is_huge,
            contents,
        };
        (part(head, contents), part(tail, behind))
    }

    /// Its memory has another number of pages now; new ones are zero.
    pub fn resize(&mut self, pages: usize) {
        self.contents.resize(pages, Contents::Zeroes);
        self.own.end = pages;
    }

    /// The last `pages` pages are no longer there.
    pub fn forget_tail(&mut self, pages: usize) {
        self.own.end -= pages;
        self.contents.truncate(self.own.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_pattern_verifies_and_a_foreign_word_does_not() {
        let mut region = Region::small(4).unwrap();
        (0..4).for_each(|page| region.verify(page).unwrap());
        region.rewrite(1..3, 9);
        (0..4).for_each(|page| region.verify(page).unwrap());
        region.memory.word(2 * PAGE_BYTES + 16).store(1, Relaxed);
        assert_eq!(
            region.verify(2).unwrap_err().offset,
            2 * PAGE_BYTES + 16,
            "the word that is wrong"
        );
    }

    #[test]
    fn bytes_of_a_page_are_those_that_a_rewrite_stores() {
        let mut region = Region::file(2).unwrap();
        region.rewrite(0..2, 5);
        let stored = region.memory.read_bytes(2 * PAGE_BYTES);
        assert_eq!(region.contents(1).bytes(), stored[PAGE_BYTES..]);
    }

    #[test]
    fn contents_that_moved_to_another_page_keep_their_words() {
        let mut region = Region::small(2).unwrap();
        region.rewrite(0..1, 3);
        let bytes = region.memory.read_bytes(PAGE_BYTES);
        let moved = region.contents(0);
        region.set(1..2, |_| moved);
        assert!(region.verify(1).is_err(), "nothing was copied yet");
        for (index, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*chunk);
            region.memory.words()[512 + index].store(word, Relaxed);
        }
        region.verify(1).unwrap();
    }

    #[test]
    fn parts_of_a_cut_region_keep_their_words() {
        let mut region = Region::small(4).unwrap();
        region.rewrite(0..4, 11);
        let (head, tail) = region.split_at(3);
        assert_eq!((head.own.clone(), tail.own.clone()), (0..3, 0..1));
        (0..3).for_each(|page| head.verify(page).unwrap());
        tail.verify(0).unwrap();
        tail.memory.word(0).store(0, Relaxed);
        assert!(tail.verify(0).is_err());
    }

    #[test]
    fn new_pages_of_a_region_are_zero() {
        let mut region = Region::small(2).unwrap();
        region.rewrite(0..2, 12);
        region.memory.move_and_resize(3 * PAGE_BYTES).unwrap();
        region.resize(3);
        (0..3).for_each(|page| region.verify(page).unwrap());
        assert_eq!(region.contents(2), Contents::Zeroes);
    }
}
