// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Each fault as a driver meets it, and that nothing else changes.

use super::control::Client;
use super::guest::*;
use super::process::{Backend, wait_until};
use cdm_protocol::*;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const COMMAND: u16 = QUEUE_FIRST_COMMAND;
const WHOLE: u32 = size_of::<Completion>() as u32;

fn start(faults: &[&str]) -> (Backend, Client, Guest) {
    let arguments: Vec<&str> = faults.iter().flat_map(|spec| ["--fault", *spec]).collect();
    let backend = Backend::start_controlled(&arguments);
    let client = Client::connect(&backend);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    (backend, client, guest)
}

/// A CHECKSUM of nothing but zeroes: its completion has bytes other than zero.
fn checksum() -> Vec<u8> {
    command(header(Opcode::CHECKSUM), &[device(0, 64)], &[])
}

/// An addition to the word at 0, which tells how often it was carried out.
fn add_one() -> Vec<u8> {
    let add = CommandHeader {
        width: 8.into(),
        repeat: 1.into(),
        arg0: 1.into(),
        ..header(Opcode::FETCH_ADD)
    };
    command(add, &[], &[device(0, 8)])
}

fn additions(guest: &Guest) -> u64 {
    u64::from_le_bytes(guest.bar_read(0, 8).try_into().unwrap())
}

fn used(guest: &mut Guest) -> Option<(u32, u32)> {
    guest.queues[usize::from(COMMAND)].poll_used()
}

fn wait_used(guest: &mut Guest) -> (u32, u32) {
    guest.queues[usize::from(COMMAND)].wait_used()
}

#[test]
fn hang_takes_nothing_until_a_reset_fails_what_waits() {
    let (_backend, mut client, mut guest) = start(&["hang,queue=2,nth=2"]);
    assert_eq!(guest.request(COMMAND, &add_one()).status, Status::OK);
    let stuck: Vec<_> = (0..3).map(|_| guest.post(COMMAND, &add_one())).collect();
    wait_until("the queue hangs", || client.state().queues[1].is_stalled);
    assert_eq!(guest.request(COMMAND + 1, &nop()).status, Status::OK);
    assert_eq!(used(&mut guest), None);
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!((reset.status, reset.result.get()), (Status::OK, 3));
    for pending in &stuck {
        assert_eq!(guest.wait(COMMAND, pending).status, Status::CANCELLED);
    }
    assert_eq!(guest.request(COMMAND, &add_one()).status, Status::OK);
    assert_eq!(additions(&guest), 2);
}

#[test]
fn hang_that_is_cleared_lets_the_queue_go_on() {
    let (_backend, mut client, mut guest) = start(&["hang"]);
    let pending = guest.post(COMMAND, &add_one());
    wait_until("the queue hangs", || client.state().queues[1].is_stalled);
    client.ask(cdm_control_protocol::Ask::ClearFaults);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
}

#[test]
fn hang_survives_a_pause_and_ends_with_a_virtio_reset() {
    let (_backend, mut client, mut guest) = start(&["hang"]);
    guest.post(COMMAND, &add_one());
    wait_until("the queue hangs", || client.state().queues[1].is_stalled);
    let begin = Instant::now();
    guest.pause_and_go_on();
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "a stop waited for the hang"
    );
    assert!(client.state().queues[1].is_stalled);
    guest.virtio_reset();
    guest.map();
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
    assert_eq!(additions(&guest), 0);
}

#[test]
fn hang_of_the_control_queue_is_out_of_reach_of_a_reset() {
    let (_backend, mut client, mut guest) = start(&["hang,queue=0,nth=2"]);
    guest.post(QUEUE_CONTROL, &control(ControlOpcode::RESET, 0, 0));
    wait_until("the queue hangs", || client.state().queues[0].is_stalled);
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
    guest.virtio_reset();
    guest.map();
}

#[test]
fn a_guest_that_goes_while_its_queue_hangs_keeps_no_other_out() {
    let (backend, mut client, mut guest) = start(&["hang"]);
    guest.post(COMMAND, &nop());
    wait_until("the queue hangs", || client.state().queues[1].is_stalled);
    guest.hang_up();
    drop(guest);
    let mut next = Guest::connect(&backend.socket_path());
    next.map();
    client.ask(cdm_control_protocol::Ask::ClearFaults);
    assert_eq!(next.request(COMMAND, &nop()).status, Status::OK);
}

#[test]
fn delay_completes_late_and_in_order() {
    let (_backend, _client, mut guest) = start(&["delay,ms=150,nth=2"]);
    let begin = Instant::now();
    let pending: Vec<_> = (0..3).map(|_| guest.post(COMMAND, &add_one())).collect();
    assert_eq!(guest.wait(COMMAND, &pending[0]).status, Status::OK);
    for pending in &pending[1..] {
        assert_eq!(guest.wait(COMMAND, pending).status, Status::OK);
        assert!(begin.elapsed() >= Duration::from_millis(150));
    }
}

#[test]
fn drop_carries_out_and_gives_nothing_back_not_even_after_a_reset() {
    let (_backend, _client, mut guest) = start(&["drop"]);
    let lost = guest.post(COMMAND, &add_one());
    // The next one's completion comes first, and alone.
    let next = guest.post(COMMAND, &add_one());
    assert_eq!(guest.wait(COMMAND, &next).status, Status::OK);
    assert_eq!(additions(&guest), 2);
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!((reset.status, reset.result.get()), (Status::OK, 0));
    assert_eq!(used(&mut guest), None);
    assert_eq!(guest.completion(&lost).as_bytes(), [0xee; 24]);
}

#[test]
fn duplicate_gives_the_same_chain_back_twice() {
    let (_backend, _client, mut guest) = start(&["duplicate"]);
    let pending = guest.post(COMMAND, &add_one());
    for _ in 0..2 {
        assert_eq!(wait_used(&mut guest), (u32::from(pending.head), WHOLE));
    }
    assert_eq!(additions(&guest), 1);
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
}

#[test]
fn reorder_swaps_a_request_with_its_successor() {
    let (_backend, _client, mut guest) = start(&["reorder", "delay,ms=50"]);
    // The delay sees to it that all three wait when the first is taken.
    let pending: Vec<_> = (0..3).map(|_| guest.post(COMMAND, &add_one())).collect();
    for expected in [1, 0, 2] {
        let head = u32::from(pending[expected].head);
        assert_eq!(wait_used(&mut guest), (head, WHOLE));
        let completion = guest.completion(&pending[expected]);
        assert_eq!(
            (completion.status, completion.result.get()),
            (Status::OK, expected as u64)
        );
    }
}

#[test]
fn reorder_without_a_successor_changes_nothing() {
    let (_backend, _client, mut guest) = start(&["reorder"]);
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
}

#[test]
fn truncate_writes_and_tells_only_the_first_bytes() {
    let (_backend, _client, mut guest) = start(&["truncate,bytes=9"]);
    let pending = guest.post(COMMAND, &checksum());
    assert_eq!(wait_used(&mut guest), (u32::from(pending.head), 9));
    let whole = guest.request(COMMAND, &checksum());
    let cut = guest.completion(&pending);
    assert_eq!(cut.as_bytes()[..9], whole.as_bytes()[..9]);
    assert_eq!(cut.as_bytes()[9..], [0xee; 15]);
}

#[test]
fn corrupt_changes_one_byte() {
    let (_backend, _client, mut guest) = start(&["corrupt,seed=3,count=20"]);
    let pending: Vec<_> = (0..20).map(|_| guest.post(COMMAND, &checksum())).collect();
    let found: Vec<_> = pending.iter().map(|one| guest.wait(COMMAND, one)).collect();
    let whole = guest.request(COMMAND, &checksum());
    let mut places = std::collections::BTreeSet::new();
    for completion in found {
        let pairs = completion.as_bytes().iter().zip(whole.as_bytes());
        let changed: Vec<_> = pairs.enumerate().filter(|(_, (l, r))| l != r).collect();
        assert_eq!(changed.len(), 1);
        places.insert(changed[0].0);
    }
    assert!(places.len() > 5, "{places:?}");
}

#[test]
fn fail_refuses_the_nth_request_with_the_status_and_carries_it_not_out() {
    let (_backend, _client, mut guest) = start(&["fail,nth=3"]);
    let statuses: Vec<_> = (0..4)
        .map(|_| guest.request(COMMAND, &add_one()).status)
        .collect();
    assert_eq!(
        statuses,
        [Status::OK, Status::OK, Status::HOST_ERROR, Status::OK]
    );
    assert_eq!(additions(&guest), 3);
}

#[test]
fn fail_reaches_the_control_queue() {
    let backend = Backend::start_controlled(&["--fault", "fail,queue=0"]);
    let mut guest = Guest::connect(&backend.socket_path());
    let refused = guest.control(ControlOpcode::MAP_MEMORY, 0, 0);
    assert_eq!((refused.status, guest.maps()), (Status::HOST_ERROR, 0));
    guest.map();
}

#[test]
fn wrong_length_tells_another_length_and_writes_the_completion_whole() {
    let (_backend, _client, mut guest) = start(&["wrong-length,bytes=4096"]);
    let pending = guest.post(COMMAND, &checksum());
    assert_eq!(wait_used(&mut guest), (u32::from(pending.head), 4096));
    let completion = guest.completion(&pending);
    assert_eq!(completion, guest.request(COMMAND, &checksum()));
}

#[test]
fn a_run_with_the_same_seed_has_the_same_faults() {
    let run = || {
        let specs = [
            "corrupt,every=3,count=0,seed=11",
            "fail,every=4,count=0,seed=12",
        ];
        let (_backend, mut client, mut guest) = start(&specs);
        let mut seen = Vec::new();
        for _ in 0..60 {
            seen.push(guest.request(COMMAND, &checksum()).as_bytes().to_vec());
        }
        let hits: Vec<_> = client
            .ask(cdm_control_protocol::Ask::Faults)
            .faults
            .unwrap()
            .iter()
            .map(|state| state.hits)
            .collect();
        (seen, hits)
    };
    let first = run();
    assert!(first.1.iter().all(|&hits| hits > 5), "{:?}", first.1);
    assert_eq!(first, run());
}

#[test]
fn fault_of_an_operation_hits_that_control_request_and_no_other() {
    let (_backend, mut client, mut guest) = start(&["drop,opcode=UNBIND,nth=2"]);
    let about_space = |opcode| control_of(opcode, 7, 0, 0);
    for opcode in [
        ControlOpcode::BIND,
        ControlOpcode::INVALIDATE,
        ControlOpcode::UNBIND,
        ControlOpcode::BIND,
        ControlOpcode::INVALIDATE,
    ] {
        let done = guest.request(QUEUE_CONTROL, &about_space(opcode));
        assert_eq!(done.status, Status::OK, "{opcode:?}");
    }
    let lost = guest.post(QUEUE_CONTROL, &about_space(ControlOpcode::UNBIND));
    // It is carried out, or the space could not be bound; its completion does not come.
    let next = guest.post(QUEUE_CONTROL, &about_space(ControlOpcode::BIND));
    assert_eq!(guest.wait(QUEUE_CONTROL, &next).status, Status::OK);
    assert_eq!(guest.completion(&lost).as_bytes(), [0xee; 24]);
    let faults = client.ask(cdm_control_protocol::Ask::Faults).faults;
    assert_eq!(faults.unwrap()[0].hits, 1);
}

#[test]
fn hang_at_an_operation_lets_through_what_is_before_it_and_nothing_behind() {
    let (_backend, mut client, mut guest) = start(&["hang,opcode=FETCH_ADD,queue=2"]);
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
    assert_eq!(guest.request(COMMAND, &checksum()).status, Status::OK);
    let stuck = [guest.post(COMMAND, &add_one()), guest.post(COMMAND, &nop())];
    wait_until("the queue hangs", || client.state().queues[1].is_stalled);
    assert_eq!(guest.request(COMMAND + 1, &add_one()).status, Status::OK);
    assert_eq!(guest.control(ControlOpcode::RESET, 0, 0).result.get(), 2);
    for pending in &stuck {
        assert_eq!(guest.wait(COMMAND, pending).status, Status::CANCELLED);
    }
    assert_eq!(additions(&guest), 1);
}

#[test]
fn request_that_cannot_be_read_is_of_no_operation() {
    let (_backend, mut client, mut guest) = start(&["fail,opcode=NOP,status=17"]);
    // One byte is no number.
    assert_eq!(guest.request(COMMAND, &[1]).status, Status::MALFORMED);
    let refused = guest.request(COMMAND, &nop());
    assert_eq!(refused.status, Status::BAD_ARGUMENT);
    let faults = client.ask(cdm_control_protocol::Ask::Faults).faults;
    assert_eq!(faults.unwrap()[0].hits, 1);
}
