// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The model driven step by step, without transport or threads.

mod compute;
mod fixture;
mod operations;
mod program;
mod reference;
mod refusals;
mod reset;
