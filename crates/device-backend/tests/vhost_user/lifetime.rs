// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From start to end of the process, and what outlives a guest.

use super::guest::*;
use super::process::{Backend, TIMEOUT, make_stale_socket, program, wait_until};
use cdm_protocol::*;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::time::Instant;

/// Starts a backend that inherits `socket` as descriptor 9.
fn start_with_fd(socket: &impl AsRawFd) -> Child {
    let fd = socket.as_raw_fd();
    let mut command = program();
    command.args([
        "--fd",
        "9",
        "--memory-size",
        "256M",
        "--command-queues",
        "2",
    ]);
    let hand_over = move || {
        // SAFETY: no memory is involved, and the descriptor replaced is none of the child's.
        match unsafe { libc::dup2(fd, 9) } {
            9 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: dup2 is async-signal-safe, and reading errno is too.
    unsafe { command.pre_exec(hand_over) };
    command.spawn().unwrap()
}

fn wait(mut child: Child) -> ExitStatus {
    let start = Instant::now();
    while start.elapsed() < TIMEOUT {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    panic!("the backend did not end with its guest");
}

#[test]
fn device_memory_outlives_a_guest_and_set_up_does_not() {
    let backend = Backend::start();
    {
        let mut first = Guest::connect(&backend.socket_path());
        first.map();
        first.bar_write(123, b"left behind");
        first.control(ControlOpcode::SET_METADATA, 0, 0x1000);
        first.hang_up();
    }
    let mut second = Guest::connect(&backend.socket_path());
    let unmapped = second.command(0, header(Opcode::CHECKSUM), &[device(0, 1)], &[]);
    assert_eq!(unmapped.status, Status::NOT_MAPPED);
    second.map();
    assert_eq!(second.bar_read(123, 11), b"left behind");
    let free = second.command(0, header(Opcode::CHECKSUM), &[device(0, 1)], &[]);
    assert_eq!(free.status, Status::OK);
}

#[test]
fn a_guest_that_comes_while_another_is_served_waits_for_its_turn() {
    let backend = Backend::start();
    let mut first = Guest::connect(&backend.socket_path());
    let waiting = UnixStream::connect(backend.socket_path()).unwrap();
    first.map();
    first.hang_up();
    drop(first);
    Guest::from_stream(waiting).map();
}

#[test]
fn sigterm_and_sigint_end_it_with_code_0_and_take_the_socket_away() {
    for signal in ["TERM", "INT"] {
        let mut backend = Backend::start();
        let path = backend.socket_path();
        let (status, log) = backend.end_by(signal);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!path.exists());
    }
}

#[test]
fn sigterm_ends_it_promptly_with_a_guest_connected_and_a_command_running() {
    let mut backend = Backend::start();
    let path = backend.socket_path();
    let mut guest = Guest::connect(&path);
    guest.map();
    for _ in 0..50 {
        guest.post(QUEUE_FIRST_COMMAND, &long_command(device(0, 8)));
    }
    let begin = Instant::now();
    let (status, log) = backend.end_by("TERM");
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(begin.elapsed().as_secs() < 5);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    make_stale_socket(&path);
    let mut child = program().arg("--socket-path").arg(&path).spawn().unwrap();
    wait_until("it listens", || UnixStream::connect(&path).is_ok());
    Guest::connect(&path).map();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_socket_that_somebody_took_over_is_not_removed_at_the_end() {
    let mut backend = Backend::start();
    let path = backend.socket_path();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    assert!(backend.end_by("TERM").0.success());
    assert!(path.exists());
}

#[test]
fn with_a_connected_fd_it_serves_that_guest_and_ends_with_it() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = start_with_fd(&theirs);
    drop(theirs);
    let mut guest = Guest::from_stream(ours);
    guest.map();
    guest.bar_write(0, b"123456789");
    let crc = guest.command(1, header(Opcode::CHECKSUM), &[device(0, 9)], &[]);
    assert_eq!((crc.status, crc.result.get()), (Status::OK, 0xe306_9283));
    guest.hang_up();
    drop(guest);
    assert_eq!(wait(child).code(), Some(0));
}

#[test]
fn with_a_listening_fd_it_serves_the_first_guest_and_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let child = start_with_fd(&listener);
    drop(listener);
    let mut guest = Guest::connect(&path);
    guest.map();
    guest.hang_up();
    drop(guest);
    assert_eq!(wait(child).code(), Some(0));
}

#[test]
fn resident_memory_grows_only_with_touched_pages() {
    let backend = Backend::start_with(&["--memory-size", "64G", "--command-queues", "1"]);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    // As large as the memory may be, and whatever is in the tables for it.
    let own_bytes = 16 << 20;
    let before = backend.resident_bytes();
    assert!(
        before < own_bytes,
        "{before} bytes before anything was touched"
    );
    let fill = CommandHeader {
        width: 8.into(),
        arg0: 1.into(),
        ..header(Opcode::FILL)
    };
    let filled = guest.command(0, fill, &[], &[device(63 << 30, 32 << 20)]);
    assert_eq!(filled.status, Status::OK);
    let touched = 32 << 20;
    let resident = backend.resident_bytes();
    assert!(
        (touched..touched + touched / 100 + own_bytes).contains(&resident),
        "{resident} bytes with 32 MiB touched"
    );
}
