// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shared virtual addressing, as a driver has part in it.

use super::control::Client;
use super::guest::*;
use super::process::{Backend, wait_until};
use cdm_control_protocol::Ask;
use cdm_protocol::*;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

const COMMAND: u16 = QUEUE_FIRST_COMMAND;
const PASID: u32 = 42;
const PAGE: u64 = PAGE_BYTES_SMALL;
/// Memory of the process. Its pages are those of [`SCRATCH`], in the same order.
const VIRTUAL: u64 = 0x5555_0000_0000;
/// Pages there.
const PAGES: u64 = (LOW_BYTES - SCRATCH) / PAGE;

/// Starts a device of which a driver has bound [`PASID`], and put so many buffers on the
/// event queue.
fn start(buffers: usize, arguments: &[&str]) -> (Backend, Guest) {
    let arguments = [arguments, &["--engines=3"]].concat();
    let backend = Backend::start_controlled(&arguments);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    bind(&mut guest);
    for _ in 0..buffers {
        guest.post_event_buffer(32);
    }
    (backend, guest)
}

fn bind(guest: &mut Guest) {
    assert_eq!(space(guest, ControlOpcode::BIND, 0, 0).status, Status::OK);
}

/// A control request about the process's address space.
fn space(guest: &mut Guest, opcode: ControlOpcode, arg0: u64, arg1: u64) -> Completion {
    guest.request(QUEUE_CONTROL, &control_of(opcode, PASID, arg0, arg1))
}

fn invalidate(guest: &mut Guest, first: u64, last: u64) {
    let done = space(guest, ControlOpcode::INVALIDATE, first, last);
    assert_eq!(done.status, Status::OK);
}

/// A FILL of the process's memory.
fn fill(place: u64, bytes: u64, byte: u8) -> Vec<u8> {
    let fill = CommandHeader {
        width: 1.into(),
        arg0: u64::from(byte).into(),
        ..header(Opcode::FILL)
    };
    command(fill, &[], &[process(PASID, VIRTUAL + place, bytes)])
}

/// The page request that is in an event buffer that came back.
fn read_request(guest: &Guest, buffer: u64, bytes: u32) -> PageRequest {
    assert_eq!(bytes, 32);
    let request = PageRequest::read_from_bytes(&guest.read(buffer, 32)).unwrap();
    assert_eq!(request.kind, EventKind::PAGE_REQUEST);
    assert_eq!(request.reserved.get(), 0);
    request
}

/// Waits for the next page request. The only buffer is at `buffer`.
fn wait_request(guest: &mut Guest, buffer: u64) -> PageRequest {
    let (_, bytes) = guest.queues[usize::from(QUEUE_EVENT)].wait_used();
    read_request(guest, buffer, bytes)
}

fn respond(guest: &mut Guest, id: u32, entries: &[u64]) -> Completion {
    let count = entries.len() as u64;
    let mut request = control_of(ControlOpcode::PAGE_RESPONSE, PASID, id.into(), count);
    for bits in entries {
        request.extend(bits.to_le_bytes());
    }
    guest.request(QUEUE_CONTROL, &request)
}

/// Answers a page request with the pages of the process.
fn answer(guest: &mut Guest, request: &PageRequest) {
    assert_eq!(request.pasid.get(), PASID);
    let first = (request.address.get() - VIRTUAL) / PAGE;
    let last = (first + u64::from(request.pages.get())).min(PAGES);
    let entries: Vec<u64> = (first..last)
        .map(|number| (SCRATCH + number * PAGE) | PageEntry::WRITABLE)
        .collect();
    let done = respond(guest, request.id.get(), &entries);
    assert_eq!((done.status, done.result.get()), (Status::OK, last - first));
}

fn refused(status: Status) -> u64 {
    u64::from(status.get()) << PageEntry::STATUS_SHIFT | PageEntry::REFUSED
}

#[test]
fn command_asks_for_the_pages_it_needs_and_goes_on_with_the_answer() {
    let (_backend, mut guest) = start(0, &[]);
    let buffer = guest.post_event_buffer(32);
    let pending = guest.post(COMMAND + 1, &fill(PAGE - 5, 2 * PAGE, 0xab));
    let request = wait_request(&mut guest, buffer);
    assert_eq!(request.queue.get(), COMMAND + 1);
    assert_eq!(request.pasid.get(), PASID);
    assert_eq!((request.address.get(), request.pages.get()), (VIRTUAL, 3));
    assert_eq!(request.flags.get(), PAGE_REQUEST_WRITE);
    answer(&mut guest, &request);
    let done = guest.wait(COMMAND + 1, &pending);
    assert_eq!((done.status, done.bytes_done.get()), (Status::OK, 2 * PAGE));
    let memory = guest.read(SCRATCH + PAGE - 6, 2 * PAGE as usize + 2);
    assert_eq!((memory[0], memory[memory.len() - 1]), (0, 0));
    assert!(memory[1..memory.len() - 1].iter().all(|&byte| byte == 0xab));
    // What is known is not asked for again; there is no buffer to do so.
    let again = guest.request(COMMAND, &fill(PAGE, 8, 1));
    assert_eq!(again.status, Status::OK);
    invalidate(&mut guest, VIRTUAL + PAGE, VIRTUAL + PAGE);
    assert_eq!(guest.request(COMMAND, &fill(0, 8, 1)).status, Status::OK);
    let gone = guest.request(COMMAND, &fill(PAGE, 8, 1));
    assert_eq!(gone.status, Status::PAGE_QUEUE_FULL);
}

#[test]
fn engines_ask_each_for_its_part_of_a_large_command() {
    let (_backend, mut guest) = start(0, &["--translations-small=128"]);
    let mut buffers: Vec<u64> = (0..8).map(|_| guest.post_event_buffer(32)).collect();
    let bytes = PAGES * PAGE;
    let noise: Vec<u8> = (0..bytes).map(|place| ((place * 31) >> 7) as u8).collect();
    guest.bar_write(0, &noise);
    let dst = [process(PASID, VIRTUAL, bytes)];
    let copy = command(header(Opcode::COPY), &[device(0, bytes)], &dst);
    let pending = guest.post(COMMAND, &copy);
    let mut requests = 0;
    let done = loop {
        if let Some((_, used)) = guest.queues[usize::from(QUEUE_EVENT)].poll_used() {
            let buffer = buffers.remove(0);
            let request = read_request(&guest, buffer, used);
            buffers.push(guest.post_event_buffer(32));
            answer(&mut guest, &request);
            requests += 1;
        } else if guest.queues[usize::from(COMMAND)].poll_used().is_some() {
            break guest.completion(&pending);
        }
    };
    assert_eq!((done.status, done.bytes_done.get()), (Status::OK, bytes));
    // At most half of what is remembered comes at a time.
    assert!(requests >= PAGES / 64, "{requests}");
    assert!(guest.read(SCRATCH, bytes as usize) == noise);
}

#[test]
fn request_that_finds_no_buffer_ends_its_command_and_the_queue_goes_on() {
    let (_backend, mut guest) = start(0, &[]);
    let full = guest.request(COMMAND, &fill(0, 8, 1));
    assert_eq!(
        (full.status, full.bytes_done.get()),
        (Status::PAGE_QUEUE_FULL, 0)
    );
    // One that is too small for a page request is none.
    guest.post_event_buffer(16);
    let full = guest.request(COMMAND, &fill(0, 8, 1));
    assert_eq!(full.status, Status::PAGE_QUEUE_FULL);
    let used = guest.queues[usize::from(QUEUE_EVENT)].poll_used();
    assert_eq!(used.map(|(_, bytes)| bytes), Some(0));
    assert_eq!(guest.request(COMMAND, &nop()).status, Status::OK);
}

#[test]
fn refusal_reaches_the_caller_and_an_answer_that_comes_late_changes_nothing() {
    let (_backend, mut guest) = start(0, &[]);
    for status in [
        Status::UNMAPPED,
        Status::NO_ACCESS,
        Status::UNBOUND,
        Status::PAGE_ERROR,
    ] {
        let buffer = guest.post_event_buffer(32);
        let pending = guest.post(COMMAND, &fill(0, 8, 1));
        let request = wait_request(&mut guest, buffer);
        let done = respond(&mut guest, request.id.get(), &[refused(status)]);
        assert_eq!((done.status, done.result.get()), (Status::OK, 1));
        assert_eq!(guest.wait(COMMAND, &pending).status, status);
        let late = respond(&mut guest, request.id.get(), &[SCRATCH]);
        assert_eq!((late.status, late.result.get()), (Status::OK, 0));
    }
    let buffer = guest.post_event_buffer(32);
    let pending = guest.post(COMMAND, &fill(0, 8, 1));
    let request = wait_request(&mut guest, buffer);
    let done = respond(&mut guest, request.id.get(), &[SCRATCH | 0x10]);
    assert_eq!(done.status, Status::BAD_ARGUMENT);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::PAGE_ERROR);
}

/// Has a command wait for a page.
fn wait_for_page(guest: &mut Guest, request: &[u8]) -> (Pending, PageRequest) {
    let buffer = guest.post_event_buffer(32);
    let pending = guest.post(COMMAND, request);
    let request = wait_request(guest, buffer);
    (pending, request)
}

#[test]
fn reset_unbind_and_cancel_end_the_wait_for_a_page() {
    let (_backend, mut guest) = start(0, &[]);
    // Of one page: there is a buffer for one request, and engines would ask for others.
    let (pending, _) = wait_for_page(&mut guest, &fill(0, PAGE, 1));
    let reset = guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!((reset.status, reset.result.get()), (Status::OK, 1));
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::CANCELLED);

    let (pending, _) = wait_for_page(&mut guest, &fill(0, 8, 1));
    let unbound = space(&mut guest, ControlOpcode::UNBIND, 0, 0);
    assert_eq!(unbound.status, Status::OK);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::UNBOUND);
    assert_eq!(
        guest.request(COMMAND, &fill(0, 8, 1)).status,
        Status::BAD_PASID
    );
    bind(&mut guest);

    let fill = CommandHeader {
        flags: FLAG_TAGGED.into(),
        width: 1.into(),
        ..header(Opcode::FILL)
    };
    let bytes = command(fill, &[], &[process(PASID, VIRTUAL, 8)]);
    let (head, ranges) = bytes.split_at(size_of::<CommandHeader>());
    let tagged = [head, 99u64.as_bytes(), ranges].concat();
    let (pending, _) = wait_for_page(&mut guest, &tagged);
    let cancel = guest.control(ControlOpcode::CANCEL, 99, COMMAND.into());
    assert_eq!((cancel.status, cancel.result.get()), (Status::OK, 1));
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::CANCELLED);
}

#[test]
fn reset_takes_translations_and_leaves_bindings() {
    let (_backend, mut guest) = start(0, &[]);
    let (pending, request) = wait_for_page(&mut guest, &fill(0, 8, 1));
    answer(&mut guest, &request);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
    assert_eq!(guest.control(ControlOpcode::RESET, 0, 0).status, Status::OK);
    let (pending, request) = wait_for_page(&mut guest, &fill(0, 8, 1));
    answer(&mut guest, &request);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
}

#[test]
fn pause_ends_the_wait_and_the_answer_that_comes_after_it_is_for_nobody() {
    let (_backend, mut guest) = start(0, &[]);
    let (pending, request) = wait_for_page(&mut guest, &fill(0, 8, 1));
    let begin = Instant::now();
    guest.pause_and_go_on();
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "a stop waited for the driver"
    );
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::CANCELLED);
    let late = respond(&mut guest, request.id.get(), &[SCRATCH]);
    assert_eq!((late.status, late.result.get()), (Status::OK, 0));
    // The binding is still there.
    let (pending, request) = wait_for_page(&mut guest, &fill(0, 8, 1));
    answer(&mut guest, &request);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
}

#[test]
fn virtio_reset_ends_the_wait_and_takes_the_bindings() {
    let (_backend, mut guest) = start(0, &[]);
    wait_for_page(&mut guest, &fill(0, 8, 1));
    let begin = Instant::now();
    guest.virtio_reset();
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "a reset waited for the driver"
    );
    guest.map();
    assert_eq!(
        guest.request(COMMAND, &fill(0, 8, 1)).status,
        Status::BAD_PASID
    );
    bind(&mut guest);
}

#[test]
fn guest_that_goes_while_its_commands_wait_leaves_nothing_to_the_next() {
    let (backend, mut guest) = start(0, &[]);
    wait_for_page(&mut guest, &fill(0, 2 << 20, 1));
    drop(guest);
    let mut next = Guest::connect(&backend.socket_path());
    next.map();
    assert_eq!(
        next.request(COMMAND, &fill(0, 8, 1)).status,
        Status::BAD_PASID
    );
}

#[test]
fn waits_of_all_threads_keep_no_control_request_from_being_answered() {
    let (_backend, mut guest) = start(0, &[]);
    // More than there are engines and workers; buffers are used in their order, whoever asks.
    let mut buffers: VecDeque<u64> = (0..20).map(|_| guest.post_event_buffer(32)).collect();
    let mut posted = Vec::new();
    for number in 0..10 {
        let mut bytes = fill(number * PAGE, 8, number as u8 + 1);
        bytes[2..4].copy_from_slice(&FLAG_UNORDERED.to_le_bytes());
        posted.push(guest.post(COMMAND + number as u16 % 2, &bytes));
    }
    // All engines wait.
    let waiting: Vec<_> = (0..3)
        .map(|_| wait_request(&mut guest, buffers.pop_front().unwrap()))
        .collect();
    invalidate(&mut guest, 0, u64::MAX);
    for request in waiting.iter().rev() {
        answer(&mut guest, request);
    }
    let mut ended = 0;
    while ended < posted.len() {
        if let Some((_, used)) = guest.queues[usize::from(QUEUE_EVENT)].poll_used() {
            let request = read_request(&guest, buffers.pop_front().unwrap(), used);
            buffers.push_back(guest.post_event_buffer(32));
            // Some that have their answer and have not looked yet ask once more.
            invalidate(&mut guest, 0, u64::MAX);
            answer(&mut guest, &request);
        }
        for queue in [COMMAND, COMMAND + 1] {
            let used = guest.queues[usize::from(queue)].poll_used();
            ended += usize::from(used.is_some());
        }
    }
    for (number, pending) in (0u64..).zip(&posted) {
        assert_eq!(guest.completion(pending).status, Status::OK);
        let byte = number as u8 + 1;
        assert_eq!(guest.read(SCRATCH + number * PAGE, 8), [byte; 8]);
    }
}

#[test]
fn fault_refuses_the_page_requests_that_it_names() {
    let faults = ["--fault=refuse-page,queue=2,nth=2,status=24"];
    let (backend, mut guest) = start(0, &faults);
    let mut client = Client::connect(&backend);
    let (pending, request) = wait_for_page(&mut guest, &fill(0, 8, 1));
    answer(&mut guest, &request);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
    assert_eq!(
        guest.request(COMMAND, &fill(PAGE, 8, 1)).status,
        Status::NO_ACCESS
    );
    let (pending, request) = wait_for_page(&mut guest, &fill(PAGE, 8, 1));
    answer(&mut guest, &request);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
    client.fault("refuse-page");
    let refused = guest.request(COMMAND + 1, &fill(2 * PAGE, 8, 1));
    assert_eq!(refused.status, Status::PAGE_ERROR);
}

/// Waits until so many invalidations were carried out, acknowledged or not.
fn wait_for_invalidations(client: &mut Client, count: u32) {
    let line = format!("cdm_invalidations_total {count}\n");
    wait_until("the invalidation is carried out", || {
        let metrics = client.ask(Ask::Metrics).metrics.unwrap();
        metrics.contains(&line)
    });
}

#[test]
fn fault_has_an_invalidation_acknowledged_late_and_nobody_uses_the_page_meanwhile() {
    let faults = ["--fault=late-invalidation,ms=300,nth=2"];
    let (backend, mut guest) = start(0, &faults);
    let (pending, request) = wait_for_page(&mut guest, &fill(0, 8, 1));
    answer(&mut guest, &request);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
    invalidate(&mut guest, 0, 0);
    let begin = Instant::now();
    let late = guest.post(
        QUEUE_CONTROL,
        &control_of(ControlOpcode::INVALIDATE, PASID, VIRTUAL, VIRTUAL),
    );
    let mut client = Client::connect(&backend);
    wait_for_invalidations(&mut client, 2);
    let gone = guest.request(COMMAND, &fill(0, 8, 1));
    assert_eq!(gone.status, Status::PAGE_QUEUE_FULL);
    assert_eq!(guest.wait(QUEUE_CONTROL, &late).status, Status::OK);
    assert!(begin.elapsed() >= Duration::from_millis(300));
}

#[test]
fn invalidation_that_a_fault_holds_up_holds_up_no_pause() {
    let (backend, mut guest) = start(0, &["--fault=late-invalidation,ms=60000"]);
    let bytes = control_of(ControlOpcode::INVALIDATE, PASID, 0, 0);
    let late = guest.post(QUEUE_CONTROL, &bytes);
    wait_for_invalidations(&mut Client::connect(&backend), 1);
    let begin = Instant::now();
    guest.pause_and_go_on();
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "a stop waited for the fault"
    );
    assert_eq!(guest.wait(QUEUE_CONTROL, &late).status, Status::OK);
}

#[test]
fn invalidation_waits_for_an_access_that_a_fault_makes_late() {
    let (backend, mut guest) = start(0, &["--fault=late-access,ms=300"]);
    let (pending, request) = wait_for_page(&mut guest, &fill(0, 8, 1));
    let begin = Instant::now();
    answer(&mut guest, &request);
    let mut client = Client::connect(&backend);
    wait_until("the access begins", || {
        client.ask(Ask::Faults).faults.unwrap()[0].hits == 1
    });
    assert_eq!(guest.read(SCRATCH, 8), [0; 8]);
    invalidate(&mut guest, VIRTUAL, VIRTUAL);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert_eq!(guest.read(SCRATCH, 8), [1; 8]);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
}

#[test]
fn access_that_a_fault_holds_up_holds_up_neither_a_pause_nor_a_reset() {
    let (backend, mut guest) = start(0, &["--fault=late-access,ms=60000,count=2"]);
    let mut client = Client::connect(&backend);
    let mut late = |guest: &mut Guest, hits: u64| {
        let (pending, request) = wait_for_page(guest, &fill(0, 8, 1));
        answer(guest, &request);
        wait_until("the access begins", || {
            client.ask(Ask::Faults).faults.unwrap()[0].hits == hits
        });
        pending
    };
    let begin = Instant::now();
    let pending = late(&mut guest, 1);
    guest.pause_and_go_on();
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
    invalidate(&mut guest, VIRTUAL, VIRTUAL);
    let pending = late(&mut guest, 2);
    assert_eq!(guest.control(ControlOpcode::RESET, 0, 0).status, Status::OK);
    // What is let go is done, whether the RESET was first or not.
    guest.wait(COMMAND, &pending);
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "something waited for the fault"
    );
}

#[test]
fn queue_errors_fit_the_buffers_of_page_requests() {
    let (_backend, mut guest) = start(0, &[]);
    let buffer = guest.post_event_buffer(32);
    let request = guest.place(&nop());
    let chain = [super::queue::readable(request, 32)];
    guest.queues[usize::from(COMMAND)].submit(&chain);
    let (_, bytes) = guest.queues[usize::from(QUEUE_EVENT)].wait_used();
    assert_eq!(bytes, 16);
    let event = Event::read_from_bytes(&guest.read(buffer, 16)).unwrap();
    assert_eq!(event.kind, EventKind::QUEUE_ERROR);
    assert_eq!(guest.read(buffer + 16, 16), [0xee; 16]);
}

#[test]
fn page_requests_have_numbers_of_their_own_also_after_resets() {
    let (_backend, mut guest) = start(0, &[]);
    let mut numbers = Vec::new();
    let mut ask = |guest: &mut Guest| {
        let (_, request) = wait_for_page(guest, &fill(0, 8, 1));
        numbers.push(request.id.get());
    };
    ask(&mut guest);
    assert_eq!(guest.control(ControlOpcode::RESET, 0, 0).status, Status::OK);
    guest.queues[usize::from(COMMAND)].wait_used();
    ask(&mut guest);
    guest.virtio_reset();
    guest.map();
    bind(&mut guest);
    ask(&mut guest);
    let first = numbers[0];
    assert_eq!(numbers, [first, first + 1, first + 2]);
}

/// Flags of a page request for atomics.
const ATOMIC: u16 = PAGE_REQUEST_WRITE | PAGE_REQUEST_ATOMIC;

/// So many additions of one to a word of eight bytes.
fn add(repeat: u32, word: Range) -> Vec<u8> {
    let add = CommandHeader {
        width: 8.into(),
        repeat: repeat.into(),
        arg0: 1.into(),
        ..header(Opcode::FETCH_ADD)
    };
    command(add, &[], &[word])
}

/// An addition to the word at the beginning of the process's memory, up to the page request.
fn wait_for_page_of_addition(guest: &mut Guest, repeat: u32) -> (Pending, PageRequest) {
    let word = process(PASID, VIRTUAL, 8);
    let (pending, request) = wait_for_page(guest, &add(repeat, word));
    assert_eq!((request.address.get(), request.pages.get()), (VIRTUAL, 1));
    assert_eq!(request.flags.get(), ATOMIC);
    (pending, request)
}

#[test]
fn device_on_a_link_without_atomics_says_so_and_asks_for_pages_of_its_own() {
    const TAKEN: u64 = SCRATCH | PageEntry::WRITABLE | PageEntry::EXCLUSIVE;
    let faults = "--fault=refuse-page,queue=2,nth=4,status=24";
    let (backend, mut guest) = start(0, &["--atomics=exclusive", faults]);
    assert_eq!(guest.config().features.get(), FEATURES_ALL);
    // What is enough for stores is not enough.
    let (pending, request) = wait_for_page(&mut guest, &fill(0, PAGE, 0));
    assert_eq!(request.flags.get(), PAGE_REQUEST_WRITE);
    answer(&mut guest, &request);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
    let (pending, request) = wait_for_page_of_addition(&mut guest, 3);
    let done = respond(&mut guest, request.id.get(), &[TAKEN]);
    assert_eq!((done.status, done.result.get()), (Status::OK, 1));
    let done = guest.wait(COMMAND, &pending);
    assert_eq!((done.status, done.result.get()), (Status::OK, 2));
    // There is no buffer for another request, from either queue.
    let word = process(PASID, VIRTUAL, 8);
    for queue in [COMMAND, COMMAND + 1] {
        assert_eq!(guest.request(queue, &add(5, word)).status, Status::OK);
    }
    invalidate(&mut guest, VIRTUAL, VIRTUAL);
    assert_eq!(guest.read(SCRATCH, 8), 13u64.to_le_bytes());
    let (pending, request) = wait_for_page_of_addition(&mut guest, 1);
    let done = respond(
        &mut guest,
        request.id.get(),
        &[SCRATCH | PageEntry::WRITABLE],
    );
    assert_eq!(done.status, Status::OK);
    assert_eq!(guest.wait(COMMAND, &pending).status, Status::NO_ACCESS);
    // Faults are in the way of such requests as of others.
    let refused = guest.request(COMMAND, &add(1, word));
    assert_eq!(refused.status, Status::NO_ACCESS);
    let pinned = Range {
        space: Space::GUEST,
        pasid: 0.into(),
        address: SCRATCH.into(),
        ..word
    };
    let refused = guest.request(COMMAND, &add(1, pinned));
    assert_eq!(refused.status, Status::BAD_SPACE);
    assert_eq!(guest.read(SCRATCH, 8), 13u64.to_le_bytes());
    let metrics = Client::connect(&backend).ask(Ask::Metrics).metrics.unwrap();
    for line in [
        "cdm_page_requests_total 3\n",
        "cdm_page_requests_exclusive_total 2\n",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[test]
fn exclusive_page_is_used_once_by_who_asked_for_it_however_soon_it_is_taken_back() {
    const TAKEN: u64 = SCRATCH | PageEntry::WRITABLE | PageEntry::EXCLUSIVE;
    const ROUNDS: u64 = 50;
    let (_backend, mut guest) = start(0, &["--atomics=exclusive"]);
    for round in 0..ROUNDS {
        let (pending, request) = wait_for_page_of_addition(&mut guest, 1);
        // Both are there before the command can have looked at the answer.
        let id = request.id.get().into();
        let mut response = control_of(ControlOpcode::PAGE_RESPONSE, PASID, id, 1);
        response.extend(TAKEN.to_le_bytes());
        let gone = control_of(ControlOpcode::INVALIDATE, PASID, VIRTUAL, VIRTUAL);
        let answered = guest.post_silently(QUEUE_CONTROL, &response);
        let gone = guest.post_silently(QUEUE_CONTROL, &gone);
        guest.queues[usize::from(QUEUE_CONTROL)].kick_if_wanted(2);
        for request in [&answered, &gone] {
            assert_eq!(guest.wait(QUEUE_CONTROL, request).status, Status::OK);
        }
        // The CPU has it back, and what the device did is there.
        assert_eq!(guest.read(SCRATCH, 8), (round + 1).to_le_bytes());
        assert_eq!(guest.wait(COMMAND, &pending).status, Status::OK);
    }
}
