// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands on memory of processes.

mod counts;
mod driver;
mod ends;
mod exclusive;
mod invalidation;
mod same;
mod statuses;
mod time;
