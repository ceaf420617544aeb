// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every status that a request can end with, provoked by its cause alone, and that
//! a refused request changes nothing.

use super::fixture::*;
use crate::model::{Command, ControlStep, MAX_REQUEST_BYTES, Request};
use cdm_protocol::{
    CommandHeader, Completion, ControlOpcode, ControlRequest, FLAG_FLOAT, FLAG_TAGGED,
    FLAG_UNORDERED, Opcode, RANGES_MAX, REPEAT_MAX, Range, Space, Status, TRANSFER_BYTES_MAX,
};
use zerocopy::{FromZeros, IntoBytes};

fn fill(width: u16) -> CommandHeader {
    CommandHeader {
        width: width.into(),
        ..header(Opcode::FILL)
    }
}

fn fetch_add(width: u16, repeat: u32) -> CommandHeader {
    CommandHeader {
        width: width.into(),
        repeat: repeat.into(),
        ..header(Opcode::FETCH_ADD)
    }
}

/// Status and range of a command on a fresh device.
fn refusal(header: CommandHeader, src: &[Range], dst: &[Range]) -> (Status, u32) {
    let completion = Fixture::new().run(header, src, dst);
    assert_eq!(completion.result.get(), 0);
    assert_eq!(completion.bytes_done.get(), 0);
    (completion.status, completion.range_index.get())
}

fn status_of_bytes(bytes: &[u8]) -> Status {
    Fixture::new().run_bytes(bytes).status
}

#[test]
fn a_request_shorter_than_a_header_is_malformed() {
    for length in [0, 1, size_of::<CommandHeader>() - 1] {
        assert_eq!(status_of_bytes(&vec![0; length]), Status::MALFORMED);
    }
}

#[test]
fn a_request_longer_or_shorter_than_its_header_says_is_malformed() {
    let whole = command(header(Opcode::COPY), &[device(0, 8)], &[device(8, 8)]);
    assert_eq!(status_of_bytes(&whole), Status::OK);
    assert_eq!(
        status_of_bytes(&whole[..whole.len() - 1]),
        Status::MALFORMED
    );
    assert_eq!(
        status_of_bytes(&[&whole[..], &[0]].concat()),
        Status::MALFORMED
    );
}

#[test]
fn a_request_longer_than_any_is_malformed_though_its_end_was_never_read() {
    let fixture = Fixture::new();
    let mut bytes = command(header(Opcode::NOP), &[], &[]);
    bytes.resize(MAX_REQUEST_BYTES, 0);
    let completion = fixture.carry_out(&Request::new(&bytes, 1 << 40), &|| false);
    assert_eq!(completion.status, Status::MALFORMED);
}

#[test]
fn an_unknown_opcode_is_refused() {
    for number in [0u16, 14, 0xffff] {
        let opcode = Opcode(number.into());
        assert_eq!(
            refusal(header(opcode), &[], &[]),
            (Status::UNKNOWN_OPCODE, 0)
        );
    }
}

#[test]
fn a_flag_or_reserved_field_that_is_set_is_refused() {
    let float = CommandHeader {
        flags: FLAG_FLOAT.into(),
        ..header(Opcode::NOP)
    };
    let unknown = CommandHeader {
        flags: 8.into(),
        ..header(Opcode::NOP)
    };
    let unordered = CommandHeader {
        flags: FLAG_UNORDERED.into(),
        ..header(Opcode::FENCE)
    };
    let reserved = CommandHeader {
        reserved: 1.into(),
        ..header(Opcode::NOP)
    };
    for header in [float, unknown, unordered, reserved] {
        assert_eq!(refusal(header, &[], &[]), (Status::RESERVED_FIELD, 0));
    }
}

#[test]
fn a_tag_stands_between_header_and_ranges_and_counts_in_the_length() {
    let tagged = CommandHeader {
        flags: FLAG_TAGGED.into(),
        ..header(Opcode::CHECKSUM)
    };
    let untagged = command(tagged, &[device(0, 8)], &[]);
    assert_eq!(status_of_bytes(&untagged), Status::MALFORMED);
    let (head, ranges) = untagged.split_at(size_of::<CommandHeader>());
    let request = [head, &7u64.to_le_bytes(), ranges].concat();
    assert_eq!(status_of_bytes(&request), Status::OK);
    let parsed = Command::parse(&Request::new(&request, request.len() as u64));
    assert_eq!(parsed.tag(), Some(7));
}

#[test]
fn a_cancel_on_what_is_no_command_queue_is_refused() {
    let fixture = Fixture::new();
    for queue in [0, 1, 4, u64::MAX] {
        let status = fixture.control_status(ControlOpcode::CANCEL, 1, queue);
        assert_eq!(status, Status::BAD_ARGUMENT);
    }
    let step = fixture.control(ControlOpcode::CANCEL, 9, 3);
    assert_eq!(step, ControlStep::CancelCommand { index: 1, tag: 9 });
}

#[test]
fn an_argument_that_the_operation_does_not_take_is_refused() {
    let width = CommandHeader {
        width: 4.into(),
        ..header(Opcode::COPY)
    };
    let repeat = CommandHeader {
        repeat: 1.into(),
        ..fill(1)
    };
    let arg0 = CommandHeader {
        arg0: 1.into(),
        ..header(Opcode::NOP)
    };
    let arg0_too_wide = CommandHeader {
        arg0: (1 << 32).into(),
        ..header(Opcode::CHECKSUM)
    };
    let arg1 = CommandHeader {
        arg1: 1.into(),
        ..fetch_add(8, 1)
    };
    for header in [width, repeat, arg0, arg0_too_wide, arg1] {
        assert_eq!(refusal(header, &[], &[]), (Status::RESERVED_FIELD, 0));
    }
}

#[test]
fn a_reserved_field_of_a_range_is_refused_with_its_index() {
    let mut second = device(8, 8);
    second.reserved = 1.into();
    let ranges = [device(0, 8), second];
    assert_eq!(
        refusal(header(Opcode::CHECKSUM), &ranges, &[]),
        (Status::RESERVED_FIELD, 1)
    );
}

#[test]
fn a_number_of_ranges_that_the_operation_does_not_take_is_refused() {
    let one = [device(0, 8)];
    let two = [device(0, 8), device(8, 8)];
    let cases: [(CommandHeader, &[Range], &[Range]); 9] = [
        (header(Opcode::NOP), &one, &[]),
        (header(Opcode::NOP), &[], &one),
        (fill(1), &[], &[]),
        (fill(1), &one, &one),
        (header(Opcode::COPY), &one, &[]),
        (header(Opcode::COMPARE), &[], &one),
        (header(Opcode::CHECKSUM), &one, &one),
        (fetch_add(8, 1), &[], &two),
        (header(Opcode::COMPARE_SWAP), &[], &[]),
    ];
    for (header, src, dst) in cases {
        assert_eq!(refusal(header, src, dst), (Status::BAD_RANGE_COUNT, 0));
    }
}

#[test]
fn the_largest_number_of_ranges_is_taken_and_one_more_refused() {
    let ranges = vec![device(0, 1); RANGES_MAX + 1];
    let status = |count| refusal_status(&ranges[..count]);
    fn refusal_status(ranges: &[Range]) -> Status {
        Fixture::new()
            .run(header(Opcode::CHECKSUM), ranges, &[])
            .status
    }
    assert_eq!(status(RANGES_MAX), Status::OK);
    assert_eq!(status(RANGES_MAX + 1), Status::BAD_RANGE_COUNT);
}

#[test]
fn an_unknown_space_is_refused_with_its_index() {
    for number in [0u16, 4, 0x100] {
        let ranges = [device(0, 4), range(Space(number.into()), 0, 4)];
        assert_eq!(refusal(fill(4), &[], &ranges), (Status::BAD_SPACE, 1));
    }
}

#[test]
fn a_range_outside_device_memory_is_refused_with_its_index() {
    for bad in [
        device(DEVICE_BYTES, 1),
        device(DEVICE_BYTES - 4, 8),
        device(u64::MAX - 3, 8),
    ] {
        let dst = [device(0, bad.bytes.get())];
        assert_eq!(
            refusal(header(Opcode::COPY), &[bad], &dst).0,
            Status::BAD_ADDRESS
        );
        // Destinations count on from the sources.
        assert_eq!(
            refusal(header(Opcode::COPY), &[device(0, bad.bytes.get())], &[bad]),
            (Status::BAD_ADDRESS, 1)
        );
    }
}

#[test]
fn a_range_outside_guest_memory_is_refused() {
    for bad in [
        guest(0, 8),
        guest(GUEST_BASE - 1, 8),
        guest(GUEST_END - 4, 8),
        guest(u64::MAX - 3, 8),
    ] {
        let (status, _) = refusal(fill(1), &[], &[bad]);
        assert_eq!(status, Status::BAD_ADDRESS);
    }
}

#[test]
fn a_range_that_touches_the_metadata_is_refused_for_reading_and_writing() {
    let fixture = Fixture::new();
    let set = fixture.control_status(ControlOpcode::SET_METADATA, 0x1000, 0x1000);
    assert_eq!(set, Status::OK);
    for touching in [device(0xfff, 2), device(0x1fff, 1), device(0, 0x10000)] {
        assert_eq!(
            fixture.run(fill(1), &[], &[touching]).status,
            Status::PROTECTED
        );
        let read = fixture.run(header(Opcode::CHECKSUM), &[touching], &[]);
        assert_eq!(read.status, Status::PROTECTED);
    }
    let atomic = fixture.run(fetch_add(8, 1), &[], &[device(0x1000, 8)]);
    assert_eq!(atomic.status, Status::PROTECTED);
    for beside in [device(0, 0x1000), device(0x2000, 0x1000)] {
        assert_eq!(fixture.run(fill(1), &[], &[beside]).status, Status::OK);
    }
}

#[test]
fn metadata_of_length_zero_protects_nothing_any_more() {
    let fixture = Fixture::new();
    fixture.control_status(ControlOpcode::SET_METADATA, 0, 0x1000);
    fixture.control_status(ControlOpcode::SET_METADATA, 0, 0);
    assert_eq!(
        fixture.run(fill(1), &[], &[device(0, 8)]).status,
        Status::OK
    );
}

#[test]
fn a_bad_range_behind_good_ones_leaves_all_memory_as_it_was() {
    let fixture = Fixture::new();
    fixture.poke(0, &[7; 16]);
    let ranges = [device(0, 16), device(DEVICE_BYTES, 1)];
    assert_eq!(
        fixture.run(fill(1), &[], &ranges).status,
        Status::BAD_ADDRESS
    );
    assert_eq!(fixture.peek(0, 16), [7; 16]);
}

#[test]
fn a_fill_of_less_than_whole_elements_is_misaligned() {
    let ranges = [device(0, 8), device(16, 3)];
    assert_eq!(refusal(fill(4), &[], &ranges), (Status::MISALIGNED, 1));
}

#[test]
fn an_atomic_operand_that_is_not_one_aligned_word_is_misaligned() {
    for operand in [
        device(4, 8),
        device(0, 16),
        device(0, 4),
        guest(GUEST_BASE + 1, 8),
    ] {
        assert_eq!(
            refusal(fetch_add(8, 1), &[], &[operand]),
            (Status::MISALIGNED, 0)
        );
    }
    assert_eq!(
        refusal(fetch_add(4, 1), &[], &[device(2, 4)]).0,
        Status::MISALIGNED
    );
}

#[test]
fn a_range_of_length_zero_is_refused_with_its_index() {
    let src = [device(0, 8), device(8, 0)];
    let (status, index) = refusal(header(Opcode::COPY), &src, &[device(16, 8)]);
    assert_eq!((status, index), (Status::ZERO_LENGTH, 1));
}

#[test]
fn an_operand_beyond_the_limit_is_too_long_even_if_its_length_wraps() {
    let half = TRANSFER_BYTES_MAX / 2;
    let over = [device(0, half), device(0, half), device(0, 1)];
    assert_eq!(
        refusal(header(Opcode::CHECKSUM), &over, &[]),
        (Status::TOO_LONG, 2)
    );
    let wrapping = [device(0, 8), device(0, u64::MAX)];
    assert_eq!(
        refusal(header(Opcode::CHECKSUM), &wrapping, &[]),
        (Status::TOO_LONG, 1)
    );
}

#[test]
fn operands_of_different_length_are_refused() {
    for opcode in [Opcode::COPY, Opcode::COMPARE] {
        let (status, _) = refusal(
            header(opcode),
            &[device(0, 8)],
            &[device(8, 4), device(16, 5)],
        );
        assert_eq!(status, Status::LENGTH_MISMATCH);
    }
}

#[test]
fn a_width_that_the_operation_does_not_take_is_refused() {
    for width in [0, 3, 16] {
        assert_eq!(
            refusal(fill(width), &[], &[device(0, 48)]).0,
            Status::BAD_WIDTH
        );
    }
    for width in [0, 1, 2, 16] {
        let operand = [device(0, 8)];
        assert_eq!(
            refusal(fetch_add(width, 1), &[], &operand).0,
            Status::BAD_WIDTH
        );
    }
}

#[test]
fn a_repeat_of_zero_or_beyond_the_limit_is_refused() {
    for repeat in [0, REPEAT_MAX + 1] {
        let operand = [device(0, 8)];
        assert_eq!(
            refusal(fetch_add(8, repeat), &[], &operand).0,
            Status::BAD_REPEAT
        );
    }
}

#[test]
fn device_memory_is_out_of_reach_until_it_is_mapped_and_guest_memory_is_not() {
    let fixture = Fixture::unmapped();
    assert_eq!(
        fixture.run(fill(1), &[], &[device(0, 8)]).status,
        Status::NOT_MAPPED
    );
    assert_eq!(
        fixture.control_status(ControlOpcode::SET_METADATA, 0, 0x1000),
        Status::NOT_MAPPED
    );
    assert_eq!(
        fixture.run(fill(1), &[], &[guest(GUEST_BASE, 8)]).status,
        Status::OK
    );
    assert_eq!(
        fixture.run(header(Opcode::NOP), &[], &[]).status,
        Status::OK
    );
}

#[test]
fn a_mapping_that_the_transport_refuses_is_a_host_error_and_can_be_tried_again() {
    let fixture = Fixture::unmapped();
    let map = || fixture.control(ControlOpcode::MAP_MEMORY, 0, 0);
    assert_eq!(map(), ControlStep::MapMemory);
    assert_eq!(fixture.device.finish_map(false).status, Status::HOST_ERROR);
    assert_eq!(map(), ControlStep::MapMemory);
    let completion = fixture.device.finish_map(true);
    assert_eq!(
        (completion.status, completion.result.get()),
        (Status::OK, DEVICE_BYTES)
    );
}

#[test]
fn mapping_a_second_time_asks_the_transport_for_nothing() {
    let step = Fixture::new().control(ControlOpcode::MAP_MEMORY, 0, 0);
    let expected = Completion {
        result: DEVICE_BYTES.into(),
        ..Completion::new_zeroed()
    };
    assert_eq!(step, ControlStep::Complete(expected));
}

#[test]
fn metadata_outside_memory_is_refused() {
    let fixture = Fixture::new();
    for (base, bytes) in [(DEVICE_BYTES, 1), (0, DEVICE_BYTES + 1), (u64::MAX, 2)] {
        let status = fixture.control_status(ControlOpcode::SET_METADATA, base, bytes);
        assert_eq!(status, Status::BAD_ADDRESS);
    }
}

#[test]
fn control_requests_are_checked_like_commands() {
    let fixture = Fixture::new();
    let status_of = |request: &ControlRequest| match fixture.control_raw(request) {
        ControlStep::Complete(completion) => completion.status,
        step => panic!("expected a refusal, found {step:?}"),
    };
    let map = ControlRequest {
        opcode: ControlOpcode::MAP_MEMORY,
        ..ControlRequest::new_zeroed()
    };
    let unknown = ControlRequest {
        opcode: ControlOpcode(99.into()),
        ..map
    };
    assert_eq!(status_of(&unknown), Status::UNKNOWN_OPCODE);
    for bad in [
        ControlRequest {
            flags: 1.into(),
            ..map
        },
        ControlRequest {
            pasid: 1.into(),
            ..map
        },
        ControlRequest {
            arg0: 1.into(),
            ..map
        },
        ControlRequest {
            arg1: 1.into(),
            ..map
        },
        ControlRequest {
            arg1: 1.into(),
            opcode: ControlOpcode::RESET,
            ..map
        },
    ] {
        assert_eq!(status_of(&bad), Status::RESERVED_FIELD);
    }
    for length in [0, 23, 25] {
        let mut bytes = map.as_bytes().to_vec();
        bytes.resize(length, 0);
        let step = fixture.device.control(&Request::new(&bytes, length as u64));
        let expected = Completion {
            status: Status::MALFORMED,
            ..Completion::new_zeroed()
        };
        assert_eq!(step, ControlStep::Complete(expected));
    }
}
