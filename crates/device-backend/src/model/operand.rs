// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Operands in memory: a checked list of ranges, resolved to mapped slices.

use super::access::{ByteStream, Stop};
use super::link::Side;
use vm_memory::VolatileSlice;

/// One operand: slices that follow each other logically, wherever they lie.
///
/// # Invariants
///
/// No slice is empty, and none is shared with this process's own data: the slices are
/// device memory or guest memory, which anybody may write at any time.
#[derive(Debug, Default)]
pub struct Operand<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// Where each of them is.
    sides: Vec<Side>,
}

impl<'m> Operand<'m> {
    /// Appends a slice.
    pub fn push(&mut self, slice: VolatileSlice<'m>, side: Side) {
        // INVARIANT: an empty slice adds nothing and stays out.
        if !slice.is_empty() {
            self.slices.push(slice);
            self.sides.push(side);
        }
    }

    /// The slices, first one first.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Where each of the slices is.
    pub fn sides(&self) -> &[Side] {
        &self.sides
    }

    /// Goes through the operand as one stream of bytes, whatever its cut.
    pub fn stream(&self) -> Stream<'_, 'm> {
        Stream(Cursor::new(&self.slices))
    }

    /// Walks the operand in pieces of at most `max_bytes`.
    pub fn pieces(&self, max_bytes: usize) -> Pieces<'_, 'm> {
        Pieces {
            cursor: Cursor::new(&self.slices),
            max_bytes,
        }
    }

    /// Walks two operands in step, in pieces of equal length of at most `max_bytes`.
    ///
    /// Ends with the shorter one.
    pub fn pairs<'a>(&'a self, other: &'a Self, max_bytes: usize) -> Pairs<'a, 'm> {
        Pairs {
            left: Cursor::new(&self.slices),
            right: Cursor::new(&other.slices),
            max_bytes,
        }
    }
}

/// A position in a list of slices.
struct Cursor<'a, 'm> {
    rest: &'a [VolatileSlice<'m>],
    /// Bytes of the first slice of `rest` that are behind us; less than its length.
    offset: usize,
}

impl<'a, 'm> Cursor<'a, 'm> {
    fn new(slices: &'a [VolatileSlice<'m>]) -> Self {
        Self {
            rest: slices,
            offset: 0,
        }
    }

    /// Bytes up to the end of the current slice.
    fn left(&self) -> Option<usize> {
        self.rest.first().map(|slice| slice.len() - self.offset)
    }

    /// Takes `bytes` of the current slice; not more than [`Self::left`] says.
    fn take(&mut self, bytes: usize) -> Option<VolatileSlice<'m>> {
        let slice = self.rest.first()?;
        let piece = slice.subslice(self.offset, bytes).ok()?;
        self.offset += bytes;
        if self.offset == slice.len() {
            self.rest = &self.rest[1..];
            self.offset = 0;
        }
        Some(piece)
    }
}

/// See [`Operand::stream`].
pub struct Stream<'a, 'm>(Cursor<'a, 'm>);

impl<'m> Stream<'_, 'm> {
    /// Hands the pieces of the next `bytes` bytes to `each`; how many, less than asked for only at
    /// the end.
    fn advance(&mut self, bytes: usize, each: &mut dyn FnMut(VolatileSlice<'m>)) -> usize {
        let mut done = 0;
        while done < bytes {
            let Some(left) = self.0.left() else { break };
            let Some(piece) = self.0.take(left.min(bytes - done)) else {
                break;
            };
            done += piece.len();
            each(piece);
        }
        done
    }
}

impl ByteStream for Stream<'_, '_> {
    fn look(
        &mut self,
        bytes: usize,
        each: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<usize, Stop> {
        Ok(self.advance(bytes, &mut |piece| each(piece)))
    }

    fn change(
        &mut self,
        bytes: usize,
        each: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<usize, Stop> {
        Ok(self.advance(bytes, &mut |piece| each(piece)))
    }

    fn skip(&mut self, bytes: u64) {
        // An operand is no longer than a slice can be.
        self.advance(bytes as usize, &mut |_| {});
    }
}

/// See [`Operand::pieces`].
pub struct Pieces<'a, 'm> {
    cursor: Cursor<'a, 'm>,
    max_bytes: usize,
}

impl<'m> Iterator for Pieces<'_, 'm> {
    type Item = VolatileSlice<'m>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.cursor.left()?.min(self.max_bytes);
        self.cursor.take(bytes)
    }
}

/// See [`Operand::pairs`].
pub struct Pairs<'a, 'm> {
    left: Cursor<'a, 'm>,
    right: Cursor<'a, 'm>,
    max_bytes: usize,
}

impl<'m> Iterator for Pairs<'_, 'm> {
    type Item = (VolatileSlice<'m>, VolatileSlice<'m>);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self
            .left
            .left()?
            .min(self.right.left()?)
            .min(self.max_bytes);
        Some((self.left.take(bytes)?, self.right.take(bytes)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn operand<'m>(buffers: &'m mut [Vec<u8>]) -> Operand<'m> {
        let mut operand = Operand::default();
        for buffer in buffers {
            operand.push(VolatileSlice::from(buffer.as_mut_slice()), Side::Own);
        }
        operand
    }

    fn read(slice: VolatileSlice<'_>) -> Vec<u8> {
        let mut bytes = vec![0; slice.len()];
        slice.copy_to(&mut bytes);
        bytes
    }

    fn buffers() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6)
    }

    proptest! {
        #[test]
        fn pieces_are_the_concatenation_cut_to_the_limit(mut parts in buffers(), max in 1usize..50) {
            let whole = parts.concat();
            let operand = operand(&mut parts);
            let pieces: Vec<_> = operand.pieces(max).map(read).collect();
            prop_assert!(pieces.iter().all(|piece| (1..=max).contains(&piece.len())));
            prop_assert_eq!(pieces.concat(), whole);
        }

        #[test]
        fn a_stream_reads_and_writes_the_concatenation_at_any_place(
            mut parts in buffers(), steps in prop::collection::vec((0usize..60, 0u8..3), 0..12),
        ) {
            let mut expected = parts.concat();
            let operand = operand(&mut parts);
            let mut stream = operand.stream();
            let mut place = 0;
            for (bytes, kind) in steps {
                let count = bytes.min(expected.len() - place);
                match kind {
                    0 => {
                        let mut found = vec![0; bytes];
                        prop_assert_eq!(stream.read(&mut found), Ok(count));
                        prop_assert_eq!(&found[..count], &expected[place..place + count]);
                    }
                    1 => {
                        let new: Vec<u8> = (0..bytes).map(|byte| byte as u8 ^ 0x5a).collect();
                        prop_assert_eq!(stream.write(&new), Ok(count));
                        expected[place..place + count].copy_from_slice(&new[..count]);
                    }
                    _ => stream.skip(bytes as u64),
                }
                place += count;
            }
            let whole: Vec<_> = operand.pieces(64).map(read).collect();
            prop_assert_eq!(whole.concat(), expected);
        }

        #[test]
        fn pairs_are_of_equal_length_and_end_with_the_shorter(
            mut left in buffers(), mut right in buffers(), max in 1usize..50,
        ) {
            let (left_whole, right_whole) = (left.concat(), right.concat());
            let common = left_whole.len().min(right_whole.len());
            let (left, right) = (operand(&mut left), operand(&mut right));
            let pairs: Vec<_> = left.pairs(&right, max).map(|(l, r)| (read(l), read(r))).collect();
            prop_assert!(pairs.iter().all(|(l, r)| l.len() == r.len() && (1..=max).contains(&l.len())));
            let (lefts, rights): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            prop_assert_eq!(lefts.concat(), &left_whole[..common]);
            prop_assert_eq!(rights.concat(), &right_whole[..common]);
        }
    }
}
