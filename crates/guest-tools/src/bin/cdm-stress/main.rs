// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Stress: named scenarios, each with a property that must hold, random sequences that a seed
//! repeats, and numbers below which it has tested nothing.

mod ballast;
mod contents;
mod counts;
mod crew;
mod deck;
mod director;
mod directory;
mod hand;
mod own_memory;
mod patience;
mod pin;
mod runner;
mod scenario;
mod scenarios;
mod setting;
mod share;
mod stage;
mod survivor;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::Device;
use clap::{Args, Parser, Subcommand};

use scenario::{Listed, Machine, Scenario};
use stage::Length;

const EXAMPLES: &str = "\
Examples:
  cdm-stress list
  cdm-stress run moves --seed 7 --seconds 60
  cdm-stress run mixed::everything --rounds 5000
  cdm-stress run --all-at-once --seconds 60

Exit status: 0 all held or were skipped, 1 something did not hold, or too little was done,
2 could not run.";

/// Stress memory in the device and out of it, and check every byte
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the scenarios, each with the property that must hold
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run scenarios one after the other, or all at once; results are KTAP on standard output
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// Run the scenario or the family called NAME [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Run them at the same time; those that take away what others need are skipped
    #[arg(long)]
    all_at_once: bool,

    /// Keep the devices full beside each of them
    #[arg(long)]
    scarce: bool,

    /// Start the random sequences from NUM
    #[arg(long, value_name = "NUM", default_value_t = 1)]
    seed: u64,

    /// Run each for NUM seconds, and for its least number of operations
    #[arg(long, value_name = "NUM", required_unless_present = "rounds")]
    seconds: Option<u64>,

    /// Run each for NUM operations, and for its least number of them
    #[arg(long, value_name = "NUM", conflicts_with = "seconds")]
    rounds: Option<u64>,

    /// Kill one that has counted nothing for NUM seconds, or has not ended so long after all is done
    #[arg(long, value_name = "NUM", default_value_t = 900)]
    limit: u64,

    /// Say every NUM seconds how far it is
    #[arg(long, value_name = "NUM", default_value_t = 10)]
    report_every: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::List { json } => list(json).map(|()| true),
        Command::Run(args) => run(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("cdm-stress: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn list(json: bool) -> Result<()> {
    let listed: Vec<Listed> = scenarios::all().map(Listed::from).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&listed)?);
    } else {
        for scenario in listed {
            println!("{}\n    {}", scenario.name, scenario.property);
        }
    }
    Ok(())
}

fn run(args: &Run) -> Result<bool> {
    let chosen = choose(&args.names)?;
    let length = match (args.seconds, args.rounds) {
        (Some(seconds), _) => Length::Seconds(seconds),
        (None, rounds) => Length::Rounds(rounds.unwrap_or(0)),
    };
    let order = runner::Order {
        seed: args.seed,
        length,
        scarce: args.scarce,
        together: args.all_at_once,
        report_every: Duration::from_secs(args.report_every),
        limit: Duration::from_secs(args.limit),
    };
    runner::run(io::stdout(), &chosen, machine()?, &order)
}

/// Those that are called by name or by family; all if nobody is called.
fn choose(names: &[String]) -> Result<Vec<&'static Scenario>> {
    let every = || scenarios::all().chain(scenarios::planted());
    for name in names {
        ensure!(
            every().any(|scenario| is_called(scenario, name))
                || scenarios::driven().any(|scenario| scenario.name == name),
            "there is no scenario and no family '{name}': see cdm-stress list"
        );
    }
    if names.is_empty() {
        return Ok(scenarios::all().collect());
    }
    let called = every().filter(|scenario| names.iter().any(|name| is_called(scenario, name)));
    // Without the host's part a whole family of them would be called for nothing.
    let driven =
        scenarios::driven().filter(|scenario| names.iter().any(|name| name == scenario.name));
    Ok(called.chain(driven).collect())
}

fn is_called(scenario: &Scenario, name: &str) -> bool {
    scenario.name == name || scenario.family() == name
}

/// What there is to run on.
fn machine() -> Result<Machine> {
    let numbers = Device::numbers()?;
    let first = numbers
        .first()
        .context("there is no /dev/cdm*: is the module loaded?")?;
    let query = Device::open(*first)
        .with_context(|| format!("device {first}"))?
        .query()?;
    Ok(Machine {
        capabilities: query.capabilities,
        devices: numbers.len(),
        memory_type: query.memory_type,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parses(line: &str) -> bool {
        let words = std::iter::once("cdm-stress").chain(line.split_whitespace());
        Cli::try_parse_from(words).is_ok()
    }

    #[test]
    fn reference_pages_are_what_the_command_line_says() {
        cdm_cli_reference::check("cdm-stress", Cli::command()).expect("fresh");
    }

    #[test]
    fn arguments_are_defined_consistently() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_end_must_be_given() {
        assert!(!parses("run"));
        assert!(parses("run --seconds 1"));
        assert!(parses("run moves mixed::everything --rounds 1"));
        assert!(!parses("run --seconds 1 --rounds 1"));
    }

    #[test]
    fn names_and_families_are_found_and_others_refused() {
        let all = choose(&[]).unwrap();
        let family = all[0].family();
        let of_family = choose(&[family.to_owned()]).unwrap();
        assert!(of_family.iter().all(|found| found.family() == family));
        let one = choose(&[all[0].name.to_owned()]).unwrap();
        assert_eq!(one.len(), 1);
        assert!(choose(&["nothing".to_owned()]).is_err());
        assert!(all.iter().all(|scenario| scenario.family() != "planted"));
        assert!(!choose(&["planted".to_owned()]).unwrap().is_empty());
    }
}
