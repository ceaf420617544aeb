// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vhost-user adapter: virtqueues and vhost-user messages become calls of the
//! model, and the model's answers go back the same way. It decides nothing about
//! commands.
//!
//! Threads: one reads the vhost-user socket, one worker serves the control queue, and
//! one each command queue (these belong to `vhost-user-backend`); engines carry out
//! unordered commands, and help with large ones. Locks, none of which is held while
//! another thread is waited for, except where it says so:
//!
//! - a turn per queue, held from taking a chain to completing it, or to handing it to an
//!   engine; engines never take one, so whoever has a turn may wait for them;
//! - the vring's own lock, held for one operation on the ring;
//! - the model's state, held for a look or a change.

mod adapter;
mod chain;
mod command;
mod connection;
mod control;
mod engines;
mod events;
mod guest_view;
mod mapper;
mod passage;
mod ring;
mod turn;
mod vring;

pub use adapter::{Adapter, Parts};
pub use connection::{Connection, ConnectionError};
