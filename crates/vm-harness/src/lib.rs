// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the host tool `cdm` does: bring the parts together (kernel, driver,
//! backend, guest files), boot them as a machine, and test it.
//!
//! Everything here runs inside the toolbox that `ci/just` makes, so that the
//! tools it starts (make, cargo, QEMU) are those of one distribution release on
//! every machine.

#[cfg(test)]
mod arguments;
pub mod behaviour;
pub mod bench;
pub mod bench_backend;
pub mod book;
pub mod build;
pub mod cache;
mod calendar;
pub mod clean;
pub mod command;
pub mod context;
pub mod deny;
pub mod dev;
pub mod device;
pub mod doctor;
mod evidence;
pub mod fuzz;
mod git;
pub mod guest;
mod html;
pub mod ide;
pub mod image;
mod junit;
pub mod junit_page;
pub mod litmus;
pub mod logs;
mod markdown;
pub mod mutants;
pub mod package;
pub mod progress;
pub mod reference;
pub mod report;
mod results;
mod runs;
mod schema;
pub mod series_check;
pub mod stress;
pub mod test;
pub mod vm;

pub use context::Context;
