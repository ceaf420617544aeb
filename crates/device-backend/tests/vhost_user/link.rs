// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device on a link that takes time.

use super::control::Client;
use super::guest::*;
use super::process::{Backend, wait_until};
use cdm_control_protocol::{AccessState, QueueState};
use cdm_protocol::*;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const COMMAND: u16 = QUEUE_FIRST_COMMAND;
/// Much longer than anything here may take, and much shorter than what is simulated.
const PROMPT: Duration = Duration::from_secs(10);
/// A latency at which a million atomics across the link take a quarter of an hour.
const SLOW_LINK: &str = "--link-model=on,link-ns=1000000";
/// A bandwidth at which 1 GiB of copying takes more than three minutes.
const SLOW_MEMORY: &str = "--link-model=on,memory-mbps=10";

fn start(arguments: &[&str]) -> (Backend, Client, Guest) {
    let backend = Backend::start_controlled(arguments);
    let client = Client::connect(&backend);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    (backend, client, guest)
}

/// The first command queue, when it has had so many requests.
fn queue_after(client: &mut Client, requests: u64) -> QueueState {
    let mut state = client.state().queues[1].clone();
    wait_until("the requests are counted", || {
        state = client.state().queues[1].clone();
        state.requests == requests
    });
    state
}

/// 64 MiB of guest memory, 8 MiB of it eight times, to the device's memory.
fn copy_in(guest: &mut Guest) -> Completion {
    let src: Vec<Range> = (0..8).map(|_| self::guest(HIGH_BASE, HIGH_BYTES)).collect();
    let dst = [device(1 << 20, 8 * HIGH_BYTES)];
    guest.command(0, header(Opcode::COPY), &src, &dst)
}

/// A copy of 1 GiB inside the device's memory.
fn long_copy(flags: u16, tag: u64) -> Vec<u8> {
    let half = 128 << 20;
    let header = CommandHeader {
        flags: flags.into(),
        ..header(Opcode::COPY)
    };
    let bytes = command(header, &[device(0, half); 8], &[device(half, half); 8]);
    let (head, ranges) = bytes.split_at(size_of::<CommandHeader>());
    match flags & FLAG_TAGGED {
        0 => bytes,
        _ => [head, tag.as_bytes(), ranges].concat(),
    }
}

#[test]
fn a_copy_across_the_link_takes_its_simulated_time_and_tells_it_to_the_picosecond() {
    let (_backend, mut client, mut guest) = start(&["--link-model=on", "--link-width=1"]);
    let begin = Instant::now();
    assert_eq!(copy_in(&mut guest).status, Status::OK);
    let elapsed = begin.elapsed();
    let lines = 1 << 20;
    // Each line comes in a packet of 84 bytes at 16 GT/s, 130 bits for 128; then two latencies.
    let picoseconds = lines * 84 * 8_125_000 / 16_000 + 500_000 + 100_000;
    let queue = queue_after(&mut client, 1);
    assert_eq!(queue.simulated_ps, Some(picoseconds));
    assert!(
        elapsed >= Duration::from_nanos(picoseconds / 1000),
        "{elapsed:?}"
    );
    let bytes = lines * 64;
    let read = AccessState {
        reads: lines,
        read_bytes: bytes,
        ..AccessState::default()
    };
    let written = AccessState {
        writes: lines,
        write_bytes: bytes,
        ..AccessState::default()
    };
    assert_eq!((queue.link, queue.own), (read, written));
}

#[test]
fn without_the_model_accesses_are_counted_and_no_time_is_told() {
    let (_backend, mut client, mut guest) = start(&["--link-width=1"]);
    assert_eq!(copy_in(&mut guest).status, Status::OK);
    let queue = queue_after(&mut client, 1);
    assert_eq!(queue.simulated_ps, None);
    assert_eq!(queue.link.read_bytes, 64 << 20);
}

#[test]
fn a_reset_ends_what_waits_for_its_time_and_what_would_have_waited() {
    let (_backend, mut client, mut guest) = start(&[SLOW_LINK]);
    let add = long_command(self::guest(SCRATCH, 8));
    let (first, second) = (guest.post(COMMAND, &add), guest.post(COMMAND, &add));
    // All additions of the first are made; its time is not over for long.
    wait_until("it is added", || {
        guest.read(SCRATCH, 8) == u64::from(REPEAT_MAX).to_le_bytes()
    });
    let begin = Instant::now();
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    assert_eq!((reset.status, reset.result.get()), (Status::OK, 1));
    // It was done, and said so as soon as it was in a hurry.
    let done = guest.wait(COMMAND, &first);
    assert_eq!(done.status, Status::OK);
    assert_eq!(done.bytes_done.get(), 8 * u64::from(REPEAT_MAX));
    assert_eq!(guest.wait(COMMAND, &second).status, Status::CANCELLED);
    assert_eq!(guest.read(SCRATCH, 8), u64::from(REPEAT_MAX).to_le_bytes());
    let queue = queue_after(&mut client, 2);
    assert_eq!(queue.link.atomics, u64::from(REPEAT_MAX));
    assert_eq!(
        queue.simulated_ps,
        Some(u64::from(REPEAT_MAX) * 1_000_000_000)
    );
}

#[test]
fn a_cancel_ends_a_copy_where_its_time_has_come_to() {
    let (_backend, mut client, mut guest) = start(&[SLOW_MEMORY]);
    let copy = guest.post(COMMAND, &long_copy(FLAG_TAGGED, 7));
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    let cancel = guest.control(ControlOpcode::CANCEL, 7, COMMAND.into());
    assert_eq!((cancel.status, cancel.result.get()), (Status::OK, 1));
    let done = guest.wait(COMMAND, &copy);
    assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    assert_eq!(done.status, Status::CANCELLED);
    // A piece of 512 KiB takes a tenth of a second, and each engine may have one in hand.
    let bytes = done.bytes_done.get();
    assert!(bytes > 0 && bytes < 256 << 20, "{bytes}");
    let queue = queue_after(&mut client, 1);
    assert_eq!(
        (queue.own.read_bytes, queue.own.write_bytes),
        (bytes, bytes)
    );
}

#[test]
fn a_pause_of_the_machine_does_not_wait_for_simulated_time() {
    let (_backend, _client, mut guest) = start(&[SLOW_LINK]);
    let add = guest.post(COMMAND, &long_command(self::guest(SCRATCH, 8)));
    wait_until("it is added", || {
        guest.read(SCRATCH, 8) == u64::from(REPEAT_MAX).to_le_bytes()
    });
    let begin = Instant::now();
    guest.pause_and_go_on();
    assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    assert_eq!(guest.wait(COMMAND, &add).status, Status::OK);

    let (_backend, _client, mut guest) = start(&[SLOW_MEMORY]);
    let copy = guest.post(COMMAND, &long_copy(0, 0));
    std::thread::sleep(Duration::from_millis(50));
    let begin = Instant::now();
    guest.pause_and_go_on();
    assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    let done = guest.wait(COMMAND, &copy);
    assert_eq!((done.status, done.bytes_done.get()), (Status::OK, 1 << 30));
}

#[test]
fn the_trace_tells_how_long_a_command_takes_on_the_link() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let trace = format!("--trace={}", file.to_str().unwrap());
    let (mut backend, _client, mut guest) = start(&["--link-model=on", &trace]);
    let add = CommandHeader {
        width: 4.into(),
        repeat: 3.into(),
        ..header(Opcode::FETCH_ADD)
    };
    guest.command(0, add, &[], &[self::guest(SCRATCH, 4)]);
    drop(guest);
    let (status, log) = backend.end_by("TERM");
    assert!(status.success(), "{log}");
    let text = std::fs::read_to_string(file).unwrap();
    let events: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let event = events.iter().find(|event| event["name"] == "FETCH_ADD");
    assert_eq!(event.unwrap()["args"]["simulated_us"], 1.5);
}
