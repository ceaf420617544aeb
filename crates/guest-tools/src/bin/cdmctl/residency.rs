// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl residency`.

use std::fmt::Write;

use anyhow::Context;
use cdm_guest_tools::device::Residency;
use cdm_guest_tools::range::AddressRange;

use crate::report::{self, RangeResidency, ResidencyReport};
use crate::target::Target;
use crate::{Verdict, open};

const EXAMPLES: &str = "\
Examples:
  cdmctl residency --pid 120 --all
  cdmctl residency --pid 120 --range 7f0000000000-7f0000400000 --json";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    target: Target,

    /// Count as seen from device N, of /dev/cdmN
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let device = open(args.device)?;
    let pid = args.target.pid;
    let mut rows = Vec::new();
    for range in args.target.ranges()? {
        let residency = device
            .residency(pid, range)
            .with_context(|| format!("cannot look at {range} of process {pid}"))?;
        rows.push((range, residency));
    }
    if args.json {
        let ranges = rows
            .iter()
            .map(|(range, row)| RangeResidency::new(*range, row))
            .collect();
        let (version, device) = (report::VERSION, args.device);
        report::print(&ResidencyReport {
            version,
            device,
            pid,
            ranges,
        })?;
    } else {
        print!("{}", table(args.device, &rows));
    }
    Ok(Verdict::Done)
}

fn table(device: u32, rows: &[(AddressRange, Residency)]) -> String {
    let mut text = String::new();
    let mut row = |range: &str, columns: [&str; 4]| {
        let [a, b, c, d] = columns;
        let _ = writeln!(text, "{range:<30} {a:>12} {b:>12} {c:>12} {d:>13}");
    };
    let this = format!("device {device}");
    row("PAGES OF", [&this, "system", "absent", "other device"]);
    let mut sum = Residency::default();
    let mut add = |residency: &Residency| {
        sum.absent += residency.absent;
        sum.system += residency.system;
        sum.this_device += residency.this_device;
        sum.other_device += residency.other_device;
    };
    let columns = |residency: &Residency| {
        [
            residency.this_device,
            residency.system,
            residency.absent,
            residency.other_device,
        ]
        .map(|pages| pages.to_string())
    };
    for (range, residency) in rows {
        add(residency);
        row(
            &range.to_string(),
            columns(residency).each_ref().map(String::as_str),
        );
    }
    row("all", columns(&sum).each_ref().map(String::as_str));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_row_is_the_sum() {
        let range = AddressRange::new(0x7f00_0000_0000, 0x7f00_0000_4000).unwrap();
        let residency = Residency {
            system: 1,
            this_device: 3,
            ..Default::default()
        };
        let text = table(0, &[(range, residency), (range, residency)]);
        let last: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["all", "6", "2", "0", "0"]);
        assert!(
            text.lines()
                .all(|line| line.len() == text.lines().next().unwrap().len()),
            "{text}"
        );
    }
}
