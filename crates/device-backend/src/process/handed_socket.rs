// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The socket of `--fd`: inherited, connected to one guest or listening for it.

use super::relay::{PreparedRelay, Relay};
use crate::sandbox::Sandbox;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use vhost::vhost_user::Listener;

/// The socket, before there is a thread to carry what comes from it.
pub enum ClaimedSocket {
    /// It listens.
    Listening(UnixListener),
    /// It came connected; its number, for messages, and what joins it.
    Connected(RawFd, (UnixListener, PreparedRelay)),
}

/// Where the one guest is met.
pub struct HandedSocket {
    listener: Listener,
    /// Carries the messages if the guest's socket came connected.
    relay: Option<Relay>,
}

/// Why the descriptor is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HandedSocketError {
    /// It is no socket, or not even open.
    #[error(
        "--fd {fd} is not an open socket: {source}; pass the number of an inherited Unix socket, connected or listening"
    )]
    NotASocket {
        /// The number.
        fd: RawFd,
        /// What the kernel said.
        source: Errno,
    },
    /// The private socket could not be made.
    #[error(
        "cannot join --fd {fd} to the vhost-user server: {source}; see that TMPDIR is writable"
    )]
    Join {
        /// The number.
        fd: RawFd,
        /// Why not.
        source: io::Error,
    },
}

impl ClaimedSocket {
    /// Takes over descriptor number `fd`.
    ///
    /// # Safety
    ///
    /// Nothing else in this process may own the descriptor.
    pub unsafe fn claim(fd: RawFd) -> Result<Self, HandedSocketError> {
        if fd < 0 {
            return Err(HandedSocketError::NotASocket {
                fd,
                source: Errno::EBADF,
            });
        }
        // SAFETY: only asked what it is; if it is not open, the kernel says so.
        let asked = unsafe { BorrowedFd::borrow_raw(fd) };
        let is_listening = getsockopt(&asked, sockopt::AcceptConn)
            .map_err(|source| HandedSocketError::NotASocket { fd, source })?;
        // SAFETY: it is open, since it answered, and by the function's contract nobody else's.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        if is_listening {
            return Ok(Self::Listening(UnixListener::from(owned)));
        }
        let relay = Relay::prepare(UnixStream::from(owned))
            .map_err(|source| HandedSocketError::Join { fd, source })?;
        Ok(Self::Connected(fd, relay))
    }

    /// Starts what carries the messages.
    pub fn start(self, sandbox: &Sandbox) -> Result<HandedSocket, HandedSocketError> {
        match self {
            Self::Listening(listener) => Ok(HandedSocket {
                listener: Listener::from(listener),
                relay: None,
            }),
            Self::Connected(fd, (listener, relay)) => {
                let relay = relay
                    .start(sandbox)
                    .map_err(|source| HandedSocketError::Join { fd, source })?;
                Ok(HandedSocket {
                    listener: Listener::from(listener),
                    relay: Some(relay),
                })
            }
        }
    }
}

impl HandedSocket {
    /// Where the guest arrives.
    pub fn listener(&mut self) -> &mut Listener {
        &mut self.listener
    }

    /// Waits until the last message is on its way.
    pub fn finish(self) {
        if let Some(relay) = self.relay {
            relay.finish();
        }
    }
}
