// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A command that was begun, in chunks that any number of threads take.
//!
//! Chunks are taken in their order and finished by who took them, whatever happens
//! meanwhile. So what is done of a command that was cut short is always its beginning,
//! however many threads there were. Chunks of a process's memory may end early, each for
//! itself; of those the first one counts, and behind it something may be done as well.

use super::exec::{self, Progress};
use super::link::Visit;
use super::operands::Part;
use super::request::{Extent, Operation, ParsedCommand, Refusal};
use super::state::DriverState;
use super::translation::{Pasid, Space};
use cdm_protocol::{COMPARE_EQUAL, Status};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a chunk: some 100 us of copying, so that neither a RESET waits nor the taking
/// costs. A multiple of every element that FILL has.
pub const CHUNK_BYTES: u64 = 512 << 10;

/// A command in the works.
#[derive(Debug)]
pub struct Task {
    command: ParsedCommand,
    /// What the driver had set up when the command was begun; it holds to the end.
    state: DriverState,
    /// What its PASIDs were the names of.
    bound: BTreeMap<Pasid, Space>,
    /// Chunks to be taken; one for a command that is not cut.
    num_chunks: u64,
    /// Chunks taken so far.
    taken: AtomicU64,
    /// Chunks from this one on are not worth taking any more.
    end: AtomicU64,
    found: Mutex<Found>,
    /// What it did to memory, and how long that takes.
    visit: Mutex<Visit>,
}

/// What came out of the chunks.
#[derive(Debug, Default)]
struct Found {
    /// Outcome of a command that is not cut, or why one cannot be carried out.
    whole: Option<Result<Progress, Refusal>>,
    /// CHECKSUM: CRC of each chunk.
    crcs: Vec<(u64, u32)>,
    /// COMPARE: offset of the first difference.
    difference: Option<u64>,
    /// The first chunk that ended early; counted from the beginning of the command.
    stopped: Option<Progress>,
}

/// A piece of a command; all of one that is not cut.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    index: u64,
    source: Cut,
    destination: Cut,
}

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    list: Vec<Extent>,
    /// Index of its first range in the command.
    first_index: usize,
}

impl Chunk {
    /// Its part of the source.
    pub fn source(&self) -> Part<'_> {
        self.source.part()
    }

    /// Its part of the destination.
    pub fn destination(&self) -> Part<'_> {
        self.destination.part()
    }
}

impl Cut {
    fn part(&self) -> Part<'_> {
        Part {
            list: &self.list,
            first_index: self.first_index,
        }
    }
}

impl Task {
    /// A command of which nothing is done yet.
    pub fn new(
        command: ParsedCommand,
        state: DriverState,
        bound: BTreeMap<Pasid, Space>,
        visit: Visit,
    ) -> Self {
        let num_chunks = match is_cut(&command) {
            true => command.bytes().div_ceil(CHUNK_BYTES),
            false => 1,
        };
        Self {
            command,
            state,
            bound,
            num_chunks,
            taken: AtomicU64::new(0),
            end: AtomicU64::new(num_chunks),
            found: Mutex::default(),
            visit: Mutex::new(visit),
        }
    }

    /// Threads that could be of help, beside the first.
    pub fn helpers(&self) -> u64 {
        // For less than two chunks each it is not worth to wake anybody.
        self.num_chunks / 2
    }

    /// The command.
    pub fn command(&self) -> &ParsedCommand {
        &self.command
    }

    /// What the driver had set up.
    pub fn state(&self) -> &DriverState {
        &self.state
    }

    /// What its PASIDs were the names of.
    pub fn bound(&self) -> &BTreeMap<Pasid, Space> {
        &self.bound
    }

    /// What it did to memory so far.
    pub fn visit(&self) -> &Mutex<Visit> {
        &self.visit
    }

    /// Whether nobody can take a chunk any more.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.end.load(Ordering::Relaxed)
    }

    /// The next chunk, which the caller then does.
    pub fn take(&self) -> Option<Chunk> {
        let next = |taken| (taken < self.end.load(Ordering::Relaxed)).then_some(taken + 1);
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let index = taken.ok()?;
        let cut = |list: &[Extent], first_index| {
            let (skipped, list) = match is_cut(&self.command) {
                true => cut(list, index * CHUNK_BYTES, CHUNK_BYTES),
                false => (0, list.to_vec()),
            };
            let first_index = first_index + skipped;
            Cut { list, first_index }
        };
        Some(Chunk {
            index,
            source: cut(&self.command.source, 0),
            destination: cut(&self.command.destination, self.command.source.len()),
        })
    }

    /// Whether a chunk that was taken cannot change the outcome any more.
    pub fn is_in_vain(&self, chunk: &Chunk) -> bool {
        chunk.index >= self.end.load(Ordering::Relaxed)
    }

    /// Has nobody take a chunk any more.
    pub fn stop(&self) {
        self.end.store(0, Ordering::Relaxed);
    }

    /// Notes that the command cannot be carried out after all.
    pub fn refuse(&self, refusal: Refusal) {
        self.stop();
        self.found().whole = Some(Err(refusal));
    }

    /// Notes the outcome of a chunk.
    pub fn note(&self, chunk: &Chunk, progress: Progress) {
        if is_cut(&self.command) && progress.status != Status::OK {
            self.end.fetch_min(chunk.index, Ordering::Relaxed);
            let stopped = Progress {
                bytes_done: chunk.index * CHUNK_BYTES + progress.bytes_done,
                ..progress
            };
            let mut found = self.found();
            let first = found
                .stopped
                .filter(|old| old.bytes_done <= stopped.bytes_done);
            found.stopped = first.or(Some(stopped));
            return;
        }
        match self.command.operation {
            Operation::Checksum { .. } => {
                // A CRC has 32 bits.
                let crc = progress.result as u32;
                self.found().crcs.push((chunk.index, crc));
            }
            Operation::Compare if progress.result != COMPARE_EQUAL => {
                self.end.fetch_min(chunk.index, Ordering::Relaxed);
                let place = chunk.index * CHUNK_BYTES + progress.result;
                let mut found = self.found();
                found.difference = Some(found.difference.map_or(place, |old| old.min(place)));
            }
            Operation::Fill(_) | Operation::Copy | Operation::Compare => {}
            _ => self.found().whole = Some(Ok(progress)),
        }
    }

    /// The outcome of all, after the last chunk that was taken is done.
    pub fn outcome(&self) -> Result<Progress, Refusal> {
        let mut found = self.found();
        if let Some(outcome) = found.whole.take() {
            return outcome;
        }
        // Every chunk before the one with the difference was taken earlier, and is done; so it is
        // with one that ended early.
        let stopped_at = found.stopped.map_or(u64::MAX, |stopped| stopped.bytes_done);
        if let Some(difference) = found.difference.filter(|&place| place < stopped_at) {
            return Ok(Progress::finished(difference, difference));
        }
        if let Some(stopped) = found.stopped {
            return Ok(stopped);
        }
        let taken = self.taken.load(Ordering::Relaxed);
        let total = self.command.bytes();
        if taken < self.num_chunks {
            return Ok(Progress::cancelled(taken * CHUNK_BYTES));
        }
        let result = match self.command.operation {
            Operation::Checksum { initial } => {
                found.crcs.sort_unstable();
                let crc = found.crcs.iter().fold(initial, |crc, &(index, of_chunk)| {
                    let bytes = CHUNK_BYTES.min(total - index * CHUNK_BYTES);
                    exec::join_crcs(crc, of_chunk, bytes)
                });
                crc.into()
            }
            Operation::Compare => COMPARE_EQUAL,
            _ => 0,
        };
        Ok(Progress::finished(result, total))
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        // Nothing panics while it is locked.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_cut(command: &ParsedCommand) -> bool {
    matches!(
        command.operation,
        Operation::Fill(_) | Operation::Copy | Operation::Checksum { .. } | Operation::Compare
    )
}

/// The part of a list from the byte `from` on, at most `bytes` long, and how many ranges come
/// before it.
fn cut(list: &[Extent], mut from: u64, mut bytes: u64) -> (usize, Vec<Extent>) {
    let (mut skipped, mut part) = (0, Vec::new());
    for extent in list {
        if bytes == 0 {
            break;
        }
        if from >= extent.bytes {
            from -= extent.bytes;
            skipped += 1;
            continue;
        }
        let piece = Extent {
            place: extent.place.plus(from),
            bytes: (extent.bytes - from).min(bytes),
        };
        bytes -= piece.bytes;
        from = 0;
        part.push(piece);
    }
    (skipped, part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::request::Place;
    use proptest::prelude::*;

    /// Every byte of a list, by its place.
    fn bytes(list: &[Extent]) -> Vec<Place> {
        let bytes = |extent: &Extent| {
            let place = extent.place;
            (0..extent.bytes).map(move |offset| place.plus(offset))
        };
        list.iter().flat_map(bytes).collect()
    }

    proptest! {
        #[test]
        fn a_part_of_a_list_is_that_part_of_its_bytes(
            lengths in prop::collection::vec((1u64..20, any::<bool>()), 0..8),
            (from, count) in (0u64..100, 0u64..60),
        ) {
            let list: Vec<Extent> = (0u64..)
                .zip(lengths)
                .map(|(index, (bytes, is_device))| {
                    let address = index * 1000;
                    let place = match is_device {
                        true => Place::Device(address),
                        false => Place::Guest(address),
                    };
                    Extent { place, bytes }
                })
                .collect();
            let expected: Vec<Place> =
                bytes(&list).into_iter().skip(from as usize).take(count as usize).collect();
            let (skipped, part) = cut(&list, from, count);
            if let Some(first) = part.first() {
                let whole = list[skipped];
                let inside = first.place.address() - whole.place.address();
                prop_assert!(inside < whole.bytes);
            }
            prop_assert!(part.iter().all(|extent| extent.bytes > 0));
            prop_assert_eq!(bytes(&part), expected);
        }
    }
}
