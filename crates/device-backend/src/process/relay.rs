// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Joining a connected socket to a server that only accepts.
//!
//! vhost-user-backend 0.24 makes its connections itself, with `accept` or `connect`. A
//! socket that comes connected is joined to a private one that it can accept; two
//! threads carry the messages. Only set-up passes here, never a command: rings and
//! kicks are shared memory and eventfds, whose descriptors the messages carry.

use crate::sandbox::{Role, Sandbox};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, UnixAddr, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use tracing::warn;

/// Bytes of a vhost-user header; the last four are the length of what follows.
const HEADER_BYTES: usize = 12;

/// Longest payload of a message (VHOST_USER_GET_SHMEM_CONFIG's is half of it).
const PAYLOAD_BYTES_MAX: usize = 4096;

/// Most descriptors that the kernel passes with one message (SCM_MAX_FD).
const FDS_MAX: usize = 253;

/// Two pairs of sockets, not joined yet.
pub struct PreparedRelay {
    outer: UnixStream,
    inner: UnixStream,
}

/// Two threads that carry messages between two sockets until either side hangs up.
pub struct Relay {
    threads: [JoinHandle<()>; 2],
}

impl PreparedRelay {
    /// Starts the threads.
    pub fn start(self, sandbox: &Sandbox) -> io::Result<Relay> {
        let inbound = (self.outer.try_clone()?, self.inner.try_clone()?);
        let threads = [
            spawn("relay-in", sandbox, inbound.0, inbound.1)?,
            spawn("relay-out", sandbox, self.inner, self.outer)?,
        ];
        Ok(Relay { threads })
    }
}

impl Relay {
    /// Makes ready to carry messages between `outer` and a connection that waits at the
    /// returned socket.
    pub fn prepare(outer: UnixStream) -> io::Result<(UnixListener, PreparedRelay)> {
        // A folder that only we can enter: nobody else can be the first to connect.
        let folder = tempfile::Builder::new().prefix("cdm-backend-").tempdir()?;
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path)?;
        let inner = UnixStream::connect(&path)?;
        folder.close()?;
        Ok((listener, PreparedRelay { outer, inner }))
    }

    /// Waits until both directions are closed.
    pub fn finish(self) {
        for thread in self.threads {
            // A panic in a relay was printed where it happened, and there is nothing to save.
            let _ = thread.join();
        }
    }
}

fn spawn(
    name: &str,
    sandbox: &Sandbox,
    from: UnixStream,
    to: UnixStream,
) -> io::Result<JoinHandle<()>> {
    let sandbox = sandbox.clone();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        sandbox.enter(Role::Relay);
        if let Err(error) = carry(&from, &to) {
            warn!(%error, "lost the connection behind --fd");
        }
        // Either side's end is the other's: a half-open vhost-user connection is of no use.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    })
}

/// Carries messages one way until the sender hangs up.
///
/// Message by message: descriptors travel with the first byte of theirs, and in a
/// merely byte-wise copy they could arrive with an earlier message that was still unread.
fn carry(from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    let mut message = vec![0u8; HEADER_BYTES + PAYLOAD_BYTES_MAX];
    loop {
        let mut fds = Vec::new();
        if !receive(from, &mut message[..HEADER_BYTES], &mut fds)? {
            return Ok(());
        }
        let [.., a, b, c, d] = message[..HEADER_BYTES] else {
            unreachable!("a header has twelve bytes");
        };
        let payload_bytes = u32::from_ne_bytes([a, b, c, d]) as usize;
        if payload_bytes > PAYLOAD_BYTES_MAX {
            let text = format!("a message claims {payload_bytes} bytes, more than any has");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let end = HEADER_BYTES + payload_bytes;
        if payload_bytes > 0 && !receive(from, &mut message[HEADER_BYTES..end], &mut fds)? {
            return Ok(());
        }
        send(to, &message[..end], &fds)?;
    }
}

/// Fills `buffer`; false if the sender hung up instead.
fn receive(from: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
        let mut parts = [IoSliceMut::new(&mut buffer[filled..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received: RecvMsg<'_, '_, UnixAddr> =
            match recvmsg(from.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                // SAFETY: the kernel has just made these descriptors for us and told nobody else.
                fds.extend(
                    numbers
                        .iter()
                        .map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        if received.bytes == 0 {
            return Ok(false);
        }
        filled += received.bytes;
    }
    Ok(true)
}

/// Sends all of `bytes`, the descriptors with the first of them.
fn send(to: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let mut controls = if numbers.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        let parts = [IoSlice::new(rest)];
        match sendmsg::<UnixAddr>(
            to.as_raw_fd(),
            &parts,
            controls,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(sent) => {
                rest = &rest[sent..];
                controls = &rights[..0];
            }
            Err(Errno::EINTR) => {}
            // The other side has hung up; who sends learns it from its own socket.
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
