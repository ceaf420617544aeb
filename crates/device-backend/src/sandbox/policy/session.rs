// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The thread that obeys a frontend's messages: set-up, never a command.

use super::{Rule, always, only};

/// The list.
pub const RULES: &[Rule] = &[
    always(
        libc::SYS_recvmsg,
        "messages, and the descriptors that come with them",
    ),
    always(libc::SYS_recvfrom, "whether the frontend is there"),
    always(libc::SYS_sendmsg, "answers"),
    always(
        libc::SYS_getsockopt,
        "what kind of socket a channel to the frontend is",
    ),
    always(libc::SYS_epoll_ctl, "kicks are watched, or no longer"),
    always(libc::SYS_statx, "which file a memory region is"),
    always(libc::SYS_fstat, "how long the file of a memory region is"),
    always(libc::SYS_lseek, "how long the file of a memory region is"),
    only(
        libc::SYS_fcntl,
        1,
        libc::F_DUPFD_CLOEXEC as u64,
        "copies of descriptors",
    ),
    always(libc::SYS_shutdown, "the end of a connection"),
];
