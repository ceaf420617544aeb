// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A thread that carries vhost-user messages to or from the socket of `--fd`.

use super::{Rule, always};

/// The list.
pub const RULES: &[Rule] = &[
    always(
        libc::SYS_recvmsg,
        "messages, and the descriptors that come with them",
    ),
    always(libc::SYS_sendmsg, "the same"),
    always(libc::SYS_shutdown, "either side's end is the other's"),
];
