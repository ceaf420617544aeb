// SPDX-License-Identifier: Apache-2.0 OR MIT

//! SUM, AXPY, POINTER_CHASE and HISTOGRAM against plain loops.

use super::fixture::*;
use cdm_protocol::{
    BINS_MAX, CommandHeader, Completion, FLAG_FLOAT, Opcode, REPEAT_MAX, Range, Status,
    TRANSFER_BYTES_MAX,
};
use proptest::prelude::*;
use std::cell::Cell;

fn vector(opcode: Opcode, width: u16, flags: u16, arg0: u64, stride: u64) -> CommandHeader {
    CommandHeader {
        flags: flags.into(),
        width: width.into(),
        arg0: arg0.into(),
        arg1: stride.into(),
        ..header(opcode)
    }
}

fn chase(first: u64, base: u64, hops: u32) -> CommandHeader {
    CommandHeader {
        repeat: hops.into(),
        arg0: first.into(),
        arg1: base.into(),
        ..header(Opcode::POINTER_CHASE)
    }
}

fn histogram(width: u16, bins: u32, base: u64, bin_width: u64) -> CommandHeader {
    CommandHeader {
        width: width.into(),
        repeat: bins.into(),
        arg0: base.into(),
        arg1: bin_width.into(),
        ..header(Opcode::HISTOGRAM)
    }
}

fn outcome(completion: &Completion) -> (Status, u64, u64) {
    let (result, done) = (completion.result.get(), completion.bytes_done.get());
    (completion.status, result, done)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Places of elements, as the specification has them.
fn places(total: usize, width: usize, stride: u64) -> impl Iterator<Item = usize> {
    (0..total).step_by(if stride == 0 { width } else { stride as usize })
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |n, &byte| n << 8 | u64::from(byte))
}

/// Ranges of device memory that cut `bytes` bytes from `base` on at odd places, in order.
fn cut(base: u64, bytes: u64, cuts: &[u64]) -> Vec<Range> {
    let mut places: Vec<u64> = cuts.iter().map(|cut| cut % (bytes + 1)).collect();
    places.extend([0, bytes]);
    places.sort_unstable();
    places.dedup();
    places
        .windows(2)
        .map(|pair| device(base + pair[0], pair[1] - pair[0]))
        .collect()
}

fn any_floats() -> impl Strategy<Value = Vec<f32>> {
    let special = prop_oneof![
        Just(f32::MAX),
        Just(f32::MIN_POSITIVE / 4.0),
        Just(-0.0f32),
        Just(f32::INFINITY)
    ];
    let value = prop_oneof![8 => -1e6f32..1e6, 1 => special];
    prop::collection::vec(value, 1..300)
}

/// Bits of a number; the specification has one NaN.
fn bits(value: f32) -> u32 {
    if value.is_nan() {
        0x7fc0_0000
    } else {
        value.to_bits()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn sum_of_integers_is_that_of_a_loop(
        bytes in prop::collection::vec(any::<u8>(), 8..2000),
        (is_wide, stride, initial) in (any::<bool>(), 0u64..70, any::<u64>()),
        cuts in prop::collection::vec(any::<u64>(), 0..5),
    ) {
        let width = if is_wide { 8 } else { 4 };
        let stride = stride * width as u64;
        let total = bytes.len() / width * width;
        let expected = places(total, width, stride)
            .fold(initial, |sum, at| sum.wrapping_add(number(&bytes[at..at + width])));
        let fixture = Fixture::new();
        fixture.poke(3, &bytes);
        let ranges = cut(3, total as u64, &cuts);
        let sum = fixture.run(vector(Opcode::SUM, width as u16, 0, initial, stride), &ranges, &[]);
        prop_assert_eq!(outcome(&sum), (Status::OK, expected, total as u64));
    }

    #[test]
    fn sum_of_floats_rounds_after_each_element_in_order(
        values in any_floats(),
        (stride, initial) in (0u64..5, -10f32..10.0),
        cuts in prop::collection::vec(any::<u64>(), 0..5),
    ) {
        let bytes = floats(&values);
        let step = stride.max(1) as usize;
        let expected = values.iter().step_by(step).fold(initial, |sum, value| sum + value);
        let fixture = Fixture::new();
        fixture.poke(1, &bytes);
        let ranges = cut(1, bytes.len() as u64, &cuts);
        let initial = initial.to_bits().into();
        let sum = fixture.run(vector(Opcode::SUM, 4, FLAG_FLOAT, initial, stride * 4), &ranges, &[]);
        prop_assert_eq!(outcome(&sum), (Status::OK, bits(expected).into(), bytes.len() as u64));
    }

    #[test]
    fn axpy_changes_each_element_as_a_loop_does_and_nothing_between(
        (xs, ys) in (any_floats(), any_floats()),
        (kind, stride, factor) in (0usize..3, 0u64..5, any::<u32>()),
        (x_cuts, y_cuts) in (prop::collection::vec(any::<u64>(), 0..4), prop::collection::vec(any::<u64>(), 0..4)),
    ) {
        let (width, flags) = [(4usize, 0), (8, 0), (4, FLAG_FLOAT)][kind];
        let stride = stride * width as u64;
        let total = xs.len().min(ys.len()) * 4 / width * width;
        prop_assume!(total > 0);
        let (x, mut y) = (floats(&xs), floats(&ys));
        let fixture = Fixture::new();
        fixture.poke(5, &x);
        fixture.poke(100_001, &y);
        let (src, dst) = (cut(5, total as u64, &x_cuts), cut(100_001, total as u64, &y_cuts));
        let header = vector(Opcode::AXPY, width as u16, flags, factor.into(), stride);
        let done = fixture.run(header, &src, &dst);
        for at in places(total, width, stride) {
            let (a, b) = (number(&x[at..at + width]), number(&y[at..at + width]));
            let new = if flags == FLAG_FLOAT {
                let product = f32::from_bits(factor) * f32::from_bits(a as u32);
                bits(product + f32::from_bits(b as u32)).into()
            } else {
                u64::from(factor).wrapping_mul(a).wrapping_add(b)
            };
            y[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
        }
        prop_assert_eq!(outcome(&done), (Status::OK, 0, total as u64));
        prop_assert_eq!(fixture.peek(100_001, y.len()), y);
        prop_assert_eq!(fixture.peek(5, x.len()), x);
    }

    #[test]
    fn histogram_counts_what_a_loop_counts_and_adds_to_the_counters(
        bytes in prop::collection::vec(any::<u8>(), 8..3000),
        (width, bins, base) in (prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], 1u32..40, 0u64..300),
        bin_width in prop_oneof![1u64..50, Just(u64::MAX), Just(1 << 58)],
        cuts in prop::collection::vec(any::<u64>(), 0..4),
    ) {
        let total = bytes.len() / width * width;
        let mut expected = vec![7u64; bins as usize];
        let mut outside = 0;
        for element in bytes[..total].chunks(width) {
            let value = number(element);
            let bin = value.checked_sub(base).map(|value| value / bin_width);
            match bin.filter(|&bin| bin < u64::from(bins)) {
                Some(bin) => expected[bin as usize] += 1,
                None => outside += 1,
            }
        }
        let fixture = Fixture::new();
        fixture.poke(11, &bytes);
        let counters: Vec<u8> = vec![7u64; bins as usize].iter().flat_map(|n| n.to_le_bytes()).collect();
        fixture.poke_guest(GUEST_BASE, &counters);
        let src = cut(11, total as u64, &cuts);
        let dst = [guest(GUEST_BASE, counters.len() as u64)];
        let counted = fixture.run(histogram(width as u16, bins, base, bin_width), &src, &dst);
        prop_assert_eq!(outcome(&counted), (Status::OK, outside, total as u64));
        let found = fixture.peek_guest(GUEST_BASE, counters.len());
        let found: Vec<u64> = found.chunks(8).map(number).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_chase_goes_where_the_pointers_lead_and_never_outside(
        words in prop::collection::vec(prop_oneof![9 => 0u64..64, 1 => any::<u64>()], 64),
        (first, hops, base) in (0u64..70, 1u32..100, any::<u64>()),
    ) {
        let pointer = |word: u64| base.wrapping_add(word.wrapping_mul(8));
        let bytes: Vec<u8> = words.iter().flat_map(|&word| pointer(word).to_le_bytes()).collect();
        let fixture = Fixture::new();
        fixture.poke(0, &bytes[..256]);
        fixture.poke_guest(GUEST_BORDER - 128, &bytes[256..]);
        let ranges = [device(0, 256), guest(GUEST_BORDER - 128, 256)];
        let mut at = pointer(first);
        let mut expected = (Status::OK, 0, 8 * u64::from(hops));
        for hop in 0..hops {
            let offset = at.wrapping_sub(base);
            if offset >= 512 || offset % 8 != 0 {
                expected = (Status::BAD_POINTER, 0, 8 * u64::from(hop));
                break;
            }
            at = pointer(words[offset as usize / 8]);
        }
        if expected.0 == Status::OK {
            expected.1 = at;
        }
        let found = fixture.run(chase(pointer(first), base, hops), &ranges, &[]);
        prop_assert_eq!(outcome(&found), expected);
    }
}

#[test]
fn a_sum_continues_from_an_earlier_one_to_the_bit() {
    let fixture = Fixture::new();
    let values: Vec<f32> = (0..100_000).map(|n| 1.0 / (n + 1) as f32).collect();
    fixture.poke(0, &floats(&values));
    let sum = |from: u64, bytes: u64, initial: u64| {
        let header = vector(Opcode::SUM, 4, FLAG_FLOAT, initial, 0);
        fixture
            .run(header, &[device(from, bytes)], &[])
            .result
            .get()
    };
    let whole = sum(0, 400_000, 0);
    assert_eq!(sum(120_000, 280_000, sum(0, 120_000, 0)), whole);
    // A tree of partial sums would have found another value: the order is part of the result.
    let tree =
        f32::from_bits(sum(0, 200_000, 0) as u32) + f32::from_bits(sum(200_000, 200_000, 0) as u32);
    assert_ne!(u64::from(tree.to_bits()), whole);
}

#[test]
fn a_sum_with_no_value_is_the_one_nan_of_the_specification() {
    let fixture = Fixture::new();
    for values in [
        [f32::INFINITY, f32::NEG_INFINITY],
        [f32::from_bits(0xffc1_2345), 1.0],
    ] {
        fixture.poke(0, &floats(&values));
        let sum = fixture.run(
            vector(Opcode::SUM, 4, FLAG_FLOAT, 0, 0),
            &[device(0, 8)],
            &[],
        );
        assert_eq!(sum.result.get(), 0x7fc0_0000);
    }
}

#[test]
fn a_stride_longer_than_a_bounce_buffer_reaches_every_element() {
    let fixture = Fixture::new();
    let stride = 300 << 10;
    for element in 0..5u64 {
        fixture.poke(element * stride, &(element + 1).to_le_bytes());
    }
    let bytes = 4 * stride + 8;
    let sum = fixture.run(
        vector(Opcode::SUM, 8, 0, 0, stride),
        &[device(0, bytes)],
        &[],
    );
    assert_eq!(outcome(&sum), (Status::OK, 15, bytes));
    let y = 8 << 20;
    let axpy = vector(Opcode::AXPY, 8, 0, 10, stride);
    assert_eq!(
        fixture
            .run(axpy, &[device(0, bytes)], &[device(y, bytes)])
            .status,
        Status::OK
    );
    for element in 0..5u64 {
        assert_eq!(
            fixture.peek(y + element * stride, 8),
            (10 * (element + 1)).to_le_bytes()
        );
    }
    let sum = fixture.run(vector(Opcode::SUM, 8, 0, 0, 0), &[device(y, bytes)], &[]);
    assert_eq!(sum.result.get(), 150);
}

#[test]
fn each_fault_of_a_vector_has_its_status() {
    let fixture = Fixture::new();
    let one = [device(0, 16)];
    let odd = [device(0, 8), device(16, 6)];
    type Case<'r> = (CommandHeader, &'r [Range], &'r [Range], Status, u32);
    let cases: [Case<'_>; 14] = [
        (
            vector(Opcode::SUM, 2, 0, 0, 0),
            &one,
            &[],
            Status::BAD_WIDTH,
            0,
        ),
        (
            vector(Opcode::SUM, 8, FLAG_FLOAT, 0, 0),
            &one,
            &[],
            Status::BAD_WIDTH,
            0,
        ),
        (
            vector(Opcode::SUM, 4, 8, 0, 0),
            &one,
            &[],
            Status::RESERVED_FIELD,
            0,
        ),
        (
            vector(Opcode::SUM, 4, 0, 0, 6),
            &one,
            &[],
            Status::BAD_ARGUMENT,
            0,
        ),
        (
            vector(Opcode::SUM, 4, 0, 0, TRANSFER_BYTES_MAX + 4),
            &one,
            &[],
            Status::BAD_ARGUMENT,
            0,
        ),
        (
            vector(Opcode::SUM, 4, 0, 0, 0),
            &odd,
            &[],
            Status::MISALIGNED,
            1,
        ),
        (
            vector(Opcode::SUM, 4, 0, 0, 0),
            &one,
            &one,
            Status::BAD_RANGE_COUNT,
            0,
        ),
        (
            vector(Opcode::AXPY, 4, 0, 0, 0),
            &one,
            &[],
            Status::BAD_RANGE_COUNT,
            0,
        ),
        (
            vector(Opcode::AXPY, 4, 0, 0, 0),
            &one,
            &odd,
            Status::LENGTH_MISMATCH,
            0,
        ),
        (
            vector(Opcode::AXPY, 4, 0, 0, 0),
            &odd,
            &odd,
            Status::MISALIGNED,
            1,
        ),
        (histogram(3, 2, 0, 1), &one, &one, Status::BAD_WIDTH, 0),
        (histogram(4, 0, 0, 1), &one, &one, Status::BAD_REPEAT, 0),
        (
            histogram(4, BINS_MAX + 1, 0, 1),
            &one,
            &one,
            Status::BAD_REPEAT,
            0,
        ),
        (histogram(4, 2, 0, 0), &one, &one, Status::BAD_ARGUMENT, 0),
    ];
    for (header, src, dst, status, index) in cases {
        let found = fixture.run(header, src, dst);
        assert_eq!(
            (found.status, found.range_index.get()),
            (status, index),
            "{header:?}"
        );
        assert_eq!((found.result.get(), found.bytes_done.get()), (0, 0));
    }
    let many = [device(0, 16), device(32, 4), device(36, 4)];
    let counted = fixture.run(histogram(4, 2, 0, 1), &one, &many[..1]);
    assert_eq!(counted.status, Status::OK);
    let short = fixture.run(histogram(4, 3, 0, 1), &one, &many[..1]);
    assert_eq!(short.status, Status::LENGTH_MISMATCH);
    // Counters are aligned words; destinations count on from the sources.
    let odd = fixture.run(histogram(4, 3, 0, 1), &one, &many);
    assert_eq!((odd.status, odd.range_index.get()), (Status::MISALIGNED, 2));
}

#[test]
fn each_fault_of_a_chase_has_its_status() {
    let fixture = Fixture::new();
    let refused = |header, ranges: &[Range]| {
        let found = fixture.run(header, ranges, &[]);
        (found.status, found.range_index.get())
    };
    for hops in [0, REPEAT_MAX + 1] {
        assert_eq!(
            refused(chase(0, 0, hops), &[device(0, 8)]),
            (Status::BAD_REPEAT, 0)
        );
    }
    for bad in [device(4, 8), device(0, 12)] {
        let ranges = [device(64, 8), bad];
        assert_eq!(refused(chase(0, 0, 1), &ranges), (Status::MISALIGNED, 1));
    }
    assert_eq!(refused(chase(0, 0, 1), &[]), (Status::BAD_RANGE_COUNT, 0));
    // Zero leads to itself.
    assert_eq!(
        refused(chase(0, 0, REPEAT_MAX), &[device(0, 8)]),
        (Status::OK, 0)
    );
}

#[test]
fn a_cancelled_histogram_has_counted_nothing() {
    let fixture = Fixture::new();
    let request = command(
        histogram(1, 1, 0, 256),
        &[device(0, 4 << 20)],
        &[device(8 << 20, 8)],
    );
    let looks = Cell::new(0);
    let completion = fixture.run_until(&request, &|| {
        looks.set(looks.get() + 1);
        looks.get() > 3
    });
    assert_eq!(outcome(&completion), (Status::CANCELLED, 0, 0));
    assert_eq!(fixture.peek(8 << 20, 8), [0; 8]);
}

#[test]
fn a_cancelled_axpy_has_done_the_elements_it_says_and_no_other() {
    let fixture = Fixture::new();
    fixture.poke(0, &1u32.to_le_bytes().repeat(1 << 20));
    let axpy = vector(Opcode::AXPY, 4, 0, 1, 0);
    let request = command(axpy, &[device(0, 4 << 20)], &[device(8 << 20, 4 << 20)]);
    let looks = Cell::new(0);
    let completion = fixture.run_until(&request, &|| {
        looks.set(looks.get() + 1);
        looks.get() > 3
    });
    assert_eq!(completion.status, Status::CANCELLED);
    let done = completion.bytes_done.get() as usize;
    assert!((1..4 << 20).contains(&done) && done.is_multiple_of(4));
    let memory = fixture.peek(8 << 20, 4 << 20);
    let ones = memory.chunks(4).take_while(|element| number(element) == 1);
    assert_eq!(ones.count() * 4, done);
    assert!(memory[done..].iter().all(|&byte| byte == 0));
}
