// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What each part of a command's way through the device costs, with criterion: comparisons with
//! the last run, part by part.

mod rig;

use cdm_backend::model::{Command, Request};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use rig::Rig;
use rig::guest;
use rig::work::{self, Driver, HOPS, PAGES, copy, scattered_copy};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
        .configure_from_args();
    parse(&mut criterion.benchmark_group("parse"));
    dispatch(&mut criterion.benchmark_group("dispatch"));
    translation(&mut criterion.benchmark_group("translation"));
    criterion.final_summary();
}

/// From the bytes of a request to a command whose form was checked.
fn parse(group: &mut BenchmarkGroup<'_, WallTime>) {
    for (name, bytes) in [
        ("NOP", guest::nop()),
        ("COPY", copy(64)),
        ("COPY of 512 ranges", scattered_copy()),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let request = Request::new(black_box(&bytes), bytes.len() as u64);
                black_box(Command::parse(&request))
            });
        });
    }
}

/// From a kick to the completions, of so many commands at once: descriptors, the request, the
/// work, the completion, the interrupt.
fn dispatch(group: &mut BenchmarkGroup<'_, WallTime>) {
    for (name, depth, request) in [
        ("NOP, one a kick", 1, guest::nop()),
        ("NOP, 56 a kick", rig::DEPTH_MAX, guest::nop()),
        ("COPY of 64 bytes, 56 a kick", rig::DEPTH_MAX, copy(64)),
        ("COPY of 4 KiB, 56 a kick", rig::DEPTH_MAX, copy(4096)),
        ("COPY of 512 ranges, one a kick", 1, scattered_copy()),
    ] {
        let mut rig = Rig::new(0);
        rig.prepare(&vec![request; depth]);
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                timed(rounds, || {
                    rig.post();
                    let begin = Instant::now();
                    rig.kick();
                    let spent = begin.elapsed();
                    rig.collect();
                    spent
                })
            });
        });
    }
}

/// What the device knows of the memory of a process: to look a page up, to take pages in, to forget
/// them.
fn translation(group: &mut BenchmarkGroup<'_, WallTime>) {
    let device = work::device_of_process();
    let driver = Driver::new(&device);
    let (learn, forget) = (work::learn(), work::forget());

    group.throughput(Throughput::Elements(HOPS.into()));
    driver.carry_out(&learn);
    for (name, is_translated) in [
        ("load a word of the device", false),
        ("load a word of a process", true),
    ] {
        let chase = work::chase(is_translated);
        group.bench_function(name, |bencher| bencher.iter(|| driver.carry_out(&chase)));
    }
    group.throughput(Throughput::Elements(PAGES));
    group.bench_function("take pages in", |bencher| {
        bencher.iter_custom(|rounds| {
            timed(rounds, || {
                rig::control(&device, &forget);
                driver.answering.set(Duration::ZERO);
                driver.carry_out(&learn);
                driver.answering.get()
            })
        });
    });
    group.bench_function("forget pages", |bencher| {
        bencher.iter_custom(|rounds| {
            timed(rounds, || {
                driver.carry_out(&learn);
                let begin = Instant::now();
                rig::control(&device, &forget);
                begin.elapsed()
            })
        });
    });
}

/// The sum of what `rounds` rounds say of themselves.
fn timed(rounds: u64, mut round: impl FnMut() -> Duration) -> Duration {
    (0..rounds).map(|_| round()).sum()
}
