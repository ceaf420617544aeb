// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the process ends.

use std::process::Termination;

/// Exit codes, as `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Ended as asked: by a signal, or with the guest of `--fd`.
    Done = 0,
    /// Failed while serving.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Could not start: no memory, or the socket is not to be had.
    CannotStart = 3,
    /// A thread made a system call that the sandbox forbids.
    Forbidden = 4,
}

impl Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        std::process::ExitCode::from(self as u8)
    }
}
