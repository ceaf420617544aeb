// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Benchmarks in the guest: what the device and its driver do, and what a user would pick
//! instead, measured in turn on the same machine.
//!
//! Each sample is a line of JSON on standard output. `cdm bench` on the host makes results of
//! them. Each turn is a process of its own: neither a mapping nor a notifier that one has left
//! behind costs the next one anything.

mod bandwidth;
mod breakdown;
mod commands;
mod contest;
mod first_page;
mod memory;
mod migrate;
mod movers;
mod probe;
mod profile;
mod sample;
mod scaling;
mod throughput;
mod timing;
mod together;
mod translation;
mod trips;

use std::process::ExitCode;
use std::thread;

use anyhow::{Result, bail};
use clap::Parser;

use contest::{Contest, Setting};

const EXAMPLES: &str = "\
Examples:
  cdm-bench --list
  cdm-bench migrate --quick
  cdm-bench migrate --rounds 9
  cdm-bench bandwidth --host

Who the device is compared with must be there: test_hmm loaded with memory for its coherent
devices, a second node of memory, a second device, and a disk called cdm-null.

Exit status: 0 everything was measured, 2 something could not be, and is told.";

/// Measure the device, and what a user would pick instead of it, in turn
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES, after_help = EXAMPLES)]
struct Cli {
    /// Groups to measure [default: all]
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,

    /// Print the groups, and measure none
    #[arg(long)]
    list: bool,

    /// Measure everything NUM times, in turn
    #[arg(long, value_name = "NUM", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Count the rounds from NUM on, as a part of a longer run
    #[arg(long, value_name = "NUM", default_value_t = 0)]
    first_round: u32,

    /// Measure, on a host, what the groups are compared with there
    #[arg(long)]
    host: bool,

    /// Measure fewer sizes, for less long
    #[arg(long)]
    quick: bool,
}

/// Figures that belong together.
struct Group {
    name: &'static str,
    what: &'static str,
    contests: fn(&Setting) -> Vec<Contest>,
    /// What of it is measured on the host.
    on_host: fn(&Setting) -> Vec<Contest>,
}

/// Where nothing is.
fn nothing(_: &Setting) -> Vec<Contest> {
    Vec::new()
}

const GROUPS: &[Group] = &[
    Group {
        name: "migrate",
        what: "anonymous memory to the device and back, in 4 KiB pages and 2 MiB folios",
        contests: migrate::anonymous,
        on_host: nothing,
    },
    Group {
        name: "files",
        what: "shared memory and page cache to the device and back",
        contests: migrate::files,
        on_host: nothing,
    },
    Group {
        name: "device-to-device",
        what: "anonymous memory from one device to another and back",
        contests: migrate::between,
        on_host: nothing,
    },
    Group {
        name: "first-page",
        what: "how long it takes until a single page has moved",
        contests: first_page::contests,
        on_host: nothing,
    },
    Group {
        name: "breakdown",
        what: "where the time of a migration goes, in microseconds for each MiB",
        contests: breakdown::contests,
        on_host: nothing,
    },
    Group {
        name: "commands",
        what: "commands that do nothing, one by one and 64 at a time",
        contests: commands::contests,
        on_host: commands::on_host,
    },
    Group {
        name: "bandwidth",
        what: "how fast the device copies, fills and checksums its memory",
        contests: bandwidth::contests,
        on_host: bandwidth::on_host,
    },
    Group {
        name: "translation",
        what: "pages that the device asks for, forgets, and works on while they move",
        contests: translation::contests,
        on_host: nothing,
    },
    Group {
        name: "unpatched",
        what: "what of 'migrate' test_hmm comes to; in a guest whose kernel is without the series",
        contests: migrate::unpatched,
        on_host: nothing,
    },
    Group {
        name: "probe",
        what: "the driver comes to a device; in a guest that has one device and no driver yet",
        contests: probe::contests,
        on_host: nothing,
    },
    Group {
        name: "scaling",
        what: "devices and processes at once; in a guest that has four devices",
        contests: scaling::contests,
        on_host: nothing,
    },
];

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cdm-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Cli {
    fn chosen(&self) -> Result<Vec<&'static Group>> {
        for name in &self.groups {
            if !GROUPS.iter().any(|group| group.name == name) {
                bail!("there is no group '{name}': see --list for the names");
            }
        }
        let is_chosen = |group: &&Group| {
            self.groups.is_empty() || self.groups.iter().any(|name| name == group.name)
        };
        Ok(GROUPS.iter().filter(is_chosen).collect())
    }

    fn run(&self) -> Result<()> {
        let chosen = self.chosen()?;
        if self.list {
            for group in chosen {
                println!("{}\n    {}", group.name, group.what);
            }
            return Ok(());
        }
        let setting = Setting {
            quick: self.quick,
            cpus: thread::available_parallelism()?.get(),
        };
        for group in chosen {
            let contests = match self.host {
                true => (group.on_host)(&setting),
                false => (group.contests)(&setting),
            };
            let rounds = self.first_round..self.first_round + self.rounds;
            contest::run(group.name, &contests, rounds)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        let words = std::iter::once("cdm-bench").chain(line.split_whitespace());
        Cli::try_parse_from(words).unwrap()
    }

    #[test]
    fn arguments_are_defined_consistently() {
        Cli::command().debug_assert();
    }

    #[test]
    fn all_groups_are_measured_unless_some_are_named() {
        assert_eq!(parse("").chosen().unwrap().len(), GROUPS.len());
        let chosen = parse("migrate --quick").chosen().unwrap();
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].name, "migrate");
    }

    #[test]
    fn unknown_group_is_refused_by_name() {
        let error = parse("migrat").chosen().err().unwrap().to_string();
        assert!(
            error.contains("'migrat'") && error.contains("--list"),
            "{error}"
        );
    }
}
