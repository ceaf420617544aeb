// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl residency`.

use anyhow::Context;
use cdm_guest_tools::device::Residency;
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::size::Size;

use crate::report::{self, RangeResidency, ResidencyReport};
use crate::table::{self, figures, words};
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
    let mut sum = Residency::default();
    for (_, residency) in rows {
        sum.absent += residency.absent;
        sum.system += residency.system;
        sum.this_device += residency.this_device;
        sum.other_device += residency.other_device;
    }
    let cells = |range: String, residency: &Residency| {
        let size = |pages: u64| Size(pages * PAGE_BYTES as u64).to_string();
        vec![
            range,
            size(residency.this_device),
            size(residency.system),
            size(residency.absent),
            size(residency.other_device),
        ]
    };
    let ranges = rows
        .iter()
        .map(|(range, residency)| cells(range.to_string(), residency));
    let rows: Vec<_> = ranges.chain([cells("all".into(), &sum)]).collect();
    let this = format!("DEVICE {device}");
    let columns = [
        words("RANGE"),
        figures(&this),
        figures("SYSTEM"),
        figures("ABSENT"),
        figures("OTHER DEVICES"),
    ];
    table::text(&columns, &rows)
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
        assert_eq!(
            table(0, &[(range, residency), (range, residency)]),
            "RANGE                          DEVICE 0  SYSTEM  ABSENT  OTHER DEVICES\n\
             0x7f0000000000-0x7f0000004000    12 KiB   4 KiB     0 B            0 B\n\
             0x7f0000000000-0x7f0000004000    12 KiB   4 KiB     0 B            0 B\n\
             all                              24 KiB   8 KiB     0 B            0 B\n"
        );
    }
}
