// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl hot`: lets a device use a buffer of this process again and again, and tells what moved
//! to it for that.

use std::time::{Duration, Instant};

use anyhow::Context;
use cdm_guest_tools::device::{Bound, Hot, Migration, Span};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::size;
use cdm_guest_tools::uapi::cdm_hot_counters;

use crate::report::{self, Failed, HotReport};
use crate::table::{self, figures};
use crate::{Verdict, account, open};

const EXAMPLES: &str = "\
Examples:
  cdmctl hot --size 16M
  cdmctl hot --size 4M --threshold 1 --pages-per-second 100 --burst 64
  cdmctl hot --size 64M --make-room --json

The exit status is 1 if the device computed another checksum than the CPU.";

/// Seed of the contents.
const PATTERN_SEED: u64 = 1;
/// The driver moves what was reported within milliseconds; more is left to the next run.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Use device N, of /dev/cdmN
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,

    /// Make the buffer SIZE long, in ordinary memory
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "1M")]
    size: u64,

    /// Have the device read it NUM times
    #[arg(long, value_name = "NUM", default_value_t = 20)]
    rounds: u32,

    /// Take 64 KiB for hot after NUM accesses of 64 bytes
    #[arg(long, value_name = "NUM", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..))]
    threshold: u32,

    /// Move at most NUM pages a second, in the long run
    #[arg(long, value_name = "NUM", default_value_t = 65_536)]
    pages_per_second: u32,

    /// Move at most NUM pages at once
    #[arg(long, value_name = "NUM", default_value_t = 65_536,
          value_parser = clap::value_parser!(u32).range(1..))]
    burst: u32,

    /// Evict the least recently migrated pages from a device that is full
    #[arg(long)]
    make_room: bool,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let number = args.device;
    let bound = open(number)?.bind().with_context(|| {
        format!("cannot bind this process to device {number}: see 'can' in 'cdmctl info'")
    })?;
    let memory = usize::try_from(args.size)
        .map_err(std::io::Error::other)
        .and_then(Mapping::anonymous)
        .with_context(|| format!("cannot map {}", size::Size(args.size)))?;
    memory.fill_pattern(PATTERN_SEED);
    let by_cpu = memory.crc32c(memory.bytes());
    bound
        .move_hot(Hot {
            threshold: args.threshold,
            pages_per_second: args.pages_per_second,
            pages_burst: args.burst,
            make_room: args.make_room,
        })
        .with_context(|| {
            format!("device {number} does not count its accesses: see 'can' in 'cdmctl info'")
        })?;
    let mut verdict = Verdict::Done;
    for _ in 0..args.rounds {
        let crc = bound
            .checksum(&memory, Span::all(&memory), 0)
            .with_context(|| format!("device {number} gave no checksum"))?;
        if crc != by_cpu {
            verdict = Verdict::CheckFailed;
        }
    }
    let counters = settled(&bound).context("cannot read what became of it")?;
    let failed = Migration::of_failed(&counters.failed);
    let residency = bound.residency(0, memory.range())?;
    let report = HotReport {
        version: report::VERSION,
        device: number,
        reports: counters.reports,
        reports_lost: counters.reports_lost,
        accesses: counters.accesses,
        pages_moved: counters.pages_moved,
        pages_there: counters.pages_there,
        pages_over_rate: counters.pages_over_rate,
        pages_recent: counters.pages_recent,
        pages_evicted: counters.pages_evicted,
        failed: Failed::from(&failed),
        pages_in_device: residency.this_device,
    };
    if args.json {
        report::print(&report)?;
    } else {
        print!("{}", tables(&report, memory.pages() as u64, &failed));
    }
    if verdict == Verdict::CheckFailed {
        eprintln!("cdmctl: the device computed another checksum than the CPU");
    }
    Ok(verdict)
}

/// What the device did, then what became of the buffer's pages.
fn tables(report: &HotReport, pages: u64, failed: &Migration) -> String {
    let columns = ["DEVICE", "REPORTS", "LOST", "ACCESSES"].map(figures);
    let row = [
        report.device.into(),
        report.reports,
        report.reports_lost,
        report.accesses,
    ];
    let row = row.map(|figure: u64| figure.to_string()).to_vec();
    let mut counts = vec![
        ("used", pages),
        ("in the device", report.pages_in_device),
        ("moved", report.pages_moved),
    ];
    let rest = [
        ("others evicted", report.pages_evicted),
        ("already there", report.pages_there),
        ("over the rate", report.pages_over_rate),
        ("just taken back by CPUs", report.pages_recent),
    ];
    let rest = rest.into_iter().chain(account::reasons(failed));
    counts.extend(rest.filter(account::is_any));
    table::text(&columns, &[row]) + "\n" + &account::pages(&counts)
}

/// The counters when the driver has done what was reported, or takes long.
fn settled(bound: &Bound) -> std::io::Result<cdm_hot_counters> {
    let deadline = Instant::now() + SETTLE;
    let mut last = bound.hot_counters()?;
    loop {
        std::thread::sleep(SETTLE / 10);
        let now = bound.hot_counters()?;
        if now.reports == last.reports || Instant::now() > deadline {
            return Ok(now);
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_tell_what_the_device_did_and_where_the_pages_are() {
        let failed = Migration {
            no_memory: 2,
            ..Default::default()
        };
        let report = HotReport {
            version: report::VERSION,
            device: 1,
            reports: 16,
            reports_lost: 0,
            accesses: 20_480,
            pages_moved: 10,
            pages_there: 0,
            pages_over_rate: 244,
            pages_recent: 0,
            pages_evicted: 0,
            failed: Failed::from(&failed),
            pages_in_device: 10,
        };
        assert_eq!(
            tables(&report, 256, &failed),
            "DEVICE  REPORTS  LOST  ACCESSES\n\
             \x20    1       16     0     20480\n\
             \n\
             WHAT           PAGES     SIZE\n\
             used             256    1 MiB\n\
             in the device     10   40 KiB\n\
             moved             10   40 KiB\n\
             over the rate    244  976 KiB\n\
             without room       2    8 KiB\n"
        );
    }
}
