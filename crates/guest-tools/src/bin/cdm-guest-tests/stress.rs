// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random sequences: several processes do everything to their memory at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use nix::sys::mman::MmapAdvise;

use crate::fixture::Fixture;
use crate::isolate::Child;

crate::tests!("stress":
    random_operations_of_several_processes_keep_all_contents,
);

const PROCESSES: u64 = 3;
const TIME: Duration = Duration::from_secs(6);
const PAGES: usize = 192;

/// Memory, and what must be in it: the seed of each page's pattern.
struct Tracked {
    memory: Mapping,
    seeds: Vec<u64>,
}

impl Tracked {
    fn new(seed: u64) -> Result<Self> {
        let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
        memory.fill_pattern(seed);
        Ok(Self {
            memory,
            seeds: vec![seed; PAGES],
        })
    }

    fn check(&self) -> Result<()> {
        for (page, seed) in self.seeds.iter().enumerate() {
            self.memory.check_pattern_pages(*seed, page..page + 1)?;
        }
        Ok(())
    }

    fn rewrite(&mut self, page: usize, seed: u64) {
        self.memory.fill_pattern_pages(seed, page..page + 1);
        self.seeds[page] = seed;
    }
}

/// Does one random thing; its name, for the trail of a failure.
fn step(device: &Device, tracked: &mut Tracked, random: &mut Random) -> Result<&'static str> {
    let first = random.below(PAGES);
    let count = 1 + random.below(PAGES - first);
    let range = tracked.memory.page_range(first, count);
    let span = Span {
        offset: first * PAGE_BYTES,
        bytes: count * PAGE_BYTES,
    };
    match random.below(10) {
        0..3 => {
            let migration = device.migrate(0, range, Direction::ToDevice)?;
            ensure!(migration.adds_up(), "{migration:?}");
            Ok("to device")
        }
        3..5 => {
            let migration = device.migrate(0, range, Direction::ToSystem)?;
            ensure!(migration.adds_up(), "{migration:?}");
            Ok("to system")
        }
        5 => {
            tracked.rewrite(first, random.number());
            Ok("rewrite")
        }
        6 => {
            let by_device = device.checksum(&tracked.memory, span, 0)?;
            let bytes = tracked.memory.read_bytes(span.offset + span.bytes);
            let by_cpu = crc32c::crc32c(&bytes[span.offset..]);
            ensure!(
                by_device == by_cpu,
                "device {by_device:#010x}, CPU {by_cpu:#010x}"
            );
            Ok("checksum")
        }
        7 => {
            let other = Mapping::anonymous(span.bytes)?;
            device
                .copy((&tracked.memory, span), (&other, Span::all(&other)))?
                .ok()?;
            let copied = other.read_bytes(span.bytes);
            let bytes = tracked.memory.read_bytes(span.offset + span.bytes);
            ensure!(copied == bytes[span.offset..], "the device's copy differs");
            Ok("copy")
        }
        8 => {
            // A child writes to its copy while the parent goes on with its own.
            let child = Child::spawn(|_| {
                tracked.check()?;
                tracked
                    .memory
                    .advise_pages(first, count, MmapAdvise::MADV_DONTNEED)?;
                tracked.memory.fill(0x77);
                tracked.memory.check_fill(0x77)?;
                Ok(())
            })?;
            child.finish()?;
            Ok("fork")
        }
        _ => {
            let bytes = tracked.memory.bytes();
            tracked.memory.move_and_resize(bytes)?;
            Ok("mremap")
        }
    }
}

fn work(seed: u64, end: Instant) -> Result<u64> {
    let device = Device::open(0)?;
    let mut random = Random::new(seed);
    let mut tracked = Tracked::new(seed)?;
    let mut trail: Vec<&'static str> = Vec::new();
    let mut steps = 0;
    while Instant::now() < end {
        let name = step(&device, &mut tracked, &mut random)
            .with_context(|| format!("seed {seed}, step {steps}, after {:?}", trail.last()))?;
        trail.push(name);
        steps += 1;
        if steps % 8 == 0 {
            let recent = &trail[trail.len().saturating_sub(8)..];
            tracked
                .check()
                .with_context(|| format!("seed {seed}, step {steps}: {recent:?}"))?;
        }
    }
    tracked
        .check()
        .with_context(|| format!("seed {seed}, at the end"))?;
    Ok(steps)
}

fn random_operations_of_several_processes_keep_all_contents(t: &Fixture) -> Result<()> {
    t.note(format!(
        "seed {}, {PROCESSES} processes, {} s",
        t.seed,
        TIME.as_secs()
    ));
    let end = Instant::now() + TIME;
    let children: Vec<Child> = (0..PROCESSES)
        .map(|number| {
            let seed = t.seed * PROCESSES + number;
            Child::spawn(move |_| {
                let steps = work(seed, end)?;
                ensure!(steps > 0, "no step was done in {} s", TIME.as_secs());
                Ok(())
            })
        })
        .collect::<Result<_>>()?;
    children.into_iter().try_for_each(Child::finish)
}
