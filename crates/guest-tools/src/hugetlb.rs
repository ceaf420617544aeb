// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Huge pages that the kernel keeps for hugetlbfs.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Pages kept for hugetlbfs; none again on drop.
pub struct Reserved;

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

impl Reserved {
    /// Keeps so many from now on.
    pub fn new(pages: u64) -> Result<Self> {
        fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")?;
        fs::write(RESERVED, pages.to_string()).context("no huge pages to keep")?;
        let kept = fs::read_to_string(RESERVED)?;
        ensure!(
            kept.trim() == pages.to_string(),
            "only {kept} pages were kept"
        );
        Ok(Self)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(RESERVED, "0");
    }
}
