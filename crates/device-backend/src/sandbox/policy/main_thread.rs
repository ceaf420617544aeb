// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The main thread: signals, and what is asked for at the control socket.

use super::{Rule, always, only};

/// The list.
pub const RULES: &[Rule] = &[
    always(libc::SYS_epoll_wait, "the async runtime waits"),
    always(libc::SYS_epoll_ctl, "the async runtime watches sockets"),
    always(
        libc::SYS_accept4,
        "clients of the control socket and of the metrics",
    ),
    always(
        libc::SYS_recvfrom,
        "what they say, and the signals' own socket",
    ),
    always(
        libc::SYS_sendto,
        "answers to them, and the signals' own socket",
    ),
    always(libc::SYS_shutdown, "the end of an answer"),
    always(libc::SYS_getsockopt, "errors of sockets"),
    always(libc::SYS_ioctl, "descriptors without blocking"),
    only(libc::SYS_fcntl, 1, libc::F_GETFL as u64, "whether they are"),
    always(
        libc::SYS_newfstatat,
        "whether a socket's file is still ours",
    ),
    always(libc::SYS_statx, "whether a socket's file is still ours"),
    always(
        libc::SYS_unlinkat,
        "our sockets' files go with us; landlock says where",
    ),
];
