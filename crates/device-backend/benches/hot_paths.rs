// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What each part of a command's way through the device costs, with criterion: comparisons with
//! the last run, part by part.

mod rig;

use cdm_backend::model::{Asking, Command, Device, GuestMemory, Means, PageAsker, Request};
use cdm_protocol::{
    CommandHeader, ControlOpcode, Opcode, PAGE_BYTES_SMALL, PageEntry, PageRequest, RANGES_MAX,
    Range, Status,
};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use rig::Rig;
use rig::guest::{self, command, control_of, header, process};
use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};
use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

/// The process whose memory is translated.
const PASID: u32 = 1;
/// Pages of the memory of a process that is translated: what one answer tells of.
const PAGES: u64 = 512;
/// Where that memory begins.
const BASE: u64 = 0x7f00_0000_0000;
/// Pages between one of a chase and the next: no divisor of all pages, so it comes to each.
const STEP: u64 = 97;
/// Words that a chase goes over.
const HOPS: u32 = 4096;

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
    let device = rig::device(0);
    rig::map(&device);
    rig::control(&device, &control_of(ControlOpcode::BIND, PASID, 0, 0));
    link_pages(&device);
    let driver = Driver::new(&device);
    let bytes = PAGES * PAGE_BYTES_SMALL;
    let learn = command(
        header(Opcode::CHECKSUM),
        &[process(PASID, BASE, bytes)],
        &[],
    );
    let forget = control_of(ControlOpcode::INVALIDATE, PASID, BASE, BASE + bytes - 1);

    group.throughput(Throughput::Elements(HOPS.into()));
    driver.carry_out(&learn);
    for (name, place) in [
        ("load a word of the device", guest::device(0, bytes)),
        ("load a word of a process", process(PASID, BASE, bytes)),
    ] {
        let chase = CommandHeader {
            repeat: HOPS.into(),
            arg0: BASE.into(),
            arg1: BASE.into(),
            ..header(Opcode::POINTER_CHASE)
        };
        let chase = command(chase, &[place], &[]);
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

fn copy(bytes: u64) -> Vec<u8> {
    let ranges = [0, 1 << 20].map(|address| guest::device(address, bytes));
    command(header(Opcode::COPY), &ranges[..1], &ranges[1..])
}

fn scattered_copy() -> Vec<u8> {
    let ranges: Vec<Range> = (0..RANGES_MAX as u64)
        .map(|index| guest::device(index * 8192, 64))
        .collect();
    let (source, destination) = ranges.split_at(RANGES_MAX / 2);
    command(header(Opcode::COPY), source, destination)
}

/// Has each page's first word lead to a page that lies far from it.
fn link_pages(device: &Device) {
    for page in 0..PAGES {
        let next = (page + STEP) % PAGES;
        let word = device.pool().slice(page * PAGE_BYTES_SMALL, 8);
        let pointer = BASE + next * PAGE_BYTES_SMALL;
        word.expect("inside").copy_from(&pointer.to_le_bytes());
    }
}

/// A driver that answers at once: each page of the process is that of the device in the same place.
struct Driver<'a> {
    device: &'a Device,
    /// What the device took for the answers.
    answering: Cell<Duration>,
}

impl<'a> Driver<'a> {
    fn new(device: &'a Device) -> Self {
        Self {
            device,
            answering: Cell::default(),
        }
    }

    /// Sees a command to its end, which is a good one.
    fn carry_out(&self, request: &[u8]) {
        let command = Command::parse(&Request::new(request, request.len() as u64));
        let task = self.device.begin(command, &NoMemory).expect("it begins");
        let means = Means {
            guest: &NoMemory,
            asker: self,
            cancelled: &|| false,
        };
        self.device.work(&task, &means);
        assert_eq!(self.device.finish(&task).status, Status::OK);
    }
}

impl PageAsker for Driver<'_> {
    fn ask(&self, request: PageRequest) -> Asking {
        let (first, pages) = (request.address.get(), u64::from(request.pages.get()));
        let entry = |page: u64| {
            let address = first - BASE + page * PAGE_BYTES_SMALL;
            PageEntry((address | PageEntry::DEVICE | PageEntry::WRITABLE).into())
        };
        let entries: Vec<PageEntry> = (0..pages).map(entry).collect();
        let id = request.id.get().into();
        let head = control_of(ControlOpcode::PAGE_RESPONSE, PASID, id, pages);
        let response = [&head, entries.as_bytes()].concat();
        let begin = Instant::now();
        rig::control(self.device, &response);
        self.answering.set(self.answering.get() + begin.elapsed());
        Asking::Sent
    }
}

/// All memory here is the device's.
struct NoMemory;

impl GuestMemory for NoMemory {
    fn stretch(&self, _: u64, _: u64) -> Option<VolatileSlice<'_>> {
        None
    }
}
