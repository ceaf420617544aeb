// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One command in several threads: the same outcome as in one.

use super::fixture::*;
use crate::model::{Command, GuestMemory, Means, Request};
use cdm_protocol::{COMPARE_EQUAL, CommandHeader, Completion, Opcode, Range, Status};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use vm_memory::VolatileSlice;

const MIB: u64 = 1 << 20;
/// Long enough for every thread to get chunks, and no whole number of them.
const BYTES: u64 = 9 * MIB + 4321;
/// Where the other operand is.
const OTHER: u64 = 32 * MIB;

fn means<'a>(guest: &'a dyn GuestMemory, cancelled: &'a dyn Fn() -> bool) -> Means<'a> {
    Means {
        guest,
        asker: &NoBuffers,
        cancelled,
    }
}

/// Carries a command out in four threads, the first of which is told when to stop.
fn run(
    fixture: &Fixture,
    header: CommandHeader,
    src: &[Range],
    dst: &[Range],
    cancelled: impl Fn() -> bool,
) -> Completion {
    let bytes = command(header, src, dst);
    let parsed = Command::parse(&Request::new(&bytes, bytes.len() as u64));
    let task = fixture.device.begin(parsed, &fixture.guest).unwrap();
    assert!(task.helpers() > 1);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                fixture
                    .device
                    .work(&task, &means(&fixture.guest, &|| false))
            });
        }
        fixture
            .device
            .work(&task, &means(&fixture.guest, &cancelled));
    });
    fixture.device.finish(&task)
}

fn noise() -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(BYTES as usize).collect()
}

/// A fixture whose memory from 0 on holds noise.
fn noisy() -> (Fixture, Vec<u8>) {
    let (fixture, noise) = (Fixture::new(), noise());
    fixture.poke(0, &noise);
    (fixture, noise)
}

fn ok(completion: Completion) -> (u64, u64) {
    assert_eq!(completion.status, Status::OK);
    (completion.result.get(), completion.bytes_done.get())
}

#[test]
fn a_copy_in_threads_copies_all_across_odd_cuts() {
    let (fixture, noise) = noisy();
    let src = [device(0, 700_001), device(700_001, BYTES - 700_001)];
    let dst = [
        device(OTHER + 3, 5 * MIB + 1),
        device(2 * OTHER, BYTES - 5 * MIB - 1),
    ];
    let done = run(&fixture, header(Opcode::COPY), &src, &dst, || false);
    assert_eq!(ok(done), (0, BYTES));
    let first = fixture.peek(OTHER + 3, (5 * MIB + 1) as usize);
    let second = fixture.peek(2 * OTHER, (BYTES - 5 * MIB - 1) as usize);
    assert!([first, second].concat() == noise);
    assert_eq!(fixture.peek(OTHER + 5 * MIB + 4, 1), [0]);
}

#[test]
fn a_checksum_in_threads_is_that_of_one() {
    let (fixture, noise) = noisy();
    let checksum = CommandHeader {
        arg0: 0x1234_5678.into(),
        ..header(Opcode::CHECKSUM)
    };
    let done = run(&fixture, checksum, &[device(0, BYTES)], &[], || false);
    let expected = crc32c::crc32c_append(0x1234_5678, &noise);
    assert_eq!(ok(done), (expected.into(), BYTES));
}

#[test]
fn a_fill_in_threads_keeps_its_phase() {
    let fixture = Fixture::new();
    let fill = CommandHeader {
        width: 8.into(),
        arg0: 0x0807_0605_0403_0201.into(),
        ..header(Opcode::FILL)
    };
    let bytes = BYTES / 8 * 8;
    let dst = [device(5, 1_000_003), device(OTHER, bytes - 1_000_003)];
    assert_eq!(ok(run(&fixture, fill, &[], &dst, || false)), (0, bytes));
    let first = fixture.peek(5, 1_000_003);
    let second = fixture.peek(OTHER, bytes as usize - 1_000_003);
    let all = [first, second].concat();
    assert!(
        all.iter()
            .zip((1..=8).cycle())
            .all(|(&found, want)| found == want)
    );
}

#[test]
fn a_comparison_in_threads_finds_the_first_of_many_differences() {
    let (fixture, noise) = noisy();
    fixture.poke(OTHER, &noise);
    let compare = || {
        let (src, dst) = ([device(0, BYTES)], [device(OTHER, BYTES)]);
        ok(run(&fixture, header(Opcode::COMPARE), &src, &dst, || false))
    };
    assert_eq!(compare(), (COMPARE_EQUAL, BYTES));
    for place in [BYTES - 1, 7 * MIB, 3 * MIB + 5, 3 * MIB + 4, 0] {
        let old = fixture.peek(OTHER + place, 1);
        fixture.poke(OTHER + place, &[!old[0]]);
        assert_eq!(compare(), (place, place));
    }
}

#[test]
fn a_copy_that_is_cancelled_in_threads_has_done_the_beginning_it_says_and_nothing_behind() {
    let (fixture, noise) = noisy();
    for looks in 1..6 {
        fixture.poke(OTHER, &vec![0; BYTES as usize]);
        let seen = AtomicU32::new(0);
        let cancelled = || seen.fetch_add(1, Ordering::Relaxed) >= looks;
        let (src, dst) = ([device(0, BYTES)], [device(OTHER, BYTES)]);
        let done = run(&fixture, header(Opcode::COPY), &src, &dst, cancelled);
        let bytes = done.bytes_done.get() as usize;
        match done.status {
            // The helpers were faster.
            Status::OK => assert_eq!(bytes as u64, BYTES),
            status => assert_eq!(status, Status::CANCELLED),
        }
        let memory = fixture.peek(OTHER, BYTES as usize);
        assert!(memory[..bytes] == noise[..bytes]);
        assert!(memory[bytes..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn many_threads_carry_a_command_that_is_not_cut_out_once() {
    let fixture = Fixture::new();
    let add = CommandHeader {
        width: 8.into(),
        repeat: 1000.into(),
        arg0: 1.into(),
        ..header(Opcode::FETCH_ADD)
    };
    let bytes = command(add, &[], &[device(0, 8)]);
    let parsed = Command::parse(&Request::new(&bytes, bytes.len() as u64));
    let task = fixture.device.begin(parsed, &fixture.guest).unwrap();
    assert_eq!(task.helpers(), 0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                fixture
                    .device
                    .work(&task, &means(&fixture.guest, &|| false))
            });
        }
    });
    assert_eq!(ok(fixture.device.finish(&task)), (999, 8000));
    assert_eq!(fixture.peek(0, 8), 1000u64.to_le_bytes());
}

/// A guest without memory.
struct Gone;

impl GuestMemory for Gone {
    fn stretch(&self, _: u64, _: u64) -> Option<VolatileSlice<'_>> {
        None
    }
}

#[test]
fn memory_that_is_gone_when_its_turn_comes_ends_the_command() {
    let fixture = Fixture::new();
    let (src, dst) = ([guest(GUEST_BASE, 8)], [device(0, 8)]);
    let bytes = command(header(Opcode::COPY), &src, &dst);
    let parsed = Command::parse(&Request::new(&bytes, bytes.len() as u64));
    let task = fixture.device.begin(parsed, &fixture.guest).unwrap();
    fixture.device.work(&task, &means(&Gone, &|| false));
    let completion = fixture.device.finish(&task);
    assert_eq!(completion.status, Status::BAD_ADDRESS);
    assert_eq!(fixture.peek(0, 8), [0; 8]);
}
