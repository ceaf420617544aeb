// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Chains that a correct driver would not make: each has its defined outcome, and
//! the next request works.

use super::guest::*;
use super::process::Backend;
use super::queue::{Buffer, INDIRECT, NEXT, SIZE, readable, writable};
use cdm_protocol::*;
use zerocopy::FromBytes;

const COMMAND: u16 = QUEUE_FIRST_COMMAND;

struct Setup {
    backend: Backend,
    guest: Guest,
}

fn setup() -> Setup {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    Setup { backend, guest }
}

impl Setup {
    /// The status in a completion buffer after the chain came back with a completion.
    fn status_of_chain(&mut self, queue: u16, buffers: &[Buffer]) -> Status {
        let ring = &mut self.guest.queues[usize::from(queue)];
        let head = ring.submit(buffers);
        assert_eq!(ring.wait_used(), (u32::from(head), 24));
        let completion = buffers.iter().find(|buffer| buffer.is_writable).unwrap();
        self.status_at(completion.address)
    }

    fn status_at(&self, address: u64) -> Status {
        let bytes = self.guest.read(address, size_of::<Completion>());
        Completion::read_from_bytes(&bytes).unwrap().status
    }

    /// The next event, in a buffer that was posted before.
    fn event_at(&mut self, address: u64) -> Event {
        let (_, bytes) = self.guest.queues[usize::from(QUEUE_EVENT)].wait_used();
        assert_eq!(bytes as usize, size_of::<Event>());
        Event::read_from_bytes(&self.guest.read(address, size_of::<Event>())).unwrap()
    }

    /// A chain without room for a completion comes back empty.
    fn drop_chain(&mut self, queue: u16, buffers: &[Buffer]) {
        let ring = &mut self.guest.queues[usize::from(queue)];
        let head = ring.submit(buffers);
        assert_eq!(ring.wait_used(), (u32::from(head), 0));
    }

    /// The device still works.
    fn assert_serves(mut self) {
        for index in 0..2 {
            let completion = self.guest.request(COMMAND + index, &nop());
            assert_eq!(completion.status, Status::OK);
        }
        assert_eq!(
            self.guest.control(ControlOpcode::RESET, 0, 0).status,
            Status::OK
        );
        assert!(self.backend.is_alive());
    }
}

#[test]
fn a_chain_with_a_readable_descriptor_behind_a_writable_one_is_malformed() {
    let mut setup = setup();
    let request = setup.guest.place(&nop());
    let completion = setup.guest.allocate(24);
    let buffers = [
        readable(request, 16),
        writable(completion, 24),
        readable(request + 16, 16),
    ];
    assert_eq!(setup.status_of_chain(COMMAND, &buffers), Status::MALFORMED);
    setup.assert_serves();
}

#[test]
fn a_request_outside_guest_memory_is_malformed() {
    let mut setup = setup();
    let completion = setup.guest.allocate(24);
    for address in [LOW_BYTES, LOW_BYTES - 16, u64::MAX - 8, BAR_BASE] {
        let buffers = [readable(address, 32), writable(completion, 24)];
        assert_eq!(setup.status_of_chain(COMMAND, &buffers), Status::MALFORMED);
        assert_eq!(
            setup.status_of_chain(QUEUE_CONTROL, &buffers),
            Status::MALFORMED
        );
    }
    setup.assert_serves();
}

#[test]
fn a_chain_without_a_request_is_malformed() {
    let mut setup = setup();
    let completion = setup.guest.allocate(24);
    let buffers = [writable(completion, 24)];
    assert_eq!(setup.status_of_chain(COMMAND, &buffers), Status::MALFORMED);
    assert_eq!(
        setup.status_of_chain(QUEUE_CONTROL, &buffers),
        Status::MALFORMED
    );
    setup.assert_serves();
}

#[test]
fn a_request_of_hundreds_of_mebibytes_is_malformed_and_costs_no_memory() {
    let mut setup = setup();
    let completion = setup.guest.allocate(24);
    let before = setup.backend.resident_bytes();
    let request = setup.guest.place(&nop());
    let mut buffers = vec![readable(request, 32)];
    buffers.resize(100, readable(0, (LOW_BYTES - 4096) as usize));
    buffers.push(writable(completion, 24));
    assert_eq!(setup.status_of_chain(COMMAND, &buffers), Status::MALFORMED);
    assert!(setup.backend.resident_bytes() < before + (4 << 20));
    setup.assert_serves();
}

#[test]
fn a_chain_that_runs_in_a_circle_is_malformed() {
    let mut setup = setup();
    let request = setup.guest.place(&nop());
    let completion = setup.guest.allocate(24);
    let ring = &mut setup.guest.queues[usize::from(COMMAND)];
    let head = ring.chain(&[readable(request, 32), writable(completion, 24)]);
    ring.write_descriptor(
        ring.descriptors(),
        head + 1,
        writable(completion, 24),
        NEXT,
        head + 1,
    );
    ring.publish(head);
    ring.kick_if_wanted(1);
    assert_eq!(ring.wait_used(), (u32::from(head), 24));
    assert_eq!(setup.status_at(completion), Status::MALFORMED);
    setup.assert_serves();
}

#[test]
fn a_chain_whose_next_descriptor_is_outside_the_table_is_malformed() {
    let mut setup = setup();
    let request = setup.guest.place(&nop());
    let completion = setup.guest.allocate(24);
    let ring = &mut setup.guest.queues[usize::from(COMMAND)];
    let head = ring.chain(&[readable(request, 32), writable(completion, 24)]);
    ring.write_descriptor(
        ring.descriptors(),
        head + 1,
        writable(completion, 24),
        NEXT,
        SIZE,
    );
    ring.publish(head);
    ring.kick_if_wanted(1);
    assert_eq!(ring.wait_used(), (u32::from(head), 24));
    assert_eq!(setup.status_at(completion), Status::MALFORMED);
    setup.assert_serves();
}

#[test]
fn a_chain_without_room_for_a_completion_comes_back_empty_with_an_event() {
    for queue in [QUEUE_CONTROL, COMMAND, COMMAND + 1] {
        let mut setup = setup();
        let request = setup.guest.place(&nop());
        let short = setup.guest.place(&[0xee; 24]);
        let event = setup.guest.post_event_buffer(16);
        setup.drop_chain(queue, &[readable(request, 32), writable(short, 23)]);
        let event = setup.event_at(event);
        assert_eq!(event.kind, EventKind::QUEUE_ERROR);
        assert_eq!((event.queue.get(), event.lost.get()), (queue, 0));
        assert_eq!(setup.guest.read(short, 24), [0xee; 24]);
        setup.assert_serves();
    }
}

#[test]
fn a_completion_outside_guest_memory_is_no_room_and_the_command_is_not_begun() {
    let mut setup = setup();
    let fill = CommandHeader {
        width: 1.into(),
        arg0: 7.into(),
        ..header(Opcode::FILL)
    };
    let request = setup.guest.place(&command(fill, &[], &[device(0, 8)]));
    for address in [LOW_BYTES - 8, u64::MAX, BAR_BASE] {
        setup.drop_chain(COMMAND, &[readable(request, 56), writable(address, 24)]);
    }
    assert_eq!(setup.guest.bar_read(0, 8), [0; 8]);
    setup.assert_serves();
}

#[test]
fn a_bad_descriptor_behind_the_completion_does_no_harm() {
    let mut setup = setup();
    let request = setup.guest.place(&nop());
    let completion = setup.guest.allocate(24);
    let buffers = [
        readable(request, 32),
        writable(completion, 24),
        writable(LOW_BYTES, 100),
    ];
    assert_eq!(setup.status_of_chain(COMMAND, &buffers), Status::OK);
    setup.assert_serves();
}

#[test]
fn events_without_a_buffer_are_counted_in_the_next_one() {
    let mut setup = setup();
    let request = setup.guest.place(&nop());
    for _ in 0..3 {
        setup.drop_chain(COMMAND, &[readable(request, 32)]);
    }
    let event = setup.guest.post_event_buffer(16);
    setup.drop_chain(COMMAND, &[readable(request, 32)]);
    assert_eq!(setup.event_at(event).lost.get(), 3);
    let event = setup.guest.post_event_buffer(16);
    setup.drop_chain(COMMAND, &[readable(request, 32)]);
    assert_eq!(setup.event_at(event).lost.get(), 0);
    setup.assert_serves();
}

#[test]
fn an_event_buffer_that_is_too_small_is_passed_over() {
    let mut setup = setup();
    setup.guest.post_event_buffer(15);
    let event = setup.guest.post_event_buffer(16);
    let request = setup.guest.place(&nop());
    setup.drop_chain(COMMAND, &[readable(request, 32)]);
    let (_, bytes) = setup.guest.queues[usize::from(QUEUE_EVENT)].wait_used();
    assert_eq!(bytes, 0);
    assert_eq!(setup.event_at(event).queue.get(), COMMAND);
    setup.assert_serves();
}

#[test]
fn a_bad_indirect_table_comes_back_empty_with_an_event() {
    let mut setup = setup();
    let table = setup.guest.allocate(64);
    // Not a whole number of descriptors; outside memory; a table within a table.
    let cases = [
        readable(table, 40),
        readable(LOW_BYTES, 32),
        readable(table, 32),
    ];
    for case in cases {
        let event = setup.guest.post_event_buffer(16);
        let ring = &mut setup.guest.queues[usize::from(COMMAND)];
        ring.write_descriptor(table, 0, readable(table, 32), INDIRECT, 0);
        let head = ring.chain(&[readable(table, 32)]);
        ring.write_descriptor(ring.descriptors(), head, case, INDIRECT, 0);
        ring.publish(head);
        ring.kick_if_wanted(1);
        assert_eq!(ring.wait_used(), (u32::from(head), 0));
        assert_eq!(setup.event_at(event).queue.get(), COMMAND);
    }
    setup.assert_serves();
}

#[test]
fn an_available_index_that_runs_ahead_is_an_event_and_other_queues_go_on() {
    let mut setup = setup();
    let event = setup.guest.post_event_buffer(16);
    let ring = &mut setup.guest.queues[usize::from(COMMAND)];
    let index = ring.avail_index();
    ring.set_avail_index(index.wrapping_add(SIZE + 1));
    ring.kick.write(1).unwrap();
    assert_eq!(setup.event_at(event).queue.get(), COMMAND);
    let other = setup.guest.request(COMMAND + 1, &nop());
    assert_eq!(other.status, Status::OK);
    // The driver mends its ring, and the queue serves again.
    setup.guest.queues[usize::from(COMMAND)].set_avail_index(index);
    setup.assert_serves();
}

#[test]
fn a_head_outside_the_table_is_an_event() {
    let mut setup = setup();
    let event = setup.guest.post_event_buffer(16);
    let ring = &mut setup.guest.queues[usize::from(COMMAND)];
    ring.publish(SIZE);
    ring.kick.write(1).unwrap();
    assert_eq!(setup.event_at(event).queue.get(), COMMAND);
    setup.assert_serves();
}

#[test]
fn errors_of_the_command_itself_come_as_completions_and_the_queue_goes_on() {
    let mut setup = setup();
    let unknown = CommandHeader {
        opcode: Opcode(99.into()),
        ..header(Opcode::NOP)
    };
    let cases = [
        (command(unknown, &[], &[]), Status::UNKNOWN_OPCODE),
        (vec![0; 31], Status::MALFORMED),
        (
            command(header(Opcode::CHECKSUM), &[device(256 << 20, 1)], &[]),
            Status::BAD_ADDRESS,
        ),
        (
            command(header(Opcode::CHECKSUM), &[device(0, 0)], &[]),
            Status::ZERO_LENGTH,
        ),
        (
            command(header(Opcode::CHECKSUM), &[device(0, u64::MAX)], &[]),
            Status::TOO_LONG,
        ),
    ];
    for (request, status) in cases {
        assert_eq!(setup.guest.request(COMMAND, &request).status, status);
    }
    setup.assert_serves();
}
