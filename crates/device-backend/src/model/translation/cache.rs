// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The translation cache.
//!
//! One lock, held for a look or a change and never while anybody works. What is full forgets
//! its oldest page: a device's cache is no promise, and a miss costs a question.

use super::page::{Access, PageSize, Pasid, Translation, VirtualRange};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many pages a cache holds.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Of 4 KiB.
    pub small: usize,
    /// Of 2 MiB.
    pub large: usize,
}

/// What is remembered of all address spaces.
#[derive(Debug)]
pub struct TranslationCache {
    state: Mutex<State>,
    /// A lease has ended.
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    small: Pages,
    large: Pages,
    /// Who works on which addresses.
    leases: BTreeMap<u64, (Pasid, VirtualRange)>,
    /// Which pages the driver is being asked for; stale ones are gone.
    questions: BTreeMap<u64, (Pasid, VirtualRange)>,
    next: u64,
}

/// Pages of one size, the oldest one first in `order`.
#[derive(Debug)]
struct Pages {
    size: PageSize,
    capacity: usize,
    known: BTreeMap<(Pasid, u64), Translation>,
    order: VecDeque<(Pasid, u64)>,
}

/// Memory that is being worked on. Its address is good until this is dropped.
#[derive(Debug)]
pub struct Lease<'a> {
    cache: &'a TranslationCache,
    number: u64,
    address: u64,
    bytes: u64,
}

/// A page that the driver is asked for. Its answer counts if nothing of the page was
/// invalidated since.
#[derive(Debug)]
#[must_use = "it is withdrawn when it is dropped"]
pub struct Question<'a> {
    cache: &'a TranslationCache,
    number: u64,
    pasid: Pasid,
    page: u64,
}

/// What the answer tells was invalidated meanwhile: ask again.
#[derive(Debug, PartialEq, Eq)]
pub struct Stale;

impl TranslationCache {
    /// One that knows nothing.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            state: Mutex::new(State {
                small: Pages::new(PageSize::Small, capacity.small),
                large: Pages::new(PageSize::Large, capacity.large),
                leases: BTreeMap::new(),
                questions: BTreeMap::new(),
                next: 0,
            }),
            ended: Condvar::new(),
        }
    }

    /// The longest stretch from `address` on in one known page that allows the access, at most
    /// `bytes` long; `None` if it has to be asked for. `bytes` is not zero.
    pub fn lease(
        &self,
        pasid: Pasid,
        address: u64,
        bytes: u64,
        access: Access,
    ) -> Option<Lease<'_>> {
        let mut state = self.state();
        let (page, translation) = state.find(pasid, address, access)?;
        let last = page.last.min(address.saturating_add(bytes - 1));
        let range = VirtualRange {
            first: address,
            last,
        };
        let number = state.number();
        state.leases.insert(number, (pasid, range));
        Some(Lease {
            cache: self,
            number,
            address: translation.address + (address - page.first),
            bytes: last - address + 1,
        })
    }

    /// Notes that the driver is asked for the page at an address.
    pub fn ask(&self, pasid: Pasid, address: u64) -> Question<'_> {
        let mut state = self.state();
        let number = state.number();
        // The answer may be a large page, and then all of it must have stayed as it was.
        let range = PageSize::Large.page_of(address);
        state.questions.insert(number, (pasid, range));
        Question {
            cache: self,
            number,
            pasid,
            page: address,
        }
    }

    /// Forgets what is in `range`, and waits until nobody works on it any more.
    ///
    /// Nobody may hold a lease of it who waits for the caller.
    pub fn invalidate(&self, pasid: Pasid, range: VirtualRange) {
        let mut state = self.state();
        let is_meant = |whose: Pasid, what: VirtualRange| whose == pasid && what.overlaps(range);
        state.small.forget(is_meant);
        state.large.forget(is_meant);
        state
            .questions
            .retain(|_, (whose, what)| !is_meant(*whose, *what));
        // Leases that begin from now on are of answers to later questions.
        let line = state.next;
        while state
            .leases
            .range(..line)
            .any(|(_, (whose, what))| is_meant(*whose, *what))
        {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Pages that are known, of both sizes.
    pub fn len(&self) -> usize {
        let state = self.state();
        state.small.known.len() + state.large.known.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the state is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn find(
        &self,
        pasid: Pasid,
        address: u64,
        access: Access,
    ) -> Option<(VirtualRange, Translation)> {
        [&self.large, &self.small].into_iter().find_map(|pages| {
            let page = pages.size.page_of(address);
            let known = pages.known.get(&(pasid, page.first))?;
            known.allows(access).then_some((page, *known))
        })
    }
}

impl Pages {
    fn new(size: PageSize, capacity: usize) -> Self {
        Self {
            size,
            capacity,
            known: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    fn remember(&mut self, key: (Pasid, u64), translation: Translation) {
        if self.capacity == 0 {
            return;
        }
        if self.known.insert(key, translation).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn forget(&mut self, is_meant: impl Fn(Pasid, VirtualRange) -> bool) {
        let size = self.size;
        self.order
            .retain(|(pasid, first)| !is_meant(*pasid, size.page_of(*first)));
        self.known
            .retain(|(pasid, first), _| !is_meant(*pasid, size.page_of(*first)));
    }
}

impl Question<'_> {
    /// Takes the driver's answer: the page of that size around the address is there.
    /// `translation` is of the page's first byte.
    pub fn answer(self, size: PageSize, translation: Translation) -> Result<(), Stale> {
        let mut state = self.cache.state();
        if state.questions.remove(&self.number).is_none() {
            return Err(Stale);
        }
        let key = (self.pasid, size.page_of(self.page).first);
        match size {
            PageSize::Small => state.small.remember(key, translation),
            PageSize::Large => state.large.remember(key, translation),
        }
        Ok(())
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.cache.state().questions.remove(&self.number);
    }
}

impl Lease<'_> {
    /// Where the first byte is, on the other side of the bus.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes; not zero.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.cache.state().leases.remove(&self.number);
        self.cache.ended.notify_all();
    }
}
