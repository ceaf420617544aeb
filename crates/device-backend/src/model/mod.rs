// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device model: what the device does, whoever carries the bytes.
//!
//! A request arrives as bytes that were copied out of guest memory once. It is
//! parsed into an owned, typed value ([`Command`], [`ControlStep`]), which is then carried
//! out, in chunks that several threads may share. Nothing here logs or starts a thread,
//! and nothing waits but a queue's book, the link's pace and, for the driver or for each other,
//! the users of translated memory; whatever the model cannot do itself (map memory into the
//! guest, find threads) it returns as an effect for the caller to perform.

mod access;
mod alarm;
mod asking;
mod atomics;
mod bad;
mod config;
mod device;
mod exec;
mod guest;
mod link;
mod memory;
mod operand;
mod operands;
mod pool;
mod queue;
mod request;
mod size;
mod state;
mod task;
mod translation;

#[cfg(test)]
mod tests;

pub use asking::{Asking, PageAsker};
pub use atomics::Atomics;
use bad::FailedMemory;
pub use bad::PageSet;
pub use config::{Link, LinkSpeed, Shape};
pub use device::{Command, ControlStep, Device, Means};
pub use guest::GuestMemory;
pub use link::{Access, Accesses, Flow, Picoseconds, Side, Timing, TimingError, Traffic};
pub use pool::{FileIdentity, Pool, PoolError};
pub use queue::{Cancellation, CommandQueue, Line, Ticket};
pub use request::{MAX_REQUEST_BYTES, Request};
pub use size::{MemorySize, MemorySizeError};
pub use task::Task;
pub use translation::{Capacity, Counted, Translated};
