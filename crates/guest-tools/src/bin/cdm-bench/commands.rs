// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a command costs that does nothing: the way to the device and back, one by one and 64 at
//! a time. It is compared with reads of a disk that QEMU serves itself and that holds nothing
//! (virtio-blk on null-co), and on the host with two processes that wake each other.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::batch::Command;
use cdm_guest_tools::device::Device;
use cdm_guest_tools::isolate::Child;
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_protocol::Opcode;
use io_uring::{IoUring, opcode, types};
use nix::sys::eventfd::EventFd;

use crate::contest::{Contest, Setting, Turn};
use crate::sample::{Measured, SUBJECT, Unit};

/// Commands at a time.
const DEPTH: usize = 64;
/// The least that a disk reads.
const SECTOR: usize = 512;
/// What the disk is called (qemu/machine.toml).
const SERIAL: &str = "cdm-null";

/// How often something is done.
#[derive(Clone, Copy)]
struct Times {
    one_by_one: usize,
    batches: usize,
}

fn times(setting: &Setting) -> Times {
    match setting.quick {
        true => Times {
            one_by_one: 200,
            batches: 20,
        },
        false => Times {
            one_by_one: 1000,
            batches: 100,
        },
    }
}

/// In the guest: the device, and the disk.
pub fn contests(setting: &Setting) -> Vec<Contest> {
    let times = times(setting);
    vec![Contest {
        name: "commands".to_owned(),
        turns: vec![
            Turn {
                by: SUBJECT,
                measure: Box::new(move || device(times)),
            },
            Turn {
                by: "virtio-blk-null",
                measure: Box::new(move || disk(times)),
            },
        ],
    }]
}

/// On the host: the floor.
pub fn on_host(setting: &Setting) -> Vec<Contest> {
    let times = times(setting);
    vec![Contest {
        name: "commands".to_owned(),
        turns: vec![Turn {
            by: "host-eventfd",
            measure: Box::new(move || ping_pong(times)),
        }],
    }]
}

/// Does something often, and gives how long it took each time, without the first time.
fn each(times: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    work()?;
    (0..times)
        .map(|_| {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed())
        })
        .collect()
}

fn round_trips(by: &'static str, took: &[Duration]) -> Vec<Measured> {
    let value = |time: &Duration| Measured {
        name: "commands/round-trip".to_owned(),
        by,
        unit: Unit::Microseconds,
        value: time.as_secs_f64() * 1e6,
    };
    took.iter().map(value).collect()
}

/// Commands in a second, where so many are under way at a time.
fn rate(by: &'static str, took: &[Duration]) -> Measured {
    let commands = DEPTH * took.len();
    Measured {
        name: format!("commands/depth-{DEPTH}"),
        by,
        unit: Unit::PerSecond,
        value: commands as f64 / took.iter().sum::<Duration>().as_secs_f64(),
    }
}

fn device(times: Times) -> Result<Vec<Measured>> {
    const BY: &str = SUBJECT;
    let device = Device::open(0).context("cannot open /dev/cdm0: is the driver loaded?")?;
    let took = each(times.one_by_one, || {
        device.nop()?.ok()?;
        Ok(())
    })?;
    let mut values = round_trips(BY, &took);
    let batch: Vec<Command<'_>> = (0..DEPTH)
        .map(|_| Command::new(Opcode::NOP).unordered())
        .collect();
    let took = each(times.batches, || {
        let answers = device.batch(&batch, false)?.ok()?;
        ensure!(answers.len() == DEPTH, "{} answers", answers.len());
        Ok(())
    })?;
    values.push(rate(BY, &took));
    Ok(values)
}

/// The disk that holds nothing.
fn open_disk() -> Result<File> {
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim() == SERIAL {
            let path = format!("/dev/{}", entry.file_name().display());
            let file = File::options()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(&path);
            return file.with_context(|| format!("cannot open {path}"));
        }
    }
    bail!("this machine has no disk called {SERIAL} to compare with")
}

fn disk(times: Times) -> Result<Vec<Measured>> {
    const BY: &str = "virtio-blk-null";
    let file = open_disk()?;
    let memory = Mapping::anonymous(PAGE_BYTES)?;
    let took = each(times.one_by_one, || {
        let buffer = memory.address() as *mut libc::c_void;
        // SAFETY: the buffer is as long, and only atomics access it.
        let done = unsafe { libc::pread(file.as_raw_fd(), buffer, SECTOR, 0) };
        ensure!(done == SECTOR as isize, "the disk read {done} bytes");
        Ok(())
    })?;
    let mut values = round_trips(BY, &took);
    let buffers = Mapping::anonymous(DEPTH * SECTOR)?;
    let mut ring = IoUring::new(DEPTH as u32).context("io_uring_setup: is CONFIG_IO_URING on?")?;
    let took = each(times.batches, || read_at_once(&mut ring, &file, &buffers))?;
    values.push(rate(BY, &took));
    Ok(values)
}

fn read_at_once(ring: &mut IoUring, file: &File, buffers: &Mapping) -> Result<()> {
    for number in 0..DEPTH {
        let buffer = (buffers.address() + (number * SECTOR) as u64) as *mut u8;
        // Far from each other, or the kernel would make one read of several.
        let offset = (number * (1 << 20)) as u64;
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), buffer, SECTOR as u32)
            .offset(offset)
            .build();
        // SAFETY: file and buffers outlive the reads, which end before this function does, and only
        // atomics access the buffers.
        unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
    }
    ring.submit_and_wait(DEPTH)?;
    let done: Vec<i32> = ring.completion().map(|entry| entry.result()).collect();
    let good = done
        .iter()
        .filter(|result| **result == SECTOR as i32)
        .count();
    ensure!(good == DEPTH, "{good} of {DEPTH} reads were good: {done:?}");
    Ok(())
}

/// Two processes that wake each other by turns.
fn ping_pong(times: Times) -> Result<Vec<Measured>> {
    let (ping, pong) = (EventFd::new()?, EventFd::new()?);
    let count = times.one_by_one + 1;
    let other = Child::spawn(|_| {
        for _ in 0..count {
            black_box(ping.read()?);
            pong.write(1)?;
        }
        Ok(())
    })?;
    let took = each(times.one_by_one, || {
        ping.write(1)?;
        black_box(pong.read()?);
        Ok(())
    })?;
    other.finish()?;
    Ok(round_trips("host-eventfd", &took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_wake_each_other() {
        let times = Times {
            one_by_one: 5,
            batches: 0,
        };
        let values = ping_pong(times).unwrap();
        assert_eq!(values.len(), 5);
        assert!(
            values
                .iter()
                .all(|one| one.value > 0.0 && one.by == "host-eventfd")
        );
    }

    #[test]
    fn rate_counts_all_commands_of_a_batch() {
        let measured = rate("cdm", &[Duration::from_millis(64); 2]);
        assert_eq!(
            (measured.value, &*measured.name),
            (1000.0, "commands/depth-64")
        );
    }

    #[test]
    fn first_time_does_not_count() {
        let mut done = 0;
        let took = each(3, || {
            done += 1;
            Ok(())
        });
        assert_eq!((took.unwrap().len(), done), (3, 4));
    }
}
