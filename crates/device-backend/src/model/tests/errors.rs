// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device memory that has failed: what is refused because of it, and how a driver learns of it.

use super::fixture::*;
use crate::model::{Command, ControlStep, Request};
use cdm_protocol::{CommandHeader, Completion, ControlOpcode, ERROR_BYTES, Opcode, Range, Status};

/// The page that fails.
const BAD: u64 = 3;
const BAD_BYTE: u64 = BAD * ERROR_BYTES;

fn with_bad_page() -> Fixture {
    let fixture = Fixture::new();
    assert_eq!(fixture.device.fail_pages(BAD..BAD + 1), 1);
    fixture
}

fn fill() -> CommandHeader {
    CommandHeader {
        width: 1.into(),
        arg0: 7.into(),
        ..header(Opcode::FILL)
    }
}

fn find_bad(fixture: &Fixture, from: u64) -> Completion {
    match fixture.control(ControlOpcode::FIND_BAD, from, 0) {
        ControlStep::Complete(completion) => completion,
        step => panic!("expected an answer, found {step:?}"),
    }
}

/// Where a stretch of bad memory begins, and its length.
fn found(fixture: &Fixture, from: u64) -> (u64, u64) {
    let completion = find_bad(fixture, from);
    assert_eq!(completion.status, Status::OK);
    (completion.result.get(), completion.bytes_done.get())
}

#[test]
fn every_command_that_touches_a_bad_page_is_refused_and_changes_nothing() {
    let fixture = with_bad_page();
    let before = fixture.peek(BAD_BYTE - 8, 16);
    let good = device(0, 64);
    let bad = device(BAD_BYTE - 8, 64);
    let word = device(BAD_BYTE, 8);
    let guest = guest(GUEST_BASE, 64);
    let with = |opcode, width: u16, repeat: u32| CommandHeader {
        width: width.into(),
        repeat: repeat.into(),
        ..header(opcode)
    };
    let cases: [(CommandHeader, &[Range], &[Range], u32); 10] = [
        (fill(), &[], &[good, bad], 1),
        (header(Opcode::COPY), &[bad], &[guest], 0),
        (header(Opcode::COPY), &[guest], &[bad], 1),
        (header(Opcode::CHECKSUM), &[good, good, bad], &[], 2),
        (header(Opcode::COMPARE), &[good], &[bad], 1),
        (with(Opcode::FETCH_ADD, 8, 1), &[], &[word], 0),
        (with(Opcode::COMPARE_SWAP, 8, 0), &[], &[word], 0),
        (with(Opcode::SUM, 8, 0), &[bad], &[], 0),
        (with(Opcode::AXPY, 8, 0), &[guest], &[bad], 1),
        (with(Opcode::POINTER_CHASE, 0, 1), &[word], &[], 0),
    ];
    for (header, src, dst, range) in cases {
        let completion = fixture.run(header, src, dst);
        let name = header.opcode;
        assert_eq!(completion.status, Status::POISONED, "{name:?}");
        assert_eq!(completion.range_index.get(), range, "{name:?}");
        assert_eq!(completion.bytes_done.get(), 0, "{name:?}");
    }
    assert_eq!(fixture.peek(BAD_BYTE - 8, 16), before);
    assert_eq!(fixture.peek(0, 64), [0; 64]);
}

#[test]
fn a_bad_page_ends_at_its_last_byte() {
    let fixture = with_bad_page();
    for (address, bytes, status) in [
        (0, BAD_BYTE, Status::OK),
        (0, BAD_BYTE + 1, Status::POISONED),
        (BAD_BYTE + ERROR_BYTES - 1, 1, Status::POISONED),
        (BAD_BYTE + ERROR_BYTES, ERROR_BYTES, Status::OK),
        (0, 8 * ERROR_BYTES, Status::POISONED),
    ] {
        let completion = fixture.run(fill(), &[], &[device(address, bytes)]);
        assert_eq!(completion.status, status, "{address}+{bytes}");
    }
}

#[test]
fn writing_all_of_a_bad_page_does_not_mend_it() {
    let fixture = with_bad_page();
    let page = [device(BAD_BYTE, ERROR_BYTES)];
    for _ in 0..2 {
        assert_eq!(fixture.run(fill(), &[], &page).status, Status::POISONED);
    }
    assert_eq!(found(&fixture, 0), (BAD_BYTE, ERROR_BYTES));
}

#[test]
fn a_command_that_had_begun_when_the_page_failed_goes_on() {
    let fixture = Fixture::new();
    let bytes = command(fill(), &[], &[device(0, 4 << 20)]);
    let parsed = Command::parse(&Request::new(&bytes, bytes.len() as u64));
    let task = fixture.device.begin(parsed, &fixture.guest).unwrap();
    fixture.device.fail_pages(BAD..BAD + 1);
    fixture.device.work(&task, &fixture.means(&|| false));
    let completion = fixture.device.finish(&task);
    assert_eq!(
        (completion.status, completion.bytes_done.get()),
        (Status::OK, 4 << 20)
    );
}

#[test]
fn protection_is_told_before_poison() {
    let fixture = with_bad_page();
    let guard = fixture.control_status(ControlOpcode::SET_METADATA, 0, 8 * ERROR_BYTES);
    assert_eq!(guard, Status::OK);
    let completion = fixture.run(fill(), &[], &[device(BAD_BYTE, 1)]);
    assert_eq!(completion.status, Status::PROTECTED);
}

#[test]
fn find_bad_walks_over_all_that_has_failed() {
    let fixture = Fixture::unmapped();
    let (device, last) = (&fixture.device, DEVICE_BYTES / ERROR_BYTES - 1);
    assert_eq!(found(&fixture, 0), (DEVICE_BYTES, 0));
    device.fail_pages(2..5);
    device.fail_pages(last..last + 1);
    let end = last * ERROR_BYTES;
    assert_eq!(found(&fixture, 0), (2 * ERROR_BYTES, 3 * ERROR_BYTES));
    assert_eq!(
        found(&fixture, 3 * ERROR_BYTES),
        (3 * ERROR_BYTES, 2 * ERROR_BYTES)
    );
    assert_eq!(found(&fixture, 5 * ERROR_BYTES), (end, ERROR_BYTES));
    assert_eq!(found(&fixture, DEVICE_BYTES), (DEVICE_BYTES, 0));
}

#[test]
fn find_bad_refuses_what_is_no_place_in_the_memory() {
    let fixture = Fixture::unmapped();
    for (from, status) in [
        (1, Status::MISALIGNED),
        (DEVICE_BYTES + ERROR_BYTES, Status::BAD_ADDRESS),
        (u64::MAX, Status::MISALIGNED),
    ] {
        assert_eq!(find_bad(&fixture, from).status, status, "{from:#x}");
    }
    let status = fixture.control_status(ControlOpcode::FIND_BAD, 0, 1);
    assert_eq!(status, Status::RESERVED_FIELD);
}

#[test]
fn errors_outlive_the_driver_and_the_next_one_finds_them() {
    let fixture = with_bad_page();
    found(&fixture, 0);
    fixture.device.fail_pages(9..11);
    fixture.device.unplug();
    assert!(fixture.device.take_memory_error().is_none());
    assert_eq!(found(&fixture, 0), (BAD_BYTE, ERROR_BYTES));
    assert_eq!(
        found(&fixture, BAD_BYTE + ERROR_BYTES),
        (9 * ERROR_BYTES, 2 * ERROR_BYTES)
    );
    fixture.device.fail_pages(11..12);
    let error = fixture.device.take_memory_error().unwrap();
    assert_eq!(
        (error.address.get(), error.bytes.get()),
        (11 * ERROR_BYTES, ERROR_BYTES)
    );
}
