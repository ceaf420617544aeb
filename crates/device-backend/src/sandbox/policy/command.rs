// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A worker of a command queue, or an engine: a thread that does what a guest asks. It computes, and
//! needs next to nothing.

use super::{Rule, always};

/// The list.
pub const RULES: &[Rule] = &[always(libc::SYS_epoll_wait, "waits for kicks")];
