// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The wire contract of the coherent device memory device.
//!
//! Backend, kernel module, guest tools and tests compile the one definition in
//! `wire.rs`. The kernel module includes that very file with `#[path]`, which is
//! why it uses `core` and `zerocopy` alone and keeps to Rust 2021. The prose that
//! goes with it is `docs/reference/device.md`; the tests of this crate compare the
//! tables there with the code.

#![no_std]

mod wire;

pub use wire::*;

#[cfg(test)]
mod tests;
