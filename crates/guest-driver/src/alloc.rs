// SPDX-License-Identifier: GPL-2.0-only

//! Buddy allocator over page numbers. Pure logic: no kernel facility, no unsafe.
//!
//! Page 0 is the first usable page of the device memory. A block of order `k` is
//! `1 << k` pages and starts at a multiple of that. For each order there is a set of
//! the free blocks, a [`BitTree`]; two free buddies are always merged, so a page is
//! covered by at most one free block.
//!
//! Blocks come back in any order and in any size, also in sizes that were never
//! handed out: the kernel splits folios while they are in use. Nothing is therefore
//! remembered about a block that is in use.

use core::ops::DerefMut;

/// Largest order: 2 MiB of 4 KiB pages, the largest folio that a process maps.
pub const ORDER_MAX: u32 = 9;

/// Levels of a [`BitTree`]: 64^5 bits are more than any device has pages.
const LEVELS: usize = 5;

/// Where a set of bits lies in the allocator's words.
///
/// A tree of 64-bit words: a bit of level `n + 1` is set if and only if the word of
/// level `n` with that index is not zero, so finding a member reads one word a level.
#[derive(Clone, Copy)]
struct BitTree {
    /// First word of each level.
    start: [usize; LEVELS],
    /// Levels in use; the last one has a single word.
    levels: usize,
    /// Bits that the set has room for.
    bits: u32,
}

impl BitTree {
    /// Lays a tree of `bits` bits out from word `start` on; returns the word after it.
    fn place(bits: u32, start: usize) -> (Self, usize) {
        let mut tree = Self {
            start: [0; LEVELS],
            levels: 0,
            bits,
        };
        let mut next = start;
        let mut count = bits as usize;
        loop {
            count = count.div_ceil(64).max(1);
            tree.start[tree.levels] = next;
            tree.levels += 1;
            next += count;
            if count <= 1 {
                return (tree, next);
            }
        }
    }

    fn contains(&self, words: &[u64], bit: u32) -> bool {
        bit < self.bits && words[self.start[0] + bit as usize / 64] & (1 << (bit % 64)) != 0
    }

    fn insert(&self, words: &mut [u64], bit: u32) {
        let mut index = bit as usize;
        for level in 0..self.levels {
            let word = &mut words[self.start[level] + index / 64];
            let before = *word;
            *word |= 1 << (index % 64);
            if before != 0 {
                return;
            }
            index /= 64;
        }
    }

    fn remove(&self, words: &mut [u64], bit: u32) {
        let mut index = bit as usize;
        for level in 0..self.levels {
            let word = &mut words[self.start[level] + index / 64];
            *word &= !(1 << (index % 64));
            if *word != 0 {
                return;
            }
            index /= 64;
        }
    }

    /// The lowest member.
    fn first(&self, words: &[u64]) -> Option<u32> {
        let mut index = 0;
        for level in (0..self.levels).rev() {
            let word = words[self.start[level] + index];
            if word == 0 {
                return None;
            }
            index = index * 64 + word.trailing_zeros() as usize;
        }
        Some(index as u32)
    }

    /// Whether a member lies in `[from, to)`.
    fn any(&self, words: &[u64], from: u32, to: u32) -> bool {
        let to = to.min(self.bits);
        let mut bit = from;
        while bit < to {
            let word = words[self.start[0] + bit as usize / 64] >> (bit % 64);
            if word != 0 {
                return bit + word.trailing_zeros() < to;
            }
            bit = (bit / 64 + 1) * 64;
        }
        false
    }

    fn count(&self, words: &[u64]) -> u32 {
        let first = self.start[0];
        let last = first + (self.bits as usize).div_ceil(64);
        words[first..last]
            .iter()
            .map(|word| word.count_ones())
            .sum()
    }
}

/// Why a block cannot be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// The block is no block: beyond the memory, unaligned, or of an unknown order.
    NoBlock,
    /// The block, or part of it, is free already.
    AlreadyFree,
}

/// The allocator; `S` is the storage of its bits.
///
/// # Invariants
///
/// - Every page is covered by at most one free block.
/// - `free` is the number of pages that free blocks cover.
/// - No two buddies below [`ORDER_MAX`] are both free.
pub struct PageAlloc<S> {
    words: S,
    trees: [BitTree; ORDER_MAX as usize + 1],
    pages: u32,
    free: u32,
}

/// Words of storage that an allocator of `pages` pages needs.
pub fn words_needed(pages: u32) -> usize {
    lay_out(pages).1
}

fn lay_out(pages: u32) -> ([BitTree; ORDER_MAX as usize + 1], usize) {
    let mut trees = [BitTree {
        start: [0; LEVELS],
        levels: 0,
        bits: 0,
    }; ORDER_MAX as usize + 1];
    let mut next = 0;
    for (order, tree) in trees.iter_mut().enumerate() {
        (*tree, next) = BitTree::place(pages >> order, next);
    }
    (trees, next)
}

impl<S: DerefMut<Target = [u64]>> PageAlloc<S> {
    /// An allocator of `pages` free pages; `words` has [`words_needed`] words, all zero.
    ///
    /// Returns `None` if the storage has another length or is not zero.
    pub fn new(pages: u32, words: S) -> Option<Self> {
        let (trees, needed) = lay_out(pages);
        if words.len() != needed || words.iter().any(|word| *word != 0) {
            return None;
        }
        let mut this = Self {
            words,
            trees,
            pages,
            free: 0,
        };
        let mut page = 0;
        while page < pages {
            let fits = (pages - page).ilog2();
            let order = page.trailing_zeros().min(fits).min(ORDER_MAX);
            this.trees[order as usize].insert(&mut this.words, page >> order);
            page += 1 << order;
        }
        this.free = pages;
        Some(this)
    }

    /// Pages that are free.
    pub fn free_pages(&self) -> u32 {
        self.free
    }

    /// Free blocks of one order.
    pub fn free_blocks(&self, order: u32) -> u32 {
        match self.trees.get(order as usize) {
            Some(tree) => tree.count(&self.words),
            None => 0,
        }
    }

    /// Takes the lowest block of the smallest order that has one; returns its first page.
    pub fn alloc(&mut self, order: u32) -> Option<u32> {
        for from in order..=ORDER_MAX {
            let Some(mut block) = self.trees[from as usize].first(&self.words) else {
                continue;
            };
            self.trees[from as usize].remove(&mut self.words, block);
            for lower in (order..from).rev() {
                block *= 2;
                self.trees[lower as usize].insert(&mut self.words, block + 1);
            }
            self.free -= 1 << order;
            return Some(block << order);
        }
        None
    }

    /// Fills `out` with single pages as far as there are any; returns how many.
    pub fn alloc_bulk(&mut self, out: &mut [u32]) -> usize {
        for (done, slot) in out.iter_mut().enumerate() {
            match self.alloc(0) {
                Some(page) => *slot = page,
                None => return done,
            }
        }
        out.len()
    }

    /// Takes that single page; false if it is not free.
    pub fn alloc_page(&mut self, page: u32) -> bool {
        let Some((mut start, from)) = self.free_block_of(page) else {
            return false;
        };
        self.trees[from as usize].remove(&mut self.words, start >> from);
        for lower in (0..from).rev() {
            // Of the two halves, the one without the page stays free.
            let upper = start + (1 << lower);
            let mut free = upper;
            if page >= upper {
                (start, free) = (upper, start);
            }
            self.trees[lower as usize].insert(&mut self.words, free >> lower);
        }
        self.free -= 1;
        true
    }

    /// Takes a block back.
    pub fn free(&mut self, page: u32, order: u32) -> Result<(), FreeError> {
        if order > ORDER_MAX || !page.is_multiple_of(1 << order) {
            return Err(FreeError::NoBlock);
        }
        let end = page.checked_add(1 << order).ok_or(FreeError::NoBlock)?;
        if end > self.pages {
            return Err(FreeError::NoBlock);
        }
        if self.free_block_of(page).is_some()
            || (0..order).any(|lower| {
                self.trees[lower as usize].any(&self.words, page >> lower, end >> lower)
            })
        {
            return Err(FreeError::AlreadyFree);
        }

        let mut block = page >> order;
        let mut into = order;
        while into < ORDER_MAX && self.trees[into as usize].contains(&self.words, block ^ 1) {
            self.trees[into as usize].remove(&mut self.words, block ^ 1);
            block /= 2;
            into += 1;
        }
        self.trees[into as usize].insert(&mut self.words, block);
        self.free += 1 << order;
        Ok(())
    }

    /// The first page at or after `from` that is in use.
    pub fn next_used(&self, from: u32) -> Option<u32> {
        let mut page = from;
        while page < self.pages {
            match self.free_block_of(page) {
                Some((start, order)) => page = start + (1 << order),
                None => return Some(page),
            }
        }
        None
    }

    /// The free block that covers a page: first page and order.
    fn free_block_of(&self, page: u32) -> Option<(u32, u32)> {
        // Large blocks first: most of a memory that is looked through is free.
        (0..=ORDER_MAX)
            .rev()
            .find(|order| self.trees[*order as usize].contains(&self.words, page >> order))
            .map(|order| (page >> order << order, order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allocator(pages: u32) -> PageAlloc<Vec<u64>> {
        PageAlloc::new(pages, vec![0; words_needed(pages)]).expect("fresh storage")
    }

    /// Checks the type's invariants against a plain table of the pages in use.
    fn check(alloc: &PageAlloc<Vec<u64>>, used: &[bool]) {
        let free = used.iter().filter(|used| !**used).count() as u32;
        assert_eq!(alloc.free_pages(), free);
        let covered: u32 = (0..=ORDER_MAX)
            .map(|order| alloc.free_blocks(order) << order)
            .sum();
        assert_eq!(covered, free, "free blocks overlap or are lost");
        for (page, used) in used.iter().enumerate() {
            assert_eq!(
                alloc.free_block_of(page as u32).is_none(),
                *used,
                "page {page}"
            );
        }
        for order in 0..ORDER_MAX {
            let tree = &alloc.trees[order as usize];
            for block in (0..tree.bits).step_by(2) {
                assert!(
                    !(tree.contains(&alloc.words, block) && tree.contains(&alloc.words, block + 1)),
                    "buddies {block} of order {order} are not merged"
                );
            }
        }
        let mut from = 0;
        for (page, _) in used.iter().enumerate().filter(|(_, used)| **used) {
            assert_eq!(alloc.next_used(from), Some(page as u32));
            from = page as u32 + 1;
        }
        assert_eq!(alloc.next_used(from), None);
    }

    #[test]
    fn a_new_allocator_of_any_size_is_all_free() {
        for pages in [0, 1, 2, 63, 64, 65, 511, 512, 513, 4096, 5000] {
            check(&allocator(pages), &vec![false; pages as usize]);
        }
    }

    #[test]
    fn storage_of_another_size_or_not_zero_is_refused() {
        assert!(PageAlloc::new(512, vec![0; words_needed(512) + 1]).is_none());
        let mut words = vec![0; words_needed(512)];
        words[3] = 1;
        assert!(PageAlloc::new(512, words).is_none());
    }

    #[test]
    fn bulk_allocation_takes_all_pages_and_then_none() {
        let mut alloc = allocator(1000);
        let mut out = vec![0; 1200];
        assert_eq!(alloc.alloc_bulk(&mut out), 1000);
        let mut pages = out[..1000].to_vec();
        pages.sort_unstable();
        assert_eq!(pages, (0..1000).collect::<Vec<_>>());
        assert_eq!(alloc.alloc(0), None);
        assert_eq!(alloc.free_pages(), 0);
    }

    #[test]
    fn pages_come_lowest_first_so_that_neighbours_stay_neighbours() {
        let mut alloc = allocator(4096);
        let mut out = [0; 64];
        assert_eq!(alloc.alloc_bulk(&mut out), 64);
        assert_eq!(out.to_vec(), (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn a_block_freed_twice_or_under_a_larger_free_block_is_refused() {
        let mut alloc = allocator(1024);
        let block = alloc.alloc(9).expect("empty allocator");
        assert_eq!(alloc.free(block + 512, 9), Err(FreeError::AlreadyFree));
        assert_eq!(alloc.free(block, 9), Ok(()));
        assert_eq!(alloc.free(block, 9), Err(FreeError::AlreadyFree));
        assert_eq!(alloc.free(block + 7, 0), Err(FreeError::AlreadyFree));
        assert_eq!(alloc.free_pages(), 1024);
    }

    #[test]
    fn a_block_with_a_free_page_inside_is_refused() {
        let mut alloc = allocator(512);
        alloc.alloc(9).expect("empty allocator");
        alloc.free(300, 0).expect("page is in use");
        assert_eq!(alloc.free(0, 9), Err(FreeError::AlreadyFree));
        assert_eq!(alloc.free(256, 6), Err(FreeError::AlreadyFree));
        assert_eq!(alloc.free(256, 5), Ok(()));
        assert_eq!(alloc.free_pages(), 33);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let mut alloc = allocator(100);
        while alloc.alloc(0).is_some() {}
        assert_eq!(alloc.free(100, 0), Err(FreeError::NoBlock));
        assert_eq!(alloc.free(96, 3), Err(FreeError::NoBlock));
        assert_eq!(alloc.free(1, 1), Err(FreeError::NoBlock));
        assert_eq!(alloc.free(0, ORDER_MAX + 1), Err(FreeError::NoBlock));
        assert_eq!(alloc.free(u32::MAX, 0), Err(FreeError::NoBlock));
    }

    #[test]
    fn a_page_taken_by_its_number_leaves_the_rest_of_its_block_free() {
        let mut alloc = allocator(1024);
        assert!(alloc.alloc_page(700));
        assert!(!alloc.alloc_page(700));
        assert!(!alloc.alloc_page(1024));
        let mut used = vec![false; 1024];
        used[700] = true;
        check(&alloc, &used);
        assert_eq!(alloc.alloc(ORDER_MAX), Some(0));
        assert_eq!(alloc.alloc(ORDER_MAX), None);
        assert_eq!(alloc.free(700, 0), Ok(()));
        assert_eq!(alloc.free_blocks(ORDER_MAX), 1);
    }

    #[test]
    fn the_largest_device_fits_the_tree() {
        let pages = 64 << 18; // 64 GiB of 4 KiB pages
        let mut alloc = allocator(pages);
        assert_eq!(alloc.alloc(0), Some(0));
        assert_eq!(alloc.next_used(0), Some(0));
        assert_eq!(alloc.next_used(1), None);
        alloc.free(0, 0).expect("page is in use");
        assert_eq!(alloc.free_blocks(ORDER_MAX), pages >> ORDER_MAX);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Alloc(u32),
        /// Take a page by its number.
        AllocPage(u32),
        /// Free a part of some block in use: which block, which order, which part.
        Free(usize, u32, u32),
        /// Free any block, in use or not.
        FreeAny(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..=ORDER_MAX).prop_map(Step::Alloc),
            Just(Step::Alloc(0)),
            (0..3000u32).prop_map(Step::AllocPage),
            (any::<usize>(), 0..=ORDER_MAX, any::<u32>())
                .prop_map(|(which, order, part)| Step::Free(which, order, part)),
            (0..3000u32, 0..=ORDER_MAX + 1).prop_map(|(page, order)| Step::FreeAny(page, order)),
        ]
    }

    proptest! {
        /// Blocks are allocated whole and freed in parts of any size, as folios are after a
        /// split, and the allocator agrees with a table of pages all the time.
        #[test]
        fn agrees_with_a_table_of_pages(pages in 1..2600u32, steps in prop::collection::vec(step(), 1..60)) {
            let mut alloc = allocator(pages);
            let mut used = vec![false; pages as usize];
            let mut live: Vec<(u32, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Alloc(order) => {
                        let possible = (0..pages >> order).any(|block| {
                            let first = (block << order) as usize;
                            !used[first..first + (1 << order)].contains(&true)
                        });
                        match alloc.alloc(order) {
                            Some(page) => {
                                prop_assert_eq!(page % (1 << order), 0);
                                for page in page..page + (1 << order) {
                                    prop_assert!(!used[page as usize], "page {} handed out twice", page);
                                    used[page as usize] = true;
                                }
                                live.push((page, order));
                            }
                            None => prop_assert!(!possible, "order {} was there", order),
                        }
                    }
                    Step::AllocPage(page) => {
                        let is_free = used.get(page as usize) == Some(&false);
                        prop_assert_eq!(alloc.alloc_page(page), is_free);
                        if is_free {
                            used[page as usize] = true;
                            live.push((page, 0));
                        }
                    }
                    Step::Free(which, order, part) if !live.is_empty() => {
                        let (page, whole) = live.swap_remove(which % live.len());
                        let order = order.min(whole);
                        let parts = 1 << (whole - order);
                        let chosen = part % parts;
                        for part in 0..parts {
                            let first = page + (part << order);
                            if part == chosen {
                                prop_assert_eq!(alloc.free(first, order), Ok(()));
                                for page in first..first + (1 << order) {
                                    used[page as usize] = false;
                                }
                            } else {
                                live.push((first, order));
                            }
                        }
                    }
                    Step::Free(..) => {}
                    Step::FreeAny(page, order) => {
                        let end = u64::from(page) + (1 << order);
                        let is_block = order <= ORDER_MAX
                            && page % (1 << order) == 0
                            && end <= u64::from(pages);
                        let all_used = is_block
                            && !used[page as usize..end as usize].contains(&false);
                        let result = alloc.free(page, order);
                        if !is_block {
                            prop_assert_eq!(result, Err(FreeError::NoBlock));
                        } else if !all_used {
                            prop_assert_eq!(result, Err(FreeError::AlreadyFree));
                        } else {
                            prop_assert_eq!(result, Ok(()));
                            used[page as usize..end as usize].fill(false);
                            // The blocks it came from are in pieces now; forget them and
                            // whatever part of them is still in use.
                            live.retain(|(first, order)| {
                                !used[*first as usize..(*first + (1 << order)) as usize].contains(&false)
                            });
                        }
                    }
                }
                check(&alloc, &used);
            }
        }
    }
}
