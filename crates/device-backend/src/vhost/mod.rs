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
//!   engine; engines never take one but the event queue's, so whoever has another one may wait
//!   for them;
//! - the vring's own lock, held for one operation on the ring;
//! - the event queue's turn, the last of the turns to be taken, held for the delivery of one
//!   event;
//! - the model's state, held for a look or a change.
//!
//! Who runs out of work looks for more for a while before it sleeps ([`poll`]), with no turn and
//! no lock held.
//!
//! A command that waits for the driver's pages may have its queue's turn meanwhile. Whoever
//! needs that turn has the command stop first: a RESET, a stop of the ring, the guest's end.

mod adapter;
mod asker;
mod chain;
mod command;
mod connection;
mod control;
mod engines;
mod events;
mod guest_view;
mod mapper;
mod passage;
mod poll;
mod ring;
mod turn;
mod vring;

pub use adapter::{Adapter, Bell, Parts};
pub use connection::{Connection, ConnectionError};
