// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which pages of which process a command is about.

use anyhow::{Context, bail};
use cdm_guest_tools::process;
use cdm_guest_tools::range::AddressRange;

/// Arguments that name a process and ranges of it.
#[derive(clap::Args)]
pub struct Target {
    /// Work on process PID
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,

    #[command(flatten)]
    which: Which,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Take this range, as /proc/PID/maps prints it; repeatable
    #[arg(long = "range", value_name = "START-END")]
    ranges: Vec<AddressRange>,

    /// Take every private writable mapping of the process
    #[arg(long)]
    all: bool,
}

impl Target {
    /// The ranges, lowest first where `--all` chose them.
    pub fn ranges(&self) -> anyhow::Result<Vec<AddressRange>> {
        if !self.which.all {
            return Ok(self.which.ranges.clone());
        }
        let vmas = process::maps(self.pid).with_context(|| {
            format!(
                "cannot read the mappings of process {}: does it run, as your user?",
                self.pid
            )
        })?;
        let ranges: Vec<_> = vmas
            .iter()
            .filter(|vma| vma.is_private_writable())
            .map(|vma| vma.range)
            .collect();
        if ranges.is_empty() {
            bail!(
                "process {} has no private writable mapping: is it a kernel thread?",
                self.pid
            );
        }
        Ok(ranges)
    }
}
