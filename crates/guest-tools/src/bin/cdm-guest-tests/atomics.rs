// SPDX-License-Identifier: Apache-2.0 OR MIT

//! CPU and device work on one number at the same time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use cdm_guest_tools::device::Span;
use cdm_guest_tools::memory::Mapping;

use crate::fixture::Fixture;

crate::tests!("atomics":
    counter_in_the_device_is_exact_and_each_sees_the_other,
    four_byte_counter_in_the_device_is_exact,
    counter_in_system_memory_is_exact,
    plain_additions_of_the_cpu_lose_counts,
    lock_in_the_device_passes_between_cpu_and_device,
);

/// Additions of each side.
const ADDITIONS: u64 = 1_000_000;
/// The device adds in this many commands, the CPU in as many bursts.
const BURSTS: u64 = 50;
const BURST: u64 = ADDITIONS / BURSTS;

const COUNTER: Span = Span {
    offset: 128,
    bytes: 8,
};

/// How often each side found that the other one had gone on since it last looked.
struct Seen {
    by_cpu: u64,
    by_device: u64,
}

/// What is not one's own, and how often it was found to have grown.
#[derive(Default)]
struct Progress {
    last: u64,
    times: u64,
}

impl Progress {
    fn look(&mut self, foreign: u64) {
        self.times += u64::from(foreign > self.last);
        self.last = self.last.max(foreign);
    }
}

/// Lets device and CPU add `ADDITIONS` ones each. No side gets more than one burst ahead, so that
/// they work at the same time however the two are scheduled. `add` is the CPU's addition; it gives
/// the value that it found.
fn count_together(
    t: &Fixture,
    memory: &Mapping,
    span: Span,
    add: impl Fn() -> u64 + Sync,
) -> Result<Seen> {
    let (cpu_bursts, device_bursts) = (AtomicU64::new(0), AtomicU64::new(0));
    // The other side's end releases a side that waits, whatever the reason of the end.
    let over = AtomicU64::new(0);
    let wait_for = |bursts: &AtomicU64, number: u64| {
        while bursts.load(SeqCst) + 1 < number && over.load(SeqCst) == 0 {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        let device = scope.spawn(|| -> Result<u64> {
            let mut seen = Progress::default();
            let result = (0..BURSTS).try_for_each(|burst| {
                wait_for(&cpu_bursts, burst);
                let before = t.device.fetch_add(memory, span, 1, BURST as u32)?.ok()?;
                seen.look(before + 1 - (burst + 1) * BURST);
                device_bursts.fetch_add(1, SeqCst);
                Ok(())
            });
            over.fetch_add(u64::from(result.is_err()), SeqCst);
            result.map(|()| seen.times)
        });
        let mut own = 0;
        let mut seen = Progress::default();
        for burst in 0..BURSTS {
            wait_for(&device_bursts, burst);
            for _ in 0..BURST {
                seen.look(add().saturating_sub(own));
                own += 1;
            }
            cpu_bursts.fetch_add(1, SeqCst);
        }
        match device.join() {
            Ok(by_device) => Ok(Seen {
                by_cpu: seen.times,
                by_device: by_device?,
            }),
            Err(_) => bail!("the device's side panicked"),
        }
    })
}

fn check_together(t: &Fixture, memory: &Mapping) -> Result<()> {
    let counter = memory.word(COUNTER.offset);
    counter.store(0, SeqCst);
    let seen = count_together(t, memory, COUNTER, || counter.fetch_add(1, SeqCst))?;
    let sum = counter.load(SeqCst);
    t.note(format!(
        "the CPU found the device's progress {} times, the device the CPU's in {} of {BURSTS} bursts",
        seen.by_cpu, seen.by_device
    ));
    ensure!(
        sum == 2 * ADDITIONS,
        "the sum is {sum}, not {}",
        2 * ADDITIONS
    );
    ensure!(seen.by_cpu > 0, "the CPU never saw the device's progress");
    ensure!(
        seen.by_device > 0,
        "the device never saw the CPU's progress"
    );
    Ok(())
}

fn counter_in_the_device_is_exact_and_each_sees_the_other(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(1, 1)?;
    check_together(t, &memory)?;
    t.expect_in_device(memory.range())
}

fn four_byte_counter_in_the_device_is_exact(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(1, 2)?;
    memory.word(128).store(0, SeqCst);
    let span = Span {
        offset: 128,
        bytes: 4,
    };
    let counter = memory.half_word(128);
    count_together(t, &memory, span, || counter.fetch_add(1, SeqCst).into())?;
    let sum = u64::from(counter.load(SeqCst));
    ensure!(
        sum == 2 * ADDITIONS,
        "the sum is {sum}, not {}",
        2 * ADDITIONS
    );
    t.expect_in_device(memory.range())
}

fn counter_in_system_memory_is_exact(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(1, 3)?;
    check_together(t, &memory)?;
    t.expect_in_system(memory.range())
}

/// The counterpart that shows that the exact sums above say something. The CPU adds for as long as
/// the device does, and a million times at least, so that the two are sure to meet.
fn plain_additions_of_the_cpu_lose_counts(t: &Fixture) -> Result<()> {
    const ROUNDS: u32 = 5;
    let memory = t.resident_memory(1, 4)?;
    let counter = memory.word(COUNTER.offset);
    for round in 0..ROUNDS {
        counter.store(0, SeqCst);
        let device_is_done = AtomicBool::new(false);
        let by_cpu = thread::scope(|scope| -> Result<u64> {
            let device = scope.spawn(|| -> Result<()> {
                let result = (0..BURSTS).try_for_each(|_| {
                    t.device
                        .fetch_add(&memory, COUNTER, 1, BURST as u32)?
                        .ok()?;
                    Ok(())
                });
                // Whatever became of it, the CPU must not add for ever.
                device_is_done.store(true, SeqCst);
                result
            });
            let mut by_cpu = 0;
            while by_cpu < ADDITIONS || !device_is_done.load(Relaxed) {
                let found = counter.load(Relaxed);
                counter.store(found + 1, Relaxed);
                by_cpu += 1;
            }
            device
                .join()
                .map_err(|_| anyhow!("the device's side panicked"))??;
            Ok(by_cpu)
        })?;
        let added = by_cpu + ADDITIONS;
        let sum = counter.load(SeqCst);
        t.note(format!(
            "round {round}: {} of {added} counts lost",
            added.saturating_sub(sum)
        ));
        if sum < added {
            return Ok(());
        }
    }
    bail!("no count was lost in {ROUNDS} rounds: CPU and device never worked at the same time")
}

/// The device takes a lock by COMPARE_SWAP, which the CPU holds now and then.
fn lock_in_the_device_passes_between_cpu_and_device(t: &Fixture) -> Result<()> {
    const FREE: u64 = 0;
    const CPU: u64 = 1;
    const DEVICE: u64 = 2;
    const TURNS: u64 = 200;
    const PATIENCE: Duration = Duration::from_secs(60);
    let memory = t.resident_memory(1, 5)?;
    let (lock, guarded) = (memory.word(0), memory.word(64));
    lock.store(FREE, SeqCst);
    guarded.store(0, SeqCst);
    let deadline = Instant::now() + PATIENCE;
    thread::scope(|scope| {
        let device = scope.spawn(|| -> Result<()> {
            for _ in 0..TURNS {
                while t
                    .device
                    .compare_swap(
                        &memory,
                        Span {
                            offset: 0,
                            bytes: 8,
                        },
                        FREE,
                        DEVICE,
                    )?
                    .ok()?
                    != FREE
                {
                    ensure!(Instant::now() < deadline, "the device never got the lock");
                }
                // Guarded by the lock, so a plain addition is enough.
                guarded.store(guarded.load(Relaxed) + 1, Relaxed);
                let found = lock.swap(FREE, SeqCst);
                ensure!(found == DEVICE, "the lock that the device held was {found}");
            }
            Ok(())
        });
        for _ in 0..TURNS {
            while lock.compare_exchange(FREE, CPU, SeqCst, SeqCst).is_err() {
                ensure!(Instant::now() < deadline, "the CPU never got the lock");
                thread::yield_now();
            }
            guarded.store(guarded.load(Relaxed) + 1, Relaxed);
            lock.store(FREE, SeqCst);
        }
        device
            .join()
            .map_err(|_| anyhow::anyhow!("the device's side panicked"))?
    })?;
    let sum = guarded.load(SeqCst);
    ensure!(
        sum == 2 * TURNS,
        "{sum} turns were counted, not {}",
        2 * TURNS
    );
    Ok(())
}
