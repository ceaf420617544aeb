// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every operation of the device, on memory in the device and in the system.

use std::io;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use cdm_guest_tools::device::{Answer, Comparison, Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::uapi::{CDM_IOCTL_COMMAND, cdm_command};
use cdm_protocol::{Opcode, REPEAT_MAX, Status, TRANSFER_BYTES_MAX};
use nix::sys::mman::MmapAdvise;

use crate::fixture::Fixture;

crate::tests!("commands":
    nop_is_answered,
    fill_stores_every_width,
    fill_stops_at_the_ends_of_its_operand,
    copy_works_between_device_and_system_memory,
    compare_finds_the_first_difference,
    compare_swap_stores_only_over_the_expected_value,
    fetch_add_gives_the_value_before_the_last_addition,
    checksum_continues_over_pieces,
    operand_that_alternates_between_device_and_system_is_one_operand,
    operands_stay_where_they_are,
    operand_stays_where_it_is_until_its_command_is_done,
    refused_command_gives_its_status_and_the_next_one_works,
);

/// Memory in the device and the same in the system.
fn both(t: &Fixture, pages: usize, seed: u64) -> Result<[Mapping; 2]> {
    Ok([
        t.resident_memory(pages, seed)?,
        t.system_memory(pages, seed)?,
    ])
}

fn nop_is_answered(t: &Fixture) -> Result<()> {
    let answer = t.device.nop()?;
    ensure!(
        answer
            == Answer {
                status: Status::OK,
                result: 0,
                bytes_done: 0
            },
        "{answer:?}"
    );
    Ok(())
}

fn fill_stores_every_width(t: &Fixture) -> Result<()> {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    const STORED: [(u32, u64); 4] = [
        (1, 0x8888_8888_8888_8888),
        (2, 0x7788_7788_7788_7788),
        (4, 0x5566_7788_5566_7788),
        (8, VALUE),
    ];
    for memory in both(t, 8, 1)? {
        for (width, stored) in STORED {
            let answer = t.device.fill(&memory, Span::all(&memory), width, VALUE)?;
            answer.ok()?;
            ensure!(answer.bytes_done == memory.bytes() as u64, "{answer:?}");
            memory.check_fill(stored)?;
        }
    }
    Ok(())
}

fn fill_stops_at_the_ends_of_its_operand(t: &Fixture) -> Result<()> {
    for memory in both(t, 4, 2)? {
        let before = memory.read_bytes(memory.bytes());
        let span = Span {
            offset: 1001,
            bytes: 2 * PAGE_BYTES + 13,
        };
        t.device.fill(&memory, span, 1, 0xa5)?.ok()?;
        let after = memory.read_bytes(memory.bytes());
        let inside = span.offset..span.offset + span.bytes;
        for (index, (old, new)) in before.iter().zip(&after).enumerate() {
            let expected = if inside.contains(&index) { 0xa5 } else { *old };
            ensure!(
                *new == expected,
                "byte {index} is {new:#x}, not {expected:#x}"
            );
        }
    }
    Ok(())
}

fn copy_works_between_device_and_system_memory(t: &Fixture) -> Result<()> {
    let sources = both(t, 64, 3)?;
    for source in &sources {
        for target in both(t, 64, 4)? {
            let answer = t
                .device
                .copy((source, Span::all(source)), (&target, Span::all(&target)))?;
            answer.ok()?;
            target.check_pattern(3)?;
        }
    }
    Ok(())
}

fn compare_finds_the_first_difference(t: &Fixture) -> Result<()> {
    for memory in both(t, 8, 5)? {
        let other = t.resident_memory(8, 5)?;
        let compare = || {
            t.device
                .compare((&memory, Span::all(&memory)), (&other, Span::all(&other)))
        };
        let equal = compare()?;
        ensure!(equal == Comparison::Equal, "{equal:?}");
        // The lowest byte of the word differs.
        other.word(5 * PAGE_BYTES + 16).fetch_xor(1, Relaxed);
        other.word(6 * PAGE_BYTES).fetch_xor(1, Relaxed);
        let differs = compare()?;
        ensure!(
            differs == Comparison::DiffersAt(5 * PAGE_BYTES as u64 + 16),
            "{differs:?}"
        );
    }
    Ok(())
}

fn compare_swap_stores_only_over_the_expected_value(t: &Fixture) -> Result<()> {
    for memory in both(t, 1, 6)? {
        let number = memory.word(64);
        number.store(10, Relaxed);
        let span = Span {
            offset: 64,
            bytes: 8,
        };
        let found = t.device.compare_swap(&memory, span, 11, 99)?.ok()?;
        ensure!(
            (found, number.load(Relaxed)) == (10, 10),
            "{found} {number:?}"
        );
        let found = t.device.compare_swap(&memory, span, 10, 99)?.ok()?;
        ensure!(
            (found, number.load(Relaxed)) == (10, 99),
            "{found} {number:?}"
        );
    }
    Ok(())
}

fn fetch_add_gives_the_value_before_the_last_addition(t: &Fixture) -> Result<()> {
    for memory in both(t, 1, 7)? {
        memory.word(8).store(100, Relaxed);
        let before = t
            .device
            .fetch_add(
                &memory,
                Span {
                    offset: 8,
                    bytes: 8,
                },
                3,
                10,
            )?
            .ok()?;
        let after = memory.word(8).load(Relaxed);
        ensure!(
            (before, after) == (127, 130),
            "before {before}, after {after}"
        );
        // Four bytes wrap in four bytes, and leave their neighbours alone.
        memory.word(16).store(0x0000_0007_ffff_ffff, Relaxed);
        t.device
            .fetch_add(
                &memory,
                Span {
                    offset: 16,
                    bytes: 4,
                },
                1,
                1,
            )?
            .ok()?;
        let after = memory.word(16).load(Relaxed);
        ensure!(after == 0x0000_0007_0000_0000, "{after:#x}");
    }
    Ok(())
}

fn checksum_continues_over_pieces(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(16, 8)?;
    let cut = 5 * PAGE_BYTES + 123;
    let first = t.device.checksum(
        &memory,
        Span {
            offset: 0,
            bytes: cut,
        },
        0,
    )?;
    let rest = Span {
        offset: cut,
        bytes: memory.bytes() - cut,
    };
    let both = t.device.checksum(&memory, rest, first)?;
    let expected = memory.crc32c(memory.bytes());
    ensure!(both == expected, "{both:#010x}, not {expected:#010x}");
    Ok(())
}

/// More pieces than one command of the device can list.
fn operand_that_alternates_between_device_and_system_is_one_operand(t: &Fixture) -> Result<()> {
    const PAGES: usize = 1600;
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(9);
    for page in (0..PAGES).step_by(2) {
        t.move_all(memory.page_range(page, 1), Direction::ToDevice)?;
    }
    let residency = t.device.residency(0, memory.range())?;
    ensure!(residency.this_device == PAGES as u64 / 2, "{residency:?}");
    let (device, cpu) = (
        t.device.checksum(&memory, Span::all(&memory), 0)?,
        memory.crc32c(memory.bytes()),
    );
    ensure!(device == cpu, "device {device:#010x}, CPU {cpu:#010x}");
    let copy = t.system_memory(PAGES, 10)?;
    let operands = ((&memory, Span::all(&memory)), (&copy, Span::all(&copy)));
    let answer = t.device.copy(operands.0, operands.1)?;
    answer.ok()?;
    ensure!(answer.bytes_done == memory.bytes() as u64, "{answer:?}");
    copy.check_pattern(9)?;
    let equal = t.device.compare(operands.0, operands.1)?;
    ensure!(equal == Comparison::Equal, "{equal:?}");
    copy.word((PAGES - 1) * PAGE_BYTES).fetch_xor(1, Relaxed);
    let differs = t.device.compare(operands.0, operands.1)?;
    let expected = Comparison::DiffersAt((PAGES as u64 - 1) * PAGE_BYTES as u64);
    ensure!(differs == expected, "{differs:?}");
    Ok(())
}

fn operands_stay_where_they_are(t: &Fixture) -> Result<()> {
    let [resident, system] = both(t, 16, 11)?;
    t.device
        .copy(
            (&resident, Span::all(&resident)),
            (&system, Span::all(&system)),
        )?
        .ok()?;
    t.expect_in_device(resident.range())?;
    t.expect_in_system(system.range())
}

fn operand_stays_where_it_is_until_its_command_is_done(t: &Fixture) -> Result<()> {
    /// Some milliseconds of the device's time each.
    const COMMANDS: u64 = 40;
    /// Between two commands, for others to move the memory in.
    const PAUSE: Duration = Duration::from_millis(2);
    let memory = t.resident_memory(1, 13)?;
    let word = memory.word(0);
    word.store(0, SeqCst);
    let number = Span {
        offset: 0,
        bytes: 8,
    };
    let add = || -> Result<()> {
        for command in 1..=COMMANDS {
            t.device.fetch_add(&memory, number, 1, REPEAT_MAX)?.ok()?;
            let (sum, all) = (word.load(SeqCst), command * u64::from(REPEAT_MAX));
            ensure!(sum == all, "of {all} additions {sum} came in");
            thread::sleep(PAUSE);
        }
        Ok(())
    };
    let moves = thread::scope(|scope| -> Result<u64> {
        let device = scope.spawn(add);
        let mut moves = 0;
        let mut to = Direction::ToSystem;
        while !device.is_finished() {
            let moved = t.device.migrate(0, memory.range(), to)?.moved;
            moves += moved;
            to = match (moved, to) {
                (0, same) => same,
                (_, Direction::ToSystem) => Direction::ToDevice,
                (_, Direction::ToDevice) => Direction::ToSystem,
            };
        }
        device.join().expect("the thread panics nowhere")?;
        Ok(moves)
    })?;
    t.note(format!("it moved {moves} times between the commands"));
    ensure!(moves > 0, "nothing moved, so nothing was tried");
    Ok(())
}

/// Sends a command as it is; the memory it names is the test's own or bad.
fn raw(t: &Fixture, mut command: cdm_command) -> io::Result<Answer> {
    // SAFETY: the driver writes the structure; operands are mappings of this test, accessed by
    // atomics alone, or addresses that are not mapped.
    unsafe { t.device.ioctl(CDM_IOCTL_COMMAND, (&raw mut command).cast()) }?;
    Ok(Answer::from(&command))
}

fn refused_command_gives_its_status_and_the_next_one_works(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(4, 12)?;
    let untouched = Mapping::anonymous(TRANSFER_BYTES_MAX as usize + PAGE_BYTES)?;
    let address = memory.address();
    let opcode = |opcode: Opcode| u32::from(opcode.get());
    let fill = cdm_command {
        opcode: opcode(Opcode::FILL),
        destination: address,
        length: 64,
        width: 8,
        ..Default::default()
    };
    let add = cdm_command {
        opcode: opcode(Opcode::FETCH_ADD),
        length: 8,
        repeat: 1,
        arg0: 1,
        ..fill
    };
    let copy = cdm_command {
        opcode: opcode(Opcode::COPY),
        width: 0,
        ..fill
    };
    let checksum = cdm_command {
        opcode: opcode(Opcode::CHECKSUM),
        source: address,
        destination: 0,
        ..copy
    };
    let cases = [
        (
            "opcode 0",
            cdm_command { opcode: 0, ..fill },
            Status::UNKNOWN_OPCODE,
        ),
        (
            "opcode 999",
            cdm_command {
                opcode: 999,
                ..fill
            },
            Status::UNKNOWN_OPCODE,
        ),
        (
            "opcode 2^31",
            cdm_command {
                opcode: 1 << 31,
                ..fill
            },
            Status::UNKNOWN_OPCODE,
        ),
        (
            "FILL of width 3",
            cdm_command { width: 3, ..fill },
            Status::BAD_WIDTH,
        ),
        (
            "FILL of width 65544",
            cdm_command {
                width: 65544,
                ..fill
            },
            Status::BAD_WIDTH,
        ),
        (
            "FILL of part of an element",
            cdm_command { length: 63, ..fill },
            Status::MISALIGNED,
        ),
        (
            "FILL with a repeat",
            cdm_command { repeat: 1, ..fill },
            Status::RESERVED_FIELD,
        ),
        (
            "FILL with arg1",
            cdm_command { arg1: 1, ..fill },
            Status::RESERVED_FIELD,
        ),
        (
            "FETCH_ADD at an odd address",
            cdm_command {
                destination: address + 4,
                ..add
            },
            Status::MISALIGNED,
        ),
        (
            "FETCH_ADD of width 2",
            cdm_command {
                width: 2,
                length: 2,
                ..add
            },
            Status::BAD_WIDTH,
        ),
        (
            "FETCH_ADD no times",
            cdm_command { repeat: 0, ..add },
            Status::BAD_REPEAT,
        ),
        (
            "FETCH_ADD too often",
            cdm_command {
                repeat: REPEAT_MAX + 1,
                ..add
            },
            Status::BAD_REPEAT,
        ),
        ("COPY without a source", copy, Status::BAD_RANGE_COUNT),
        (
            "CHECKSUM with a width",
            cdm_command {
                width: 1,
                ..checksum
            },
            Status::RESERVED_FIELD,
        ),
        (
            "CHECKSUM of more than the limit",
            cdm_command {
                source: untouched.address(),
                length: TRANSFER_BYTES_MAX + 1,
                ..checksum
            },
            Status::TOO_LONG,
        ),
    ];
    for (what, command, expected) in cases {
        match raw(t, command) {
            Ok(answer) if answer.status == expected => {
                ensure!(
                    (answer.result, answer.bytes_done) == (0, 0),
                    "{what}: {answer:?}"
                );
            }
            other => bail!("{what}: expected {expected:?}, got {other:?}"),
        }
        memory.check_pattern(12)?;
        t.device.nop()?.ok()?;
    }
    Ok(())
}
