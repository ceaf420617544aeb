// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Vectors: what their elements are and where they lie.

use cdm_protocol::{FLAG_FLOAT, PAGE_BYTES_SMALL, Status, TRANSFER_BYTES_MAX};

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE 754 binary32.
    F32,
}

impl Number {
    /// Its size.
    pub fn bytes(self) -> usize {
        match self {
            Self::U32 | Self::F32 => 4,
            Self::U64 => 8,
        }
    }
}

/// Elements of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    /// What they are.
    pub number: Number,
    /// Bytes from the beginning of one to that of the next: a multiple of their size.
    pub stride: u64,
}

/// A stretch of whole strides: some to read, and then some without an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes to read; at its end a stride may be cut off behind its element.
    pub read: u64,
    /// Bytes to leave out.
    pub skip: u64,
}

impl Elements {
    /// Checks a header's fields; a stride of zero stands for elements without a gap.
    pub fn new(width: u16, flags: u16, stride: u64) -> Result<Self, Status> {
        let number = match (width, flags & FLAG_FLOAT != 0) {
            (4, false) => Number::U32,
            (8, false) => Number::U64,
            (4, true) => Number::F32,
            _ => return Err(Status::BAD_WIDTH),
        };
        let bytes = number.bytes() as u64;
        if !stride.is_multiple_of(bytes) || stride > TRANSFER_BYTES_MAX {
            return Err(Status::BAD_ARGUMENT);
        }
        Ok(Self {
            number,
            stride: stride.max(bytes),
        })
    }

    /// Whether one follows the other without a gap.
    pub fn is_dense(self) -> bool {
        self.stride == self.number.bytes() as u64
    }

    /// Of the bytes `[from, to)` of the operand: how many elements have some, and how many
    /// bytes those have there.
    pub fn within(self, from: u64, to: u64) -> (u64, u64) {
        let bytes = self.number.bytes() as u64;
        // Numbers of elements: the first that reaches beyond `from`, and the first at or behind `to`.
        let first = match from.checked_sub(bytes) {
            Some(end) => end / self.stride + 1,
            None => 0,
        };
        let last = to.div_ceil(self.stride);
        if from >= to || first >= last {
            return (0, 0);
        }
        let before = from.saturating_sub(first * self.stride);
        let behind = ((last - 1) * self.stride + bytes).saturating_sub(to);
        let count = last - first;
        (count, count * bytes - before - behind)
    }

    /// Whether there may be pages between two elements that none is in.
    pub fn are_sparse(self) -> bool {
        self.stride > PAGE_BYTES_SMALL
    }

    /// Cuts `total` bytes into pieces of which at most `max` bytes are read; `max` is at
    /// least one element. Of elements that are far apart each is a piece.
    pub fn pieces(self, total: u64, max: u64) -> impl Iterator<Item = Piece> {
        // Many strides at a time, or one element and the gap after it.
        let strides = match self.are_sparse() {
            true => 0,
            false => max / self.stride,
        };
        let (read, step) = match strides {
            0 => (self.number.bytes() as u64, self.stride),
            strides => (strides * self.stride, strides * self.stride),
        };
        let mut place = 0;
        std::iter::from_fn(move || {
            let left = total - place;
            if left == 0 {
                return None;
            }
            let read = read.min(left);
            let skip = step.min(left) - read;
            place += read + skip;
            Some(Piece { read, skip })
        })
    }
}

/// Bins of a histogram, all of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bins {
    /// Least value of the first bin.
    pub base: u64,
    /// Values of each bin; not zero.
    pub width: u64,
    /// How many.
    pub count: u32,
}

impl Bins {
    /// The bin that a value falls into, if there were one for each.
    pub fn bin_of(self, value: u64) -> Option<usize> {
        let bin = value.checked_sub(self.base)? / self.width;
        usize::try_from(bin).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_read_every_element_once_and_cover_all(
            number in prop_oneof![Just(Number::U32), Just(Number::U64)],
            (stride, count, max) in (1u64..40, 0u64..100, 8u64..200),
        ) {
            let bytes = number.bytes() as u64;
            let (stride, total) = (stride * bytes, count * bytes);
            let mut place = 0;
            let mut found = Vec::new();
            for piece in (Elements { number, stride }).pieces(total, max) {
                prop_assert!(piece.read <= max && piece.read > 0);
                found.extend((place..place + piece.read).step_by(stride as usize));
                place += piece.read + piece.skip;
            }
            prop_assert_eq!(place, total);
            let expected: Vec<u64> = (0..total).step_by(stride as usize).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn elements_within_a_part_are_those_that_have_bytes_there(
            number in prop_oneof![Just(Number::U32), Just(Number::U64)],
            (stride, from, length) in (1u64..6, 0u64..100, 0u64..100),
        ) {
            let bytes = number.bytes() as u64;
            let elements = Elements { number, stride: stride * bytes };
            let to = from + length;
            let shares: Vec<u64> = (0..to)
                .step_by(elements.stride as usize)
                .map(|begin| (begin + bytes).min(to).saturating_sub(begin.max(from)))
                .filter(|&share| share > 0)
                .collect();
            prop_assert_eq!(elements.within(from, to), (shares.len() as u64, shares.iter().sum()));
        }
    }
}
