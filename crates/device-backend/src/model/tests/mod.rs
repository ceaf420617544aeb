// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The model driven step by step, without a transport.

mod compute;
mod errors;
mod fixture;
mod operations;
mod parallel;
mod process;
mod program;
mod reference;
mod refusals;
mod reset;
mod traffic;
