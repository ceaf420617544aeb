// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How operations get at their operands, wherever these are.

use super::exec::Word;
use super::link::{Access, Flow, Side, Singles};
use super::request::AtomicWidth;
use cdm_protocol::Status;
use vm_memory::VolatileSlice;

/// Why an operand could not be got at any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// What the command ends with.
    pub status: Status,
    /// The range that is to blame, source list first.
    pub range_index: u32,
}

impl Stop {
    /// For the sake of one range.
    pub fn of_range(status: Status, range_index: usize) -> Self {
        Self {
            status,
            // Lists hold at most RANGES_MAX ranges.
            range_index: range_index as u32,
        }
    }
}

impl From<Status> for Stop {
    /// No single range is to blame.
    fn from(status: Status) -> Self {
        Self {
            status,
            range_index: 0,
        }
    }
}

/// How far a transfer came, and why no further; with no reason, it came to its end.
pub type Moved = (usize, Option<Stop>);

/// The bytes of an operand, one after another.
pub trait ByteStream {
    /// Hands the next bytes to `each` where they lie, to be read, the first ones first; how many.
    /// They are less than asked for at the end, which is where none are left, and before a place
    /// that cannot be reached: the next call says why. `each` is short, and goes over each byte
    /// once: the next time it may be another one.
    fn look(
        &mut self,
        bytes: usize,
        each: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<usize, Stop>;

    /// As [`Self::look`], to be written.
    fn change(
        &mut self,
        bytes: usize,
        each: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<usize, Stop>;

    /// Copies the next bytes out; how many, as for [`Self::look`].
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Stop> {
        let mut done = 0;
        self.look(bytes.len(), &mut |piece| {
            done += piece.copy_to(&mut bytes[done..]);
        })
    }

    /// Copies bytes in; how many, as for [`Self::look`].
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        let mut done = 0;
        self.change(bytes.len(), &mut |piece| {
            piece.copy_from(&bytes[done..]);
            done += piece.len();
        })
    }

    /// Leaves bytes out.
    fn skip(&mut self, bytes: u64);

    /// Copies the next bytes out until there is a reason to stop.
    fn read_all(&mut self, bytes: &mut [u8]) -> Moved {
        let mut done = 0;
        while done < bytes.len() {
            match self.read(&mut bytes[done..]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(stop) => return (done, Some(stop)),
            }
        }
        (done, None)
    }

    /// Copies bytes in until there is a reason to stop.
    fn write_all(&mut self, bytes: &[u8]) -> Moved {
        let mut done = 0;
        while done < bytes.len() {
            match self.write(&bytes[done..]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(stop) => return (done, Some(stop)),
            }
        }
        (done, None)
    }
}

/// What is done to a word at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// Each access.
    pub access: Access,
    /// How many of them, one after another.
    pub times: u64,
}

impl Uses {
    /// One load.
    pub const READ: Self = Self::once(Access::Read);
    /// One store.
    pub const WRITE: Self = Self::once(Access::Write);
    /// One access that does both.
    pub const ATOMIC: Self = Self::once(Access::Atomic);

    const fn once(access: Access) -> Self {
        Self { access, times: 1 }
    }

    /// What of them crosses a link that carries no atomics: a load and a store for each.
    pub fn over_a_link_without_atomics(self) -> impl Iterator<Item = Self> {
        let halves = match self.access {
            Access::Atomic => [Some(Access::Read), Some(Access::Write)],
            plain => [Some(plain), None],
        };
        let halves = halves.into_iter().flatten();
        halves.map(move |access| Self { access, ..self })
    }

    /// Counts them, when they are made.
    #[inline]
    pub fn count(self, counted: &Singles, side: Side, width: AtomicWidth) {
        counted.add(side, self.access, Flow::words(self.times, width.bytes()));
    }
}

/// The words of an operand, in any order.
pub trait WordAccess {
    /// Does something to the word at `offset`, which is counted. It is short: the word may be
    /// somebody else's soon after.
    ///
    /// [`Status::BAD_POINTER`] if `offset` is no multiple of `width` inside the operand.
    fn with<T>(
        &self,
        offset: u64,
        width: AtomicWidth,
        uses: Uses,
        action: impl FnOnce(Word<'_>) -> T,
    ) -> Result<T, Stop>;

    /// Makes sure, as far as that can be, that the word at `offset` can be reached. That
    /// is no access.
    fn prepare(&self, offset: u64, width: AtomicWidth, access: Access) -> Result<(), Stop>;
}
