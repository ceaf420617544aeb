// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bytes of an operand that is memory of processes.

use super::{Ahead, Far, Part, Stretch, Way};
use crate::model::access::{ByteStream, Stop};
use crate::model::translation::Access;
use vm_memory::VolatileSlice;

/// See [`ByteStream`].
pub struct FarStream<'f, 'a> {
    far: &'f Far<'a>,
    part: Part<'a>,
    access: Access,
    ahead: Ahead,
    /// The range that comes next, counted in the part.
    index: usize,
    /// Bytes of it that are behind us; less than its length.
    offset: u64,
    /// Bytes of the operand that are behind us.
    place: u64,
    /// What it is to read, and what to write.
    ways: [Way; 2],
    /// Why the last transfer was short.
    stop: Option<Stop>,
}

impl<'f, 'a> FarStream<'f, 'a> {
    /// Begins with the first byte.
    pub fn new(
        far: &'f Far<'a>,
        part: Part<'a>,
        access: Access,
        ahead: Ahead,
        ways: [Way; 2],
    ) -> Self {
        Self {
            far,
            part,
            access,
            ahead,
            index: 0,
            offset: 0,
            place: 0,
            ways,
            stop: None,
        }
    }

    /// Hands the next `bytes` bytes to `each`.
    fn advance(
        &mut self,
        bytes: u64,
        way: Way,
        each: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<usize, Stop> {
        if let Some(stop) = self.stop {
            return Err(stop);
        }
        let mut done = 0;
        while done < bytes {
            let Some(extent) = self.part.list.get(self.index) else {
                break;
            };
            let left = extent.bytes - self.offset;
            let needed = left.min(bytes - done);
            let stretch = Stretch {
                place: extent.place.plus(self.offset),
                bytes: needed,
                ahead: match self.ahead {
                    Ahead::Nothing => needed,
                    Ahead::All => left,
                },
                access: self.access,
            };
            // Less than `bytes`, which is the length of a slice.
            let before = done as usize;
            let (place, begins_range) = (self.place, self.offset == 0);
            let trail = self.far.walked.trail(way);
            let moved = self.far.with_memory(stretch, &mut |operand| {
                for slice in operand.slices() {
                    each(*slice);
                }
                trail.borrow_mut().push(operand, place, begins_range);
            });
            match moved {
                Ok(count) => {
                    done += count;
                    self.skip(count);
                }
                Err(status) => {
                    let index = self.part.first_index + self.index;
                    let stop = Stop::of_range(status, index);
                    self.stop = Some(stop);
                    return if done == 0 { Err(stop) } else { Ok(before) };
                }
            }
        }
        Ok(done as usize)
    }
}

impl ByteStream for FarStream<'_, '_> {
    fn look(
        &mut self,
        bytes: usize,
        each: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<usize, Stop> {
        self.advance(bytes as u64, self.ways[0], each)
    }

    fn change(
        &mut self,
        bytes: usize,
        each: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<usize, Stop> {
        self.advance(bytes as u64, self.ways[1], each)
    }

    fn skip(&mut self, mut bytes: u64) {
        while let Some(extent) = self.part.list.get(self.index) {
            let left = extent.bytes - self.offset;
            let step = bytes.min(left);
            self.place += step;
            if bytes < left {
                self.offset += bytes;
                return;
            }
            bytes -= left;
            self.offset = 0;
            self.index += 1;
        }
    }
}
