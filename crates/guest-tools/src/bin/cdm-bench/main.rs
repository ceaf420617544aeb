// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Benchmarks in the guest: what the device and its driver do, and what a user would pick
//! instead, measured in turn on the same machine.
//!
//! Each sample is a line of JSON on standard output. `cdm bench` on the host makes results of
//! them. Each turn is a process of its own: neither a mapping nor a notifier that one has left
//! behind costs the next one anything.

mod contest;
mod first_page;
mod memory;
mod migrate;
mod movers;
mod sample;
mod timing;
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

Who the device is compared with must be there: test_hmm loaded with memory for its coherent
devices, and a second node of memory.

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

    /// Measure fewer sizes, for less long
    #[arg(long)]
    quick: bool,
}

/// Figures that belong together.
struct Group {
    name: &'static str,
    what: &'static str,
    contests: fn(&Setting) -> Vec<Contest>,
}

const GROUPS: &[Group] = &[
    Group {
        name: "migrate",
        what: "anonymous memory to the device and back, in 4 KiB pages and 2 MiB folios",
        contests: migrate::contests,
    },
    Group {
        name: "first-page",
        what: "how long it takes until a single page has moved",
        contests: first_page::contests,
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
            let contests = (group.contests)(&setting);
            contest::run(group.name, &contests, self.rounds)?;
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
