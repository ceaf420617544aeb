// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who works on which addresses at this moment.

use super::page::VirtualRange;
use super::spaces::Space;
use std::collections::BTreeMap;

/// The book of uses, in the order in which they began.
#[derive(Debug, Default)]
pub struct Leases {
    active: BTreeMap<u64, (Space, VirtualRange)>,
    next: u64,
}

impl Leases {
    /// Notes a use; its number.
    pub fn begin(&mut self, space: Space, range: VirtualRange) -> u64 {
        let number = self.next;
        self.next += 1;
        self.active.insert(number, (space, range));
        number
    }

    /// Notes that a use has ended.
    pub fn end(&mut self, number: u64) {
        self.active.remove(&number);
    }

    /// The number that the next use will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether a use from before number `line` is left that is meant.
    pub fn is_any_left(&self, line: u64, is_meant: impl Fn(Space, VirtualRange) -> bool) -> bool {
        let mut earlier = self.active.range(..line);
        earlier.any(|(_, (space, range))| is_meant(*space, *range))
    }
}
