// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What ends a command that waits for a page which never comes.

use super::driver::*;
use crate::model::tests::fixture::*;
use crate::model::{Cancellation, Command, Means, Request};
use cdm_protocol::*;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than a wake-up takes on a loaded machine; a wait that reaches it is a hang.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a command until it waits for a page, in as many threads as there are chunks; then `act`
/// ends the wait. How the command ends.
fn end_of_wait(bytes: u64, act: impl FnOnce(&Driver)) -> Completion {
    let driver = Driver::new();
    let queue = &driver.fixture.device.queues()[0];
    let ticket = queue.take();
    queue.name(&ticket, 77);
    let threads = bytes.div_ceil(512 << 10);
    let request = command(fill(1), &[], &[process(PASID, VIRTUAL, bytes)]);
    let parsed = Command::parse(&Request::new(&request, request.len() as u64));
    assert!(parsed.waits_for_guest());
    let task = driver.fixture.device.begin(parsed, &driver.fixture.guest);
    let task = task.unwrap();
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let cancelled = || queue.is_cancelled(&ticket) || queue.is_stopping();
                let means = Means {
                    guest: &driver.fixture.guest,
                    asker: &Silent(&driver),
                    cancelled: &cancelled,
                };
                driver.fixture.device.work(&task, &means);
            });
        }
        while driver.asked().len() < threads as usize {
            thread::yield_now();
        }
        // Into the wait itself.
        thread::sleep(Duration::from_millis(20));
        act(&driver);
    });
    assert!(begin.elapsed() < TIMEOUT, "{:?}", begin.elapsed());
    driver.fixture.device.finish(&task)
}

#[test]
fn reset_ends_the_wait() {
    for bytes in [8, 2 << 20] {
        let ended = end_of_wait(bytes, |driver| {
            let _line = driver.fixture.device.queues()[0].cancel_posted(0);
        });
        assert_eq!(
            (ended.status, ended.bytes_done.get()),
            (Status::CANCELLED, 0)
        );
    }
}

#[test]
fn cancel_ends_the_wait() {
    let ended = end_of_wait(8, |driver| {
        let cancelled = driver.fixture.device.queues()[0].cancel_one(77, 0);
        assert_eq!(cancelled, Cancellation::Stopping);
    });
    assert_eq!(ended.status, Status::CANCELLED);
}

#[test]
fn stop_of_the_ring_ends_the_wait() {
    let ended = end_of_wait(2 << 20, |driver| {
        driver.fixture.device.queues()[0].set_stopping(true);
    });
    assert_eq!(ended.status, Status::CANCELLED);
}

#[test]
fn guest_that_goes_ends_the_wait() {
    let ended = end_of_wait(8, |driver| {
        driver.fixture.device.queues()[0].cancel_all();
    });
    assert_eq!(ended.status, Status::CANCELLED);
}

#[test]
fn unbind_ends_the_wait() {
    for bytes in [8, 2 << 20] {
        let ended = end_of_wait(bytes, |driver| {
            let unbound = driver.control(ControlOpcode::UNBIND, PASID, 0, 0);
            assert_eq!(unbound, (Status::OK, 0));
        });
        assert_eq!((ended.status, ended.bytes_done.get()), (Status::UNBOUND, 0));
    }
}

#[test]
fn virtio_reset_ends_the_wait() {
    let ended = end_of_wait(8, |driver| driver.fixture.device.unplug());
    assert_eq!(ended.status, Status::UNBOUND);
}

#[test]
fn chunk_that_fails_ends_the_waits_of_those_behind_it() {
    let ended = end_of_wait(2 << 20, |driver| {
        // The first chunk alone is answered.
        let id = driver.id_of(VIRTUAL);
        let refused = driver.respond(PASID, id, &[refused(Status::UNMAPPED)]);
        assert_eq!(refused, (Status::OK, 1));
    });
    assert_eq!(
        (ended.status, ended.bytes_done.get()),
        (Status::UNMAPPED, 0)
    );
}

#[test]
fn command_that_began_before_its_pasid_was_bound_anew_does_not_use_the_new_space() {
    let driver = Driver::new();
    driver.map(0, on_device(0x10_0000));
    let request = command(fill(1), &[], &[process(PASID, VIRTUAL, 8)]);
    let parsed = Command::parse(&Request::new(&request, request.len() as u64));
    let device = &driver.fixture.device;
    let task = device.begin(parsed, &driver.fixture.guest).unwrap();
    driver.control(ControlOpcode::UNBIND, PASID, 0, 0);
    driver.bind(PASID);
    // The new space knows the page already.
    let word = [process(PASID, VIRTUAL, 8)];
    assert_eq!(driver.run(fill(2), &[], &word).status, Status::OK);
    let means = Means {
        guest: &driver.fixture.guest,
        asker: &driver,
        cancelled: &|| false,
    };
    device.work(&task, &means);
    assert_eq!(device.finish(&task).status, Status::UNBOUND);
    assert_eq!(driver.fixture.peek(0x10_0000, 8), [2; 8]);
}

#[test]
fn reset_takes_translations_and_leaves_bindings() {
    let driver = Driver::new();
    driver.map(0, on_device(0x10_0000));
    let word = [process(PASID, VIRTUAL, 8)];
    assert_eq!(driver.run(fill(2), &[], &word).status, Status::OK);
    driver.fixture.device.finish_reset(0);
    assert_eq!(driver.run(fill(3), &[], &word).status, Status::OK);
    assert_eq!(driver.asked().len(), 2);
}

#[test]
fn virtio_reset_takes_the_bindings() {
    let driver = Driver::new();
    let word = [process(PASID, VIRTUAL, 8)];
    driver.fixture.device.unplug();
    assert_eq!(driver.run(fill(2), &[], &word).status, Status::BAD_PASID);
}
