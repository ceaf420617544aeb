// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl evict`.

use anyhow::Context;
use cdm_guest_tools::device::Evicted;
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::size;

use crate::report::{self, EvictReport, Failed};
use crate::{Verdict, account, open};

const EXAMPLES: &str = "\
Examples:
  cdmctl evict --all
  cdmctl evict --oldest 64M --device 1
  cdmctl evict --frames 3800000000-3800200000

Needs root, since the pages may be anybody's. The exit status is 1 if a page in
use did not leave.";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,

    /// Use device N, of /dev/cdmN
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Bring every page of the device back
    #[arg(long)]
    all: bool,

    /// Bring so many bytes back, the least recently migrated first
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    oldest: Option<u64>,

    /// Bring back what is at these guest-physical addresses, in hex
    #[arg(long, value_name = "START-END")]
    frames: Option<AddressRange>,
}

impl Which {
    /// What the driver is asked for, and the most pages that it shall move.
    fn request(&self) -> (Evicted, u64) {
        match (self.oldest, self.frames) {
            (Some(bytes), _) => (Evicted::Oldest, bytes.div_ceil(PAGE_BYTES as u64)),
            (None, Some(frames)) => (Evicted::Frames(frames.start(), frames.end()), 0),
            (None, None) => (Evicted::All, 0),
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let (which, pages_max) = args.which.request();
    let total = open(args.device)?
        .evict(which, pages_max)
        .with_context(|| {
            format!(
                "cannot evict pages of device {}: this needs root, and frames of that device",
                args.device
            )
        })?;
    if args.json {
        report::print(&EvictReport {
            version: report::VERSION,
            device: args.device,
            pages_asked: total.asked,
            pages_moved: total.moved,
            pages_large: total.large,
            failed: Failed::from(&total),
        })?;
    } else {
        print!("{}", account::table(&total));
    }
    Ok(account::verdict(&total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_counts_started_pages_and_frames_have_no_limit() {
        let which = Which {
            all: false,
            oldest: Some(4097),
            frames: None,
        };
        assert_eq!(which.request(), (Evicted::Oldest, 2));
        let which = Which {
            all: false,
            oldest: None,
            frames: Some(AddressRange::new(0x1000, 0x3000).unwrap()),
        };
        assert_eq!(which.request(), (Evicted::Frames(0x1000, 0x3000), 0));
        let which = Which {
            all: true,
            oldest: None,
            frames: None,
        };
        assert_eq!(which.request(), (Evicted::All, 0));
    }
}
