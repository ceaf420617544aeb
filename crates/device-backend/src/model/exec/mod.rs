// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Carrying out commands on memory that others use at the same time.
//!
//! Nothing here forms a reference into shared memory. Bytes are copied with
//! vm-memory's primitives, to and from a bounce buffer where the bytes themselves
//! are looked at, and atomics work on the mapped address.
//!
//! Every loop asks after each piece whether it is cancelled, so a RESET waits for
//! one piece at most.

mod atomic;
mod transfer;

pub use atomic::{Word, compare_swap, fetch_add};
pub use transfer::{checksum, compare, copy, fill};

use cdm_protocol::{Completion, Status};
use zerocopy::FromZeros;

/// How far a command came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Value for `result` if the command was finished.
    pub result: u64,
    /// Value for `bytes_done`.
    pub bytes_done: u64,
    /// Whether the command ended by itself.
    pub finished: bool,
}

impl Progress {
    /// Cut short by a cancellation.
    pub fn cancelled(bytes_done: u64) -> Self {
        Self {
            result: 0,
            bytes_done,
            finished: false,
        }
    }

    /// Came to its end.
    pub fn finished(result: u64, bytes_done: u64) -> Self {
        Self {
            result,
            bytes_done,
            finished: true,
        }
    }
}

impl From<Progress> for Completion {
    fn from(progress: Progress) -> Self {
        let status = if progress.finished {
            Status::OK
        } else {
            Status::CANCELLED
        };
        Self {
            status,
            result: progress.result.into(),
            bytes_done: progress.bytes_done.into(),
            ..Self::new_zeroed()
        }
    }
}
