// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is said at the control socket of `cdm-backend`: one JSON object a line, each way.
//!
//! The crate does no I/O. `docs/reference/control-socket.md` is the description; a test
//! reads its examples with the types of this crate.

mod fault;
mod message;
mod operation;
mod state;

pub use fault::{Fault, FaultError, FaultKind};
pub use message::{Ask, Request, RequestError, Response};
pub use operation::{Operation, UnknownOperation};
pub use state::{
    AccessCounterState, AccessState, FaultState, PageStretch, QueueKind, QueueState, State,
};

/// Version of everything here. An addition does not change it; what an old client could
/// misread does.
pub const VERSION: u32 = 1;

/// Longest line that either side sends, its end included.
pub const LINE_BYTES_MAX: usize = 64 << 10;
