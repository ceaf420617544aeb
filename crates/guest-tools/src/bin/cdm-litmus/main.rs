// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Litmus tests between the guest's CPUs and the device: what each sees of what the
//! others write, millions of times, against the memory model of docs/reference/device.md.
//!
//! A thread of a test is a loop over many instances, each with locations of its own, in
//! a process or in a program of the device. Before each instance the threads wait for
//! each other, for a moment and not for ever, and then pause for a random time, so that
//! their accesses meet in all ways. None of that has an order that would help.

mod catalog;
mod code;
mod cpu;
#[cfg(test)]
mod fake;
mod interleave;
mod layout;
mod report;
mod run;
mod shape;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Device, memory_type_name};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::uapi::CDM_CAN_CPU_ACCESS;
use clap::Parser;

use catalog::TESTS;
use report::{Report, RunReport, VERSION};
use run::{Place, Run, run};
use shape::{Rule, Test, casting_name};
use tally::{Kind, Tally};

const EXAMPLES: &str = "\
Examples:
  cdm-litmus --list
  cdm-litmus --test SB+relaxed --instances 2000000
  cdm-litmus --memory device --json

Each test runs with each casting that --list shows: CD is a first thread on a CPU and a second
one on the device. The names of the shapes, and what the memory model says of each, are in
docs/reference/device.md. A run goes in batches of 4096 instances, and the number of instances is
rounded up to whole ones. A run that must show a weak outcome goes on until it does, for
20 times the instances and for a minute at least.

Exit status: 0 every run showed what the model says, 1 one did not, 2 could not run.";

/// Test what CPUs and the device see of each other's accesses, against the memory model
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES, after_help = EXAMPLES)]
struct Cli {
    /// Print the tests, with who runs their threads and what the model says, and run none
    #[arg(long)]
    list: bool,

    /// Run the test called NAME; repeatable [default: all]
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,

    /// Keep the locations in this memory; repeatable [default: all]
    #[arg(long, value_name = "PLACE", value_enum)]
    memory: Vec<Place>,

    /// Run NUM instances of each test with each casting in each memory
    #[arg(long, value_name = "NUM", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    instances: u64,

    /// Start the random pauses from NUM
    #[arg(long, value_name = "NUM", default_value_t = 1)]
    seed: u64,

    /// Use the device /dev/cdmNUM
    #[arg(long, value_name = "NUM", default_value_t = 0)]
    device: u32,

    /// Print the result as JSON (docs/reference/schemas/cdm-litmus.schema.json)
    #[arg(long)]
    json: bool,
}

/// A run that must show a weak outcome may have so many times the instances,
const PERSISTENCE: u64 = 20;
/// and so much time: on a busy host, threads that run at the same time are rare.
const PERSISTENCE_TIME: Duration = Duration::from_secs(60);
/// How often a run says how far it is.
const PROGRESS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("cdm-litmus: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Cli {
    /// The tests that were chosen.
    fn chosen(&self) -> Result<Vec<&'static Test>> {
        for name in &self.tests {
            if !TESTS.iter().any(|test| test.name == name) {
                bail!("there is no test '{name}': see --list for the names");
            }
        }
        let is_chosen =
            |test: &&Test| self.tests.is_empty() || self.tests.iter().any(|name| name == test.name);
        Ok(TESTS.iter().filter(is_chosen).collect())
    }

    /// Every run that was asked for, test by test.
    fn runs(&self) -> Result<Vec<Run>> {
        let places: Vec<Place> = Place::ALL
            .into_iter()
            .filter(|place| self.memory.is_empty() || self.memory.contains(place))
            .collect();
        let mut runs = Vec::new();
        for test in self.chosen()? {
            for &casting in test.castings {
                runs.extend(places.iter().map(|&place| Run {
                    test,
                    casting,
                    place,
                }));
            }
        }
        Ok(runs)
    }

    /// Whether every run was good.
    fn run(&self) -> Result<bool> {
        if self.list {
            for test in self.chosen()? {
                println!("{}", listed(test));
            }
            return Ok(true);
        }
        let runs = self.runs()?;
        let device = Device::open(self.device).with_context(|| {
            format!("cannot open /dev/cdm{}: is the module loaded?", self.device)
        })?;
        let query = device.query()?;
        let in_device = runs.iter().any(|run| run.place != Place::System);
        ensure!(
            query.capabilities & CDM_CAN_CPU_ACCESS != 0 || !in_device,
            "the CPU does not access device memory of type {} in place; choose --memory system",
            memory_type_name(query.memory_type)
        );
        let mut report = Report {
            version: VERSION,
            seed: self.seed,
            cpus: std::thread::available_parallelism()?.get(),
            runs: Vec::new(),
        };
        let mut random = Random::new(self.seed);
        for (number, &one) in runs.iter().enumerate() {
            let name = format!(
                "{} {} {}",
                one.test.name,
                casting_name(one.casting),
                one.place.name()
            );
            let mut progress = Progress::new(format!("{name} ({} of {})", number + 1, runs.len()));
            let started = Instant::now();
            let tally = run(one, &device, &mut random, &mut |tally| {
                progress.tell(tally, self.instances);
                is_enough(one.test, tally, self.instances, started.elapsed())
            })
            .with_context(|| name.clone())?;
            let milliseconds = started.elapsed().as_millis() as u64;
            let done = RunReport::new(one, &tally, milliseconds);
            if !self.json {
                println!("{}", done.sentence());
            }
            report.runs.push(done);
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Ok(report.runs.iter().all(RunReport::is_good))
    }
}

/// Whether a run has shown what it can: a forbidden outcome is enough, and so are the instances
/// that were asked for, unless a weak outcome is still missing.
fn is_enough(test: &Test, tally: &Tally, instances: u64, elapsed: Duration) -> bool {
    match test.rule == Rule::Expected && tally.of(Kind::Weak) == 0 {
        true => {
            tally.instances() >= instances.saturating_mul(PERSISTENCE)
                && elapsed >= PERSISTENCE_TIME
        }
        false => tally.instances() >= instances,
    }
}

/// A test of `--list`.
fn listed(test: &Test) -> String {
    let castings: Vec<String> = test
        .castings
        .iter()
        .map(|casting| casting_name(casting))
        .collect();
    let mut text = format!(
        "{}\n    castings {}; {} {}",
        test.name,
        castings.join(", "),
        test.shown_weak(),
        test.rule
    );
    for (number, thread) in test.threads.iter().enumerate() {
        text += &format!("\n    {number}: {thread}");
    }
    text
}

/// Says on standard error how far a run is, now and then.
struct Progress {
    name: String,
    told: Instant,
}

impl Progress {
    fn new(name: String) -> Self {
        Self {
            name,
            told: Instant::now(),
        }
    }

    fn tell(&mut self, tally: &Tally, instances: u64) {
        if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            let Self { name, .. } = self;
            eprintln!("progress {name}: {} of {instances}", tally.instances());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        let words = std::iter::once("cdm-litmus").chain(line.split_whitespace());
        Cli::try_parse_from(words).unwrap()
    }

    #[test]
    fn reference_pages_are_what_the_command_line_says() {
        cdm_cli_reference::check("cdm-litmus", Cli::command()).expect("fresh");
    }

    #[test]
    fn arguments_are_defined_consistently() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_test_runs_with_every_casting_in_every_memory_unless_told_otherwise() {
        let castings: usize = TESTS.iter().map(|test| test.castings.len()).sum();
        assert_eq!(parse("").runs().unwrap().len(), 3 * castings);
        let runs = parse("--test SB+relaxed --memory system --memory device")
            .runs()
            .unwrap();
        let names: Vec<String> = runs
            .iter()
            .map(|run| format!("{} {}", casting_name(run.casting), run.place.name()))
            .collect();
        assert_eq!(names, ["CD device", "CD system", "DD device", "DD system"]);
    }

    #[test]
    fn unknown_test_is_refused_by_name() {
        let error = parse("--test MP").runs().err().unwrap().to_string();
        assert!(
            error.contains("'MP'") && error.contains("--list"),
            "{error}"
        );
    }

    #[test]
    fn run_goes_on_until_the_weak_outcome_was_seen_but_not_for_ever() {
        let find = |name: &str| TESTS.iter().find(|test| test.name == name).unwrap();
        let test = find("SB+relaxed");
        let mut tally = Tally::new(test);
        (0..10).for_each(|_| tally.add(&[1, 1]));
        assert!(!is_enough(test, &tally, 10, Duration::ZERO));
        let mut seen = tally.clone();
        seen.add(&[0, 0]);
        assert!(is_enough(test, &seen, 10, Duration::ZERO));
        (10..10 * PERSISTENCE).for_each(|_| tally.add(&[1, 1]));
        assert!(!is_enough(test, &tally, 10, Duration::ZERO));
        assert!(is_enough(test, &tally, 10, PERSISTENCE_TIME));
        // What may be seen, but need not, is not waited for.
        let test = find("LB+relaxed");
        let mut tally = Tally::new(test);
        (0..10).for_each(|_| tally.add(&[0, 0]));
        assert!(is_enough(test, &tally, 10, Duration::ZERO));
    }

    #[test]
    fn list_tells_threads_castings_and_rule() {
        let text = listed(&TESTS[0]);
        for part in [
            "MP+release+acquire",
            "castings CD, DC, DD",
            "1:r0=1 1:r1=0 forbidden",
            "0: store x 1 relaxed; store y 1 release",
            "1: load y acquire; load x relaxed",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
