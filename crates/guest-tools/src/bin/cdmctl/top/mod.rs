// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl top`: what the devices and the processes that use them do, again and again.

mod rates;
mod sample;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::Verdict;
use rates::Rates;
use sample::Sample;

const EXAMPLES: &str = "\
Examples:
  cdmctl top
  cdmctl top --once
  cdmctl top --json --interval 0.5 --count 20

On a terminal, q, Escape and Ctrl-C end it. Figures of the driver that only root may read are
shown as '-', and as null in JSON. The JSON documents, one a line, are described in
docs/reference/cdmctl.md.";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Look every SECONDS
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,

    /// End after NUM intervals
    #[arg(long, value_name = "NUM", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print one interval and end, also on a terminal
    #[arg(long, conflicts_with = "count")]
    once: bool,

    /// Show the NUM hottest processes
    #[arg(long, value_name = "NUM", default_value_t = 10)]
    processes: usize,

    /// Print JSON for programs, a line for each interval
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds >= 0.05);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("'{text}' is no time: write seconds, 0.05 or more, such as 0.5"))
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut watch = Watch {
        last: Sample::take()?,
        interval: args.interval,
        processes: args.processes,
        left: args.once.then_some(1).or(args.count),
    };
    let is_screen = !args.json && !args.once && io::stdout().is_terminal();
    if is_screen {
        screen::run(&mut watch)?;
        return Ok(Verdict::Done);
    }
    while !watch.is_over() {
        thread::sleep(watch.interval);
        let rates = watch.next()?;
        let text = match args.json {
            true => serde_json::to_string(&rates)? + "\n",
            false => rates.table(),
        };
        match io::stdout().write_all(text.as_bytes()) {
            // Whoever closed the pipe has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            result => result.context("cannot write to standard output")?,
        }
    }
    Ok(Verdict::Done)
}

/// One sample after the other.
struct Watch {
    last: Sample,
    interval: Duration,
    processes: usize,
    /// Intervals to come; none if there is no end.
    left: Option<u64>,
}

impl Watch {
    fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    /// When the next sample is due.
    fn due(&self) -> Instant {
        self.last.at + self.interval
    }

    /// What happened since the last sample.
    fn next(&mut self) -> anyhow::Result<Rates> {
        let sample = Sample::take()?;
        if sample.devices.is_empty() {
            bail!("no device: is the module loaded? try 'modprobe cdm', then 'dmesg'");
        }
        let rates = Rates::between(&self.last, &sample, self.processes);
        self.last = sample;
        self.left = self.left.map(|left| left - 1);
        Ok(rates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_is_a_number_of_seconds_that_leaves_time_to_breathe() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        for text in ["", "0", "-1", "nan", "inf", "0.01", "1s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
