// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Unordered commands, FENCE and CANCEL, on engines.

use super::guest::*;
use super::process::{Backend, wait_until};
use cdm_protocol::*;
use std::sync::atomic::Ordering;
use std::time::Duration;
use zerocopy::IntoBytes;

const COMMAND: u16 = QUEUE_FIRST_COMMAND;
/// Where programs lie in device memory.
const CODE: u64 = 0x8000;
/// A word that a program waits at.
const GATE: u64 = 0x1000;

fn start() -> (Backend, Guest) {
    let backend = Backend::start_with(&[
        "--memory-size",
        "256M",
        "--command-queues",
        "2",
        "--engines",
        "3",
    ]);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    guest.bar_write(CODE, wait_at_gate().as_bytes());
    (backend, guest)
}

/// Counts itself at offset 16, waits until the word at offset 0 is not zero, then stores
/// register 0 at offset 8.
fn wait_at_gate() -> [Instruction; 6] {
    let instruction = |operator, a, b, immediate: u64| Instruction {
        operator,
        order: MemoryOrder(0.into()),
        width: 0,
        d: 0,
        a,
        b,
        immediate: immediate.into(),
    };
    let access = |operator, order, d, b, offset| Instruction {
        order,
        width: 8,
        d,
        ..instruction(operator, 3, b, offset)
    };
    let one = Instruction {
        d: 4,
        ..instruction(Operator::SET, 0, 0, 1)
    };
    [
        one,
        access(Operator::ATOMIC_ADD, MemoryOrder::SEQ_CST, 5, 4, 16),
        instruction(Operator::PAUSE, 0, 0, 0),
        access(Operator::LOAD, MemoryOrder::ACQUIRE, 1, 0, 0),
        instruction(Operator::JUMP_EQUAL, 1, 2, 2),
        access(Operator::STORE, MemoryOrder::RELEASE, 0, 0, 8),
    ]
}

/// The program, as a command that waits at the gate.
fn waiting(flags: u16, tag: u64) -> Vec<u8> {
    let header = CommandHeader {
        repeat: 6.into(),
        arg0: 77.into(),
        arg1: PROGRAM_STEPS_MAX.into(),
        ..header(Opcode::PROGRAM)
    };
    flagged(header, flags, tag, &[device(CODE, 96)], &[device(GATE, 24)])
}

/// A command with flags, and the tag if they say so.
fn flagged(header: CommandHeader, flags: u16, tag: u64, src: &[Range], dst: &[Range]) -> Vec<u8> {
    let header = CommandHeader {
        flags: flags.into(),
        ..header
    };
    let bytes = command(header, src, dst);
    let (head, ranges) = bytes.split_at(size_of::<CommandHeader>());
    let tag = if flags & FLAG_TAGGED != 0 {
        tag.as_bytes()
    } else {
        &[]
    };
    [head, tag, ranges].concat()
}

fn unordered_nop() -> Vec<u8> {
    flagged(header(Opcode::NOP), FLAG_UNORDERED, 0, &[], &[])
}

/// Makes commands available, each with its kick.
fn post_all(guest: &mut Guest, queue: u16, requests: &[Vec<u8>]) -> Vec<Pending> {
    let post = |request: &Vec<u8>| guest.post(queue, request);
    requests.iter().map(post).collect()
}

fn open_gate(guest: &Guest) {
    guest.bar_atomic(GATE, |word| word.store(1, Ordering::Release));
}

/// Waits until so many programs wait at the gate.
fn wait_for_arrivals(guest: &Guest, count: u64) {
    wait_until("programs arrive", || {
        guest.bar_atomic(GATE + 16, |word| word.load(Ordering::Acquire)) == count
    });
}

/// Gives what was given back next, by head.
fn next_used(guest: &mut Guest) -> u16 {
    guest.queues[usize::from(COMMAND)].wait_used().0 as u16
}

#[test]
fn there_are_as_many_engines_as_asked_for() {
    let (backend, _guest) = start();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", backend.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    let engines = names.filter(|name| name.as_ref().unwrap().starts_with("engine "));
    assert_eq!(engines.count(), 3);
}

#[test]
fn an_unordered_command_overtakes_one_that_waits_and_a_fence_does_not() {
    let (_backend, mut guest) = start();
    let slow = guest.post(COMMAND, &waiting(FLAG_UNORDERED, 0));
    let fast = guest.post(COMMAND, &unordered_nop());
    let fence = guest.post(COMMAND, &command(header(Opcode::FENCE), &[], &[]));
    let late = guest.post(COMMAND, &unordered_nop());
    assert_eq!(next_used(&mut guest), fast.head);
    std::thread::sleep(Duration::from_millis(50));
    assert!(guest.queues[usize::from(COMMAND)].poll_used().is_none());
    open_gate(&guest);
    for pending in [&slow, &fence, &late] {
        assert_eq!(next_used(&mut guest), pending.head);
        assert_eq!(guest.completion(pending).status, Status::OK);
    }
    assert_eq!(guest.bar_read(GATE + 8, 8), 77u64.to_le_bytes());
}

#[test]
fn a_short_unordered_command_waits_for_no_engine() {
    let (_backend, mut guest) = start();
    for _ in 0..3 {
        guest.post(COMMAND, &waiting(FLAG_UNORDERED, 0));
    }
    wait_for_arrivals(&guest, 3);
    let short = guest.post(COMMAND, &unordered_nop());
    assert_eq!(next_used(&mut guest), short.head);
    let many = CommandHeader {
        repeat: 100_000.into(),
        width: 8.into(),
        ..header(Opcode::FETCH_ADD)
    };
    let many = flagged(many, FLAG_UNORDERED, 0, &[], &[device(GATE + 4096, 8)]);
    let long = guest.post(COMMAND, &many);
    std::thread::sleep(Duration::from_millis(50));
    assert!(guest.queues[usize::from(COMMAND)].poll_used().is_none());
    open_gate(&guest);
    for _ in 0..4 {
        next_used(&mut guest);
    }
    assert_eq!(guest.completion(&long).status, Status::OK);
}

#[test]
fn what_is_done_is_told_before_an_ordered_command_waits() {
    let (_backend, mut guest) = start();
    let nop = command(header(Opcode::NOP), &[], &[]);
    for request in [&nop, &waiting(FLAG_UNORDERED, 0), &nop] {
        guest.post_silently(COMMAND, request);
    }
    let queue = &guest.queues[usize::from(COMMAND)];
    queue.kick_if_wanted(3);
    wait_until("an interrupt comes", || queue.call.read().is_ok());
    open_gate(&guest);
}

#[test]
fn unordered_commands_all_complete_and_what_follows_a_fence_sees_what_they_wrote() {
    /// More than is done without an engine.
    const PART: u64 = 32 << 10;
    let (_backend, mut guest) = start();
    for round in 0..20u64 {
        let mut heads = Vec::new();
        for part in 0..60u64 {
            let fill = CommandHeader {
                width: 8.into(),
                arg0: (round * 100 + part).into(),
                ..header(Opcode::FILL)
            };
            let dst = [device(0x10_0000 + part * PART, PART)];
            let pending =
                guest.post_silently(COMMAND, &flagged(fill, FLAG_UNORDERED, 0, &[], &dst));
            heads.push(pending.head);
        }
        let sum = CommandHeader {
            width: 8.into(),
            ..header(Opcode::SUM)
        };
        let src = [device(0x10_0000, 60 * PART)];
        let sum = guest.post_silently(COMMAND, &command(sum, &src, &[]));
        guest.queues[usize::from(COMMAND)].kick_if_wanted(61);
        let mut found: Vec<u16> = (0..60).map(|_| next_used(&mut guest)).collect();
        found.sort_unstable();
        heads.sort_unstable();
        assert_eq!(found, heads);
        assert_eq!(next_used(&mut guest), sum.head);
        let expected: u64 = (0..60).map(|part| (round * 100 + part) * PART / 8).sum();
        assert_eq!(guest.completion(&sum).result.get(), expected);
    }
}

#[test]
fn more_unordered_commands_than_engines_and_places_do_not_block_a_reset() {
    let (_backend, mut guest) = start();
    // Three run, twelve wait for an engine, one has no place and holds the queue's worker.
    let pending: Vec<_> = (0..24)
        .map(|_| guest.post(COMMAND, &waiting(FLAG_UNORDERED, 0)))
        .collect();
    wait_for_arrivals(&guest, 4);
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!((reset.status, reset.result.get()), (Status::OK, 24));
    for _ in &pending {
        assert!(guest.queues[usize::from(COMMAND)].poll_used().is_some());
    }
    for pending in &pending {
        assert_eq!(guest.completion(pending).status, Status::CANCELLED);
    }
    assert_eq!(guest.request(COMMAND, &unordered_nop()).status, Status::OK);
}

#[test]
fn no_engine_touches_memory_after_a_virtio_reset_which_does_not_wait_for_programs() {
    let (_backend, mut guest) = start();
    let mut pending = post_all(&mut guest, COMMAND, &vec![waiting(FLAG_UNORDERED, 0); 6]);
    pending.extend(post_all(&mut guest, COMMAND + 1, &vec![waiting(0, 0); 2]));
    wait_for_arrivals(&guest, 4);
    guest.virtio_reset();
    let completions: Vec<_> = pending.iter().map(|p| guest.completion(p)).collect();
    guest.map();
    // Whoever still waits at the gate would go through and write.
    open_gate(&guest);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.bar_read(GATE + 8, 8), [0; 8]);
    let later: Vec<_> = pending.iter().map(|p| guest.completion(p)).collect();
    assert_eq!(completions, later);
    guest.bar_write(GATE, &[0; 24]);
    for index in 0..2 {
        assert_eq!(guest.request(COMMAND + index, &nop()).status, Status::OK);
    }
}

#[test]
fn copies_that_engines_share_end_before_a_virtio_reset_does() {
    let (_backend, mut guest) = start();
    let (half, bytes) = (128u64 << 20, 64 << 20);
    for _ in 0..3 {
        let copy = flagged(
            header(Opcode::COPY),
            FLAG_UNORDERED,
            0,
            &[device(0, bytes)],
            &[device(half, bytes)],
        );
        // The first to be there shows that the kick has been heard.
        post_all(
            &mut guest,
            COMMAND,
            &[unordered_nop(), copy.clone(), copy.clone(), copy],
        );
        next_used(&mut guest);
        guest.virtio_reset();
        guest.map();
        // The old copies would bring the zeroes back.
        guest.bar_write(half, &[7; 4096]);
        guest.bar_write(half + bytes - 4096, &[7; 4096]);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(guest.bar_read(half, 4096), [7; 4096]);
        assert_eq!(guest.bar_read(half + bytes - 4096, 4096), [7; 4096]);
    }
}

#[test]
fn a_completion_comes_after_the_last_engine_has_left_the_operands() {
    let (_backend, mut guest) = start();
    let (target, bytes, piece) = (128u64 << 20, 8 << 20, 256 << 10);
    let ends = || (1..=bytes / piece).map(|piece_end| target + piece_end * piece - 8);
    for _ in 0..200 {
        let copied = guest.command(
            0,
            header(Opcode::COPY),
            &[device(0, bytes)],
            &[device(target, bytes)],
        );
        assert_eq!(copied.status, Status::OK);
        // An engine that still copies would bring zeroes.
        for end in ends() {
            guest.bar_write(end, &[0xee; 8]);
        }
        std::thread::sleep(Duration::from_micros(300));
        for end in ends() {
            assert_eq!(guest.bar_read(end, 8), [0xee; 8]);
        }
    }
}

#[test]
fn a_guest_that_hangs_up_leaves_no_engine() {
    let (backend, mut guest) = start();
    for _ in 0..10 {
        guest.post(COMMAND, &waiting(FLAG_UNORDERED, 0));
    }
    wait_for_arrivals(&guest, 3);
    guest.hang_up();
    drop(guest);
    // The one that watches for signals and the one that serves.
    wait_until("the engines end", || backend.threads() == 2);
    let mut next = Guest::connect(&backend.socket_path());
    next.map();
    assert_eq!(next.request(COMMAND, &unordered_nop()).status, Status::OK);
}

#[test]
fn cancel_stops_the_command_with_the_tag_and_no_other() {
    let (_backend, mut guest) = start();
    let flags = FLAG_UNORDERED | FLAG_TAGGED;
    let [first, second] = [1, 2].map(|tag| guest.post(COMMAND, &waiting(flags, tag)));
    wait_for_arrivals(&guest, 2);
    let cancel = guest.control(ControlOpcode::CANCEL, 2, COMMAND.into());
    assert_eq!((cancel.status, cancel.result.get()), (Status::OK, 1));
    assert_eq!(next_used(&mut guest), second.head);
    assert_eq!(guest.completion(&second).status, Status::CANCELLED);
    open_gate(&guest);
    assert_eq!(guest.wait(COMMAND, &first).status, Status::OK);
    // It is given back, so its name means nothing any more.
    let late = guest.control(ControlOpcode::CANCEL, 1, COMMAND.into());
    assert_eq!((late.status, late.result.get()), (Status::OK, 0));
    let again = guest.request(
        COMMAND,
        &flagged(header(Opcode::NOP), FLAG_TAGGED, 1, &[], &[]),
    );
    assert_eq!(again.status, Status::OK);
}

#[test]
fn cancel_reaches_a_command_that_waits_in_the_ring_and_its_completion_keeps_its_turn() {
    let (_backend, mut guest) = start();
    let slow = guest.post(COMMAND, &waiting(FLAG_TAGGED, 1));
    let fill = CommandHeader {
        width: 1.into(),
        arg0: 9.into(),
        ..header(Opcode::FILL)
    };
    let waiting = guest.post(
        COMMAND,
        &flagged(fill, FLAG_TAGGED, 2, &[], &[device(0, 8)]),
    );
    let last = guest.post(COMMAND, &nop());
    let cancel = guest.control(ControlOpcode::CANCEL, 2, COMMAND.into());
    assert_eq!((cancel.status, cancel.result.get()), (Status::OK, 0));
    assert!(guest.queues[usize::from(COMMAND)].poll_used().is_none());
    open_gate(&guest);
    assert_eq!(guest.wait(COMMAND, &slow).status, Status::OK);
    assert_eq!(guest.wait(COMMAND, &waiting).status, Status::CANCELLED);
    assert_eq!(guest.wait(COMMAND, &last).status, Status::OK);
    assert_eq!(guest.bar_read(0, 8), [0; 8]);
}

#[test]
fn a_pause_ends_a_program_that_would_wait_for_the_machine() {
    let (_backend, mut guest) = start();
    let program = guest.post(COMMAND, &waiting(0, 0));
    wait_for_arrivals(&guest, 1);
    guest.pause_and_go_on();
    assert_eq!(guest.wait(COMMAND, &program).status, Status::CANCELLED);
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
}
