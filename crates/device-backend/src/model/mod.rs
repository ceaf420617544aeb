// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device model: what the device does, whoever carries the bytes.
//!
//! A request arrives as bytes that were copied out of guest memory once. It is
//! parsed into an owned, typed value ([`Command`], [`ControlStep`]), which is then carried
//! out, in chunks that several threads may share. Nothing here logs or starts a thread,
//! and nothing but a queue's book and the link's pace waits; whatever the model cannot do
//! itself (map memory into the guest, find threads) it returns as an effect for the caller
//! to perform.

mod config;
mod device;
mod exec;
mod guest;
mod link;
mod operand;
mod pool;
mod queue;
mod request;
mod size;
mod state;
mod task;
mod translation;

#[cfg(test)]
mod tests;

pub use config::{Link, LinkSpeed, Shape};
pub use device::{Command, ControlStep, Device};
pub use guest::GuestMemory;
pub use link::{Access, Accesses, Flow, Picoseconds, Side, Timing, TimingError, Traffic};
pub use pool::{FileIdentity, Pool, PoolError};
pub use queue::{Cancellation, CommandQueue, Line, Ticket};
pub use request::{MAX_REQUEST_BYTES, Request};
pub use size::{MemorySize, MemorySizeError};
pub use task::Task;
