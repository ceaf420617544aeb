// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that go over much memory, against what the host does with memory of its own: memcpy,
//! memset and the CRC of the crate crc32c, in as many threads.

use super::Arguments;
use super::figure::{Figure, in_turn};
use super::rig::Rig;
use super::rig::guest::{command, device, header};
use cdm_protocol::{CommandHeader, Opcode, Range};
use std::hint::{self, black_box};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long one measurement takes.
const SPAN: Duration = Duration::from_millis(30);
/// Bytes of each operand.
const SIZES: [usize; 5] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20];
/// Where the destination begins in the device memory.
const DESTINATION: u64 = 128 << 20;
/// A page, whose multiples threads share memory by.
const PAGE: usize = 4 << 10;

/// Looks at others who are late before a processor is left to them.
const LOOKS: u32 = 4096;

struct Operation {
    name: &'static str,
    request: fn(Range, Range) -> Vec<u8>,
    ceiling: fn(&[u8], &mut [u8]),
}

const OPERATIONS: [Operation; 4] = [
    Operation {
        name: "copy",
        request: |source, destination| command(header(Opcode::COPY), &[source], &[destination]),
        ceiling: |source, destination| destination.copy_from_slice(source),
    },
    Operation {
        name: "fill",
        request: |_, destination| fill(1, 0x5a, destination),
        ceiling: |_, destination| destination.fill(black_box(0x5a)),
    },
    Operation {
        name: "fill by 8 bytes",
        request: |_, destination| fill(8, 0x0102_0304_0506_0708, destination),
        ceiling: |_, destination| destination.fill(black_box(0x5a)),
    },
    Operation {
        name: "checksum",
        request: |source, _| command(header(Opcode::CHECKSUM), &[source], &[]),
        ceiling: |source, _| {
            black_box(crc32c::crc32c(source));
        },
    },
];

fn fill(width: u16, value: u64, destination: Range) -> Vec<u8> {
    let header = CommandHeader {
        width: width.into(),
        arg0: value.into(),
        ..header(Opcode::FILL)
    };
    command(header, &[], &[destination])
}

/// Measures all operations in one and two threads.
pub fn measure(arguments: &Arguments, note: &mut impl FnMut(Figure)) {
    for threads in [1, 2] {
        for operation in &OPERATIONS {
            for bytes in SIZES {
                let size = match bytes >> 20 {
                    0 => format!("{} KiB", bytes >> 10),
                    mib => format!("{mib} MiB"),
                };
                let team = ["one thread", "two threads"][usize::from(threads) - 1];
                let name = format!("{} of {size}, {team}", operation.name);
                if arguments.want(&name) {
                    note(one(arguments, name, operation, bytes, threads));
                }
            }
        }
    }
}

fn one(
    arguments: &Arguments,
    name: String,
    operation: &Operation,
    bytes: usize,
    threads: u16,
) -> Figure {
    // The thread that serves the queue is one of them.
    let mut rig = Rig::new(threads - 1);
    let [source, destination] = [0, DESTINATION].map(|address| device(address, bytes as u64));
    rig.prepare(&[(operation.request)(source, destination)]);
    let own = || rate(bytes, || rig.round());
    let host = Host::new(bytes);
    let ceiling = || host.rate(operation.ceiling, threads.into());
    in_turn(name, "GB/s", arguments.rounds, own, ceiling)
}

/// Bytes by time of what is done again and again.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut times = 0u64;
    while begin.elapsed() < SPAN {
        work();
        times += 1;
    }
    gigabytes(bytes as u64 * times, begin.elapsed())
}

fn gigabytes(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Memory of this program's own.
struct Host {
    source: Vec<u8>,
    bytes: usize,
}

impl Host {
    fn new(bytes: usize) -> Self {
        Self {
            source: vec![1; bytes],
            bytes,
        }
    }

    /// What so many threads reach that share each piece of work, and wait for each other after it.
    fn rate(&self, work: fn(&[u8], &mut [u8]), threads: usize) -> f64 {
        let mut destination = vec![2; self.bytes];
        let share = self.bytes.div_ceil(threads).next_multiple_of(PAGE);
        // How long it takes is not known before: as many as fit, by a try.
        let begin = Instant::now();
        work(&self.source, &mut destination);
        let times = SPAN.as_nanos() / begin.elapsed().as_nanos().max(1);
        let times = (times * threads as u128).clamp(1, 1_000_000);
        let shares = self.source.chunks(share).zip(destination.chunks_mut(share));
        let meeting = Meeting::of(shares.len());
        let begin = Instant::now();
        thread::scope(|scope| {
            for (source, destination) in shares {
                let meeting = &meeting;
                scope.spawn(move || {
                    for time in 1..=times {
                        work(black_box(source), black_box(destination));
                        meeting.wait(time as usize);
                    }
                });
            }
        });
        gigabytes(self.bytes as u64 * times as u64, begin.elapsed())
    }
}

/// Where threads wait for each other without sleeping: no program could do it sooner.
struct Meeting {
    threads: usize,
    arrived: AtomicUsize,
}

impl Meeting {
    fn of(threads: usize) -> Self {
        Self {
            threads,
            arrived: AtomicUsize::new(0),
        }
    }

    /// Waits until everybody is here for the `time`th time.
    fn wait(&self, time: usize) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut looks = 0u32;
        while self.arrived.load(Ordering::Acquire) < time * self.threads {
            looks += 1;
            match looks % LOOKS {
                // The other one may have no processor.
                0 => thread::yield_now(),
                _ => hint::spin_loop(),
            }
        }
    }
}
