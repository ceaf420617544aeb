// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Telling the serving thread to end.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use vhost_user_backend::ShutdownHandle;

/// A request to stop, which reaches the serving thread wherever it waits.
pub struct Stop {
    event: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_requested: bool,
    /// Ends the connection that is being served, if there is one.
    connection: Option<ShutdownHandle>,
}

/// What the serving thread waited for.
#[derive(Debug, PartialEq, Eq)]
pub enum Woken {
    /// The descriptor is readable.
    Readable,
    /// It is time to stop.
    Stopped,
}

impl Stop {
    /// Not requested yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            state: Mutex::default(),
        })
    }

    /// Asks the serving thread to end.
    pub fn request(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_requested = true;
        if let Some(connection) = state.connection.take() {
            connection.shutdown();
        }
        // Fails only when the counter is full, and then it is readable as well.
        let _ = self.event.write(1);
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_requested
    }

    /// Has a request end this connection; at once, if it came before.
    pub fn attach(&self, connection: Option<ShutdownHandle>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (state.is_requested, &connection) {
            (true, Some(connection)) => connection.shutdown(),
            _ => state.connection = connection,
        }
    }

    /// Waits until `fd` is readable or the end is asked for.
    pub fn wait_readable(&self, fd: &impl AsRawFd) -> io::Result<Woken> {
        // SAFETY: the caller's borrow keeps the descriptor open for the whole call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let mut fds = [
            PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
            PollFd::new(fd, PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) if fds[0].any() == Some(true) => return Ok(Woken::Stopped),
                Ok(_) if fds[1].any() == Some(true) => return Ok(Woken::Readable),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
