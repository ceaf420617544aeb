// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The clock by itself, and the tables of `docs/reference/link-model.md`.

use super::clock::Clock;
use super::timing::{
    Costs, REQUEST_OVERHEAD, RESPONSE_OVERHEAD, away_from_device, in_own_memory, towards_device,
};
use super::traffic::LINE_BYTES;
use super::*;
use crate::model::{Link, LinkSpeed};
use proptest::prelude::*;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

const X16: Link = Link {
    speed: LinkSpeed::Gt16,
    width_lanes: 16,
    timing: None,
};

fn clock() -> Clock {
    Clock::new(Costs::new(&X16, &Timing::default()))
}

fn stream(side: Side, access: Access, bytes: u64) -> Traffic {
    let mut traffic = Traffic::default();
    traffic.add_stream(side, access, Flow::lines(0, bytes));
    traffic
}

fn singles(side: Side, access: Access, count: u64) -> Traffic {
    let mut traffic = Traffic::default();
    traffic.add_singles(side, access, Flow::words(count, 8));
    traffic
}

/// A COPY from guest memory to the device's own.
fn copy_in(bytes: u64) -> Traffic {
    let mut traffic = stream(Side::Link, Access::Read, bytes);
    traffic += stream(Side::Own, Access::Write, bytes);
    traffic
}

/// How long a command takes that is alone on a device that was never used.
fn alone(costs: Costs, traffic: &Traffic) -> Picoseconds {
    let mut clock = Clock::new(costs);
    let mut visit = clock.begin(0);
    clock.account(&mut visit, traffic, 0);
    visit.duration()
}

#[test]
fn a_chase_of_n_hops_costs_n_latencies_to_the_picosecond() {
    let costs = Costs::new(&X16, &Timing::default());
    for hops in [1, 2, 1000, 1 << 20] {
        let across = singles(Side::Link, Access::Read, hops);
        assert_eq!(alone(costs, &across), u128::from(hops) * 500_000);
        let own = singles(Side::Own, Access::Read, hops);
        assert_eq!(alone(costs, &own), u128::from(hops) * 100_000);
    }
    let mut mixed = singles(Side::Link, Access::Read, 3);
    mixed += singles(Side::Own, Access::Read, 4);
    assert_eq!(alone(costs, &mixed), 3 * 500_000 + 4 * 100_000);
}

#[test]
fn a_stream_waits_once_for_each_way_and_else_for_the_slowest_resource() {
    let costs = Costs::new(&X16, &Timing::default());
    // 1024 lines, each with the overhead of its packet; 8125000 / (16000 * 16) ps a byte.
    let on_link = |bytes: u128| (bytes * 8_125_000).div_ceil(256_000);
    let read = stream(Side::Link, Access::Read, 64 << 10);
    assert_eq!(alone(costs, &read), on_link(1024 * 84) + 500_000);
    let written = stream(Side::Link, Access::Write, 64 << 10);
    assert_eq!(alone(costs, &written), on_link(1024 * 88) + 500_000);
    let own = stream(Side::Own, Access::Read, 64 << 10);
    assert_eq!(
        alone(costs, &own),
        (65536u128 * 1_000_000).div_ceil(77_000) + 100_000
    );
    assert_eq!(
        alone(costs, &copy_in(64 << 10)),
        on_link(1024 * 84) + 500_000 + 100_000
    );
}

#[test]
fn two_commands_share_the_link_one_way_and_not_the_other() {
    let read = stream(Side::Link, Access::Read, 1 << 20);
    let written = stream(Side::Link, Access::Write, 1 << 20);
    let costs = Costs::new(&X16, &Timing::default());
    let run = |first: &Traffic, second: &Traffic| {
        let mut clock = clock();
        let (mut one, mut other) = (clock.begin(0), clock.begin(0));
        clock.account(&mut one, first, 0);
        clock.account(&mut other, second, 0);
        (one.duration(), other.duration())
    };
    let (first, second) = run(&read, &read);
    assert_eq!(first, alone(costs, &read));
    assert_eq!(second, 2 * (first - 500_000) + 500_000);
    // Their requests and responses meet, their data do not: the second waits for what is less.
    let (first, second) = run(&read, &written);
    assert_eq!(first, alone(costs, &read));
    let lines = 1u128 << 14;
    let requests = costs.on_link(lines * u128::from(REQUEST_OVERHEAD));
    assert_eq!(second, alone(costs, &written) + requests);
    let (own, across) = (stream(Side::Own, Access::Read, 1 << 20), read);
    assert_eq!(
        run(&own, &across),
        (alone(costs, &own), alone(costs, &across))
    );
}

#[test]
fn the_next_command_begins_where_the_last_one_ended_however_slow_the_host_was() {
    let copy = copy_in(1 << 20);
    let take = |delays: [Picoseconds; 3]| {
        let mut clock = clock();
        let (mut host, mut ended) = (0, 0);
        delays.map(|delay| {
            let mut visit = clock.begin(host);
            assert_eq!(visit.simulated(), ended);
            host += delay;
            clock.account(&mut visit, &copy, host);
            host = host.max(visit.until());
            ended += visit.duration();
            visit.duration()
        })
    };
    let quick = take([0, 0, 0]);
    assert_eq!(quick, take([10_000_000_000, 1, 77_000_000_000]));
    assert_eq!(quick, [quick[0]; 3]);
}

#[test]
fn the_clock_passes_while_somebody_waits_and_stands_while_the_host_is_behind() {
    let mut clock = clock();
    let long = singles(Side::Link, Access::Read, 1000);
    let mut first = clock.begin(0);
    // The host works for 3 us on what takes 500.
    let mut early = clock.begin(1_000_000);
    clock.account(&mut first, &long, 3_000_000);
    let mut late = clock.begin(400_000_000);
    let short = singles(Side::Own, Access::Read, 1);
    clock.account(&mut early, &short, 400_000_000);
    clock.account(&mut late, &short, 400_000_000);
    assert_eq!((early.simulated(), late.simulated()), (0, 400_000_000));
    assert_eq!((early.duration(), late.duration()), (100_000, 100_000));
    assert_eq!(first.until(), 500_000_000);
    // A stream that comes when the link has been busy for some time waits for the rest only.
    let copy = stream(Side::Link, Access::Read, 1 << 30);
    let mut clock = self::clock();
    let mut one = clock.begin(0);
    clock.account(&mut one, &copy, 0);
    let half = one.duration() / 2;
    let mut other = clock.begin(half);
    clock.account(&mut other, &copy, half);
    assert_eq!(other.until(), one.until() + one.duration() - 500_000);
}

proptest! {
    #[test]
    fn cut_into_pieces_a_stream_takes_no_more_than_a_picosecond_a_piece_longer(
        pieces in prop::collection::vec(1u64..10_000, 1..20),
    ) {
        let lines = |count: &u64| stream(Side::Link, Access::Read, count * LINE_BYTES);
        let mut clock = clock();
        let mut visit = clock.begin(0);
        for piece in &pieces {
            clock.account(&mut visit, &lines(piece), 0);
        }
        let whole = lines(&pieces.iter().sum());
        let costs = Costs::new(&X16, &Timing::default());
        let (cut, whole) = (visit.duration(), alone(costs, &whole));
        prop_assert!((whole..whole + pieces.len() as u128).contains(&cut), "{cut} {whole}");
    }

    #[test]
    fn no_command_may_end_before_its_duration_has_passed_on_the_host(
        commands in prop::collection::vec((0u128..1 << 30, 0u128..1 << 30, 1u64..1 << 20), 1..20),
    ) {
        let mut clock = clock();
        let mut host = 0;
        let mut latest = 0;
        for (pause, work, bytes) in commands {
            host += pause;
            let begin = host;
            let mut visit = clock.begin(host);
            let from = visit.clone();
            host += work;
            clock.account(&mut visit, &copy_in(bytes), host);
            prop_assert!(visit.until() >= begin + visit.duration());
            prop_assert!(visit.duration() >= alone(
                Costs::new(&X16, &Timing::default()),
                &copy_in(bytes),
            ));
            // The clock never goes back.
            let shown = from.simulated();
            prop_assert!(shown >= latest);
            latest = shown;
        }
    }
}

#[test]
fn a_device_without_timing_counts_and_waits_for_nothing() {
    let pace = Pace::new(&X16);
    let visit = Mutex::new(pace.begin());
    pace.account(&visit, &copy_in(1 << 40));
    let start = Instant::now();
    pace.wait(&visit, &|| unreachable!("nobody is asked"));
    assert!(start.elapsed() < Duration::from_secs(5));
    let visit = visit.into_inner().unwrap();
    assert_eq!(visit.traffic(), &copy_in(1 << 40));
    assert_eq!(pace.duration(&visit), None);
}

#[test]
fn a_wait_lasts_as_long_as_is_simulated_unless_somebody_is_in_a_hurry() {
    let timing = Timing {
        link_ns: 10_000,
        ..Timing::default()
    };
    let pace = Pace::new(&Link {
        timing: Some(timing),
        ..X16
    });
    let start = Instant::now();
    let visit = Mutex::new(pace.begin());
    pace.account(&visit, &singles(Side::Link, Access::Atomic, 2000));
    pace.wait(&visit, &|| false);
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(pace.duration(&visit.lock().unwrap()), Some(20_000_000_000));

    // Hours.
    let visit = Mutex::new(pace.begin());
    pace.account(&visit, &singles(Side::Link, Access::Atomic, 1 << 31));
    let start = Instant::now();
    let is_over = || start.elapsed() > Duration::from_millis(20);
    thread::scope(|scope| {
        scope.spawn(|| pace.wait(&visit, &is_over));
    });
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// Rows of the table below a heading of `docs/reference/link-model.md`, cell by cell.
fn table(heading: &str) -> Vec<Vec<String>> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/link-model.md"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "no {heading:?}");
    lines
        .take_while(|line| !line.starts_with('#'))
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect()
}

fn speeds() -> [(u16, LinkSpeed); 2] {
    [(16, LinkSpeed::Gt16), (25, LinkSpeed::Gt25)]
}

/// Megabytes a second, if so many bytes take so many picoseconds.
fn mbps(bytes: u128, picoseconds: Picoseconds) -> String {
    (bytes * 1_000_000 / picoseconds).to_string()
}

#[test]
fn the_bandwidths_of_the_document_are_those_of_the_code() {
    let mut expected = Vec::new();
    for (number, speed) in speeds() {
        for width_lanes in [1, 4, 8, 16] {
            let link = Link {
                speed,
                width_lanes,
                timing: None,
            };
            let costs = Costs::new(&link, &Timing::default());
            let lines = 1u128 << 24;
            let bytes = lines * u128::from(LINE_BYTES);
            let (read, written) = (
                bytes + lines * u128::from(RESPONSE_OVERHEAD),
                bytes + lines * u128::from(REQUEST_OVERHEAD),
            );
            expected.push(vec![
                number.to_string(),
                width_lanes.to_string(),
                mbps(bytes, costs.on_link(bytes)),
                mbps(bytes, costs.on_link(read)),
                mbps(bytes, costs.on_link(written)),
            ]);
        }
    }
    assert_eq!(table("## Bandwidth of the link"), expected);
}

#[test]
fn the_defaults_of_the_document_are_those_of_the_code() {
    let Timing {
        link_ns,
        memory_ns,
        memory_mbps,
    } = Timing::default();
    let found: Vec<_> = table("## Parameters")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse().unwrap()))
        .collect();
    let expected = [
        ("link-ns".to_owned(), link_ns),
        ("memory-ns".to_owned(), memory_ns),
        ("memory-mbps".to_owned(), memory_mbps),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_worked_examples_of_the_document_are_what_the_code_makes_of_them() {
    const BYTES: u64 = 512 << 10;
    let costs = Costs::new(&X16, &Timing::default());
    let both = |mut one: Traffic, other: Traffic| {
        one += other;
        one
    };
    let examples = [
        ("COPY of 512 KiB from the guest", copy_in(BYTES)),
        (
            "COPY of 512 KiB to the guest",
            both(
                stream(Side::Own, Access::Read, BYTES),
                stream(Side::Link, Access::Write, BYTES),
            ),
        ),
        (
            "COPY of 512 KiB inside the device",
            both(
                stream(Side::Own, Access::Read, BYTES),
                stream(Side::Own, Access::Write, BYTES),
            ),
        ),
        (
            "CHECKSUM of one line of the guest's",
            stream(Side::Link, Access::Read, LINE_BYTES),
        ),
        (
            "POINTER_CHASE of 1000 hops across the link",
            singles(Side::Link, Access::Read, 1000),
        ),
        (
            "POINTER_CHASE of 1000 hops in own memory",
            singles(Side::Own, Access::Read, 1000),
        ),
        (
            "FETCH_ADD of 8 bytes 1000 times across the link",
            singles(Side::Link, Access::Atomic, 1000),
        ),
    ];
    let expected: Vec<_> = examples
        .iter()
        .map(|(name, traffic)| {
            let numbers = [
                towards_device(&traffic.link),
                away_from_device(&traffic.link),
                in_own_memory(&traffic.own),
                alone(costs, traffic),
            ];
            let mut row = vec![(*name).to_owned()];
            row.extend(numbers.map(|number| number.to_string()));
            row
        })
        .collect();
    assert_eq!(table("## Worked examples"), expected);
}
