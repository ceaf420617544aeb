// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Cancellation in the middle of a command, and what survives what.

use super::fixture::*;
use crate::model::ControlStep;
use cdm_protocol::{CommandHeader, ControlOpcode, Opcode, Range, Status};
use std::cell::Cell;

/// Cancelled at the `n`th look.
fn at_look(n: u32) -> impl Fn() -> bool {
    let looks = Cell::new(0);
    move || {
        looks.set(looks.get() + 1);
        looks.get() >= n
    }
}

#[test]
fn a_cancelled_command_says_how_many_bytes_it_did() {
    let fixture = Fixture::new();
    let fill = CommandHeader {
        width: 1.into(),
        arg0: 0xaa.into(),
        ..header(Opcode::FILL)
    };
    let bytes = command(fill, &[], &[device(0, 4 << 20)]);
    let completion = fixture.run_until(&bytes, &at_look(4));
    assert_eq!(completion.status, Status::CANCELLED);
    let done = completion.bytes_done.get() as usize;
    assert!((1..4 << 20).contains(&done));
    let memory = fixture.peek(0, 4 << 20);
    assert!(memory[..done].iter().all(|&byte| byte == 0xaa));
    assert!(memory[done..].iter().all(|&byte| byte == 0));
}

#[test]
fn every_operation_looks_for_cancellation_at_least_once_a_mebibyte() {
    let fixture = Fixture::new();
    let mib = 16u64;
    let long = [device(0, mib << 20)];
    let other = [device(mib << 20, mib << 20)];
    let fill = CommandHeader {
        width: 1.into(),
        ..header(Opcode::FILL)
    };
    let cases: [(CommandHeader, &[Range], &[Range]); 4] = [
        (fill, &[], &long),
        (header(Opcode::COPY), &long, &other),
        (header(Opcode::CHECKSUM), &long, &[]),
        (header(Opcode::COMPARE), &long, &other),
    ];
    for (header, src, dst) in cases {
        let looks = Cell::new(0u64);
        let count = || {
            looks.set(looks.get() + 1);
            false
        };
        let completion = fixture.run_until(&command(header, src, dst), &count);
        assert_eq!(completion.status, Status::OK);
        assert!(looks.get() >= mib, "{:?}", header.opcode);
    }
}

#[test]
fn a_cancelled_fetch_add_was_done_a_whole_number_of_times() {
    let fixture = Fixture::new();
    let add = CommandHeader {
        width: 4.into(),
        repeat: 100_000.into(),
        arg0: 2.into(),
        ..header(Opcode::FETCH_ADD)
    };
    let bytes = command(add, &[], &[device(0, 4)]);
    let completion = fixture.run_until(&bytes, &at_look(3));
    assert_eq!(completion.status, Status::CANCELLED);
    let additions = completion.bytes_done.get() / 4;
    assert!((1..100_000).contains(&additions));
    assert_eq!(fixture.peek(0, 4), (2 * additions as u32).to_le_bytes());
}

#[test]
fn a_command_that_is_cancelled_before_it_begins_changes_nothing() {
    let fixture = Fixture::new();
    let swap = CommandHeader {
        width: 8.into(),
        arg1: 1.into(),
        ..header(Opcode::COMPARE_SWAP)
    };
    for bytes in [
        command(header(Opcode::NOP), &[], &[]),
        command(swap, &[], &[device(0, 8)]),
        command(header(Opcode::COPY), &[device(8, 8)], &[device(0, 8)]),
    ] {
        let completion = fixture.run_until(&bytes, &|| true);
        assert_eq!(completion.status, Status::CANCELLED);
        assert_eq!(completion.bytes_done.get(), 0);
    }
    assert_eq!(fixture.peek(0, 8), [0; 8]);
}

#[test]
fn a_refusal_stays_a_refusal_under_cancellation() {
    let fixture = Fixture::new();
    let bytes = command(header(Opcode::CHECKSUM), &[device(DEVICE_BYTES, 1)], &[]);
    assert_eq!(
        fixture.run_until(&bytes, &|| true).status,
        Status::BAD_ADDRESS
    );
}

#[test]
fn reset_keeps_memory_mapping_and_metadata() {
    let fixture = Fixture::new();
    fixture.poke(0, &[1]);
    fixture.control_status(ControlOpcode::SET_METADATA, 0x1000, 0x1000);
    let step = fixture.control(ControlOpcode::RESET, 0, 0);
    assert_eq!(step, ControlStep::CancelCommands);
    let completion = fixture.device.finish_reset(3);
    assert_eq!(
        (completion.status, completion.result.get()),
        (Status::OK, 3)
    );
    let checksum = |range| fixture.run(header(Opcode::CHECKSUM), &[range], &[]).status;
    assert_eq!(checksum(device(0, 1)), Status::OK);
    assert_eq!(checksum(device(0x1000, 1)), Status::PROTECTED);
    assert_eq!(fixture.peek(0, 1), [1]);
}

#[test]
fn a_virtio_reset_keeps_memory_and_forgets_mapping_and_metadata() {
    let fixture = Fixture::new();
    fixture.poke(0, &[1]);
    fixture.control_status(ControlOpcode::SET_METADATA, 0, 0x1000);
    fixture.device.unplug();
    let checksum = || {
        fixture
            .run(header(Opcode::CHECKSUM), &[device(0, 1)], &[])
            .status
    };
    assert_eq!(checksum(), Status::NOT_MAPPED);
    assert_eq!(
        fixture.control(ControlOpcode::MAP_MEMORY, 0, 0),
        ControlStep::MapMemory
    );
    fixture.device.finish_map(true);
    assert_eq!(checksum(), Status::OK);
    assert_eq!(fixture.peek(0, 1), [1]);
}

#[test]
fn a_mapping_that_a_virtio_reset_overtakes_is_a_host_error() {
    let fixture = Fixture::unmapped();
    fixture.control(ControlOpcode::MAP_MEMORY, 0, 0);
    fixture.device.unplug();
    assert_eq!(fixture.device.finish_map(true).status, Status::HOST_ERROR);
    assert!(!fixture.device.is_mapped());
}
