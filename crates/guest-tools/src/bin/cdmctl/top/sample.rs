// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What driver and kernel say of themselves at one time.
//!
//! Which processes have memory in a device nobody counts, so the page tables of all of them are
//! looked through, and only while some device is in use.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use cdm_guest_tools::device::{Device, memory_type_name};
use cdm_guest_tools::process;

use crate::{figure, open, query};

/// Where the driver explains its doings; root alone may look.
const DEBUGFS: &str = "/sys/kernel/debug/cdm";

/// Everything at one time.
pub struct Sample {
    pub at: Instant,
    pub devices: Vec<DeviceSample>,
    pub processes: Vec<ProcessSample>,
}

/// A device: memory now, and counts since probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSample {
    pub device: u32,
    pub memory_type: String,
    pub bytes_total: u64,
    pub bytes_free: u64,
    pub pages_to_device: u64,
    pub pages_to_system: u64,
    pub pages_evicted: u64,
    /// Pages that came back because a CPU touched them, of memory that no CPU can reach.
    pub pages_faulted: Option<u64>,
    /// Times that the device asked for pages of a process.
    pub page_requests: Option<u64>,
    pub commands: Option<u64>,
}

/// A process: memory in devices now, and counts since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSample {
    pub pid: i32,
    pub command: String,
    pub pages_in_device: u64,
    pub faults: u64,
    /// Ticks of 1/100 second.
    pub cpu_ticks: u64,
}

impl Sample {
    pub fn take() -> anyhow::Result<Self> {
        let at = Instant::now();
        let numbers = Device::numbers().context("cannot list /dev: is it mounted?")?;
        let mut devices = Vec::new();
        let mut in_use = Vec::new();
        for number in numbers {
            let device = open(number)?;
            let sample = sample_of(&device)?;
            if sample.bytes_free < sample.bytes_total {
                in_use.push(device);
            }
            devices.push(sample);
        }
        let processes = all_processes(Path::new("/proc"), |pid| pages_in(&in_use, pid));
        Ok(Self {
            at,
            devices,
            processes,
        })
    }
}

fn sample_of(device: &Device) -> anyhow::Result<DeviceSample> {
    let number = device.number();
    let query = query(device)?;
    let figure = |name: &str| figure(&format!("{DEBUGFS}/cdm{number}/{name}"));
    Ok(DeviceSample {
        device: number,
        memory_type: memory_type_name(query.memory_type),
        bytes_total: query.bytes_total,
        bytes_free: query.bytes_free,
        pages_to_device: query.pages_to_device,
        pages_to_system: query.pages_to_system,
        pages_evicted: query.pages_evicted,
        pages_faulted: figure("pages_faulted"),
        page_requests: figure("page_requests"),
        commands: figure("commands"),
    })
}

/// Pages of a process in these devices; those of a process that is gone, or that is somebody
/// else's, are not seen.
fn pages_in(devices: &[Device], pid: i32) -> u64 {
    if devices.is_empty() {
        return 0;
    }
    let vmas = process::maps(pid).unwrap_or_default();
    let looks = devices
        .iter()
        .flat_map(|device| vmas.iter().map(move |vma| device.residency(pid, vma.range)));
    looks.flatten().map(|residency| residency.this_device).sum()
}

/// All processes but the kernel's threads, which have no memory of their own.
fn all_processes(proc: &Path, pages_in_device: impl Fn(i32) -> u64) -> Vec<ProcessSample> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let statm = fs::read_to_string(entry.path().join("statm")).ok()?;
            let has_memory = !statm.starts_with("0 ");
            let sample = parse_stat(pid, &stat).filter(|_| has_memory)?;
            Some(ProcessSample {
                pages_in_device: pages_in_device(pid),
                ..sample
            })
        })
        .collect()
}

/// A line of /proc/PID/stat. The command stands in parentheses and may hold some itself.
fn parse_stat(pid: i32, stat: &str) -> Option<ProcessSample> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, command) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    // Numbers of proc_pid_stat(5), of which the first of `fields` is the third.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(ProcessSample {
        pid,
        command: command.to_owned(),
        pages_in_device: 0,
        faults: field(10)? + field(12)?,
        cpu_ticks: field(14)? + field(15)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "7 (a (b) c) S 1 7 7 0 -1 4194304 120 9 3 8 11 5 0 0 20 0 1 0 100 8192 2";

    #[test]
    fn faults_and_time_are_read_whatever_the_command_is_called() {
        let expected = ProcessSample {
            pid: 7,
            command: "a (b) c".into(),
            pages_in_device: 0,
            faults: 123,
            cpu_ticks: 16,
        };
        assert_eq!(parse_stat(7, STAT), Some(expected));
        assert_eq!(parse_stat(7, "7 (cut"), None);
    }

    #[test]
    fn threads_of_the_kernel_are_left_away() {
        let proc = std::env::temp_dir().join(format!("cdmctl-top-{}", std::process::id()));
        for (pid, statm) in [(7, "100 2 3"), (8, "0 0 0")] {
            let folder = proc.join(pid.to_string());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("stat"), STAT).unwrap();
            fs::write(folder.join("statm"), statm).unwrap();
        }
        let found = all_processes(&proc, |pid| pid as u64 * 10);
        fs::remove_dir_all(&proc).unwrap();
        let found: Vec<_> = found.iter().map(|p| (p.pid, p.pages_in_device)).collect();
        assert_eq!(found, [(7, 70)]);
    }
}
