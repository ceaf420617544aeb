// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What of a ceiling the device reaches. Device and ceiling are measured in turn, round after
//! round, so whatever else the machine does happens to both; what counts is their ratio in each
//! round.

mod bandwidth;
mod figure;
#[path = "../rig/mod.rs"]
mod rig;
mod round_trip;

use clap::Parser;
use figure::Figure;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure what of a ceiling the device reaches.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// Measure only what has this in its name
    filter: Option<String>,
    /// Rounds of each measurement
    #[arg(long, value_name = "NUM", default_value_t = 9,
          value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Write the figures here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// Answer the round trips of another process of this program
    #[arg(long, hide = true)]
    echo: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.echo {
        round_trip::echo();
        return ExitCode::SUCCESS;
    }
    let mut figures = Vec::new();
    let mut note = |figure: Figure| {
        println!("{figure}");
        figures.push(figure);
    };
    bandwidth::measure(&arguments, &mut note);
    round_trip::measure(&arguments, &mut note);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures).expect("figures are plain");
        if let Err(error) = fs::write(path, text + "\n") {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

impl Arguments {
    /// Whether a measurement is asked for.
    pub fn want(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|part| name.contains(part))
    }
}
