// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests: from bytes to checked values.
//!
//! Bytes come in as the wire structures of [`cdm_protocol`], in which every value is
//! possible. What leaves this module has the right form: known operation, right
//! number of ranges, lengths within the limits. Whether the memory exists is found
//! out when the request is carried out, against the state at that time.

mod code;
mod command;
mod control;
mod elements;
mod page_entry;
mod range;

use cdm_protocol::{CommandHeader, CommandTag, Completion, RANGES_MAX, Range, Status};
use zerocopy::FromZeros;

pub use code::{Action, Code};
pub use command::{AtomicWidth, FillPattern, Operation, ParsedCommand};
pub use control::ControlOperation;
pub use elements::{Bins, Elements, Number};
pub use range::{Extent, Place, total_bytes};

/// Longest request that the device takes; the rest of a longer one is not looked at.
pub const MAX_REQUEST_BYTES: usize =
    size_of::<CommandHeader>() + size_of::<CommandTag>() + RANGES_MAX * size_of::<Range>();

/// The device-readable part of one descriptor chain, copied out of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    bytes: &'a [u8],
    total: u64,
}

impl<'a> Request<'a> {
    /// A request of `total` bytes, of which `bytes` are the first.
    ///
    /// The caller may leave out what lies beyond [`MAX_REQUEST_BYTES`].
    pub fn new(bytes: &'a [u8], total: u64) -> Self {
        debug_assert!(bytes.len() as u64 == total || bytes.len() >= MAX_REQUEST_BYTES);
        Self { bytes, total }
    }

    /// The first bytes of the request.
    fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of the whole request.
    fn total(&self) -> u64 {
        self.total
    }
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the driver is told.
    pub status: Status,
    /// The range that is to blame, source list first, or the instruction.
    pub range_index: u32,
}

impl Refusal {
    /// A refusal that no single range is to blame for.
    pub fn of(status: Status) -> Self {
        Self {
            status,
            range_index: 0,
        }
    }

    /// A refusal for the sake of one range.
    pub fn of_range(status: Status, range_index: usize) -> Self {
        Self {
            status,
            // Lists hold at most RANGES_MAX ranges.
            range_index: range_index as u32,
        }
    }
}

impl From<Refusal> for Completion {
    fn from(refusal: Refusal) -> Self {
        Self {
            status: refusal.status,
            range_index: refusal.range_index.into(),
            ..Self::new_zeroed()
        }
    }
}
