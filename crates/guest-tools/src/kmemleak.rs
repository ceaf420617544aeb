// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Kernel memory that nobody points to any more (Documentation/dev-tools/kmemleak.rst).

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const FILE: &str = "/sys/kernel/debug/kmemleak";
/// The kernel says nothing about what is younger than 5 s.
const AGE: Duration = Duration::from_secs(6);
/// What is in the back trace of an allocation that is the driver's, or made for it.
const OURS: &[&str] = &["[cdm]", "memremap_pages", "migrate_device", "migrate_vma"];

/// Expects that neither the driver nor the migration of pages has lost memory, if the kernel can
/// tell: it looks for that in the `debug` build alone.
pub fn expect_nothing_lost() -> Result<()> {
    if !Path::new(FILE).exists() {
        return Ok(());
    }
    let scan = || fs::write(FILE, "scan").context("kmemleak has given up, see the log");
    scan()?;
    thread::sleep(AGE);
    // What moved while the first scan was under way is found by the second.
    scan()?;
    let report = fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    let lost = ours(&report);
    ensure!(lost.is_empty(), "nobody points to {lost:#?}");
    Ok(())
}

/// The objects of a report that concern us.
fn ours(report: &str) -> Vec<&str> {
    report
        .split("unreferenced object ")
        .filter(|object| OURS.iter().any(|name| object.contains(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_others_are_left_out() {
        let report = "\
unreferenced object 0xffff888003f8b000 (size 2048):
  backtrace (crc 0):
    kmalloc_noprof+0x1/0x2
    memremap_pages+0x11/0x22
unreferenced object 0xffff888003f8c000 (size 64):
  backtrace (crc 0):
    acpi_init+0x1/0x2
";
        let found = ours(report);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("0xffff888003f8b000"));
        assert!(ours("").is_empty());
    }
}
