// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the translation has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts, which only grow.
#[derive(Debug, Default)]
pub struct Tally {
    /// Pages whose translation was known when it was needed.
    pub hits: Count,
    /// Needs of a translation that was not known.
    pub misses: Count,
    /// Page requests that the driver was sent.
    pub requests: Count,
    /// Of these, those for exclusive access.
    pub exclusive_requests: Count,
    /// Page requests that ended with a refusal.
    pub refusals: Count,
    /// Invalidations that are complete.
    pub invalidations: Count,
}

/// One of them.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

/// All of them at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// See [`Tally::hits`].
    pub hits: u64,
    /// See [`Tally::misses`].
    pub misses: u64,
    /// See [`Tally::requests`].
    pub requests: u64,
    /// See [`Tally::exclusive_requests`].
    pub exclusive_requests: u64,
    /// See [`Tally::refusals`].
    pub refusals: u64,
    /// See [`Tally::invalidations`].
    pub invalidations: u64,
}

impl Count {
    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// What it comes to now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Tally {
    /// What it comes to now.
    pub fn read(&self) -> Translated {
        Translated {
            hits: self.hits.get(),
            misses: self.misses.get(),
            requests: self.requests.get(),
            exclusive_requests: self.exclusive_requests.get(),
            refusals: self.refusals.get(),
            invalidations: self.invalidations.get(),
        }
    }
}
