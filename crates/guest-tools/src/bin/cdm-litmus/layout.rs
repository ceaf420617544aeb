// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where everything of a batch is: the locations of all its instances, what paces the
//! threads, and what they read.

use std::ops::Range;

use cdm_guest_tools::memory::PAGE_BYTES;

use crate::shape::Test;

/// Instances of a batch. Together with the rest, their locations fit into the ranges of one
/// command, also if no two of their pages are neighbours.
pub const INSTANCES: usize = 4096;
/// Bytes from one instance's location to that of the next: a cache line.
pub const LINE_BYTES: usize = 64;
/// Bytes of a word.
pub const WORD_BYTES: usize = 8;
/// Bytes between the words by which threads tell that they are there: two cache lines, since
/// processors fetch lines in pairs.
const MEETING_BYTES: usize = 128;

const LOCATION_BYTES: usize = INSTANCES * LINE_BYTES;
const COLUMN_BYTES: usize = INSTANCES * WORD_BYTES;

const _: () = assert!(LOCATION_BYTES.is_multiple_of(PAGE_BYTES));
const _: () = assert!(COLUMN_BYTES.is_multiple_of(PAGE_BYTES));

/// Offsets into the memory of a batch: a page of meetings, an array for each location, and for
/// each thread a column of pauses and one for each value that it reads.
#[derive(Clone, Debug)]
pub struct Layout {
    locations: usize,
    /// Columns before those of each thread.
    before: Vec<usize>,
    columns: usize,
}

impl Layout {
    /// The layout of a test.
    pub fn new(test: &Test) -> Self {
        let mut columns = 0;
        let before = test
            .threads
            .iter()
            .map(|thread| {
                let before = columns;
                columns += 1 + thread.reads();
                before
            })
            .collect();
        Self {
            locations: test.locations(),
            before,
            columns,
        }
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.before.len()
    }

    /// Length of it all.
    pub fn bytes(&self) -> usize {
        self.column(self.columns)
    }

    /// The word in which a thread tells how far it is.
    pub fn meeting(&self, thread: usize) -> usize {
        thread * MEETING_BYTES
    }

    /// Number of locations.
    pub fn locations(&self) -> usize {
        self.locations
    }

    /// A location of the first instance.
    pub fn location(&self, location: usize) -> usize {
        PAGE_BYTES + location * LOCATION_BYTES
    }

    /// Pages of a location's array.
    pub fn pages_of(&self, location: usize) -> Range<usize> {
        let first = self.location(location) / PAGE_BYTES;
        first..first + LOCATION_BYTES / PAGE_BYTES
    }

    fn column(&self, number: usize) -> usize {
        self.location(self.locations) + number * COLUMN_BYTES
    }

    /// How long a thread waits before the first instance.
    pub fn pauses(&self, thread: usize) -> usize {
        self.column(self.before[thread])
    }

    /// What a thread reads in the first instance.
    pub fn reads(&self, thread: usize, read: usize) -> usize {
        self.column(self.before[thread] + 1 + read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TESTS;
    use cdm_protocol::RANGES_MAX;

    #[test]
    fn nothing_overlaps_and_a_command_takes_it_all() {
        for test in TESTS {
            let layout = Layout::new(test);
            let mut pieces: Vec<(usize, usize)> = (0..test.locations())
                .map(|location| (layout.location(location), LOCATION_BYTES))
                .collect();
            for (number, thread) in test.threads.iter().enumerate() {
                pieces.push((layout.meeting(number), MEETING_BYTES));
                pieces.push((layout.pauses(number), COLUMN_BYTES));
                let reads = (0..thread.reads()).map(|read| layout.reads(number, read));
                pieces.extend(reads.map(|offset| (offset, COLUMN_BYTES)));
            }
            pieces.sort_unstable();
            let ends = pieces.iter().map(|(offset, bytes)| offset + bytes);
            let next = pieces[1..].iter().map(|(offset, _)| *offset);
            assert!(
                ends.zip(next.chain([layout.bytes()]))
                    .all(|(end, next)| end <= next)
            );
            // One range is the program's own.
            let pages = layout.bytes() / PAGE_BYTES;
            assert!(pages < RANGES_MAX, "{}: {pages} pages", test.name);
        }
    }
}
