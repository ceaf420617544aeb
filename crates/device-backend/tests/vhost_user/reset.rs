// SPDX-License-Identifier: Apache-2.0 OR MIT

//! RESET, a virtio reset, a pause.

use super::guest::*;
use super::process::Backend;
use cdm_protocol::*;
use std::time::{Duration, Instant};

const COMMAND: u16 = QUEUE_FIRST_COMMAND;

fn start() -> (Backend, Guest) {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    (backend, guest)
}

/// A copy of 1 GiB in 256 ranges: long, and slow enough to be caught running.
fn long_copy() -> Vec<u8> {
    let half = 128 << 20;
    let ranges: Vec<Range> = (0..8).map(|_| device(0, half)).collect();
    let others: Vec<Range> = (0..8).map(|_| device(half, half)).collect();
    command(header(Opcode::COPY), &ranges, &others)
}

#[test]
fn reset_fails_the_running_and_the_waiting_commands_of_all_queues_and_counts_them() {
    let (_backend, mut guest) = start();
    let pending: Vec<(u16, Pending)> = (0..10)
        .flat_map(|_| [COMMAND, COMMAND + 1])
        .map(|queue| (queue, guest.post(queue, &long_copy())))
        .collect();
    let begin = Instant::now();
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(reset.status, Status::OK);
    // Every command has its completion before the RESET has its own.
    let mut cancelled = 0;
    for (queue, pending) in &pending {
        let ring = &mut guest.queues[usize::from(*queue)];
        assert!(ring.poll_used().is_some(), "a command outlived the RESET");
        match guest.completion(pending).status {
            Status::CANCELLED => cancelled += 1,
            status => assert_eq!(status, Status::OK),
        }
    }
    assert!(cancelled >= 18, "{cancelled} of 20 were cancelled");
    assert_eq!(reset.result.get(), cancelled);
    for queue in [COMMAND, COMMAND + 1] {
        assert_eq!(guest.request(queue, &nop()).status, Status::OK);
    }
}

#[test]
fn reset_reaches_commands_that_were_posted_without_a_kick() {
    let (_backend, mut guest) = start();
    let pending: Vec<_> = (0..5)
        .map(|_| guest.post_silently(COMMAND, &nop()))
        .collect();
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!(reset.status, Status::OK);
    // A worker that only now comes to look at its queue for the first time may have done some.
    let ends: Vec<_> = pending
        .iter()
        .map(|pending| guest.wait(COMMAND, pending).status)
        .collect();
    let done = ends.iter().take_while(|end| **end == Status::OK).count();
    assert!(ends[done..].iter().all(|end| *end == Status::CANCELLED));
    assert_eq!(reset.result.get(), (ends.len() - done) as u64);
    // The driver comes to its kick only now.
    guest.queues[usize::from(COMMAND)].kick_if_wanted(5);
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
}

#[test]
fn reset_of_an_idle_device_fails_nothing() {
    let (_backend, mut guest) = start();
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!((reset.status, reset.result.get()), (Status::OK, 0));
}

#[test]
fn reset_keeps_memory_mapping_and_metadata() {
    let (_backend, mut guest) = start();
    guest.bar_write(0x1000, b"123456789");
    guest.control(ControlOpcode::SET_METADATA, 0, 0x1000);
    guest.control(ControlOpcode::RESET, 0, 0);
    let crc = guest.command(0, header(Opcode::CHECKSUM), &[device(0x1000, 9)], &[]);
    assert_eq!((crc.status, crc.result.get()), (Status::OK, 0xe306_9283));
    let guarded = guest.command(0, header(Opcode::CHECKSUM), &[device(0, 1)], &[]);
    assert_eq!(guarded.status, Status::PROTECTED);
    assert_eq!(guest.maps(), 1);
}

#[test]
fn after_a_virtio_reset_memory_is_kept_and_must_be_mapped_again() {
    let (_backend, mut guest) = start();
    guest.bar_write(0, &[42]);
    guest.control(ControlOpcode::SET_METADATA, 0, 0x1000);
    guest.virtio_reset();
    let unmapped = guest.command(0, header(Opcode::CHECKSUM), &[device(0, 1)], &[]);
    assert_eq!(unmapped.status, Status::NOT_MAPPED);
    guest.map();
    assert_eq!(guest.maps(), 2);
    assert_eq!(guest.bar_read(0, 1), [42]);
    // The metadata went with the driver that had declared it.
    let free = guest.command(0, header(Opcode::CHECKSUM), &[device(0, 1)], &[]);
    assert_eq!(free.status, Status::OK);
}

#[test]
fn a_virtio_reset_waits_for_the_running_command_and_forgets_the_waiting_ones() {
    let (_backend, mut guest) = start();
    let running = guest.post(COMMAND, &long_copy());
    let waiting: Vec<_> = (0..3).map(|_| guest.post(COMMAND, &long_copy())).collect();
    guest.virtio_reset();
    let before = [&running, &waiting[2]].map(|pending| guest.completion(pending));
    guest.map();
    // Nothing of the old life is written any more.
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
    let after = [&running, &waiting[2]].map(|pending| guest.completion(pending));
    assert_eq!(before, after);
}

#[test]
fn a_pause_of_the_machine_keeps_the_mapping_and_the_waiting_commands() {
    let (_backend, mut guest) = start();
    guest.control(ControlOpcode::SET_METADATA, 0, 0x1000);
    let pending: Vec<_> = (0..4).map(|_| guest.post(COMMAND, &long_copy())).collect();
    guest.pause_and_go_on();
    for pending in &pending {
        // Each copies the metadata range, too, so it is refused; what matters is that it is answered.
        assert_eq!(guest.wait(COMMAND, pending).status, Status::PROTECTED);
    }
    let mapped = guest.command(0, header(Opcode::CHECKSUM), &[device(0x1000, 1)], &[]);
    assert_eq!(mapped.status, Status::OK);
    assert_eq!(guest.maps(), 1);
}

#[test]
fn a_command_that_runs_when_the_machine_pauses_is_done_and_not_cancelled() {
    let (_backend, mut guest) = start();
    let pending: Vec<_> = (0..3).map(|_| guest.post(COMMAND, &long_copy())).collect();
    let bases = guest.stop();
    // At most those that had begun are done now, and none will be until the machine goes on.
    let done_in_pause = bases[usize::from(COMMAND)];
    std::thread::sleep(Duration::from_millis(50));
    guest.go_on(&bases);
    for pending in &pending {
        assert_eq!(guest.wait(COMMAND, pending).status, Status::OK);
    }
    assert!(
        done_in_pause < 3,
        "the pause came too late to show anything"
    );
}
