// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How fast the device copies, fills and checksums its own memory, by size; compared with what
//! the host's CPUs do by themselves with memory of the same size, one of them and all.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};

use crate::contest::{Contest, Setting, Turn};
use crate::sample::{Measured, SUBJECT, Unit};
use crate::timing::{mebibytes_per_second, timed};

const SIZES: [usize; 5] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20];
const QUICK_SIZES: [usize; 2] = [64 << 10, 16 << 20];

/// Bytes of a turn, or once if that is more.
const BYTES: usize = 64 << 20;
const TIMES_MAX: usize = 200;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Copy,
    Fill,
    Crc,
}

impl Work {
    const ALL: [Self; 3] = [Self::Copy, Self::Fill, Self::Crc];

    fn name(self, bytes: usize) -> String {
        let work = match self {
            Self::Copy => "copy",
            Self::Fill => "fill",
            Self::Crc => "crc32c",
        };
        match bytes >> 20 {
            0 => format!("bandwidth/{work}/{}KiB", bytes >> 10),
            mebibytes => format!("bandwidth/{work}/{mebibytes}MiB"),
        }
    }
}

/// A contest for each size and work; `turns` makes its turns.
fn all(setting: &Setting, turns: impl Fn(Work, usize) -> Vec<Turn>) -> Vec<Contest> {
    let sizes = match setting.quick {
        true => &QUICK_SIZES[..],
        false => &SIZES,
    };
    let contest = |work: Work, bytes: usize| Contest {
        name: work.name(bytes),
        turns: turns(work, bytes),
    };
    let of_work = |work| sizes.iter().map(move |&bytes| (work, bytes));
    let both = Work::ALL.into_iter().flat_map(of_work);
    both.map(|(work, bytes)| contest(work, bytes)).collect()
}

/// In the guest: the device.
pub fn contests(setting: &Setting) -> Vec<Contest> {
    all(setting, |work, bytes| {
        vec![Turn {
            by: SUBJECT,
            measure: Box::new(move || device(work, bytes)),
        }]
    })
}

/// On the host: its CPUs.
pub fn on_host(setting: &Setting) -> Vec<Contest> {
    let cpus = setting.cpus;
    all(setting, |work, bytes| {
        let turn = |by, threads| Turn {
            by,
            measure: Box::new(move || host(work, bytes, threads, by)),
        };
        let mut turns = vec![turn("host-cpu", 1)];
        if cpus > 1 && bytes / cpus >= PAGE_BYTES {
            turns.push(turn("host-all-cpus", cpus));
        }
        turns
    })
}

/// How often a size is worked on.
fn times(bytes: usize) -> usize {
    (BYTES / bytes).clamp(1, TIMES_MAX)
}

/// Does it once unmeasured, and then often.
fn measure(
    work: Work,
    bytes: usize,
    threads: usize,
    by: &'static str,
    once: impl Fn(usize) -> Result<()> + Sync,
) -> Result<Vec<Measured>> {
    (0..threads).try_for_each(&once)?;
    let times = times(bytes);
    let time = timed(threads, |thread| (0..times).try_for_each(|_| once(thread)))?;
    Ok(vec![Measured {
        name: work.name(bytes),
        by,
        unit: Unit::MebibytesPerSecond,
        value: mebibytes_per_second(bytes * times, time),
    }])
}

fn device(work: Work, bytes: usize) -> Result<Vec<Measured>> {
    let device = Device::open(0).context("cannot open /dev/cdm0: is the driver loaded?")?;
    let [source, destination] = [1, 2].map(|seed| in_device(&device, bytes, seed));
    let (source, destination) = (source?, destination?);
    let whole = Span { offset: 0, bytes };
    let crc = source.crc32c(bytes);
    let values = measure(work, bytes, 1, SUBJECT, |_| {
        match work {
            Work::Copy => device.copy((&source, whole), (&destination, whole))?.ok()?,
            Work::Fill => device.fill(&destination, whole, 8, 3)?.ok()?,
            Work::Crc => {
                let found = device.checksum(&source, whole, 0)?;
                ensure!(
                    found == crc,
                    "the CRC of the device is {found:#x}, not {crc:#x}"
                );
                0
            }
        };
        Ok(())
    })?;
    match work {
        Work::Copy => destination.check_pattern(1)?,
        Work::Fill => destination.check_fill(3)?,
        Work::Crc => {}
    }
    Ok(values)
}

/// Memory of the device with the pattern of a seed.
fn in_device(device: &Device, bytes: usize, seed: u64) -> Result<Mapping> {
    let memory = Mapping::huge_aligned(bytes)?;
    memory.fill_pattern(seed);
    let done = device.migrate(0, memory.range(), Direction::ToDevice)?;
    ensure!(
        done.moved == memory.range().pages(),
        "not all of it moved: {done:?}"
    );
    Ok(memory)
}

/// Memory that one thread of the host works on.
struct Part {
    source: Vec<u8>,
    destination: std::sync::Mutex<Vec<u8>>,
}

fn host(work: Work, bytes: usize, threads: usize, by: &'static str) -> Result<Vec<Measured>> {
    let part = |_| Part {
        source: vec![1; bytes / threads],
        destination: vec![2; bytes / threads].into(),
    };
    let parts: Vec<Part> = (0..threads).map(part).collect();
    measure(work, bytes, threads, by, |thread| {
        let Part {
            source,
            destination,
        } = &parts[thread];
        let mut destination = destination.lock().ok().context("a thread panicked")?;
        match work {
            Work::Copy => destination.copy_from_slice(black_box(source)),
            Work::Fill => destination.fill(black_box(3)),
            Work::Crc => drop(black_box(crc32c::crc32c(black_box(source)))),
        }
        black_box(&mut *destination);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_measures_the_same_names_as_the_guest() {
        for quick in [true, false] {
            let setting = Setting { quick, cpus: 2 };
            let names = |contests: Vec<Contest>| -> Vec<String> {
                contests.into_iter().map(|contest| contest.name).collect()
            };
            assert_eq!(names(contests(&setting)), names(on_host(&setting)));
        }
    }

    #[test]
    fn each_thread_of_the_host_does_its_part() {
        for work in Work::ALL {
            let values = host(work, 64 << 10, 2, "host-all-cpus").unwrap();
            assert_eq!(values[0].name, work.name(64 << 10));
            assert!(values[0].value > 0.0);
        }
    }

    #[test]
    fn little_is_worked_on_more_often() {
        assert_eq!([4 << 10, 1 << 20, 64 << 20].map(times), [TIMES_MAX, 64, 1]);
    }
}
