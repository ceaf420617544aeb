// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who works on which addresses at this moment.

use super::page::VirtualRange;
use super::spaces::Space;

/// The book of uses: no more than there are threads, so a search is short, and in a list that
/// keeps its room, since one begins and ends with each word.
#[derive(Debug, Default)]
pub struct Leases {
    active: Vec<(u64, Space, VirtualRange)>,
    next: u64,
}

impl Leases {
    /// Notes a use; its number.
    pub fn begin(&mut self, space: Space, range: VirtualRange) -> u64 {
        let number = self.next;
        self.next += 1;
        self.active.push((number, space, range));
        number
    }

    /// Notes that a use has ended.
    pub fn end(&mut self, number: u64) {
        let place = self.active.iter().position(|lease| lease.0 == number);
        if let Some(place) = place {
            self.active.swap_remove(place);
        }
    }

    /// The number that the next use will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether a use from before number `line` is left that is meant.
    pub fn is_any_left(&self, line: u64, is_meant: impl Fn(Space, VirtualRange) -> bool) -> bool {
        let mut active = self.active.iter();
        active.any(|&(number, space, range)| number < line && is_meant(space, range))
    }
}
