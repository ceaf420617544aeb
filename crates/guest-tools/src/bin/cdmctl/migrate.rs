// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl migrate`.

use anyhow::Context;
use cdm_guest_tools::device::{Direction, Migration};
use clap::ValueEnum;

use crate::report::{self, Failed, MigrateReport};
use crate::target::Target;
use crate::{Verdict, open};

const EXAMPLES: &str = "\
Examples:
  cdmctl migrate --pid 120 --all --to device
  cdmctl migrate --pid 120 --range 7f0000000000-7f0000400000 --to system

Pages that were never touched and pages of files do not move; they are counted
and are no failure. The exit status is 1 if a page did not move because there
was no room, or because it was busy.";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    target: Target,

    /// Move the pages there
    #[arg(long, value_enum)]
    to: To,

    /// Use device N, of /dev/cdmN
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    /// Into the device
    Device,
    /// Into ordinary memory
    System,
}

impl To {
    fn direction(self) -> Direction {
        match self {
            Self::Device => Direction::ToDevice,
            Self::System => Direction::ToSystem,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::System => "system",
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let device = open(args.device)?;
    let pid = args.target.pid;
    let mut total = Migration::default();
    for range in args.target.ranges()? {
        let migration = device
            .migrate(pid, range, args.to.direction())
            .with_context(|| format!("cannot move {range} of process {pid}"))?;
        total.add(&migration);
    }
    if args.json {
        report::print(&MigrateReport {
            version: report::VERSION,
            device: args.device,
            pid,
            to: args.to.name(),
            pages_asked: total.asked,
            pages_moved: total.moved,
            pages_there: total.there,
            failed: Failed::from(&total),
        })?;
    } else {
        println!("{}", sentence(&total));
    }
    Ok(verdict(&total))
}

/// A page that was never touched or cannot be in a device at all is no failure.
fn verdict(total: &Migration) -> Verdict {
    match total.no_memory + total.busy {
        0 => Verdict::Done,
        _ => Verdict::CheckFailed,
    }
}

/// The result in one line, without what is zero.
fn sentence(total: &Migration) -> String {
    let parts = [
        (total.there, "already there"),
        (total.not_present, "not present"),
        (total.no_memory, "without room"),
        (total.busy, "busy"),
        (total.unsupported, "of an unsupported kind"),
    ];
    let rest: Vec<_> = parts
        .iter()
        .filter(|(pages, _)| *pages > 0)
        .map(|(pages, what)| format!("{pages} {what}"))
        .collect();
    let head = format!("{} of {} pages moved", total.moved, total.asked);
    match rest.as_slice() {
        [] => head,
        rest => format!("{head}; {}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_names_each_reason_that_occurred() {
        let all = Migration {
            asked: 4,
            moved: 4,
            ..Default::default()
        };
        assert_eq!(sentence(&all), "4 of 4 pages moved");
        let part = Migration {
            asked: 9,
            moved: 4,
            there: 1,
            no_memory: 3,
            busy: 1,
            ..all
        };
        assert_eq!(
            sentence(&part),
            "4 of 9 pages moved; 1 already there, 3 without room, 1 busy"
        );
    }

    #[test]
    fn untouched_and_unsupported_pages_are_no_failed_check() {
        let total = Migration {
            not_present: 3,
            unsupported: 2,
            ..Default::default()
        };
        assert_eq!(verdict(&total), Verdict::Done);
        assert_eq!(
            verdict(&Migration {
                no_memory: 1,
                ..total
            }),
            Verdict::CheckFailed
        );
        assert_eq!(
            verdict(&Migration { busy: 1, ..total }),
            Verdict::CheckFailed
        );
    }
}
