// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What happened between two samples, for each second of it: for programs as JSON, for people as
//! tables.

use std::collections::HashMap;
use std::time::Duration;

use cdm_guest_tools::size::Size;
use serde::Serialize;

use super::sample::{DeviceSample, ProcessSample, Sample};
use crate::report;
use crate::table::{self, Column, figures, words};

/// The driver counts these.
const PAGE_BYTES: u64 = cdm_guest_tools::memory::PAGE_BYTES as u64;
/// Ticks of /proc in a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// One line of `cdmctl top --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    pub version: u32,
    pub seconds: f64,
    pub devices: Vec<DeviceRates>,
    pub processes: Vec<ProcessRates>,
}

/// A device of `cdmctl top`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceRates {
    pub device: u32,
    pub memory_type: String,
    pub bytes_total: u64,
    pub bytes_used: u64,
    pub bytes_to_device_per_second: f64,
    pub bytes_to_system_per_second: f64,
    pub bytes_evicted_per_second: f64,
    pub cpu_faults_per_second: Option<f64>,
    pub device_faults_per_second: Option<f64>,
    pub commands_per_second: Option<f64>,
}

/// A process of `cdmctl top`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessRates {
    pub pid: i32,
    pub command: String,
    pub bytes_in_device: u64,
    pub faults_per_second: f64,
    pub cpu_percent: f64,
}

impl Rates {
    /// What happened from `old` to `new`, with so many of the hottest processes.
    pub fn between(old: &Sample, new: &Sample, processes_max: usize) -> Self {
        let time = new.at.saturating_duration_since(old.at);
        let before: HashMap<u32, &DeviceSample> =
            old.devices.iter().map(|one| (one.device, one)).collect();
        let devices = new.devices.iter().map(|now| {
            // One that was not there has done nothing that is known.
            let before = before.get(&now.device).copied().unwrap_or(now);
            DeviceRates::between(before, now, time)
        });
        let before: HashMap<i32, &ProcessSample> =
            old.processes.iter().map(|one| (one.pid, one)).collect();
        let processes = new.processes.iter().map(|now| {
            let before = before.get(&now.pid).copied().unwrap_or(now);
            ProcessRates::between(before, now, time)
        });
        let mut processes: Vec<ProcessRates> = processes.collect();
        // Who has most in devices, and among those who have nothing, who faults most.
        processes.sort_by(|a, b| {
            b.bytes_in_device
                .cmp(&a.bytes_in_device)
                .then(b.faults_per_second.total_cmp(&a.faults_per_second))
                .then(a.pid.cmp(&b.pid))
        });
        processes.truncate(processes_max);
        Self {
            version: report::VERSION,
            seconds: time.as_secs_f64(),
            devices: devices.collect(),
            processes,
        }
    }

    /// Tables for people.
    pub fn table(&self) -> String {
        let devices: Vec<_> = self.devices.iter().map(DeviceRates::cells).collect();
        let processes: Vec<_> = self.processes.iter().map(ProcessRates::cells).collect();
        let tables = [
            table::text(&DEVICE_COLUMNS, &devices),
            table::text(&PROCESS_COLUMNS, &processes),
        ];
        tables.map(|table| table + "\n").concat()
    }
}

/// Their widths do not change with what is in them, as long as that is what devices do.
pub const DEVICE_COLUMNS: [Column<'_>; 10] = [
    figures("DEVICE"),
    words("MEMORY").at_least(8),
    figures("USED").at_least(10),
    figures("TOTAL").at_least(10),
    figures("IN/s").at_least(10),
    figures("OUT/s").at_least(10),
    figures("EVICTED/s").at_least(10),
    figures("CPU FLT/s"),
    figures("DEV FLT/s"),
    figures("COMMANDS/s"),
];
/// The last one takes what is left.
pub const PROCESS_COLUMNS: [Column<'_>; 5] = [
    figures("PID").at_least(6),
    figures("IN DEVICES"),
    figures("FAULTS/s").at_least(9),
    figures("CPU %").at_least(6),
    words("PROCESS").at_least(10),
];

fn per_second(before: u64, now: u64, time: Duration) -> f64 {
    // A device that was plugged anew counts anew.
    let more = now.saturating_sub(before) as f64;
    match time.as_secs_f64() {
        0.0 => 0.0,
        seconds => more / seconds,
    }
}

fn bytes_cell(bytes: f64) -> String {
    match bytes as u64 {
        0 => "0".into(),
        bytes => Size(bytes).to_string(),
    }
}

fn count_cell(count: Option<f64>) -> String {
    count.map_or("-".into(), |count| format!("{count:.0}"))
}

impl DeviceRates {
    fn between(old: &DeviceSample, new: &DeviceSample, time: Duration) -> Self {
        let bytes = |old: u64, new: u64| per_second(old * PAGE_BYTES, new * PAGE_BYTES, time);
        let counts = |old: Option<u64>, new: Option<u64>| Some(per_second(old?, new?, time));
        Self {
            device: new.device,
            memory_type: new.memory_type.clone(),
            bytes_total: new.bytes_total,
            bytes_used: new.bytes_total.saturating_sub(new.bytes_free),
            bytes_to_device_per_second: bytes(old.pages_to_device, new.pages_to_device),
            bytes_to_system_per_second: bytes(old.pages_to_system, new.pages_to_system),
            bytes_evicted_per_second: bytes(old.pages_evicted, new.pages_evicted),
            cpu_faults_per_second: counts(old.pages_faulted, new.pages_faulted),
            device_faults_per_second: counts(old.page_requests, new.page_requests),
            commands_per_second: counts(old.commands, new.commands),
        }
    }

    /// How full it is, from 0 to 1.
    pub fn share_used(&self) -> f64 {
        match self.bytes_total {
            0 => 0.0,
            total => (self.bytes_used as f64 / total as f64).min(1.0),
        }
    }

    /// In the order of [`DEVICE_COLUMNS`].
    pub fn cells(&self) -> Vec<String> {
        vec![
            self.device.to_string(),
            self.memory_type.clone(),
            Size(self.bytes_used).to_string(),
            Size(self.bytes_total).to_string(),
            bytes_cell(self.bytes_to_device_per_second),
            bytes_cell(self.bytes_to_system_per_second),
            bytes_cell(self.bytes_evicted_per_second),
            count_cell(self.cpu_faults_per_second),
            count_cell(self.device_faults_per_second),
            count_cell(self.commands_per_second),
        ]
    }
}

impl ProcessRates {
    fn between(old: &ProcessSample, new: &ProcessSample, time: Duration) -> Self {
        let ticks = per_second(old.cpu_ticks, new.cpu_ticks, time);
        Self {
            pid: new.pid,
            command: new.command.clone(),
            bytes_in_device: new.pages_in_device * PAGE_BYTES,
            faults_per_second: per_second(old.faults, new.faults, time),
            cpu_percent: ticks / TICKS_PER_SECOND * 100.0,
        }
    }

    /// In the order of [`PROCESS_COLUMNS`].
    pub fn cells(&self) -> Vec<String> {
        // A process chooses its name: it must not speak to the terminal.
        let command = self.command.chars().filter(|c| !c.is_control());
        vec![
            self.pid.to_string(),
            bytes_cell(self.bytes_in_device as f64),
            format!("{:.0}", self.faults_per_second),
            format!("{:.0}", self.cpu_percent),
            command.collect(),
        ]
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::report::tests::validate;
    use std::time::Instant;

    fn process(pid: i32, pages_in_device: u64, faults: u64) -> ProcessSample {
        ProcessSample {
            pid,
            command: format!("p{pid}\x1b"),
            pages_in_device,
            faults,
            cpu_ticks: 10 * faults,
        }
    }

    /// Two seconds in which device 0 got 512 pages and lost 256, and device 1 appeared.
    pub fn rates(debugfs: bool, processes_max: usize) -> Rates {
        let figure = |value| debugfs.then_some(value);
        let device = |sum: u64| DeviceSample {
            device: 0,
            memory_type: "public".into(),
            bytes_total: 252 << 20,
            bytes_free: 126 << 20,
            pages_to_device: 512 * sum,
            pages_to_system: 256 * sum,
            pages_evicted: 0,
            pages_faulted: figure(4 * sum),
            page_requests: figure(6 * sum),
            commands: figure(200 * sum),
        };
        let new = DeviceSample {
            device: 1,
            ..device(9)
        };
        let at = Instant::now();
        let old = Sample {
            at,
            devices: vec![device(1)],
            processes: vec![process(5, 0, 0), process(6, 1, 0), process(7, 0, 10)],
        };
        let new = Sample {
            at: at + Duration::from_secs(2),
            devices: vec![device(2), new],
            processes: vec![
                process(5, 0, 4),
                process(6, 3, 0),
                process(7, 0, 30),
                process(8, 0, 9),
            ],
        };
        Rates::between(&old, &new, processes_max)
    }

    #[test]
    fn rates_are_of_a_second_and_what_was_not_there_has_done_nothing() {
        let rates = rates(true, 10);
        let [old, new] = &rates.devices[..] else {
            panic!("{rates:?}")
        };
        assert_eq!(old.bytes_to_device_per_second, f64::from(1 << 20));
        assert_eq!(old.bytes_to_system_per_second, f64::from(1 << 19));
        assert_eq!(old.cpu_faults_per_second, Some(2.0));
        assert_eq!(old.device_faults_per_second, Some(3.0));
        assert_eq!(old.commands_per_second, Some(100.0));
        assert_eq!(old.bytes_used, 126 << 20);
        assert_eq!(new.bytes_to_device_per_second, 0.0);
        assert_eq!(new.commands_per_second, Some(0.0));
    }

    #[test]
    fn who_has_most_in_devices_is_first_then_who_faults_most() {
        let order =
            |max| -> Vec<i32> { rates(true, max).processes.iter().map(|p| p.pid).collect() };
        assert_eq!(order(10), [6, 7, 5, 8]);
        assert_eq!(order(2), [6, 7]);
        let rates = rates(true, 2);
        assert_eq!(rates.processes[0].bytes_in_device, 3 * PAGE_BYTES);
        assert_eq!(rates.processes[1].faults_per_second, 10.0);
        assert_eq!(rates.processes[1].cpu_percent, 100.0);
    }

    #[test]
    fn json_is_what_its_schema_says_also_for_who_may_not_read_all() {
        for debugfs in [true, false] {
            let value = serde_json::to_value(rates(debugfs, 3)).unwrap();
            assert_eq!(
                value["devices"][0]["commands_per_second"].is_null(),
                !debugfs
            );
            validate("cdmctl-top.schema.json", &value).unwrap();
        }
    }

    #[test]
    fn table_has_sizes_with_units_and_no_control_character() {
        let text = rates(false, 10).table();
        assert!(
            text.contains("126 MiB     252 MiB       1 MiB     512 KiB"),
            "{text}"
        );
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(text.lines().all(|line| line.len() <= 112), "{text}");
    }
}
