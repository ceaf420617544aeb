// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Access counters, as a driver has part in them.

use super::control::Client;
use super::guest::*;
use super::process::{Backend, wait_until};
use cdm_control_protocol::{AccessCounterState, Ask};
use cdm_protocol::*;
use std::collections::VecDeque;
use zerocopy::FromBytes;

const COMMAND: u16 = QUEUE_FIRST_COMMAND;
const PASID: u32 = 42;
const PAGE: u64 = PAGE_BYTES_SMALL;
/// Memory of the process. Its pages are those of [`SCRATCH`], in the same order.
const VIRTUAL: u64 = 0x5555_0000_0000;
const PAGES: u64 = (LOW_BYTES - SCRATCH) / PAGE;
/// Accesses to a granule from its beginning to its end.
const LINES: u64 = GRANULE_BYTES / ACCESS_BYTES;

/// A guest with a bound process whose pages the device has been told.
struct Driver {
    backend: Backend,
    guest: Guest,
    /// Buffers of the event queue, the next to come back first.
    buffers: VecDeque<u64>,
}

impl Driver {
    fn new() -> Self {
        let backend = Backend::start_controlled(&["--engines=3"]);
        let mut guest = Guest::connect(&backend.socket_path());
        guest.map();
        let mut driver = Self {
            backend,
            guest,
            buffers: VecDeque::new(),
        };
        driver.bind();
        driver.post_buffers(1);
        driver.learn();
        driver
    }

    fn control(&mut self, opcode: ControlOpcode, arg0: u64, arg1: u64) -> Status {
        let request = control_of(opcode, PASID, arg0, arg1);
        self.guest.request(QUEUE_CONTROL, &request).status
    }

    fn bind(&mut self) {
        assert_eq!(self.control(ControlOpcode::BIND, 0, 0), Status::OK);
    }

    fn switch(&mut self, threshold: u64) {
        let switched = self.control(ControlOpcode::COUNT_ACCESSES, threshold, 0);
        assert_eq!(switched, Status::OK);
    }

    fn post_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.guest.post_event_buffer(32);
            self.buffers.push_back(buffer);
        }
    }

    /// The next event in order, which has to be there.
    fn event(&mut self) -> Vec<u8> {
        let (_, bytes) = self.guest.queues[usize::from(QUEUE_EVENT)].wait_used();
        assert_eq!(bytes, 32);
        let buffer = self.buffers.pop_front().unwrap();
        self.guest.read(buffer, 32)
    }

    fn no_event(&mut self) {
        let used = self.guest.queues[usize::from(QUEUE_EVENT)].poll_used();
        assert_eq!(used, None);
    }

    fn report(&mut self) -> AccessReport {
        let report = AccessReport::read_from_bytes(&self.event()).unwrap();
        assert_eq!(report.kind, EventKind::ACCESS_REPORT);
        assert_eq!((report.queue.get(), report.pasid.get()), (COMMAND, PASID));
        report
    }

    fn fill_bytes(place: u64, bytes: u64) -> Vec<u8> {
        let fill = CommandHeader {
            width: 1.into(),
            ..header(Opcode::FILL)
        };
        command(fill, &[], &[process(PASID, VIRTUAL + place, bytes)])
    }

    /// Has the device fill so many granules of which it knows all pages.
    fn fill(&mut self, first: u64, granules: u64) {
        let bytes = granules * GRANULE_BYTES;
        let fill = Self::fill_bytes(first * GRANULE_BYTES, bytes);
        let done = self.guest.request(COMMAND, &fill);
        assert_eq!((done.status, done.bytes_done.get()), (Status::OK, bytes));
    }

    /// Has the device ask for all pages of the first four granules, with a buffer there for it.
    fn learn(&mut self) {
        let fill = Self::fill_bytes(0, 4 * GRANULE_BYTES);
        let pending = self.guest.post(COMMAND, &fill);
        let request = PageRequest::read_from_bytes(&self.event()).unwrap();
        assert_eq!(request.kind, EventKind::PAGE_REQUEST);
        let first = (request.address.get() - VIRTUAL) / PAGE;
        let last = (first + u64::from(request.pages.get())).min(PAGES);
        let (id, count) = (request.id.get().into(), last - first);
        let mut answer = control_of(ControlOpcode::PAGE_RESPONSE, PASID, id, count);
        for number in first..last {
            let entry = (SCRATCH + number * PAGE) | PageEntry::WRITABLE;
            answer.extend(entry.to_le_bytes());
        }
        let done = self.guest.request(QUEUE_CONTROL, &answer);
        assert_eq!(done.status, Status::OK);
        assert_eq!(self.guest.wait(COMMAND, &pending).status, Status::OK);
    }

    fn state(&self) -> AccessCounterState {
        Client::connect(&self.backend).state().access_counters
    }
}

#[test]
fn what_is_used_much_is_reported_with_its_process_its_queue_and_its_count() {
    let mut driver = Driver::new();
    driver.post_buffers(40);
    driver.fill(0, 4);
    driver.no_event();
    driver.switch(LINES + 1);
    driver.fill(2, 1);
    driver.no_event();
    driver.fill(2, 1);
    let report = driver.report();
    assert_eq!(report.address.get(), VIRTUAL + 2 * GRANULE_BYTES);
    assert!((LINES + 1..=2 * LINES).contains(&report.accesses.get()));
    assert_eq!(report.lost.get(), 0);
    driver.no_event();
    let state = driver.state();
    assert_eq!((state.spaces, state.accesses, state.hot), (1, 2 * LINES, 1));
    let metrics = Client::connect(&driver.backend).ask(Ask::Metrics).metrics;
    let metrics = metrics.unwrap();
    let expected = format!("cdm_accesses_counted_total {}", 2 * LINES);
    assert!(metrics.contains(&expected), "{metrics}");
    assert!(metrics.contains("cdm_granules_hot_total 1"), "{metrics}");
    driver.switch(0);
    driver.fill(0, 4);
    driver.no_event();
    assert_eq!(driver.state().accesses, 2 * LINES);
}

#[test]
fn reports_leave_buffers_for_page_requests_and_what_was_lost_is_told_later() {
    let mut driver = Driver::new();
    driver.post_buffers(usize::from(REPORT_BUFFERS_SPARED) + 1);
    driver.switch(LINES);
    for granule in 0..4 {
        driver.fill(granule, 1);
    }
    let report = driver.report();
    assert_eq!(
        (report.address.get(), report.accesses.get()),
        (VIRTUAL, LINES)
    );
    driver.no_event();
    let state = driver.state();
    assert_eq!((state.hot, state.lost), (4, 3));
    // The device has forgotten the pages, and finds a buffer to ask for them. The reports of
    // that command are lost as well: four granules as one.
    let range = (VIRTUAL, VIRTUAL + 4 * GRANULE_BYTES - 1);
    let gone = driver.control(ControlOpcode::INVALIDATE, range.0, range.1);
    assert_eq!(gone, Status::OK);
    driver.learn();
    driver.no_event();
    assert_eq!(driver.state().lost, 7);
    driver.post_buffers(2);
    driver.fill(3, 1);
    let report = driver.report();
    assert_eq!(report.address.get(), VIRTUAL + 3 * GRANULE_BYTES);
    assert_eq!(report.lost.get(), 7);
    driver.post_buffers(1);
    driver.fill(3, 1);
    assert_eq!(driver.report().lost.get(), 0);
}

#[test]
fn reset_begins_counts_anew_and_unbind_and_virtio_reset_end_them() {
    let mut driver = Driver::new();
    driver.post_buffers(40);
    driver.switch(LINES + 1);
    driver.fill(0, 1);
    let reset = driver.guest.control(ControlOpcode::RESET, 0, 0);
    assert_eq!(reset.status, Status::OK);
    let state = driver.state();
    assert_eq!((state.spaces, state.granules), (1, 0));
    driver.learn();
    driver.no_event();
    driver.fill(0, 1);
    let accesses = driver.report().accesses.get();
    assert!((LINES + 1..=2 * LINES).contains(&accesses), "{accesses}");
    assert_eq!(driver.control(ControlOpcode::UNBIND, 0, 0), Status::OK);
    assert_eq!(driver.state().spaces, 0);
    driver.bind();
    driver.learn();
    driver.fill(0, 4);
    driver.no_event();
    driver.switch(1);
    driver.guest.virtio_reset();
    wait_until("nothing is counted", || driver.state().spaces == 0);
}
