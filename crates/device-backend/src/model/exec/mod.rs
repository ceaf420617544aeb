// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Carrying out commands on memory that others use at the same time.
//!
//! Nothing here forms a reference into shared memory. Bytes are copied with
//! vm-memory's primitives, to and from a bounce buffer where the bytes themselves
//! are looked at, and atomics work on the mapped address.
//!
//! Every loop asks after each piece whether it is cancelled, so a RESET waits for
//! one piece at most. The streaming commands come as pieces, and do not ask.

mod atomic;
mod chase;
mod crc;
mod histogram;
mod program;
mod transfer;
mod vector;
mod word;

pub use atomic::{OneWord, Words, compare_swap, fetch_add};
pub use chase::chase;
pub use crc::join as join_crcs;
pub use histogram::histogram;
pub use program::program;
pub use transfer::{checksum, compare, copy, copy_through_buffer, fill};
pub use vector::{AxpyStreams, axpy, sum};
pub use word::Word;

use super::access::Stop;
use cdm_protocol::{Completion, Status};
use zerocopy::FromZeros;

/// How far a command came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Value for `result` if the command was finished.
    pub result: u64,
    /// Value for `bytes_done`.
    pub bytes_done: u64,
    /// How the command ended.
    pub status: Status,
    /// Bytes of each operand that were looked at: `bytes_done`, unless it is said otherwise.
    pub touched: u64,
    /// The range that a bad status speaks of.
    pub range_index: u32,
}

impl Progress {
    /// Cut short by a cancellation.
    pub fn cancelled(bytes_done: u64) -> Self {
        Self::stopped(Status::CANCELLED, bytes_done)
    }

    /// Came upon something that it cannot go on with.
    pub fn stopped(stop: impl Into<Stop>, bytes_done: u64) -> Self {
        let Stop {
            status,
            range_index,
        } = stop.into();
        Self {
            result: 0,
            bytes_done,
            status,
            touched: bytes_done,
            range_index,
        }
    }

    /// Came to its end.
    pub fn finished(result: u64, bytes_done: u64) -> Self {
        Self {
            result,
            bytes_done,
            status: Status::OK,
            touched: bytes_done,
            range_index: 0,
        }
    }

    /// Looked at so many bytes of each operand for it.
    pub fn touching(self, touched: u64) -> Self {
        Self { touched, ..self }
    }
}

impl From<Progress> for Completion {
    fn from(progress: Progress) -> Self {
        Self {
            status: progress.status,
            range_index: progress.range_index.into(),
            result: progress.result.into(),
            bytes_done: progress.bytes_done.into(),
            ..Self::new_zeroed()
        }
    }
}
