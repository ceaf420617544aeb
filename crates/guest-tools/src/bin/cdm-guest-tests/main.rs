// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tests that need a guest: a process, its pages, and a device. Results go
//! to standard output as KTAP.

mod accelerator;
mod accounts;
mod addresses;
mod atomics;
mod bad_input;
mod batches;
mod capacity;
mod commands;
mod cpu_hot;
mod engines;
mod eviction;
mod exclusive;
mod files;
mod fixes;
mod fixture;
mod fork;
mod hot;
mod huge;
mod huge_files;
mod injected;
mod lifecycle;
mod memory_failure;
mod migration;
mod neighbours;
mod observability;
mod pins;
mod pressure;
mod private;
mod processes;
mod refusals;
mod runner;
mod stress;
mod trace;
mod two_devices;
mod unload;

use std::process::ExitCode;
use std::time::Duration;

use cdm_guest_tools::{isolate, module, stores, wait};
use clap::Parser;
use fixture::Test;

const EXAMPLES: &str = "\
Examples:
  cdm-guest-tests --list
  cdm-guest-tests --group fork
  cdm-guest-tests --filter pinned --seed 7

Exit status: 0 all passed or skipped, 1 a test failed, 2 could not run.";

/// Run the tests that need a guest with a device; results are KTAP on standard output
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES)]
struct Cli {
    /// Print the names of the chosen tests and run none
    #[arg(long)]
    list: bool,

    /// Choose the tests of group NAME; repeatable
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,

    /// Choose the tests whose name contains TEXT
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    /// Choose the one test called NAME; repeatable
    #[arg(long = "exact", value_name = "NAME")]
    exact: Vec<String>,

    /// Give each test NUM seconds
    #[arg(long, value_name = "NUM", default_value_t = runner::LIMIT_SECONDS)]
    limit: u64,

    /// Start random sequences from NUM
    #[arg(long, value_name = "NUM", default_value_t = 1)]
    seed: u64,
}

impl Cli {
    fn chooses(&self, test: &Test) -> bool {
        let name = test.full_name();
        (self.groups.is_empty() || self.groups.iter().any(|group| group == test.group))
            && (self.exact.is_empty() || self.exact.contains(&name))
            && self.filter.as_ref().is_none_or(|text| name.contains(text))
    }
}

/// Every test, in the order in which they run.
fn all() -> Vec<Test> {
    [
        migration::TESTS,
        commands::TESTS,
        accelerator::TESTS,
        addresses::TESTS,
        batches::TESTS,
        hot::TESTS,
        cpu_hot::TESTS,
        atomics::TESTS,
        fork::TESTS,
        huge::TESTS,
        huge_files::TESTS,
        engines::TESTS,
        files::MEMFD_TESTS,
        files::TMPFS_TESTS,
        files::RAMFS_TESTS,
        files::XFS_TESTS,
        lifecycle::TESTS,
        pins::TESTS,
        neighbours::TESTS,
        accounts::TESTS,
        refusals::TESTS,
        eviction::TESTS,
        pressure::TESTS,
        memory_failure::TESTS,
        fixes::TESTS,
        capacity::TESTS,
        processes::TESTS,
        bad_input::TESTS,
        observability::TESTS,
        two_devices::TESTS,
        stress::TESTS,
        private::TESTS,
        exclusive::TESTS,
        injected::TESTS,
        injected::PROBE_TESTS,
        unload::TESTS,
    ]
    .concat()
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let tests: Vec<Test> = all().into_iter().filter(|test| cli.chooses(test)).collect();
    if tests.is_empty() {
        eprintln!("cdm-guest-tests: no test matches: see --list for the names");
        return ExitCode::from(2);
    }
    if cli.list {
        tests
            .iter()
            .for_each(|test| println!("{}", test.full_name()));
        return ExitCode::SUCCESS;
    }
    match runner::run(&tests, cli.seed, Duration::from_secs(cli.limit)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("cdm-guest-tests: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::collections::HashSet;

    #[test]
    fn reference_pages_are_what_the_command_line_says() {
        cdm_cli_reference::check("cdm-guest-tests", Cli::command()).expect("fresh");
    }

    #[test]
    fn arguments_are_defined_consistently() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_are_unique_and_survive_ktap() {
        let tests = all();
        let names: HashSet<_> = tests.iter().map(Test::full_name).collect();
        assert_eq!(names.len(), tests.len());
        for name in names {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
            assert!(name.chars().all(plain), "{name}");
        }
    }
}
