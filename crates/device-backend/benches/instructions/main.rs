// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How many instructions each part of a command's way through the device takes, by callgrind:
//! for comparisons that no other work on the machine touches.
//!
//! The program runs itself under callgrind, once for each path, and that counts only inside of
//! [`cdm_counted`]. Callgrind's processor has no AVX-512, so what chooses its instructions by the
//! processor (CRCs) is not counted; what is, is the same everywhere.

mod count;
mod paths;
#[path = "../rig/mod.rs"]
mod rig;

use clap::Parser;
use count::Count;
use paths::PATHS;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Least change that counts as one: addresses differ from run to run, and with them, by a little,
/// the way through the allocator and through tables that are hashed.
const MARGIN: f64 = 0.01;

/// Count the instructions of the device's hot paths.
#[derive(Debug, Parser)]
struct Arguments {
    /// Count only what has this in its name
    filter: Option<String>,
    /// Write the counts here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with counts of an earlier run; fails if one has grown by more than 1 %
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the program that is counted
    #[arg(long, hide = true, value_name = "NAME")]
    path: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(name) = &arguments.path {
        let path = PATHS.iter().find(|path| path.name == name);
        (path.expect("the program knows its paths").run)();
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("cannot count instructions: {message}");
            ExitCode::from(2)
        }
    }
}

/// Runs `work`, of which the instructions are counted. Callgrind knows it by its name.
#[inline(never)]
#[unsafe(no_mangle)]
fn cdm_counted(work: &mut dyn FnMut()) {
    work();
    // Not a tail call, which would leave the function before its work is done.
    std::hint::black_box(());
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let before = match &arguments.compare {
        Some(file) => Some(read(file)?),
        None => None,
    };
    let is_wanted = |name: &str| {
        let filter = arguments.filter.as_ref();
        filter.is_none_or(|part| name.contains(part))
    };
    let mut counts = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for path in PATHS.iter().filter(|path| is_wanted(path.name)) {
        let count = count::of(path)?;
        let old = before.as_ref().map(|counts| {
            let old = counts.iter().find(|old| old.name == count.name);
            old.map(|old| count.value / old.value)
        });
        let change = match old {
            None => String::new(),
            Some(None) => " new".to_owned(),
            Some(Some(ratio)) => format!(" {:+.2} %", (ratio - 1.0) * 100.0),
        };
        println!(
            "{:<45} {:>12.1} instructions{change}",
            count.name, count.value
        );
        if old.flatten().is_some_and(|ratio| ratio > 1.0 + MARGIN) {
            eprintln!("{} takes more instructions than before", count.name);
            code = ExitCode::FAILURE;
        }
        counts.push(count);
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&counts).expect("counts are plain");
        fs::write(file, text + "\n").map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(code)
}

fn read(file: &Path) -> Result<Vec<Count>, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string());
    let counts = text.and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()));
    counts.map_err(|error| format!("{}: {error}", file.display()))
}
