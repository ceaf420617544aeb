// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A command does the same on a process's pages, wherever they are and whenever they move, as
//! on plain memory.

use super::driver::*;
use crate::model::tests::fixture::*;
use crate::model::{Access, Atomics, Capacity, Flow, Traffic};
use cdm_protocol::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use zerocopy::{FromZeros, IntoBytes};

/// Pages that are memory of the process; behind them comes as much that is not.
const PAGES: u64 = 24;
/// Plain memory: all of it. Where the process has pages, the second device's are elsewhere.
const FLAT: u64 = 32 << 20;
/// Pages that the process's memory is moved about in, on the device.
const FRAMES: u64 = 128 << 20;
/// Bytes of either half.
const HALF: u64 = PAGES * PAGE;

/// A command by places in the plain memory.
#[derive(Clone, Debug)]
struct Case {
    header: CommandHeader,
    src: Vec<(u64, u64)>,
    dst: Vec<(u64, u64)>,
    /// Contents of both memories, by word.
    seed: u64,
    /// Which pages of the process are in guest memory, by bit.
    on_guest: u32,
    is_tight: bool,
    /// Whether the link carries no atomics.
    is_exclusive: bool,
}

/// Lays the memory of a case out twice.
fn lay_out(driver: &Driver, case: &Case) {
    // Small even numbers: they are pointers as well.
    let word = |index: u64| {
        let mixed = (index ^ case.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) % (HALF / 8) * 8
    };
    let bytes: Vec<u8> = (0..2 * HALF / 8)
        .flat_map(|i| word(i).to_le_bytes())
        .collect();
    let program = program(case.seed);
    let mut bytes = bytes;
    bytes[..program.len()].copy_from_slice(&program);
    driver.fixture.poke(FLAT, &bytes);
    // The half that is no process's: the same bytes, in other places.
    driver
        .fixture
        .poke(2 * FLAT + HALF, &bytes[HALF as usize..]);
    for number in 0..PAGES {
        let entry = match case.on_guest >> number & 1 {
            // Guest memory has sixteen pages, in two regions.
            1 if number < 16 => on_guest(GUEST_BASE + (number * 7 % 16) * PAGE),
            _ => on_device(FRAMES + 16 * HALF + number * 3 * PAGE),
        };
        let begin = (number * PAGE) as usize;
        driver.poke(entry, 0, &bytes[begin..begin + PAGE as usize]);
        driver.map(number, entry);
    }
}

/// Instructions that work on the first words of the destination.
fn program(seed: u64) -> Vec<u8> {
    let instruction = |operator, d, b, immediate: u64| Instruction {
        operator,
        d,
        b,
        immediate: immediate.into(),
        ..Instruction::new_zeroed()
    };
    let access = |operator, width, d, b, offset| Instruction {
        order: MemoryOrder::RELAXED,
        width,
        ..instruction(operator, d, b, offset)
    };
    // Register 15 stays zero.
    let list = [
        access(Operator::LOAD, 8, 1, 0, 8),
        Instruction {
            a: 15,
            ..access(Operator::ATOMIC_ADD, 8, 2, 1, seed % 8 * 8)
        },
        Instruction {
            a: 15,
            ..access(Operator::STORE, 4, 0, 2, seed % 16 * 4)
        },
        Instruction {
            a: 15,
            ..access(Operator::ATOMIC_SWAP, 8, 3, 1, 16)
        },
        Instruction {
            a: 15,
            ..access(Operator::ATOMIC_COMPARE_SWAP, 8, 3, 2, 16)
        },
        Instruction {
            a: 3,
            ..instruction(Operator::ADD, 0, 2, 5)
        },
    ];
    let mut list = list;
    list[0].a = 15;
    list.as_bytes().to_vec()
}

/// Bytes of [`program`].
const PROGRAM_BYTES: u64 = 6 * 16;

/// Ranges of plain memory.
fn flat(list: &[(u64, u64)]) -> Vec<Range> {
    list.iter()
        .map(|&(place, bytes)| device(FLAT + place, bytes))
        .collect()
}

/// The same bytes, those of the first half as a process's.
fn far(list: &[(u64, u64)]) -> Vec<Range> {
    let far = |&(place, bytes): &(u64, u64)| match place < HALF {
        true => process(PASID, VIRTUAL + place, bytes),
        false => device(2 * FLAT + place, bytes),
    };
    list.iter().map(far).collect()
}

/// Moves one page of the process after the other to new places, as often as it can, until told
/// to end. What is left behind is overwritten.
fn move_about(driver: &Driver, is_over: &AtomicBool) {
    let mut round = 0;
    while !is_over.load(Ordering::Relaxed) {
        let number = round * 5 % PAGES;
        let new = on_device(FRAMES + (round % 64) * 2 * PAGE);
        let mut table = driver.table();
        let first = VIRTUAL + number * PAGE;
        driver.invalidate(first, first + PAGE - 1);
        let entry = table.get_mut(&(PASID, first)).unwrap();
        let bytes = driver.peek(*entry, 0, PAGE as usize);
        if !table.values().any(|&other| other == new) {
            let entry = table.insert((PASID, first), new).unwrap();
            driver.poke(entry, 0, &[0xee; PAGE as usize]);
            driver.poke(new, 0, &bytes);
        }
        drop(table);
        round += 1;
        thread::yield_now();
    }
}

/// Accesses of a kind to either side.
fn all(traffic: &Traffic, kind: Access) -> Flow {
    let mut flow = Flow::default();
    for accesses in [&traffic.own, &traffic.link] {
        flow += match kind {
            Access::Read => accesses.reads,
            Access::Write => accesses.writes,
            Access::Atomic => accesses.atomics,
        };
    }
    flow
}

/// Does a case both ways.
fn compare(case: &Case, moves: bool) -> Result<(), TestCaseError> {
    let translations = match case.is_tight {
        true => Capacity { small: 3, large: 0 },
        false => Capacity::default(),
    };
    let atomics = match case.is_exclusive {
        true => Atomics::Exclusive,
        false => Atomics::Link,
    };
    let driver = Driver::with_translations(translations, atomics);
    lay_out(&driver, case);
    let (src, dst) = (flat(&case.src), flat(&case.dst));
    let (expected, plain, _) = driver.account(case.header, &src, &dst);
    let is_over = AtomicBool::new(false);
    let found = thread::scope(|scope| {
        if moves {
            scope.spawn(|| move_about(&driver, &is_over));
        }
        let found = driver.account(case.header, &far(&case.src), &far(&case.dst));
        is_over.store(true, Ordering::Relaxed);
        found
    });
    let (found, traffic, _) = found;
    prop_assert_eq!(found, expected, "{:?}", case);
    // Page borders are line borders, but an element may lie across one.
    let is_vector = [Opcode::SUM, Opcode::AXPY].contains(&case.header.opcode);
    // Over a link without atomics, an atomic is a load and a store.
    let halves = {
        let (was, is) = (all(&plain, Access::Atomic), all(&traffic, Access::Atomic));
        prop_assert!(is == was || case.is_exclusive, "{is:?} {was:?} {case:?}");
        Flow {
            accesses: was.accesses - is.accesses,
            bytes: was.bytes - is.bytes,
        }
    };
    for kind in [Access::Read, Access::Write] {
        let (mut was, is) = (all(&plain, kind), all(&traffic, kind));
        was += halves;
        prop_assert_eq!(is.bytes, was.bytes, "{:?} {:?}", kind, case);
        prop_assert!(is_vector || is == was, "{is:?} {was:?} {kind:?} {case:?}");
    }
    let memory = driver.fixture.peek(FLAT, 2 * HALF as usize);
    let (first, second) = memory.split_at(HALF as usize);
    for (number, bytes) in (0..).zip(first.chunks(PAGE as usize)) {
        let entry = driver.table()[&(PASID, VIRTUAL + number * PAGE)];
        prop_assert!(
            driver.peek(entry, 0, PAGE as usize) == bytes,
            "page {}",
            number
        );
    }
    prop_assert!(driver.fixture.peek(2 * FLAT + HALF, second.len()) == second);
    Ok(())
}

/// A list of `total` bytes in the part of both halves that begins at `base` of `parts`, all
/// lengths and places multiples of `unit`.
fn list(total: u64, unit: u64, base: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let cuts = prop::collection::vec(0..=total / unit, 0..3);
    let room = (HALF / 2 - total) / unit;
    let places = prop::collection::vec((any::<bool>(), 0..=room), 4);
    (cuts, places).prop_map(move |(mut cuts, places)| {
        cuts.extend([0, total / unit]);
        cuts.sort_unstable();
        let mut list = Vec::new();
        for (pair, (is_plain, place)) in cuts.windows(2).zip(places) {
            let (begin, bytes) = (pair[0] * unit, (pair[1] - pair[0]) * unit);
            let half = if is_plain { HALF } else { 0 };
            if bytes > 0 {
                // Apart from each other, and in step.
                list.push((half + base + place * unit + begin, bytes));
            }
        }
        list
    })
}

type Lists = (Vec<(u64, u64)>, Vec<(u64, u64)>);

/// A source in the first part and a destination in the second, of one length. Ranges of a list
/// that share bytes do so both ways.
fn lists(element: u64, unit: u64) -> impl Strategy<Value = Lists> {
    let most = HALF / 4 / element;
    (1..most).prop_flat_map(move |count| {
        let total = count * element;
        (list(total, unit, 0), list(total, unit, HALF / 2))
    })
}

fn any_case() -> impl Strategy<Value = Case> {
    let header_of = |opcode, width: u16, repeat: u32, arg0: u64, arg1: u64| CommandHeader {
        width: width.into(),
        repeat: repeat.into(),
        arg0: arg0.into(),
        arg1: arg1.into(),
        ..header(opcode)
    };
    let small = || 0u64..100_000;
    let fill = (prop::sample::select(vec![1u16, 2, 4, 8]), any::<u64>()).prop_flat_map(
        move |(width, value)| {
            let header = header_of(Opcode::FILL, width, 0, value, 0);
            lists(width.into(), 1).prop_map(move |(_, dst)| (header, vec![], dst))
        },
    );
    let copy = lists(1, 1).prop_map(|(src, dst)| (header(Opcode::COPY), src, dst));
    let compare = lists(1, 1).prop_map(|(src, dst)| (header(Opcode::COMPARE), src, dst));
    let equal = lists(1, 1).prop_map(|(src, _)| (header(Opcode::COMPARE), src.clone(), src));
    let checksum = (lists(1, 1), any::<u32>()).prop_map(move |((src, _), initial)| {
        (
            header_of(Opcode::CHECKSUM, 0, 0, initial.into(), 0),
            src,
            vec![],
        )
    });
    let vector = (any::<bool>(), any::<bool>(), 0u64..1500, small());
    let vector = vector.prop_flat_map(move |(is_sum, is_wide, stride, value)| {
        let width = if is_wide { 8 } else { 4 };
        let opcode = if is_sum { Opcode::SUM } else { Opcode::AXPY };
        let header = header_of(opcode, width, 0, value, stride * u64::from(width));
        lists(width.into(), 1).prop_map(move |(src, dst)| match is_sum {
            true => (header, src, vec![]),
            false => (header, src, dst),
        })
    });
    let atomic = (any::<bool>(), 0..HALF / 8, 1u32..10_000, small(), small());
    let atomic = atomic.prop_map(move |(is_add, word, repeat, arg0, arg1)| {
        let header = match is_add {
            true => header_of(Opcode::FETCH_ADD, 8, repeat, arg0, 0),
            false => header_of(Opcode::COMPARE_SWAP, 4, 0, arg0 * 8, arg1),
        };
        let bytes = if is_add { 8 } else { 4 };
        (header, vec![], vec![(word * 8, bytes)])
    });
    let chase = (lists(8, 8), 1u32..300, 0..HALF / 32).prop_map(move |((src, _), hops, first)| {
        (
            header_of(Opcode::POINTER_CHASE, 0, hops, first * 8, 0),
            src,
            vec![],
        )
    });
    let histogram = (
        prop::sample::select(vec![1u16, 2, 4, 8]),
        1u32..1500,
        1u64..5000,
    );
    let histogram = histogram.prop_flat_map(move |(width, bins, values)| {
        let header = header_of(Opcode::HISTOGRAM, width, bins, 8, values);
        let counters = list(u64::from(bins) * 8, 8, HALF / 2);
        (lists(width.into(), 1), counters).prop_map(move |((src, _), dst)| (header, src, dst))
    });
    let program = (lists(512, 512), 1u64..20, small()).prop_map(move |((_, dst), limit, value)| {
        let header = header_of(Opcode::PROGRAM, 0, 6, value, limit);
        (header, vec![(0, PROGRAM_BYTES)], dst)
    });
    let command = prop_oneof![
        fill, copy, compare, equal, checksum, vector, atomic, chase, histogram, program
    ];
    let ways = (any::<bool>(), any::<bool>());
    (command, any::<u64>(), any::<u32>(), ways).prop_map(
        |((header, src, dst), seed, on_guest, (is_tight, is_exclusive))| Case {
            header,
            src,
            dst,
            seed,
            on_guest,
            is_tight,
            is_exclusive,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn process_memory_is_as_good_as_plain_memory(case in any_case()) {
        compare(&case, false)?;
    }

    #[test]
    fn process_memory_that_is_moved_meanwhile_is_as_good_as_plain_memory(case in any_case()) {
        compare(&case, true)?;
    }
}
