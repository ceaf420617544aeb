// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What results belong to: `run.json` beside them.

use std::fs;

use serde::Serialize;

use super::BenchArgs;
use crate::build::KernelChoice;
use crate::calendar;
use crate::git::Commit;
use crate::results::Origin;
use crate::vm::VmSpec;
use crate::vm::accel::Accel;

/// The host.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Its processor, as the kernel names it.
    pub processor: String,
    /// CPUs that are there.
    pub cpus: usize,
    /// Release of its kernel.
    pub kernel: String,
    /// How many processes wanted to run at the beginning, on the average of a minute: what is above
    /// zero may have been in the way.
    pub load: f64,
}

/// The guest.
#[derive(Clone, Debug, Serialize)]
pub struct Guest {
    /// Who ran its instructions.
    pub accelerator: String,
    /// Which kernel it booted.
    pub kernel: String,
    /// How much that checks itself.
    pub build: String,
    /// Release of that kernel.
    pub release: String,
    /// Its CPUs.
    pub cpus: u8,
    /// Its memory.
    pub memory: String,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    #[serde(flatten)]
    origin: Origin,
    /// The day on which it was.
    pub date: String,
    /// The machine.
    pub host: Host,
    /// The machine in the machine.
    pub guest: Guest,
    /// Groups that were measured.
    pub groups: Vec<String>,
    /// How often.
    pub rounds: u32,
    /// Whether less was measured, for less long.
    pub quick: bool,
}

impl About {
    /// All that is known before the guest says which kernel it is.
    pub fn new(args: &BenchArgs, commit: &Commit, spec: &VmSpec, accel: Accel) -> Self {
        Self {
            origin: Origin::new(args.command(), commit.to_string()),
            date: calendar::date(std::time::SystemTime::now()),
            host: Host::this(),
            guest: Guest {
                accelerator: accel.to_string(),
                kernel: match &args.kernel.kernel {
                    // A tree of the user's own has no name that tells anything.
                    KernelChoice::Tree(_) => "tree".to_owned(),
                    named => named.to_string(),
                },
                build: args.kernel.build.to_string(),
                release: String::new(),
                cpus: spec.smp,
                memory: spec.memory.to_string(),
            },
            groups: Vec::new(),
            rounds: args.rounds(),
            quick: args.quick,
        }
    }

    /// Two lines for people.
    pub fn sentence(&self) -> String {
        let Self { host, guest, .. } = self;
        format!(
            "{} with {} CPUs, load {:.1}; guest with {} CPUs by {}, Linux {} ({} {})\ncommit {}, {}, {} rounds",
            host.processor,
            host.cpus,
            host.load,
            guest.cpus,
            guest.accelerator,
            guest.release,
            guest.kernel,
            guest.build,
            Commit::short(self.origin.commit()),
            self.date,
            self.rounds
        )
    }
}

impl Host {
    fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            processor: processor(&read("/proc/cpuinfo")),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load(&read("/proc/loadavg")),
        }
    }
}

/// The name of the processor in /proc/cpuinfo.
fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

/// The average of a minute in /proc/loadavg.
fn load(loadavg: &str) -> f64 {
    let first = loadavg.split_whitespace().next();
    first.and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

impl About {
    /// A run of nobody's, for tests of what is made of results.
    pub fn sample() -> Self {
        Self {
            origin: Origin::new("just bench", "0123456789abcdef"),
            date: "2026-01-01".into(),
            host: Host {
                processor: "a processor <fast>".into(),
                cpus: 2,
                kernel: "7.0".into(),
                load: 0.5,
            },
            guest: Guest {
                accelerator: "tcg".into(),
                kernel: "public".into(),
                build: "plain".into(),
                release: "7.3".into(),
                cpus: 2,
                memory: "1G".into(),
            },
            groups: vec!["g".into()],
            rounds: 3,
            quick: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_and_load_are_found_in_what_the_kernel_says() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n";
        assert_eq!(processor(cpuinfo), "AMD EPYC");
        assert_eq!(processor(""), "unknown");
        assert_eq!(load("0.25 0.10 0.05 1/200 1\n"), 0.25);
        let host = Host::this();
        assert!(host.cpus > 0 && !host.kernel.is_empty(), "{host:?}");
    }
}
