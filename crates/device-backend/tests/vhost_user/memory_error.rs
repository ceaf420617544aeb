// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that fails while a driver uses it: what the driver is told, and when.

use super::control::Client;
use super::guest::*;
use super::process::Backend;
use cdm_protocol::*;
use zerocopy::FromBytes;

const COMMAND: u16 = QUEUE_FIRST_COMMAND;
const EVENT: usize = QUEUE_EVENT as usize;
const EVENT_BYTES: usize = size_of::<MemoryError>();

struct Setup {
    _backend: Backend,
    client: Client,
    guest: Guest,
}

impl Setup {
    fn new(arguments: &[&str]) -> Self {
        let backend = Backend::start_controlled(arguments);
        let client = Client::connect(&backend);
        let mut guest = Guest::connect(&backend.socket_path());
        guest.map();
        Self {
            _backend: backend,
            client,
            guest,
        }
    }

    /// Begin and length of the first bad stretch from a page on.
    fn find_bad(&mut self, page: u64) -> (u64, u64) {
        let from = page * ERROR_BYTES;
        let completion = self.guest.control(ControlOpcode::FIND_BAD, from, 0);
        assert_eq!(completion.status, Status::OK);
        (completion.result.get(), completion.bytes_done.get())
    }

    /// First page and number of pages of the next event, in a buffer that was posted before.
    fn event_at(&mut self, address: u64) -> (u64, u64) {
        let (_, bytes) = self.guest.queues[EVENT].wait_used();
        assert_eq!(bytes as usize, EVENT_BYTES);
        let event = MemoryError::read_from_bytes(&self.guest.read(address, EVENT_BYTES)).unwrap();
        assert_eq!(event.kind, EventKind::MEMORY_ERROR);
        assert!(event.reserved.iter().all(|field| field.get() == 0));
        assert_eq!(event.lost.get(), 0);
        (
            event.address.get() / ERROR_BYTES,
            event.bytes.get() / ERROR_BYTES,
        )
    }

    fn assert_no_event(&mut self) {
        // Before it takes the second request the device says what it had to say after the first.
        self.find_bad(0);
        self.find_bad(0);
        assert_eq!(self.guest.queues[EVENT].poll_used(), None);
    }
}

#[test]
fn the_driver_is_told_of_a_page_that_fails() {
    let mut setup = Setup::new(&[]);
    setup.find_bad(0);
    let event = setup.guest.post_event_buffer(EVENT_BYTES);
    setup.client.fault("poison,page=5");
    assert_eq!(setup.event_at(event), (5, 1));
    assert_eq!(setup.find_bad(0), (5 * ERROR_BYTES, ERROR_BYTES));
}

#[test]
fn what_failed_before_the_driver_is_found_and_not_told() {
    let mut setup = Setup::new(&["--fault", "poison,page=3,count=2"]);
    setup.guest.post_event_buffer(EVENT_BYTES);
    assert_eq!(setup.find_bad(0), (3 * ERROR_BYTES, 2 * ERROR_BYTES));
    assert_eq!(setup.find_bad(5).1, 0);
    setup.assert_no_event();
}

#[test]
fn a_driver_that_never_asks_is_never_told() {
    let mut setup = Setup::new(&[]);
    setup.guest.post_event_buffer(EVENT_BYTES);
    setup.client.fault("poison,page=5");
    for _ in 0..2 {
        let completion = setup.guest.request(COMMAND, &nop());
        assert_eq!(completion.status, Status::OK);
    }
    assert_eq!(setup.guest.queues[EVENT].poll_used(), None);
}

#[test]
fn errors_without_a_buffer_are_told_when_there_is_one() {
    let mut setup = Setup::new(&[]);
    setup.find_bad(0);
    setup.client.fault("poison,page=100");
    setup.client.fault("poison,page=102");
    setup.client.fault("poison,page=101");
    setup.client.fault("poison,page=9");
    let events = [0; 2].map(|_| setup.guest.post_event_buffer(EVENT_BYTES));
    // In the order of the memory, and what lies together in one.
    assert_eq!(setup.event_at(events[0]), (9, 1));
    assert_eq!(setup.event_at(events[1]), (100, 3));
    assert_eq!(setup.client.state().events_lost, 0);
}

#[test]
fn many_errors_at_once_leave_buffers_for_others_and_are_all_told() {
    const BUFFERS: usize = 30;
    const AT_ONCE: usize = 8;
    let mut setup = Setup::new(&[]);
    setup.find_bad(0);
    let events = [0; BUFFERS].map(|_| setup.guest.post_event_buffer(EVENT_BYTES));
    // Its worker hears of the buffers before it takes the second one.
    for _ in 0..2 {
        assert_eq!(setup.guest.request(COMMAND, &nop()).status, Status::OK);
    }
    setup.client.fault("poison,count=20,seed=3");
    let bad = setup.client.state().bad;
    assert!(bad.len() > 2 * AT_ONCE, "{} stretches", bad.len());
    for (number, (event, stretch)) in events.iter().zip(&bad).enumerate() {
        if number > 0 && number % AT_ONCE == 0 {
            assert_eq!(setup.guest.queues[EVENT].poll_used(), None);
            setup.find_bad(0);
        }
        assert_eq!(setup.event_at(*event), (stretch.page, stretch.pages));
    }
    setup.assert_no_event();
}

#[test]
fn page_requests_and_errors_are_told_beside_each_other() {
    const PASID: u32 = 9;
    const VIRTUAL: u64 = 0x7000_0000_0000;
    let mut setup = Setup::new(&[]);
    setup.find_bad(0);
    let bind = control_of(ControlOpcode::BIND, PASID, 0, 0);
    assert_eq!(setup.guest.request(QUEUE_CONTROL, &bind).status, Status::OK);
    let buffers = [0; 3].map(|_| setup.guest.post_event_buffer(EVENT_BYTES));
    let operand = [process(PASID, VIRTUAL, 2 * ERROR_BYTES)];
    let read = command(header(Opcode::CHECKSUM), &operand, &[]);
    let pending = setup.guest.post(COMMAND, &read);
    setup.guest.queues[EVENT].wait_used();
    let request = setup.guest.read(buffers[0], EVENT_BYTES);
    let request = PageRequest::read_from_bytes(&request).unwrap();
    assert_eq!(
        (request.kind, request.pages.get()),
        (EventKind::PAGE_REQUEST, 2)
    );
    // The second page of the process is one that fails while its place is on the way.
    setup.client.fault("poison,page=7");
    assert_eq!(setup.event_at(buffers[1]), (7, 1));
    let mut response = control_of(
        ControlOpcode::PAGE_RESPONSE,
        PASID,
        request.id.get().into(),
        2,
    );
    for page in [20, 7] {
        let entry = (page * ERROR_BYTES) | PageEntry::DEVICE;
        response.extend(entry.to_le_bytes());
    }
    let done = setup.guest.request(QUEUE_CONTROL, &response);
    assert_eq!((done.status, done.result.get()), (Status::OK, 2));
    let completion = setup.guest.wait(COMMAND, &pending);
    assert_eq!(
        (completion.status, completion.bytes_done.get()),
        (Status::POISONED, ERROR_BYTES)
    );
    setup.client.fault("poison,page=9");
    assert_eq!(setup.event_at(buffers[2]), (9, 1));
}

#[test]
fn errors_outlive_a_reset_and_are_told_after_it() {
    let mut setup = Setup::new(&[]);
    setup.find_bad(0);
    setup.client.fault("poison,page=5");
    let done = setup.guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!(done.status, Status::OK);
    let event = setup.guest.post_event_buffer(EVENT_BYTES);
    assert_eq!(setup.event_at(event), (5, 1));
    let checksum = header(Opcode::CHECKSUM);
    let completion = setup
        .guest
        .command(0, checksum, &[device(5 * ERROR_BYTES, 1)], &[]);
    assert_eq!(completion.status, Status::POISONED);
}

#[test]
fn a_buffer_that_is_too_small_for_the_error_does_not_lose_it() {
    let mut setup = Setup::new(&[]);
    setup.find_bad(0);
    setup.guest.post_event_buffer(EVENT_BYTES - 1);
    setup.client.fault("poison,page=5");
    let (_, bytes) = setup.guest.queues[EVENT].wait_used();
    assert_eq!(bytes, 0);
    let event = setup.guest.post_event_buffer(EVENT_BYTES);
    assert_eq!(setup.event_at(event), (5, 1));
}

#[test]
fn errors_during_a_pause_are_told_after_it() {
    let mut setup = Setup::new(&[]);
    setup.find_bad(0);
    let event = setup.guest.post_event_buffer(EVENT_BYTES);
    let bases = setup.guest.stop();
    setup.client.fault("poison,page=5");
    setup.guest.go_on(&bases);
    assert_eq!(setup.guest.request(COMMAND, &nop()).status, Status::OK);
    assert_eq!(setup.event_at(event), (5, 1));
}

#[test]
fn errors_outlive_a_virtio_reset_and_a_guest() {
    let backend = Backend::start_controlled(&[]);
    let mut client = Client::connect(&backend);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    client.fault("poison,page=7");
    let find = |guest: &mut Guest| {
        let completion = guest.control(ControlOpcode::FIND_BAD, 0, 0);
        completion.result.get()
    };
    assert_eq!(find(&mut guest), 7 * ERROR_BYTES);
    guest.virtio_reset();
    assert_eq!(find(&mut guest), 7 * ERROR_BYTES);
    drop(guest);
    let mut guest = Guest::connect(&backend.socket_path());
    assert_eq!(find(&mut guest), 7 * ERROR_BYTES);
    guest.map();
    let copy = header(Opcode::CHECKSUM);
    let completion = guest.command(0, copy, &[device(7 * ERROR_BYTES, 1)], &[]);
    assert_eq!(completion.status, Status::POISONED);
}

#[test]
fn a_command_on_a_bad_page_is_refused_and_a_load_finds_what_was_there() {
    let mut setup = Setup::new(&[]);
    let place = 5 * ERROR_BYTES;
    setup.guest.bar_write(place, b"before");
    setup.client.fault("poison,page=5");
    let fill = CommandHeader {
        width: 1.into(),
        ..header(Opcode::FILL)
    };
    let whole = [device(4 * ERROR_BYTES, 1), device(place, ERROR_BYTES)];
    let completion = setup.guest.command(0, fill, &[], &whole);
    assert_eq!(completion.status, Status::POISONED);
    assert_eq!(completion.range_index.get(), 1);
    assert_eq!(completion.bytes_done.get(), 0);
    assert_eq!(setup.guest.bar_read(place, 6), b"before");
}

#[test]
fn the_state_shows_what_is_bad() {
    let mut setup = Setup::new(&["--fault", "poison,page=65535"]);
    setup.client.fault("poison,page=2,count=3");
    let state = setup.client.state();
    assert_eq!(state.bad_pages, 4);
    let found: Vec<_> = state.bad.iter().map(|bad| (bad.page, bad.pages)).collect();
    assert_eq!(found, [(2, 3), (65535, 1)]);
    // However many there are, the answer has room in a line.
    setup.client.fault("poison,count=2000,seed=1");
    let state = setup.client.state();
    assert_eq!((state.bad_pages, state.bad.len()), (2004, 512));
}

#[test]
fn pages_that_there_are_not_are_refused() {
    let mut setup = Setup::new(&[]);
    let response = setup
        .client
        .say(r#"{"set":{"fault":{"kind":"poison","page":65536}}}"#);
    assert!(response.error.unwrap().contains("0 to 65535"));
}
