// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What each command does to memory, access by access, and how long that takes.

use super::fixture::*;
use crate::model::link::{Accesses, Flow, Picoseconds, Timing, Traffic};
use crate::model::{Command, Request};
use cdm_protocol::{
    CommandHeader, Completion, Instruction, MemoryOrder, Opcode, Operator, Range, Status,
};
use std::cell::Cell;
use std::thread;
use zerocopy::IntoBytes;

/// Bytes of a chunk of a command that is cut.
const CHUNK: u64 = 512 << 10;

/// What the defaults make of a byte on sixteen lanes of 16 GT/s, and in memory.
fn on_link(bytes: u128) -> Picoseconds {
    (bytes * 8_125_000).div_ceil(256_000)
}
fn in_memory(bytes: u128) -> Picoseconds {
    (bytes * 1_000_000).div_ceil(77_000)
}
const LINK: Picoseconds = 500_000;
const OWN: Picoseconds = 100_000;

fn flow(accesses: u64, bytes: u64) -> Flow {
    Flow { accesses, bytes }
}

/// Accesses and bytes that read, that write, and that do both.
fn accesses([reads, writes, atomics]: [(u64, u64); 3]) -> Accesses {
    Accesses {
        reads: flow(reads.0, reads.1),
        writes: flow(writes.0, writes.1),
        atomics: flow(atomics.0, atomics.1),
    }
}

const NONE: [(u64, u64); 3] = [(0, 0); 3];

/// What a command is expected to do.
struct Expected {
    own: [(u64, u64); 3],
    link: [(u64, u64); 3],
    takes: Picoseconds,
}

/// Carries a command out to its end, in one thread.
fn run_until(
    fixture: &Fixture,
    bytes: &[u8],
    cancelled: &dyn Fn() -> bool,
) -> (Completion, Traffic, Option<Picoseconds>) {
    let parsed = Command::parse(&Request::new(bytes, bytes.len() as u64));
    let device = &fixture.device;
    let task = device.begin(parsed, &fixture.guest).unwrap();
    device.work(&task, &fixture.means(cancelled));
    device.settle(&task, &|| false);
    let (traffic, simulated) = device.account(&task);
    (device.finish(&task), traffic, simulated)
}

/// Carries a command out and compares what it did.
fn assert_costs(
    fixture: &Fixture,
    header: CommandHeader,
    src: &[Range],
    dst: &[Range],
    expected: Expected,
) -> Completion {
    let bytes = command(header, src, dst);
    let (completion, traffic, simulated) = run_until(fixture, &bytes, &|| false);
    let name = header.opcode;
    assert_eq!(completion.status, Status::OK, "{name:?}");
    assert_eq!(traffic.own, accesses(expected.own), "{name:?}, own memory");
    assert_eq!(traffic.link, accesses(expected.link), "{name:?}, link");
    assert_eq!(simulated, Some(expected.takes), "{name:?}");
    completion
}

fn timed() -> Fixture {
    Fixture::on(Some(Timing::default()))
}

#[test]
fn a_nop_does_nothing_in_no_time() {
    let expected = Expected {
        own: NONE,
        link: NONE,
        takes: 0,
    };
    assert_costs(&timed(), header(Opcode::NOP), &[], &[], expected);
}

#[test]
fn a_fill_writes_each_line_that_it_touches_once() {
    let fixture = timed();
    let fill = CommandHeader {
        width: 1.into(),
        ..header(Opcode::FILL)
    };
    // 4 bytes of one line, all of the next, 32 of the third.
    let across = Expected {
        own: NONE,
        link: [(0, 0), (3, 100), (0, 0)],
        takes: on_link(3 * 24 + 100) + LINK,
    };
    assert_costs(&fixture, fill, &[], &[guest(GUEST_BASE + 60, 100)], across);
    let own = Expected {
        own: [(0, 0), (1, 64), (0, 0)],
        link: NONE,
        takes: in_memory(64) + OWN,
    };
    assert_costs(&fixture, fill, &[], &[device(128, 64)], own);
}

#[test]
fn a_copy_reads_one_side_and_writes_the_other() {
    let fixture = timed();
    let copy = header(Opcode::COPY);
    let (there, here) = ([guest(GUEST_BORDER - 64, 128)], [device(1 << 20, 128)]);
    let inwards = Expected {
        own: [(0, 0), (2, 128), (0, 0)],
        link: [(2, 128), (0, 0), (0, 0)],
        takes: on_link(2 * 20 + 128) + LINK + OWN,
    };
    assert_costs(&fixture, copy, &there, &here, inwards);
    let outwards = Expected {
        own: [(2, 128), (0, 0), (0, 0)],
        link: [(0, 0), (2, 128), (0, 0)],
        takes: on_link(2 * 24 + 128) + OWN + LINK,
    };
    assert_costs(&fixture, copy, &here, &there, outwards);
}

#[test]
fn a_copy_of_mixed_operands_counts_each_part_where_it_lies() {
    let src = [device(0, 64), guest(GUEST_BASE, 64)];
    let dst = [guest(GUEST_BASE + 4096, 100), device(4096, 28)];
    let expected = Expected {
        own: [(1, 64), (1, 28), (0, 0)],
        link: [(1, 64), (2, 100), (0, 0)],
        // Away from the device go a request to read and two lines to write.
        takes: on_link(3 * 24 + 100) + 2 * LINK,
    };
    assert_costs(&timed(), header(Opcode::COPY), &src, &dst, expected);
}

#[test]
fn a_checksum_reads_and_a_compare_reads_both_up_to_the_difference() {
    let fixture = timed();
    let src = [guest(GUEST_BASE, 200)];
    let read = Expected {
        own: NONE,
        link: [(4, 200), (0, 0), (0, 0)],
        takes: on_link(4 * 20 + 200) + LINK,
    };
    assert_costs(&fixture, header(Opcode::CHECKSUM), &src, &[], read);
    let dst = [device(0, 200)];
    let equal = Expected {
        own: [(4, 200), (0, 0), (0, 0)],
        link: [(4, 200), (0, 0), (0, 0)],
        takes: on_link(4 * 20 + 200) + LINK,
    };
    assert_costs(&fixture, header(Opcode::COMPARE), &src, &dst, equal);
    fixture.poke(70, &[1]);
    let different = Expected {
        own: [(2, 71), (0, 0), (0, 0)],
        link: [(2, 71), (0, 0), (0, 0)],
        takes: on_link(2 * 20 + 71) + LINK,
    };
    let completion = assert_costs(&fixture, header(Opcode::COMPARE), &src, &dst, different);
    assert_eq!(completion.bytes_done.get(), 70);
}

#[test]
fn atomics_wait_for_each_other_and_go_both_ways() {
    let fixture = timed();
    let add = CommandHeader {
        width: 4.into(),
        repeat: 10.into(),
        ..header(Opcode::FETCH_ADD)
    };
    let across = Expected {
        own: NONE,
        link: [(0, 0), (0, 0), (10, 40)],
        takes: 10 * LINK,
    };
    assert_costs(&fixture, add, &[], &[guest(GUEST_BASE, 4)], across);
    for expected in [0u64, 77] {
        let swap = CommandHeader {
            width: 8.into(),
            arg0: expected.into(),
            arg1: 1.into(),
            ..header(Opcode::COMPARE_SWAP)
        };
        let own = Expected {
            own: [(0, 0), (0, 0), (1, 8)],
            link: NONE,
            takes: OWN,
        };
        assert_costs(&fixture, swap, &[], &[device(64, 8)], own);
    }
}

#[test]
fn vectors_are_read_line_by_line_or_element_by_element() {
    let fixture = timed();
    let vector = |opcode, width: u16, stride: u64| CommandHeader {
        width: width.into(),
        arg1: stride.into(),
        ..header(opcode)
    };
    let dense = Expected {
        own: NONE,
        link: [(16, 1000), (0, 0), (0, 0)],
        takes: on_link(16 * 20 + 1000) + LINK,
    };
    let src = [guest(GUEST_BASE, 1000)];
    assert_costs(&fixture, vector(Opcode::SUM, 4, 0), &src, &[], dense);
    // Elements at 0, 128 ... 896; the seventh and eighth lie in the second range.
    let strided = Expected {
        own: [(2, 16), (0, 0), (0, 0)],
        link: [(6, 48), (0, 0), (0, 0)],
        takes: on_link(6 * 20 + 48) + LINK,
    };
    let src = [guest(GUEST_BASE, 768), device(0, 256)];
    assert_costs(&fixture, vector(Opcode::SUM, 8, 128), &src, &[], strided);
    let axpy = Expected {
        own: [(4, 256), (4, 256), (0, 0)],
        link: [(4, 256), (0, 0), (0, 0)],
        takes: on_link(4 * 20 + 256) + LINK + OWN,
    };
    let (src, dst) = ([guest(GUEST_BASE, 256)], [device(0, 256)]);
    assert_costs(&fixture, vector(Opcode::AXPY, 4, 0), &src, &dst, axpy);
}

#[test]
fn a_chase_waits_at_each_hop_for_the_side_that_it_hops_to() {
    let fixture = timed();
    // From the one word to the other and back.
    fixture.poke(0, &8u64.to_le_bytes());
    fixture.poke_guest(GUEST_BASE, &0u64.to_le_bytes());
    let chase = CommandHeader {
        repeat: 5.into(),
        ..header(Opcode::POINTER_CHASE)
    };
    let expected = Expected {
        own: [(3, 24), (0, 0), (0, 0)],
        link: [(2, 16), (0, 0), (0, 0)],
        takes: 3 * OWN + 2 * LINK,
    };
    let src = [device(0, 8), guest(GUEST_BASE, 8)];
    assert_costs(&fixture, chase, &src, &[], expected);
}

#[test]
fn a_histogram_reads_its_source_and_adds_to_the_counters_that_change() {
    let fixture = timed();
    let values: Vec<u8> = (0..128).map(|index| [0, 3][index % 2]).collect();
    fixture.poke_guest(GUEST_BASE, &values);
    let histogram = CommandHeader {
        width: 1.into(),
        repeat: 4.into(),
        arg1: 1.into(),
        ..header(Opcode::HISTOGRAM)
    };
    let expected = Expected {
        own: [(0, 0), (0, 0), (1, 8)],
        link: [(2, 128), (0, 0), (1, 8)],
        takes: on_link(3 * 20 + 128 + 8) + 2 * LINK,
    };
    let (src, dst) = (
        [guest(GUEST_BASE, 128)],
        [device(0x1000, 16), guest(GUEST_BASE + 0x1000, 16)],
    );
    assert_costs(&fixture, histogram, &src, &dst, expected);
}

#[test]
fn a_program_reads_its_instructions_and_waits_for_each_of_its_accesses() {
    let fixture = timed();
    let access = |operator, d, b, offset: u64| Instruction {
        operator,
        order: MemoryOrder::RELAXED,
        width: 8,
        d,
        a: 0,
        b,
        immediate: offset.into(),
    };
    let code = [
        access(Operator::LOAD, 1, 0, 0),
        access(Operator::STORE, 0, 2, 8),
        access(Operator::LOAD, 1, 0, 8),
        access(Operator::ATOMIC_ADD, 1, 2, 0),
        access(Operator::ATOMIC_COMPARE_SWAP, 1, 2, 8),
    ];
    fixture.poke(1 << 20, code.as_bytes());
    let program = CommandHeader {
        repeat: (code.len() as u32).into(),
        arg1: 100.into(),
        ..header(Opcode::PROGRAM)
    };
    let expected = Expected {
        own: [(3, 88), (0, 0), (1, 8)],
        link: [(1, 8), (1, 8), (1, 8)],
        takes: 2 * OWN + 3 * LINK + OWN,
    };
    let (src, dst) = ([device(1 << 20, 80)], [device(0, 8), guest(GUEST_BASE, 8)]);
    assert_costs(&fixture, program, &src, &dst, expected);
}

#[test]
fn a_command_that_was_cut_short_has_done_what_it_had_done() {
    let fixture = timed();
    let looks = Cell::new(0);
    let third_look = || {
        looks.set(looks.get() + 1);
        looks.get() >= 3
    };
    // The third look may come while the first chunk is waited for, or after it.
    let copy = command(
        header(Opcode::COPY),
        &[device(0, 8 * CHUNK)],
        &[device(16 * CHUNK, 8 * CHUNK)],
    );
    let (completion, traffic, _) = run_until(&fixture, &copy, &third_look);
    assert_eq!(completion.status, Status::CANCELLED);
    let done = completion.bytes_done.get();
    assert!(done > 0 && done < 8 * CHUNK);
    let lines = flow(done / 64, done);
    assert_eq!((traffic.own.reads, traffic.own.writes), (lines, lines));
    // A histogram that was cancelled has read, though it has nothing to show for it.
    let histogram = CommandHeader {
        width: 1.into(),
        repeat: 1.into(),
        arg1: 1.into(),
        ..header(Opcode::HISTOGRAM)
    };
    let histogram = command(histogram, &[device(0, CHUNK)], &[device(CHUNK, 8)]);
    looks.set(0);
    let (completion, traffic, _) = run_until(&fixture, &histogram, &third_look);
    assert_eq!(completion.status, Status::CANCELLED);
    assert_eq!(completion.bytes_done.get(), 0);
    assert_eq!(traffic.own.reads, flow(1024, 64 << 10));
    assert_eq!(traffic.own.atomics, flow(0, 0));
}

#[test]
fn sums_are_the_same_in_any_number_of_threads() {
    const BYTES: u64 = 9 * CHUNK + 4321;
    let bytes = command(
        header(Opcode::COPY),
        &[device(7, BYTES)],
        &[device(32 << 20, BYTES)],
    );
    let run = |threads: usize| {
        let fixture = timed();
        let parsed = Command::parse(&Request::new(&bytes, bytes.len() as u64));
        let task = fixture.device.begin(parsed, &fixture.guest).unwrap();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| fixture.device.work(&task, &fixture.means(&|| false)));
            }
        });
        fixture.device.account(&task)
    };
    let (traffic, simulated) = run(1);
    // A line that two chunks share is read by both, and the last one is not whole.
    assert_eq!(traffic.own.reads, flow(9 * 8193 + 68, BYTES));
    assert_eq!(traffic.own.writes, flow(9 * 8192 + 68, BYTES));
    assert_eq!(run(4), (traffic, simulated));
    let at_least = in_memory(2 * u128::from(BYTES)) + 2 * OWN;
    assert!((at_least..at_least + 10).contains(&simulated.unwrap()));
}

#[test]
fn without_timing_the_same_is_counted_and_no_time_is_told() {
    let fixture = Fixture::new();
    let bytes = command(
        header(Opcode::COPY),
        &[guest(GUEST_BASE, 128)],
        &[device(0, 128)],
    );
    let (completion, traffic, simulated) = run_until(&fixture, &bytes, &|| false);
    assert_eq!((completion.status, simulated), (Status::OK, None));
    assert_eq!(traffic.link, accesses([(2, 128), (0, 0), (0, 0)]));
    assert_eq!(traffic.own, accesses([(0, 0), (2, 128), (0, 0)]));
}
