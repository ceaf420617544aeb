// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A man between QEMU and a backend who changes what the device says it is.
//!
//! It relays vhost-user messages with their file descriptors, and spoils some
//! bytes of the config space on the way to QEMU. Everything else is the real
//! backend's.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::FromRawFd;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// VHOST_USER_GET_CONFIG.
const GET_CONFIG: u32 = 24;
/// Bit of the flags that marks a reply.
const REPLY: u32 = 1 << 2;
/// request, flags and size, 4 bytes each.
const HEADER_BYTES: usize = 12;
/// offset, size and flags of the config space message, before the bytes themselves.
const CONFIG_HEADER_BYTES: usize = 12;
/// More than any message of the protocol: memory tables and config spaces are below 1 KiB.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Most descriptors of one message (VHOST_MEMORY_BASELINE_NREGIONS).
const FDS_MAX: usize = 8;

/// Bytes to put at an offset of the config space.
#[derive(Clone, Copy, Debug)]
pub struct Spoil {
    /// Offset in the config space.
    pub offset: usize,
    /// What QEMU shall read there.
    pub bytes: &'static [u8],
}

/// Takes the place of the backend that listens at `socket`.
pub fn interpose(socket: &Path, spoil: Spoil) -> Result<()> {
    let behind = socket.with_extension("behind");
    // A socket can be connected to under any name that its file has.
    std::fs::rename(socket, &behind)
        .with_context(|| format!("cannot rename {}", socket.display()))?;
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen at {}", socket.display()))?;
    thread::spawn(move || {
        let Ok((front, _)) = listener.accept() else {
            return;
        };
        let Ok(back) = UnixStream::connect(&behind) else {
            return;
        };
        let (Ok(front_reader), Ok(back_reader)) = (front.try_clone(), back.try_clone()) else {
            return;
        };
        let requests = thread::spawn(move || relay(&front_reader, &back, None));
        // Either end going ends the other one; why it went shows there.
        let _ = relay(&back_reader, &front, Some(spoil));
        let _ = front.shutdown(std::net::Shutdown::Both);
        let _ = requests.join();
    });
    Ok(())
}

/// Passes messages on until the sender goes.
fn relay(from: &UnixStream, to: &UnixStream, spoil: Option<Spoil>) -> io::Result<()> {
    while let Some((mut message, fds)) = receive(from)? {
        if let Some(spoil) = spoil {
            change(&mut message, spoil);
        }
        send(to, &message, &fds)?;
    }
    to.shutdown(std::net::Shutdown::Both)
}

/// Changes a message if it is the config space on its way to QEMU.
fn change(message: &mut [u8], spoil: Spoil) {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(
            message.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    let is_config = word(0) == Some(GET_CONFIG) && word(4).is_some_and(|f| f & REPLY != 0);
    let Some(first) = word(HEADER_BYTES).filter(|_| is_config) else {
        return;
    };
    for (index, byte) in spoil.bytes.iter().enumerate() {
        // QEMU may ask for a part that begins behind the byte or ends before it.
        let at = (spoil.offset + index).checked_sub(first as usize);
        let place = at.and_then(|at| message.get_mut(HEADER_BYTES + CONFIG_HEADER_BYTES + at));
        if let Some(place) = place {
            *place = *byte;
        }
    }
}

/// One message: a header, and as many bytes as that says.
fn receive(from: &UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut message = vec![0; HEADER_BYTES];
    let mut fds = Vec::new();
    if !fill(from, &mut message, &mut fds)? {
        return Ok(None);
    }
    let size = u32::from_le_bytes([message[8], message[9], message[10], message[11]]) as usize;
    if size > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!("a message of {size} bytes")));
    }
    message.resize(HEADER_BYTES + size, 0);
    if size > 0 && !fill(from, &mut message[HEADER_BYTES..], &mut fds)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((message, fds)))
}

/// Reads exactly `buffer`; false if the sender went before its first byte.
fn fill(from: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut done = 0;
    while done < buffer.len() {
        let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
        let mut slices = [IoSliceMut::new(&mut buffer[done..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<UnixAddr>(from.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(new) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody
                // else knows them.
                fds.extend(
                    new.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        match received.bytes {
            0 if done == 0 => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => done += bytes,
        }
    }
    Ok(true)
}

fn send(to: &UnixStream, message: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
    let mut done = 0;
    while done < message.len() {
        let slices = [IoSlice::new(&message[done..])];
        let flags = MsgFlags::MSG_NOSIGNAL;
        done += sendmsg::<UnixAddr>(to.as_raw_fd(), &slices, control, flags, None)?;
        // They went with the first byte.
        control = &[];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_reply(offset: u32, bytes: &[u8]) -> Vec<u8> {
        let payload = CONFIG_HEADER_BYTES + bytes.len();
        let words = [
            GET_CONFIG,
            1 | REPLY,
            payload as u32,
            offset,
            bytes.len() as u32,
            0,
        ];
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain(bytes.iter().copied())
            .collect()
    }

    #[test]
    fn config_space_is_spoilt_at_its_offset() {
        let spoil = Spoil {
            offset: 2,
            bytes: b"XY",
        };
        let mut whole = config_reply(0, b"abcdef");
        change(&mut whole, spoil);
        assert_eq!(&whole[24..], b"abXYef");
        let mut part = config_reply(3, b"def");
        change(&mut part, spoil);
        assert_eq!(&part[24..], b"Yef");
    }

    #[test]
    fn other_messages_pass_as_they_are() {
        let spoil = Spoil {
            offset: 0,
            bytes: b"XY",
        };
        let mut request = config_reply(0, b"abcdef");
        request[4] = 1;
        let before = request.clone();
        change(&mut request, spoil);
        assert_eq!(request, before);
    }

    #[test]
    fn message_and_descriptor_come_through_the_relay() {
        let (client, front) = UnixStream::pair().expect("a pair");
        let (back, server) = UnixStream::pair().expect("a pair");
        thread::spawn(move || {
            relay(
                &front,
                &back,
                Some(Spoil {
                    offset: 0,
                    bytes: b"Z",
                }),
            )
        });
        let file: OwnedFd = tempfile::tempfile().expect("a file").into();
        send(&client, &config_reply(0, b"abc"), &[file]).expect("sent");
        let (message, fds) = receive(&server).expect("received").expect("a message");
        assert_eq!((&message[24..], fds.len()), (&b"Zbc"[..], 1));
        drop(client);
        assert!(receive(&server).expect("an end").is_none());
    }
}
