// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The serving thread: takes guests in, and starts the threads that serve them.

use super::{Rule, always, masked, only};

/// What makes a thread and no process.
const THREAD: u64 = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;

/// The C library's own signal, by which threads tell each other of new user numbers.
const SIGSETXID: u64 = 33;

/// The list, without what the threads need that inherit it.
pub const RULES: &[Rule] = &[
    always(libc::SYS_poll, "waits for a guest"),
    always(libc::SYS_accept4, "takes it in"),
    always(libc::SYS_accept, "takes it in"),
    always(libc::SYS_eventfd2, "a worker's end is told by an eventfd"),
    always(
        libc::SYS_epoll_create1,
        "a worker waits for its queues' kicks",
    ),
    always(libc::SYS_epoll_ctl, "a worker's eventfd is watched"),
    masked(libc::SYS_clone, 0, THREAD, THREAD, "workers"),
    only(
        libc::SYS_rt_sigaction,
        0,
        SIGSETXID,
        "the C library, before the first thread",
    ),
    only(
        libc::SYS_fcntl,
        1,
        libc::F_DUPFD_CLOEXEC as u64,
        "copies of descriptors",
    ),
    always(libc::SYS_shutdown, "the end of a connection"),
];
