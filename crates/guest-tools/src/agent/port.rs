// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's end of the port: a virtio-serial port, or in tests a socket.
//!
//! The driver reports a host that has not opened its side as a hang-up: reads give
//! nothing then, and writes are refused.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// As much as the driver moves at a time.
const READ_BYTES: usize = 32 << 10;

/// Whether the host is at the other end.
#[derive(Debug, PartialEq, Eq)]
pub enum PortState {
    /// It is.
    Open,
    /// It is not, or no more.
    Closed,
}

/// Opens a port by the path of its node.
pub fn open(path: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot open {path}: {error}")))?;
    Ok(file.into())
}

/// A non-blocking byte stream to the host.
pub struct Port {
    file: File,
    buffer: Vec<u8>,
}

impl Port {
    /// Takes a descriptor, and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> Self {
        // A descriptor that is open cannot refuse this flag.
        let _ = fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        Self {
            file: File::from(fd),
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Reads what is there.
    pub fn read_into(&mut self, mut sink: impl FnMut(&[u8])) -> io::Result<PortState> {
        loop {
            match self.file.read(&mut self.buffer) {
                Ok(0) => return Ok(PortState::Closed),
                Ok(length) => sink(&self.buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(PortState::Open),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok(PortState::Closed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes from the front of `queue` what the port takes now.
    pub fn write_from(&mut self, queue: &mut VecDeque<u8>) -> io::Result<()> {
        while !queue.is_empty() {
            match self.file.write(queue.as_slices().0) {
                Ok(0) => return Ok(()),
                Ok(length) => drop(queue.drain(..length)),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(()),
                    ErrorKind::Interrupted => {}
                    // The next read finds that the host is gone.
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Whether the host has opened its side.
    pub fn peer_is_there(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO)?;
        let events = fds[0].revents().unwrap_or(PollFlags::empty());
        Ok(!events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
