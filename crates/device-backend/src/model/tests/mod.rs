// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The model driven step by step, without transport or threads.

mod fixture;
mod operations;
mod reference;
mod refusals;
mod reset;
