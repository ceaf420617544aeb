// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many commands in one call: their order, their lists of ranges, and what becomes of each.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::batch::{Command, Done, Fate};
use cdm_guest_tools::device::{Bound, Device, Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES, WORD_BYTES};
use cdm_guest_tools::uapi::{
    CDM_BATCH_BYTES_MAX, CDM_BATCH_COMMANDS_MAX, CDM_BATCH_RANGES_MAX, CDM_CAN_BATCH,
    CDM_COMMAND_RANGES_MAX, CDM_COMMAND_SVA, CDM_IOCTL_BATCH, cdm_batch, cdm_batch_command,
    cdm_range,
};
use cdm_guest_tools::userfault::Userfault;
use cdm_protocol::{Opcode, PROGRAM_STEPS_MAX, Status};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::accelerator::mixed;
use crate::addresses::endless;
use crate::fixture::{Fixture, expect_errno, figure};

crate::tests!("batches":
    driver_says_that_it_takes_batches,
    device_is_told_once_of_a_whole_batch,
    commands_are_carried_out_in_their_order,
    fence_keeps_what_is_behind_it_waiting,
    operands_of_hundreds_of_ranges_are_gathered_and_scattered,
    operand_in_more_pieces_than_a_command_takes_is_one_operand,
    each_command_has_its_own_answer_and_those_behind_a_failed_one_go_on,
    batch_that_stops_begins_nothing_behind_a_failed_command,
    bad_batches_are_refused_and_change_nothing,
    batches_that_do_not_fit_into_the_queue_are_carried_out_whole,
    signal_ends_a_batch_and_tells_what_became_of_each_command,
    reset_ends_a_batch_and_tells_what_became_of_each_command,
    page_that_a_batch_waits_for_keeps_nobody_else_waiting,
    unbind_ends_a_batch_that_waits_for_a_page,
);

/// Longest wait for something that takes milliseconds on a quiet machine.
const LIMIT: Duration = Duration::from_secs(20);
const WORD: usize = WORD_BYTES;

/// Runs a check by commands on pinned memory, and by commands on addresses.
fn both_ways(t: &Fixture, check: impl Fn(&Device) -> Result<()>) -> Result<()> {
    check(&t.device).context("on pinned memory")?;
    let bound = Bound::open(0)?;
    check(&bound).context("on addresses of the process")
}

fn span(offset: usize, bytes: usize) -> Span {
    Span { offset, bytes }
}

fn copy<'m>(
    source: (&'m Mapping, Span),
    destination: (&'m Mapping, Span),
) -> std::io::Result<Command<'m>> {
    Command::new(Opcode::COPY)
        .source(source.0, source.1)?
        .destination(destination.0, destination.1)
}

fn driver_says_that_it_takes_batches(t: &Fixture) -> Result<()> {
    ensure!(
        t.start.capabilities & CDM_CAN_BATCH != 0,
        "{:#x}",
        t.start.capabilities
    );
    let done = t.device.batch(&[Command::new(Opcode::NOP)], false)?;
    ensure!(done.num_ok == 1, "{done:?}");
    done.ok()?;
    Ok(())
}

fn device_is_told_once_of_a_whole_batch(t: &Fixture) -> Result<()> {
    const COMMANDS: usize = 64;
    let nops = vec![Command::new(Opcode::NOP); COMMANDS];
    let before = figure("kicks")?;
    t.device.batch(&nops, false)?.ok()?;
    let batch = figure("kicks")? - before;
    let answered = figure("commands")?;
    for _ in 0..COMMANDS {
        t.device.nop()?.ok()?;
    }
    let single = figure("kicks")? - before - batch;
    ensure!(
        (batch, single) == (1, COMMANDS as u64),
        "the device was told {batch} times of a batch, {single} times of its commands"
    );
    ensure!(figure("commands")? == answered + COMMANDS as u64);
    let unordered = vec![Command::new(Opcode::NOP).unordered(); COMMANDS];
    let bound = Bound::open(0)?;
    let before = figure("kicks")?;
    bound.batch(&unordered, false)?.ok()?;
    let batch = figure("kicks")? - before;
    ensure!(batch == 1, "{batch} times of a batch on addresses");
    Ok(())
}

fn commands_are_carried_out_in_their_order(t: &Fixture) -> Result<()> {
    const WORDS: usize = 100;
    both_ways(t, |device| {
        for memory in [mixed(t, 2, 1)?, t.system_memory(2, 1)?] {
            memory.fill(0);
            let word = |index: usize| span(index * 72, WORD);
            let mut commands = vec![Command::fill(8, 7).destination(&memory, word(0))?];
            // Each word is what the one before it has become, plus one.
            for index in 1..WORDS {
                let operands = ((&memory, word(index - 1)), (&memory, word(index)));
                commands.push(copy(operands.0, operands.1)?);
                let add = Command::new(Opcode::FETCH_ADD).width(8).repeat(1);
                commands.push(add.args(1, 0).destination(&memory, word(index))?);
            }
            let results = device.batch(&commands, false)?.ok()?;
            for index in 0..WORDS {
                let found = memory.word(index * 72).load(Relaxed);
                ensure!(found == 7 + index as u64, "word {index} is {found}");
            }
            ensure!(results[2] == 7 && results[4] == 8, "{results:?}");
        }
        Ok(())
    })
}

fn fence_keeps_what_is_behind_it_waiting(t: &Fixture) -> Result<()> {
    const BYTES: usize = 2 << 20;
    const ROUNDS: u64 = 6;
    let fence = || Command::new(Opcode::FENCE);
    both_ways(t, |device| {
        let memory = t.system_memory(BYTES / PAGE_BYTES, 2)?;
        let copies = [0, 1].map(|_| Mapping::anonymous(BYTES));
        let [first, second] = copies;
        let (first, second) = (first?, second?);
        let all = Span::all(&memory);
        for round in 1..=ROUNDS {
            let parts = (0..8).map(|part| span(part * BYTES / 8, BYTES / 8));
            let mut commands = Vec::new();
            for part in parts {
                let fill = Command::fill(8, round).destination(&memory, part)?;
                commands.push(fill.unordered());
            }
            commands.push(fence());
            for target in [&first, &second] {
                commands.push(copy((&memory, all), (target, all))?.unordered());
            }
            commands.push(fence());
            commands.push(Command::fill(8, 0).destination(&memory, all)?.unordered());
            device.batch(&commands, false)?.ok()?;
            for target in [&first, &second] {
                target
                    .check_fill(round)
                    .context("copied before it was filled, or after")?;
            }
            memory.check_fill(0)?;
        }
        Ok(())
    })?;
    // A FENCE that need not wait is none.
    let done = t.device.batch(&[fence().unordered()], false)?;
    ensure!(
        done.fates[0].status() == Some(Status::RESERVED_FIELD),
        "{done:?}"
    );
    Ok(())
}

/// `count` pieces of a mapping, none a neighbour of the next, that lie across its pages; the last
/// ones come first.
fn pieces(memory: &Mapping, count: usize) -> Vec<Span> {
    let room = memory.bytes() / count;
    (0..count)
        .rev()
        .map(|index| span(index * room + index % 7, room / 2 + index % 5))
        .collect()
}

/// The bytes of pieces, one after another.
fn gathered(memory: &Mapping, pieces: &[Span]) -> Vec<u8> {
    let bytes = memory.read_bytes(memory.bytes());
    let piece = |span: &Span| bytes[span.offset..][..span.bytes].to_vec();
    pieces.iter().flat_map(piece).collect()
}

fn operands_of_hundreds_of_ranges_are_gathered_and_scattered(t: &Fixture) -> Result<()> {
    const RANGES: usize = 300;
    both_ways(t, |device| {
        let source = mixed(t, 16, 3)?;
        let target = mixed(t, 16, 4)?;
        let list = pieces(&source, RANGES);
        let expected = gathered(&source, &list);
        let middle = mixed(t, 16, 5)?;
        let whole = span(13, expected.len());

        let mut gather = Command::new(Opcode::COPY).destination(&middle, whole)?;
        let mut scatter = Command::new(Opcode::COPY).source(&middle, whole)?;
        let mut checksum = Command::new(Opcode::CHECKSUM);
        for piece in &list {
            gather = gather.source(&source, *piece)?;
            scatter = scatter.destination(&target, *piece)?;
            checksum = checksum.source(&target, *piece)?;
        }
        let mut compare = Command::new(Opcode::COMPARE);
        for piece in &list[..RANGES / 2] {
            compare = compare
                .source(&source, *piece)?
                .destination(&target, *piece)?;
        }
        let before = target.read_bytes(target.bytes());
        let commands = [gather, scatter, checksum, compare];
        let results = device.batch(&commands, false)?.ok()?;
        let found = middle.read_bytes(middle.bytes());
        ensure!(found[13..][..expected.len()] == expected, "not gathered");
        ensure!(gathered(&target, &list) == expected, "not scattered");
        let crc = Mapping::anonymous(expected.len())?;
        crc.write_bytes(&expected);
        ensure!(results[2] == u64::from(crc.crc32c(expected.len())));
        ensure!(results[3] == cdm_protocol::COMPARE_EQUAL, "{results:x?}");
        // What lies between the pieces is as it was.
        let after = target.read_bytes(target.bytes());
        let is_inside = |at: usize| {
            let covers = |piece: &Span| (piece.offset..piece.offset + piece.bytes).contains(&at);
            list.iter().any(covers)
        };
        for (at, (old, new)) in before.iter().zip(&after).enumerate() {
            ensure!(old == new || is_inside(at), "byte {at} was written to");
        }
        Ok(())
    })
}

/// Lists that are as long as they may be, and whose ranges lie in two memories each.
fn operand_in_more_pieces_than_a_command_takes_is_one_operand(t: &Fixture) -> Result<()> {
    let ranges = CDM_COMMAND_RANGES_MAX as usize;
    both_ways(t, |device| {
        let memory = mixed(t, ranges + 1, 6)?;
        // Each crosses the border of two pages.
        let cross = |index: usize| span((index + 1) * PAGE_BYTES - 24, 48);
        let mut checksum = Command::new(Opcode::CHECKSUM);
        let mut fill = Command::fill(8, 5);
        for index in 0..ranges {
            checksum = checksum.source(&memory, cross(index))?;
            fill = fill.destination(&memory, cross(index))?;
        }
        let list: Vec<_> = (0..ranges).map(cross).collect();
        let expected = Mapping::anonymous(48 * ranges)?;
        expected.write_bytes(&gathered(&memory, &list));
        let commands = [checksum, fill, Command::new(Opcode::NOP)];
        let done = device.batch(&commands, false)?;
        let Fate::Answered(filled, _) = done.fates[1] else {
            bail!("{done:?}")
        };
        ensure!(filled.bytes_done == 48 * ranges as u64, "{filled:?}");
        let results = done.ok()?;
        let crc = u64::from(expected.crc32c(48 * ranges));
        ensure!(results[0] == crc, "{:#x}, not {crc:#x}", results[0]);
        for index in 0..ranges {
            for at in (cross(index).offset..).step_by(WORD).take(6) {
                let found = memory.word(at).load(Relaxed);
                ensure!(found == 5, "range {index}: {found}");
            }
        }
        // The width does not divide this length: refused, with nothing done.
        memory.fill_pattern(7);
        let mut broken = Command::fill(8, 9);
        for index in 0..ranges - 1 {
            broken = broken.destination(&memory, cross(index))?;
        }
        let broken = broken.destination(&memory, span(0, 12))?;
        let done = device.batch(&[broken], false)?;
        ensure!(
            matches!(done.fates[0], Fate::Answered(answer, range)
                if answer.status == Status::MISALIGNED && range == ranges as u32 - 1),
            "{done:?}"
        );
        memory.check_pattern(7)?;
        Ok(())
    })
}

fn each_command_has_its_own_answer_and_those_behind_a_failed_one_go_on(t: &Fixture) -> Result<()> {
    both_ways(t, |device| {
        let memory = t.resident_memory(4, 8)?;
        let crc = memory.crc32c(64);
        let piece = |offset, bytes| span(offset, bytes);
        let commands = [
            Command::new(Opcode::CHECKSUM).source(&memory, piece(0, 64))?,
            Command::new(Opcode(999.into())),
            Command::fill(8, 1)
                .destination(&memory, piece(1000, 16))?
                .destination(&memory, piece(2000, 15))?,
            Command::new(Opcode::COPY)
                .source(&memory, piece(0, 64))?
                .destination(&memory, piece(4096, 63))?,
            Command::new(Opcode::NOP).source(&memory, piece(0, 8))?,
            Command::fill(4, 0x11).destination(&memory, piece(8192, 64))?,
        ];
        let done = device.batch(&commands, false)?;
        ensure!(done.error.is_none() && done.num_ok == 2, "{done:?}");
        let found: Vec<_> = done
            .fates
            .iter()
            .map(|fate| match fate {
                Fate::Answered(answer, range) => {
                    (answer.status, *range, answer.result, answer.bytes_done)
                }
                other => (
                    Status(u16::MAX.into()),
                    0,
                    0,
                    u64::from(other == &Fate::NotBegun),
                ),
            })
            .collect();
        let expected = [
            (Status::OK, 0, u64::from(crc), 64),
            (Status::UNKNOWN_OPCODE, 0, 0, 0),
            (Status::MISALIGNED, 1, 0, 0),
            (Status::LENGTH_MISMATCH, found[3].1, 0, 0),
            (Status::BAD_RANGE_COUNT, 0, 0, 0),
            (Status::OK, 0, 0, 64),
        ];
        ensure!(found == expected, "{found:?}");
        ensure!(memory.word(8192).load(Relaxed) == 0x0000_0011_0000_0011);
        Ok(())
    })
}

fn batch_that_stops_begins_nothing_behind_a_failed_command(t: &Fixture) -> Result<()> {
    both_ways(t, |device| {
        let memory = t.system_memory(4, 0)?;
        memory.fill(0);
        let page = |index: usize| span(index * PAGE_BYTES, PAGE_BYTES);
        let fill = |index: usize| Command::fill(8, 1).destination(&memory, page(index));
        let commands = [
            fill(0)?,
            Command::new(Opcode(999.into())).repeat(1),
            fill(1)?,
            fill(2)?.unordered(),
            Command::new(Opcode::FENCE),
        ];
        let done = device.batch(&commands, true)?;
        ensure!(done.error.is_none() && done.num_ok == 1, "{done:?}");
        ensure!(done.fates[0].ok().is_ok(), "{done:?}");
        ensure!(
            done.fates[1].status() == Some(Status::UNKNOWN_OPCODE),
            "{done:?}"
        );
        let rest = &done.fates[2..];
        ensure!(rest.iter().all(|fate| *fate == Fate::NotBegun), "{done:?}");
        for index in 0..4 {
            let found = memory.word(index * PAGE_BYTES).load(Relaxed);
            ensure!(found == u64::from(index == 0), "page {index}: {found}");
        }
        // Without a failure it goes to its end.
        let commands = [fill(1)?, fill(2)?.unordered(), fill(3)?];
        device.batch(&commands, true)?.ok()?;
        memory.check_fill(1)?;
        Ok(())
    })
}

/// Hands a batch in as it is; its memory is the test's own or bad.
fn raw(device: &Device, request: cdm_batch) -> std::io::Result<()> {
    let mut request = request;
    // SAFETY: the driver writes the structure and the commands that it names, which are the
    // caller's; operands are mappings of the tests, accessed by atomics alone, or not mapped.
    unsafe { device.ioctl(CDM_IOCTL_BATCH, (&raw mut request).cast()) }
}

fn bad_batches_are_refused_and_change_nothing(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(4, 9)?;
    let gone = {
        let mapping = Mapping::anonymous(4 * PAGE_BYTES)?;
        mapping.address()
    };
    let read_only = t.system_memory(1, 9)?;
    read_only.protect_pages(0, 1, ProtFlags::PROT_READ)?;
    let good = [cdm_range {
        address: memory.address(),
        bytes: 64,
    }];
    let list = |ranges: &[cdm_range]| ranges.as_ptr() as u64;
    let fill = cdm_batch_command {
        opcode: Opcode::FILL.get().into(),
        destination: list(&good),
        num_destination: 1,
        width: 8,
        ..Default::default()
    };
    let range = |address, bytes| [cdm_range { address, bytes }];
    let (empty, wraps) = (range(memory.address(), 0), range(u64::MAX - 63, 65));
    let (unmapped, kernel) = (range(gone, 64), range(1 << 63, 64));
    let (locked, long) = (range(read_only.address(), 64), range(4096, 1 << 30));
    let many = vec![good[0]; CDM_COMMAND_RANGES_MAX as usize + 1];
    let with = |ranges: &[cdm_range]| cdm_batch_command {
        destination: list(ranges),
        num_destination: ranges.len() as u32,
        ..fill
    };
    let cases = [
        (
            "flag",
            cdm_batch_command {
                flags: CDM_COMMAND_SVA,
                ..fill
            },
            Errno::EINVAL,
        ),
        (
            "high flag",
            cdm_batch_command {
                flags: 1 << 31,
                ..fill
            },
            Errno::EINVAL,
        ),
        (
            "reserved",
            cdm_batch_command {
                reserved: 1,
                ..fill
            },
            Errno::EINVAL,
        ),
        (
            "ranges nowhere",
            cdm_batch_command {
                destination: 0,
                ..fill
            },
            Errno::EINVAL,
        ),
        (
            "no ranges somewhere",
            cdm_batch_command { source: 8, ..fill },
            Errno::EINVAL,
        ),
        ("empty range", with(&empty), Errno::EINVAL),
        ("range that wraps", with(&wraps), Errno::EINVAL),
        ("too many ranges", with(&many), Errno::E2BIG),
        (
            "ranges without end",
            cdm_batch_command {
                num_source: u32::MAX,
                source: 8,
                ..fill
            },
            Errno::E2BIG,
        ),
        (
            "list that is not mapped",
            cdm_batch_command {
                destination: gone,
                ..fill
            },
            Errno::EFAULT,
        ),
        (
            "list in the kernel's half",
            cdm_batch_command {
                destination: 1 << 63,
                ..fill
            },
            Errno::EFAULT,
        ),
        ("operand that is not mapped", with(&unmapped), Errno::EFAULT),
        ("operand in the kernel's half", with(&kernel), Errno::EFAULT),
        ("operand that is not writable", with(&locked), Errno::EFAULT),
    ];
    for (what, bad, errno) in cases {
        // The good ones around it are not carried out either.
        let commands = [fill, bad, fill];
        let request = cdm_batch {
            commands: commands.as_ptr() as u64,
            num_commands: 3,
            ..Default::default()
        };
        expect_errno(raw(&t.device, request), errno).context(what)?;
        memory.check_pattern(9).context(what)?;
    }
    let commands = vec![fill; CDM_BATCH_COMMANDS_MAX as usize + 1];
    let wide = vec![with(&many[1..]); (CDM_BATCH_RANGES_MAX / CDM_COMMAND_RANGES_MAX) as usize + 1];
    let checksum = cdm_batch_command {
        opcode: Opcode::CHECKSUM.get().into(),
        source: list(&long),
        num_source: 1,
        destination: 0,
        num_destination: 0,
        width: 0,
        ..fill
    };
    let heavy = vec![checksum; (CDM_BATCH_BYTES_MAX >> 30) as usize + 1];
    let of = |commands: &[cdm_batch_command]| cdm_batch {
        commands: commands.as_ptr() as u64,
        num_commands: commands.len() as u32,
        ..Default::default()
    };
    let one = of(&commands[..1]);
    let cases = [
        ("no commands", of(&commands[..0]), Errno::EINVAL),
        ("too many commands", of(&commands), Errno::E2BIG),
        ("too many ranges in all", of(&wide), Errno::E2BIG),
        ("too many bytes", of(&heavy), Errno::E2BIG),
        (
            "flag of a batch",
            cdm_batch {
                flags: 1 << 2,
                ..one
            },
            Errno::EINVAL,
        ),
        (
            "reserved of a batch",
            cdm_batch { reserved: 1, ..one },
            Errno::EINVAL,
        ),
        (
            "commands that are not mapped",
            cdm_batch {
                commands: gone,
                ..one
            },
            Errno::EFAULT,
        ),
        (
            "commands at zero",
            cdm_batch { commands: 0, ..one },
            Errno::EFAULT,
        ),
        (
            "commands that cannot be written",
            cdm_batch {
                commands: read_only.address(),
                ..one
            },
            Errno::EFAULT,
        ),
        (
            "addresses without a binding",
            cdm_batch { flags: 1, ..one },
            Errno::ENXIO,
        ),
    ];
    for (what, bad, errno) in cases {
        expect_errno(raw(&t.device, bad), errno).context(what)?;
        memory.check_pattern(9).context(what)?;
    }
    // The good one is good, so each refusal was for what it was meant for.
    raw(&t.device, one)?;
    ensure!(memory.word(0).load(Relaxed) == 0);
    t.device.nop()?.ok()?;
    Ok(())
}

fn batches_that_do_not_fit_into_the_queue_are_carried_out_whole(t: &Fixture) -> Result<()> {
    const THREADS: u64 = 3;
    let commands = CDM_BATCH_COMMANDS_MAX as usize;
    let run = |device: &Device, unordered: bool| -> Result<()> {
        let counter = t.system_memory(1, 0)?;
        counter.fill(0);
        let mut adds = Vec::new();
        for index in 0..commands {
            let word = span(index % 8 * WORD, WORD);
            let add = Command::new(Opcode::FETCH_ADD).width(8).repeat(1);
            let add = add.args(1, 0).destination(&counter, word)?;
            adds.push(if unordered { add.unordered() } else { add });
        }
        let done = device.batch(&adds, false)?;
        ensure!(done.num_ok as usize == commands, "{done:?}");
        let results = done.ok()?;
        for index in 0..8 {
            let found = counter.word(index * WORD).load(SeqCst);
            ensure!(found == commands as u64 / 8, "counter {index}: {found}");
        }
        if !unordered {
            let is_next = |(index, result): (usize, &u64)| *result == index as u64 / 8;
            ensure!(results.iter().enumerate().all(is_next), "not in order");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| scope.spawn(move || run(&t.device, number % 2 == 1)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().expect("the thread panics nowhere")
        };
        threads.into_iter().try_for_each(join)
    })?;
    let bound = Bound::open(0)?;
    run(&bound, true).context("on addresses")
}

extern "C" fn on_signal(_: libc::c_int) {}

/// Runs a batch of a FILL of page 1, a program that never ends, and FILLs of pages 2 and 3; runs
/// `end` with the waiting thread when the program runs, and gives what became of the batch.
fn interrupted(
    device: &Device,
    memory: &Mapping,
    end: impl FnOnce(libc::pthread_t) -> Result<()>,
) -> Result<Done> {
    memory.fill(0);
    let home = Mapping::anonymous(PAGE_BYTES)?;
    home.fill(0);
    let page = |index: usize| span(index * PAGE_BYTES, PAGE_BYTES);
    let fill = |index: usize| Command::fill(8, 1).destination(memory, page(index));
    let program = Command::new(Opcode::PROGRAM)
        .code(&endless(), &home)?
        .destination(memory, page(0))?
        .args(0, PROGRAM_STEPS_MAX);
    let commands = [fill(1)?, program, fill(2)?, fill(3)?];
    let waiter = AtomicU64::new(0);
    thread::scope(|scope| {
        let batch = scope.spawn(|| {
            // SAFETY: takes nothing, and cannot fail.
            waiter.store(unsafe { libc::pthread_self() }, Release);
            device.batch(&commands, false)
        });
        let deadline = Instant::now() + LIMIT;
        while memory.word(0).load(Acquire) == 0 && !batch.is_finished() {
            if Instant::now() > deadline {
                break;
            }
            thread::yield_now();
        }
        let start = Instant::now();
        let ended = end(waiter.load(Acquire));
        while ended.is_ok() && !batch.is_finished() && start.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
        let took = start.elapsed();
        // Lets the program through in any case.
        memory.word(8).store(1, SeqCst);
        let done = batch.join().expect("the thread only waits");
        ended?;
        ensure!(took < LIMIT, "it took {took:?}");
        Ok(done?)
    })
}

/// The first command was done, the program was ended, and nothing behind it has begun.
fn expect_ended(done: &Done, memory: &Mapping, errno: Errno) -> Result<()> {
    let error = done.error.as_ref().and_then(std::io::Error::raw_os_error);
    ensure!(error == Some(errno as i32), "{done:?}");
    ensure!(done.fates[0].ok().is_ok(), "{done:?}");
    ensure!(
        done.fates[1].status() == Some(Status::CANCELLED),
        "{done:?}"
    );
    for fate in &done.fates[2..] {
        let is_unbegun = *fate == Fate::NotBegun
            || matches!(fate, Fate::Answered(answer, _)
                if answer.status == Status::CANCELLED && answer.bytes_done == 0);
        ensure!(is_unbegun, "{done:?}");
    }
    ensure!(done.num_ok == 1, "{done:?}");
    let pages = [1, 2, 3].map(|page| memory.word(page * PAGE_BYTES).load(SeqCst));
    ensure!(pages == [1, 0, 0], "{pages:?}");
    Ok(())
}

fn signal_ends_a_batch_and_tells_what_became_of_each_command(t: &Fixture) -> Result<()> {
    let handler = SigHandler::Handler(on_signal);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    both_ways(t, |device| {
        let memory = t.resident_small_pages(4, 10)?;
        let done = interrupted(device, &memory, |waiter| {
            // SAFETY: the thread has stored its own handle, and is not joined yet.
            unsafe { libc::pthread_kill(waiter, libc::SIGUSR1) };
            Ok(())
        })?;
        expect_ended(&done, &memory, Errno::EINTR)?;
        // Nothing holds the pages any more.
        t.move_all(memory.range(), Direction::ToSystem)?;
        device.batch(&[Command::new(Opcode::NOP)], false)?.ok()?;
        Ok(())
    })
}

fn reset_ends_a_batch_and_tells_what_became_of_each_command(t: &Fixture) -> Result<()> {
    both_ways(t, |device| {
        let memory = t.resident_small_pages(4, 11)?;
        let done = interrupted(device, &memory, |_| Ok(t.device.reset()?))?;
        expect_ended(&done, &memory, Errno::EIO)?;
        t.move_all(memory.range(), Direction::ToSystem)?;
        device.batch(&[Command::new(Opcode::NOP)], false)?.ok()?;
        Ok(())
    })
}

/// Runs a batch whose first command waits for a page, runs `meanwhile` when it does, and gives
/// what became of it; `serve` ends the wait.
fn waiting(
    bound: &Bound,
    meanwhile: impl FnOnce() -> Result<()>,
    serve: impl FnOnce(&Userfault, &Mapping) -> Result<()>,
) -> Result<(Done, Mapping)> {
    let served = Mapping::anonymous(PAGE_BYTES)?;
    served.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let target = Mapping::anonymous(PAGE_BYTES)?;
    target.fill(0);
    let userfault = Userfault::watch_missing(&served)?;
    let done = thread::scope(|scope| {
        let batch = scope.spawn(|| -> Result<Done> {
            let all = Span::all(&served);
            let commands = [
                copy((&served, all), (&target, all))?,
                Command::new(Opcode::FENCE),
                Command::fill(8, 3).destination(&target, span(0, 64))?,
            ];
            Ok(bound.batch(&commands, false)?)
        });
        let steps = || -> Result<()> {
            let fault = userfault.wait_for_missing(LIMIT)?;
            ensure!(fault == Some(served.address()), "{fault:x?}");
            meanwhile()?;
            ensure!(!batch.is_finished(), "the batch did not wait");
            serve(&userfault, &served)
        };
        let steps = steps();
        userfault.leave(&served)?;
        let done = batch.join().expect("the thread only waits");
        steps.and(done)
    })?;
    Ok((done, target))
}

fn page_that_a_batch_waits_for_keeps_nobody_else_waiting(t: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    let contents = t.system_memory(1, 12)?;
    let (done, target) = waiting(
        &bound,
        || {
            // The queue is the same, and these have an order of their own.
            let other = Bound::open(0)?;
            let memory = t.system_memory(4, 0)?;
            let all = Span::all(&memory);
            let fill = |value| Command::fill(8, value).destination(&memory, all);
            let commands = [fill(1)?, Command::new(Opcode::FENCE), fill(2)?];
            other.batch(&commands, false)?.ok()?;
            memory.check_fill(2)?;
            other.nop()?.ok()?;
            Ok(())
        },
        |userfault, served| userfault.fill_page(served.address(), &contents),
    )?;
    done.ok()?;
    let expected = contents.read_bytes(PAGE_BYTES);
    let found = target.read_bytes(PAGE_BYTES);
    ensure!(found[64..] == expected[64..], "the page was not copied");
    // Behind the copy, and not before.
    ensure!(target.word(0).load(Relaxed) == 3);
    Ok(())
}

fn unbind_ends_a_batch_that_waits_for_a_page(_: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    let (done, target) = waiting(&bound, || Ok(()), |_, _| Ok(bound.unbind()?))?;
    let statuses: Vec<_> = done.fates.iter().map(Fate::status).collect();
    // FENCE needs no address, so it is not refused; the other one has no address space any more.
    ensure!(statuses[0] == Some(Status::UNBOUND), "{done:?}");
    ensure!(
        matches!(statuses[2], Some(Status::UNBOUND | Status::BAD_PASID)),
        "{done:?}"
    );
    target.check_fill(0)?;
    Ok(())
}
