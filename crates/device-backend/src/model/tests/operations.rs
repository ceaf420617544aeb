// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What each operation does when nothing is wrong.

use super::fixture::*;
use cdm_protocol::{COMPARE_EQUAL, CommandHeader, Completion, Opcode, Status};

/// Result and bytes done of a command that must succeed.
fn ok(completion: Completion) -> (u64, u64) {
    assert_eq!(completion.status, Status::OK);
    (completion.result.get(), completion.bytes_done.get())
}

#[test]
fn nop_does_nothing() {
    assert_eq!(
        ok(Fixture::new().run(header(Opcode::NOP), &[], &[])),
        (0, 0)
    );
}

#[test]
fn fill_repeats_the_element_across_borders_of_ranges() {
    let fixture = Fixture::new();
    let fill = CommandHeader {
        width: 4.into(),
        arg0: 0xffff_ffff_0403_0201.into(),
        ..header(Opcode::FILL)
    };
    let ranges = [device(100, 3), guest(GUEST_BORDER - 2, 5)];
    assert_eq!(ok(fixture.run(fill, &[], &ranges)), (0, 8));
    assert_eq!(fixture.peek(99, 5), [0, 1, 2, 3, 0]);
    assert_eq!(
        fixture.peek_guest(GUEST_BORDER - 3, 7),
        [0, 4, 1, 2, 3, 4, 0]
    );
}

#[test]
fn fill_keeps_its_phase_over_many_bounce_buffers() {
    let fixture = Fixture::new();
    let fill = CommandHeader {
        width: 8.into(),
        arg0: 0x0807_0605_0403_0201.into(),
        ..header(Opcode::FILL)
    };
    let ranges = [device(1, 3), device(8, (1 << 20) - 3)];
    assert_eq!(ok(fixture.run(fill, &[], &ranges)), (0, 1 << 20));
    let bytes = [fixture.peek(1, 3), fixture.peek(8, (1 << 20) - 3)].concat();
    assert!(
        bytes
            .iter()
            .zip((1..=8).cycle())
            .all(|(&found, want)| found == want)
    );
}

#[test]
fn copy_goes_between_lists_of_different_cut() {
    let fixture = Fixture::new();
    let data: Vec<u8> = (0..100).collect();
    fixture.poke(0, &data[..30]);
    fixture.poke_guest(GUEST_BORDER - 10, &data[30..]);
    let src = [device(0, 30), guest(GUEST_BORDER - 10, 70)];
    let dst = [guest(GUEST_BASE, 55), device(5000, 45)];
    assert_eq!(ok(fixture.run(header(Opcode::COPY), &src, &dst)), (0, 100));
    assert_eq!(fixture.peek_guest(GUEST_BASE, 55), data[..55]);
    assert_eq!(fixture.peek(5000, 45), data[55..]);
}

#[test]
fn checksum_is_crc32c_and_can_be_continued() {
    let fixture = Fixture::new();
    // The check value of CRC-32C in every catalogue.
    fixture.poke(0, b"123456789");
    let checksum = |initial: u64, ranges: &[_]| {
        let header = CommandHeader {
            arg0: initial.into(),
            ..header(Opcode::CHECKSUM)
        };
        ok(fixture.run(header, ranges, &[]))
    };
    assert_eq!(checksum(0, &[device(0, 9)]), (0xe306_9283, 9));
    assert_eq!(checksum(0, &[device(0, 4), device(4, 5)]), (0xe306_9283, 9));
    let (first, _) = checksum(0, &[device(0, 4)]);
    assert_eq!(checksum(first, &[device(4, 5)]), (0xe306_9283, 5));
}

#[test]
fn compare_finds_the_first_difference() {
    let fixture = Fixture::new();
    let compare = || {
        let src = [device(0, 1 << 20)];
        let dst = [device(2 << 20, 1000), device(5 << 20, (1 << 20) - 1000)];
        ok(fixture.run(header(Opcode::COMPARE), &src, &dst))
    };
    assert_eq!(compare(), (COMPARE_EQUAL, 1 << 20));
    fixture.poke(777_777, &[1]);
    assert_eq!(compare(), (777_777, 777_777));
    fixture.poke((2 << 20) + 999, &[1]);
    assert_eq!(compare(), (999, 999));
}

#[test]
fn fetch_add_adds_as_often_as_asked_and_returns_what_was_there_before_the_last() {
    let fixture = Fixture::new();
    let add = |width: u16, addend: u64, repeat: u32, operand| {
        let header = CommandHeader {
            width: width.into(),
            repeat: repeat.into(),
            arg0: addend.into(),
            ..header(Opcode::FETCH_ADD)
        };
        ok(fixture.run(header, &[], &[operand]))
    };
    assert_eq!(add(8, 3, 10, device(64, 8)), (27, 80));
    assert_eq!(fixture.peek(64, 8), 30u64.to_le_bytes());
    assert_eq!(add(8, u64::MAX, 1, device(64, 8)), (30, 8));
    assert_eq!(fixture.peek(64, 8), 29u64.to_le_bytes());
    // Four bytes wrap among themselves, and higher bits of the addend do not count.
    fixture.poke_guest(GUEST_BASE, &[0xff; 8]);
    assert_eq!(
        add(4, 0x1_0000_0001, 1, guest(GUEST_BASE, 4)),
        (0xffff_ffff, 4)
    );
    assert_eq!(
        fixture.peek_guest(GUEST_BASE, 8),
        [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]
    );
}

#[test]
fn compare_swap_stores_only_over_the_expected_value() {
    let fixture = Fixture::new();
    let swap = |width: u16, expected: u64, new: u64| {
        let header = CommandHeader {
            width: width.into(),
            arg0: expected.into(),
            arg1: new.into(),
            ..header(Opcode::COMPARE_SWAP)
        };
        ok(fixture.run(header, &[], &[device(8, u64::from(width))]))
    };
    fixture.poke(8, &5u64.to_le_bytes());
    assert_eq!(swap(8, 6, 9), (5, 0));
    assert_eq!(fixture.peek(8, 8), 5u64.to_le_bytes());
    assert_eq!(swap(8, 5, 9), (5, 8));
    assert_eq!(fixture.peek(8, 8), 9u64.to_le_bytes());
    assert_eq!(swap(4, 0xff_0000_0009, 1), (9, 4));
    assert_eq!(fixture.peek(8, 8), 1u64.to_le_bytes());
}
