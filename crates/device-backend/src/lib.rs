// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The coherent device memory device, served to QEMU over vhost-user.
//!
//! Three layers, each of which knows only the one above it in this list:
//!
//! - [`model`]: what the device is and does. Memory, config space, commands. No
//!   transport, no threads, no async; its input is bytes and guest memory, its
//!   output completions and effects to perform.
//! - [`vhost`]: virtqueues and vhost-user messages translated into calls of the model.
//! - [`process`]: arguments, sockets, signals, logs, exit codes.
//!
//! Beside them stand [`sandbox`] (what the process and each of its threads give up), [`fault`]
//! (what is to go wrong) and [`telemetry`] (what is seen from outside).
//!
//! The device itself is specified in `docs/reference/device.md`.

pub mod fault;
pub mod model;
pub mod process;
pub mod sandbox;
pub mod telemetry;
pub mod vhost;
