// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm device`: looks at a device that runs, and has it fail on request.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use cdm_control_protocol::{Ask, Fault, Response};
use clap::{Args, Subcommand};

use crate::vm::{Control, RunDir};

/// Arguments of `cdm device`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just device state
  just device --device 1 metrics
  just device fault delay,ms=200,nth=10
  just device fault corrupt,every=100,count=0,seed=7
  just device clear

docs/reference/control-socket.md has all faults, and what a driver should make of each.")]
pub struct DeviceArgs {
    /// The backend's control socket [default: that of the one machine that runs]
    #[arg(long, value_name = "PATH", conflicts_with = "device")]
    control: Option<PathBuf>,

    /// Which device of the machine
    #[arg(long, value_name = "NUM", default_value_t = 0)]
    device: u8,

    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the state of the device and its queues, as JSON
    State,
    /// Print all counters, in Prometheus' text format
    Metrics,
    /// Print the faults that are set, one a line with its number and hits
    Faults,
    /// Set a fault, such as drop,queue=2,nth=5 or hang,opcode=UNBIND; prints its number
    Fault {
        /// kind,field=value,...
        #[arg(value_name = "SPEC")]
        fault: Fault,
    },
    /// Take a fault away, or all of them
    Clear {
        /// Number of the fault
        #[arg(value_name = "NUM")]
        id: Option<u64>,
    },
}

/// `cdm device`.
pub fn run(args: DeviceArgs) -> Result<ExitCode> {
    let path = match args.control {
        Some(path) => path,
        None => only_machine(args.device)?,
    };
    let control = Control::at(path);
    let text = match args.what {
        What::State => text_of(&control.ask(Ask::State)?, |answer| {
            serde_json::to_string_pretty(answer.state.as_ref()?).ok()
        })?,
        What::Metrics => text_of(&control.ask(Ask::Metrics)?, |answer| answer.metrics.clone())?,
        What::Faults => text_of(&control.ask(Ask::Faults)?, |answer| {
            let faults = answer.faults.as_ref()?.iter();
            let lines = faults.map(|one| format!("{} {} hits={}\n", one.id, one.fault, one.hits));
            Some(lines.collect())
        })?,
        What::Fault { fault } => text_of(&control.ask(Ask::SetFault(fault))?, |answer| {
            Some(answer.fault?.to_string())
        })?,
        What::Clear { id } => {
            let ask = id.map_or(Ask::ClearFaults, Ask::ClearFault);
            control.ask(ask)?;
            String::new()
        }
    };
    print(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn text_of(response: &Response, text: impl Fn(&Response) -> Option<String>) -> Result<String> {
    text(response).context("the backend's answer has not what was asked for")
}

fn print(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    match writeln!(io::stdout(), "{text}") {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

fn only_machine(device: u8) -> Result<PathBuf> {
    let found: Vec<PathBuf> = RunDir::living()
        .iter()
        .map(|run| Control::path_in(run, device))
        .filter(|path| path.exists())
        .collect();
    match &found[..] {
        [path] => Ok(path.clone()),
        [] => bail!(
            "no machine with a device {device} runs; start one with 'just run-vm', or name a socket with --control"
        ),
        paths => {
            let list: Vec<_> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            bail!(
                "more than one machine runs; name the socket with --control: {}",
                list.join(", ")
            )
        }
    }
}
