// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is asked of the scenarios, and the words that ask for it again.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::build::{BuildKind, Kernel};
use crate::test::main_machine;
use crate::vm::{ByteSize, MemoryType, VmSpec};

/// Seconds of a scenario, unless told otherwise.
pub const SECONDS: u64 = 10;
/// Devices, unless told otherwise.
pub const DEVICES: u8 = 2;
/// Memory of the guest besides what stands for each device: what keeps a device full comes from
/// there.
const BASE_BYTES: u64 = 1 << 30;

/// How long each scenario goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// For so many seconds.
    Seconds(u64),
    /// For so many operations.
    Rounds(u64),
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(number) => write!(f, "--seconds {number}"),
            Self::Rounds(number) => write!(f, "--rounds {number}"),
        }
    }
}

/// How much room there is in the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Room {
    /// Devices that are full from the start, and are kept so
    Scarce,
    /// Devices with room for everything
    #[default]
    Plenty,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scarce => "scarce",
            Self::Plenty => "plenty",
        })
    }
}

/// One part of several that do a run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which one, from 1 on.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Its part of a list: every so many of it, so that what is alike is spread.
    pub fn of<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter()
            .skip(self.index - 1)
            .step_by(self.count)
            .collect()
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text
            .split_once('/')
            .and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(format!(
                "'{text}' is no part of a whole: write I/N, such as 1/4 for the first of four"
            )),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Scenarios and families; all of them if there is none.
    pub names: Vec<String>,
    /// Where random sequences begin.
    pub seed: u64,
    /// How long each goes on.
    pub length: Length,
    /// Devices of the guest.
    pub devices: u8,
    /// Type of the device memory; the best that the kernel has if absent.
    pub memory_type: Option<MemoryType>,
    /// How much room there is in the devices.
    pub room: Room,
    /// The part of the scenarios that runs.
    pub shard: Option<Shard>,
    /// Whether they run at the same time.
    pub all_at_once: bool,
}

impl Order {
    /// Those words of it that every scenario depends on.
    pub fn words(&self, kernel: &str, build: BuildKind) -> String {
        let mut words = Vec::new();
        if self.all_at_once {
            words.push("--all-at-once".to_owned());
        }
        words.push(format!("--seed {}", self.seed));
        words.push(self.length.to_string());
        words.push(format!("--devices {}", self.devices));
        words.push(format!("--memory {}", self.room));
        if let Some(memory_type) = self.memory_type {
            words.push(format!("--memory-type {memory_type}"));
        }
        words.push(format!("--kernel {kernel} --build {build}"));
        words.join(" ")
    }

    /// The line that runs `names` again.
    pub fn line(&self, names: &[String], kernel: &Kernel) -> String {
        let mut words = vec!["just stress".to_owned()];
        words.extend(names.iter().cloned());
        words.push(self.words(&kernel.choice.to_string(), kernel.kind));
        words.join(" ")
    }

    /// The line that runs `names` in the guest.
    pub fn guest_line(&self, names: &[&str]) -> String {
        let mut line = format!(
            "cdm-stress run {} --seed {} {} --report-every {}",
            names.join(" "),
            self.seed,
            self.length,
            super::super::said::REPORT_SECONDS
        );
        if self.room == Room::Scarce {
            line += " --scarce";
        }
        if self.all_at_once {
            line += " --all-at-once";
        }
        line
    }

    /// The machine: small devices, which are filled quickly, and room in the guest for what all of
    /// them hold.
    pub fn machine(&self, kernel: Kernel) -> VmSpec {
        let mut spec = VmSpec::new(kernel);
        main_machine(&mut spec);
        spec.devices = self.devices;
        let of_devices = u64::from(self.devices) * spec.device_memory.0;
        spec.memory = ByteSize(BASE_BYTES + of_devices);
        // Some scenarios are about what moves between nodes.
        spec.second_node = Some(ByteSize(spec.memory.0 / 2));
        spec.memory_types = self.memory_type.into_iter().collect();
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn order() -> Order {
        Order {
            names: Vec::new(),
            seed: 7,
            length: Length::Rounds(500),
            devices: 3,
            memory_type: Some(MemoryType::Coherent),
            room: Room::Scarce,
            shard: None,
            all_at_once: false,
        }
    }

    #[test]
    fn shards_are_apart_and_together_all() {
        let all: Vec<usize> = (0..10).collect();
        let mut seen = Vec::new();
        for index in 1..=3 {
            seen.extend(Shard { index, count: 3 }.of(all.clone()));
        }
        seen.sort_unstable();
        assert_eq!(seen, all);
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for text in ["0/3", "4/3", "3", "a/b", "1/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn line_names_everything_that_decides_a_scenario() {
        assert_eq!(
            order().words("public", BuildKind::Debug),
            "--seed 7 --rounds 500 --devices 3 --memory scarce --memory-type coherent \
             --kernel public --build debug"
        );
        assert_eq!(
            order().guest_line(&["a::b"]),
            "cdm-stress run a::b --seed 7 --rounds 500 --report-every 10 --scarce"
        );
    }
}
