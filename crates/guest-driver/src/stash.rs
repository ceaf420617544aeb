// SPDX-License-Identifier: GPL-2.0-only

//! Single pages in front of the allocator. Pure logic: no kernel facility, no unsafe.
//!
//! Each CPU has a [`Stash`], so that most pages come and go without the lock that all
//! CPUs share. A page in a stash is free, and no buddy of anything until it is back in
//! the allocator: whoever needs large blocks, or wants to see all that is free, empties
//! the stashes first.

use core::ops::DerefMut;

use crate::alloc::{FreeError, PageAlloc};

/// Pages that a stash holds at most: a quarter of a batch, 512 KiB.
pub const STASH_PAGES: usize = 128;

/// Free pages of one CPU.
///
/// # Invariants
///
/// The first `len` entries of `pages` are distinct pages that the allocator has as in use.
pub struct Stash {
    pages: [u32; STASH_PAGES],
    len: usize,
}

impl Default for Stash {
    fn default() -> Self {
        Self::new()
    }
}

impl Stash {
    /// A stash without pages.
    pub const fn new() -> Self {
        Self {
            pages: [0; STASH_PAGES],
            len: 0,
        }
    }

    /// Pages in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no page in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `out` as far as there are pages, the one that came last first: its contents
    /// may still be in the caches. Returns how many.
    pub fn take(&mut self, out: &mut [u32]) -> usize {
        let count = out.len().min(self.len);
        for slot in &mut out[..count] {
            self.len -= 1;
            *slot = self.pages[self.len];
        }
        count
    }

    /// Adds a page; false if there is no room.
    pub fn put(&mut self, page: u32) -> bool {
        let has_room = self.len < STASH_PAGES;
        if has_room {
            self.pages[self.len] = page;
            self.len += 1;
        }
        has_room
    }

    /// Fills half of the stash from the allocator, if it has so much.
    pub fn refill<S: DerefMut<Target = [u64]>>(&mut self, alloc: &mut PageAlloc<S>) {
        let end = STASH_PAGES / 2;
        if self.len < end {
            self.len += alloc.alloc_bulk(&mut self.pages[self.len..end]);
        }
    }

    /// Gives pages back to the allocator, those that came first, until `keep` are left.
    /// Returns the first that it does not take, which then is in use for ever.
    pub fn spill<S: DerefMut<Target = [u64]>>(
        &mut self,
        keep: usize,
        alloc: &mut PageAlloc<S>,
    ) -> Result<(), (u32, FreeError)> {
        let count = self.len.saturating_sub(keep);
        let mut result = Ok(());
        for page in &self.pages[..count] {
            if let (Err(err), Ok(())) = (alloc.free(*page, 0), result) {
                result = Err((*page, err));
            }
        }
        self.pages.copy_within(count..self.len, 0);
        self.len -= count;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::words_needed;
    use proptest::prelude::*;

    fn allocator(pages: u32) -> PageAlloc<Vec<u64>> {
        PageAlloc::new(pages, vec![0; words_needed(pages)]).expect("fresh storage")
    }

    #[test]
    fn the_page_that_came_last_goes_first() {
        let mut stash = Stash::new();
        for page in [5, 6, 7] {
            assert!(stash.put(page));
        }
        let mut out = [0; 2];
        assert_eq!(stash.take(&mut out), 2);
        assert_eq!(out, [7, 6]);
        assert_eq!(stash.take(&mut out), 1);
        assert_eq!(out[0], 5);
        assert!(stash.is_empty());
    }

    #[test]
    fn a_full_stash_takes_no_more_and_spills_the_oldest() {
        let mut alloc = allocator(4096);
        let mut stash = Stash::new();
        while stash.put(alloc.alloc(0).expect("4096 pages are free")) {}
        let refused = stash.len() as u32;
        alloc.free(refused, 0).expect("the page that found no room");
        assert_eq!(stash.spill(STASH_PAGES / 2, &mut alloc), Ok(()));
        assert_eq!(stash.len(), STASH_PAGES / 2);
        // Pages were allocated in order, so the lower half is free again.
        assert_eq!(alloc.next_used(0), Some(STASH_PAGES as u32 / 2));
    }

    #[test]
    fn a_page_that_came_twice_is_found_when_it_spills() {
        let mut alloc = allocator(64);
        let page = alloc.alloc(0).expect("64 pages are free");
        let mut stash = Stash::new();
        stash.put(page);
        stash.put(page);
        assert_eq!(
            stash.spill(0, &mut alloc),
            Err((page, FreeError::AlreadyFree))
        );
        assert_eq!(alloc.free_pages(), 64);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// This CPU takes so many pages.
        Take(usize, usize),
        /// This CPU frees one of the pages in use.
        Free(usize, usize),
        /// Somebody needs a block of 512 pages.
        Large,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3usize, 1..200usize).prop_map(|(cpu, count)| Step::Take(cpu, count)),
            8 => (0..3usize, any::<usize>()).prop_map(|(cpu, which)| Step::Free(cpu, which)),
            1 => Just(Step::Large),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Three CPUs with stashes in front of one allocator; a table of pages says who has what.
        #[test]
        fn no_page_is_lost_or_handed_out_twice(
            pages in 600..3000u32,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut alloc = allocator(pages);
            let mut stashes = [Stash::new(), Stash::new(), Stash::new()];
            let mut used: Vec<u32> = Vec::new();
            let mut is_used = vec![false; pages as usize];
            for step in steps {
                match step {
                    Step::Take(cpu, count) => {
                        let mut out = vec![0; count];
                        let stash = &mut stashes[cpu];
                        if stash.is_empty() {
                            stash.refill(&mut alloc);
                        }
                        let mut got = stash.take(&mut out);
                        got += alloc.alloc_bulk(&mut out[got..]);
                        for page in &out[..got] {
                            prop_assert!(!is_used[*page as usize], "page {} twice", page);
                            is_used[*page as usize] = true;
                        }
                        used.extend(&out[..got]);
                    }
                    Step::Free(cpu, which) if !used.is_empty() => {
                        let page = used.swap_remove(which % used.len());
                        is_used[page as usize] = false;
                        let stash = &mut stashes[cpu];
                        if !stash.put(page) {
                            prop_assert_eq!(stash.spill(STASH_PAGES / 2, &mut alloc), Ok(()));
                            prop_assert!(stash.put(page));
                        }
                    }
                    Step::Free(..) => {}
                    Step::Large => {
                        for stash in &mut stashes {
                            prop_assert_eq!(stash.spill(0, &mut alloc), Ok(()));
                        }
                        let possible = is_used.chunks_exact(512).any(|block| !block.contains(&true));
                        match alloc.alloc(9) {
                            Some(page) => prop_assert_eq!(alloc.free(page, 9), Ok(())),
                            None => prop_assert!(!possible, "a block of 512 is free"),
                        }
                    }
                }
                let stashed: usize = stashes.iter().map(Stash::len).sum();
                let free = alloc.free_pages() as usize + stashed;
                prop_assert_eq!(free + used.len(), pages as usize);
            }
            for stash in &mut stashes {
                prop_assert_eq!(stash.spill(0, &mut alloc), Ok(()));
            }
            for (page, is_used) in is_used.iter().enumerate() {
                let found = alloc.next_used(page as u32) == Some(page as u32);
                prop_assert_eq!(found, *is_used, "page {}", page);
            }
        }
    }
}
