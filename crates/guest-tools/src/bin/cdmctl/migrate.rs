// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl migrate`.

use anyhow::Context;
use cdm_guest_tools::device::{Direction, Migration, Options};
use clap::ValueEnum;

use crate::report::{self, Failed, MigrateReport};
use crate::target::Target;
use crate::{Verdict, account, open};

const EXAMPLES: &str = "\
Examples:
  cdmctl migrate --pid 120 --all --to device
  cdmctl migrate --pid 120 --range 7f0000000000-7f0000400000 --to system
  cdmctl migrate --pid 120 --all --to device --populate --make-room

Pages that were never touched and pages of a kind that cannot move are counted
and are no failure. The exit status is 1 if a page that can move did not: there
was no room, or it was in use by somebody else.";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    target: Target,

    /// Move the pages there
    #[arg(long, value_enum)]
    to: To,

    /// Fault in what is not present first
    #[arg(long)]
    populate: bool,

    /// Evict the least recently migrated pages if the device is full
    #[arg(long)]
    make_room: bool,

    /// Move 2 MiB folios as 4 KiB pages
    #[arg(long)]
    small: bool,

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
    let options = Options {
        populate: args.populate,
        make_room: args.make_room,
        small: args.small,
    };
    let mut total = Migration::default();
    for range in args.target.ranges()? {
        let migration = device
            .migrate_with(pid, range, args.to.direction(), options)
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
            pages_large: total.large,
            pages_evicted: total.evicted,
            failed: Failed::from(&total),
        })?;
    } else {
        print!("{}", account::table(&total));
    }
    Ok(account::verdict(&total))
}
