// SPDX-License-Identifier: GPL-2.0-only

//! The parts of the guest driver that need no kernel, as an ordinary crate.
//!
//! `cdm.ko` is built by Kbuild from `cdm_main.rs`, which takes in the very same files;
//! see `Kbuild` for the commands. This crate root exists so that page allocator,
//! ages, answers, batching, choice of who copies, heat, accounting, command planning, order, looks
//! and identification run under `cargo test`,
//! on the host, against simple models.

pub mod ages;
pub mod alloc;
pub mod answer;
pub mod batch;
pub mod choice;
pub mod heat;
pub mod identity;
pub mod look;
pub mod order;
pub mod plan;
pub mod stash;
pub mod table;
pub mod tally;

/// The wire contract, under the name that it has in the kernel module.
pub(crate) use cdm_protocol as wire;
