// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The pages of one size that are known. What is full forgets its oldest page: a cache is no
//! promise, and a miss costs a question.

use super::page::{Access, PageSize, Translation, VirtualRange};
use super::spaces::Space;
use std::collections::BTreeMap;

/// How many pages the device remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Of 4 KiB, at least [`Self::SMALL_MIN`].
    pub small: usize,
    /// Of 2 MiB; none of them is kept as a small one.
    pub large: usize,
}

impl Capacity {
    /// Each thread that works on commands has at most one page that must not be forgotten before
    /// it was used. There are fewer threads than this.
    pub const SMALL_MIN: usize = 128;
    /// Above this a host's own tables of the cache are no smaller than the pages' use.
    pub const MAX: usize = 1 << 20;
}

impl Default for Capacity {
    /// Reaches over 16 MiB in small pages and 512 MiB in large ones, some ten times what the
    /// translation lookaside buffers of a CPU do.
    fn default() -> Self {
        Self {
            small: 4096,
            large: 256,
        }
    }
}

/// A page, by the address of its first byte.
pub type Key = (Space, u64);

/// Pages of one size.
#[derive(Debug)]
pub struct Pages {
    size: PageSize,
    capacity: usize,
    known: BTreeMap<Key, Known>,
    /// Keys by age.
    order: BTreeMap<u64, Key>,
    next_age: u64,
}

#[derive(Debug)]
struct Known {
    translation: Translation,
    age: u64,
}

impl Pages {
    /// None yet.
    pub fn new(size: PageSize, capacity: usize) -> Self {
        Self {
            size,
            capacity,
            known: BTreeMap::new(),
            order: BTreeMap::new(),
            next_age: 0,
        }
    }

    /// The page that an address is in and where it is, if that is known and allows the access.
    pub fn find(
        &self,
        space: Space,
        address: u64,
        access: Access,
    ) -> Option<(VirtualRange, Translation)> {
        let page = self.size.page_of(address);
        let known = self.known.get(&(space, page.first))?.translation;
        known.allows(access).then_some((page, known))
    }

    /// Takes a page in, instead of what was known of it, and for the oldest one that is not
    /// `spared` if there is no room. False if there is none at all.
    pub fn remember(
        &mut self,
        key: Key,
        translation: Translation,
        spared: impl Fn(Key) -> bool,
    ) -> bool {
        if let Some(known) = self.known.get_mut(&key) {
            known.translation = translation;
            return true;
        }
        if self.known.len() >= self.capacity {
            let mut by_age = self.order.iter();
            let Some((&age, &oldest)) = by_age.find(|(_, key)| !spared(**key)) else {
                return false;
            };
            self.order.remove(&age);
            self.known.remove(&oldest);
        }
        let age = self.next_age;
        self.next_age += 1;
        self.order.insert(age, key);
        self.known.insert(key, Known { translation, age });
        true
    }

    /// Forgets every page that has an address in `range`.
    pub fn forget(&mut self, space: Space, range: VirtualRange) {
        let first = self.size.page_of(range.first).first;
        let keys = (space, first)..=(space, range.last);
        for (_, known) in self.known.extract_if(keys, |_, _| true) {
            self.order.remove(&known.age);
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.known.clear();
        self.order.clear();
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        assert_eq!(self.known.len(), self.order.len());
        self.known.len()
    }
}
