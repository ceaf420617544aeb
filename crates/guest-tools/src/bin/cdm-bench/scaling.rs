// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices and processes at once: what several of them come to together.
//!
//! How much memory moves in all is the same for each number of processes, so that the throughput
//! of one is what that of many can be held against. Each device moves as much as the next.

use anyhow::Result;

use crate::contest::{Contest, Setting, Turn};
use crate::movers;
use crate::sample::{Measured, SUBJECT, Unit};
use crate::timing::mebibytes_per_second;
use crate::together::{Crowd, MakeNth, round_trips};

/// What all processes move together, and what goes to each device.
const BYTES: usize = 16 << 20;
const BYTES_A_DEVICE: usize = 8 << 20;
const TRIPS: usize = 5;
const QUICK_TRIPS: usize = 1;

const DEVICES: [usize; 4] = [1, 2, 3, 4];
const QUICK_DEVICES: [usize; 2] = [1, 4];
const PROCESSES: [usize; 5] = [1, 4, 16, 64, 256];
const QUICK_PROCESSES: [usize; 3] = [1, 16, 256];

/// Processes that all use the first device.
const ON_FIRST: MakeNth = |_, task| movers::on_device(task, 0);
/// Processes of which each has a device of its own.
const ON_OWN: MakeNth = |number, task| movers::on_device(task, number as u32);
/// The ceiling.
const COPY: MakeNth = |_, task| Ok(Box::new(movers::Copy::new(task)?));

/// The contests of the group.
pub fn contests(setting: &Setting) -> Vec<Contest> {
    let (devices, processes, trips): (&[_], &[_], _) = match setting.quick {
        true => (&QUICK_DEVICES, &QUICK_PROCESSES, QUICK_TRIPS),
        false => (&DEVICES, &PROCESSES, TRIPS),
    };
    let crowd = |processes, bytes_each| Crowd {
        processes,
        bytes_each,
        trips,
    };
    let of_devices = devices.iter().map(|&count| {
        let by: [(_, MakeNth); 3] = [
            (SUBJECT, ON_OWN),
            ("one-device", ON_FIRST),
            ("memcpy", COPY),
        ];
        contest("devices", "device", crowd(count, BYTES_A_DEVICE), &by)
    });
    let of_processes = processes.iter().map(|&count| {
        let by: [(_, MakeNth); 2] = [(SUBJECT, ON_FIRST), ("memcpy", COPY)];
        contest("processes", "process", crowd(count, BYTES / count), &by)
    });
    of_devices.chain(of_processes).collect()
}

fn contest(what: &str, one: &'static str, crowd: Crowd, by: &[(&'static str, MakeNth)]) -> Contest {
    let prefix = format!("growth/{what}");
    let turn = |&(by, make): &(&'static str, MakeNth)| {
        let prefix = prefix.clone();
        Turn {
            by,
            measure: Box::new(move || measure(&prefix, one, crowd, by, make)),
        }
    };
    Contest {
        name: format!("{prefix}/{}-{one}", crowd.processes),
        turns: by.iter().map(turn).collect(),
    }
}

fn measure(
    prefix: &str,
    one: &str,
    crowd: Crowd,
    by: &'static str,
    make: MakeNth,
) -> Result<Vec<Measured>> {
    let times = round_trips(crowd, make)?;
    let bytes = crowd.processes * crowd.bytes_each * crowd.trips;
    let value = |(way, time)| Measured {
        name: format!("{prefix}/{way}/{}-{one}", crowd.processes),
        by,
        unit: Unit::MebibytesPerSecond,
        value: mebibytes_per_second(bytes, time),
    };
    Ok([("to-device", times.there), ("to-system", times.back)]
        .map(value)
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(quick: bool) -> Vec<String> {
        let contests = contests(&Setting { quick, cpus: 2 });
        contests.into_iter().map(|contest| contest.name).collect()
    }

    #[test]
    fn quick_run_has_one_and_most_of_each() {
        let (quick, whole) = (names(true), names(false));
        assert!(quick.iter().all(|name| whole.contains(name)), "{quick:?}");
        for name in [
            "devices/1-device",
            "devices/4-device",
            "processes/1-process",
            "processes/256-process",
        ] {
            let name = format!("growth/{name}");
            assert!(quick.contains(&name) && whole.contains(&name), "{name}");
        }
    }

    #[test]
    fn memory_is_parted_evenly() {
        for count in PROCESSES.into_iter().chain(QUICK_PROCESSES) {
            assert_eq!(BYTES % (count * cdm_guest_tools::memory::PAGE_BYTES), 0);
        }
    }

    #[test]
    fn figures_are_of_each_way_and_say_how_many_there_are() {
        cdm_guest_tools::testing::alone(|| {
            let crowd = Crowd {
                processes: 2,
                bytes_each: 1 << 20,
                trips: 1,
            };
            let values = measure("growth/x", "process", crowd, "memcpy", COPY).unwrap();
            let names: Vec<_> = values.iter().map(|one| &*one.name).collect();
            assert_eq!(
                names,
                [
                    "growth/x/to-device/2-process",
                    "growth/x/to-system/2-process"
                ]
            );
        });
    }
}
