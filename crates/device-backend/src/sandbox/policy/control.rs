// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The worker of the control queue.

use super::{Rule, always};

/// The list.
pub const RULES: &[Rule] = &[
    always(libc::SYS_epoll_wait, "waits for kicks"),
    always(
        libc::SYS_sendmsg,
        "asks the frontend to map the device memory",
    ),
    always(libc::SYS_recvmsg, "its answer"),
];
