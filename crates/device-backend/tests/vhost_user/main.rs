// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The real program, driven as QEMU and a guest driver drive it: a vhost-user
//! frontend with rings in shared memory.

mod accesses;
mod arguments;
mod control;
mod faults;
mod guest;
mod hostile;
mod lifetime;
mod link;
mod malformed;
mod memory_error;
mod process;
mod queue;
mod reset;
mod sandbox;
mod serving;
mod telemetry;
mod translation;
mod unordered;
