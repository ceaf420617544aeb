// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device costs the host.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context as _, Result, ensure};

use super::Session;

/// Bytes of the backend's device memory that the host has given pages for.
fn touched_bytes(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/fd");
    let largest = fs::read_dir(&folder)
        .with_context(|| format!("cannot list {folder}"))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let target = fs::read_link(&path).ok()?;
            // Guest memory is another memfd, which QEMU shares with the backend.
            (target.to_str()?.contains("memfd:cdm")).then(|| fs::metadata(&path).ok())?
        })
        .max_by_key(MetadataExt::size);
    let memory = largest.context("the backend holds no device memory (a memfd called cdm...)")?;
    /// What stat counts in, whatever the file system's block size is.
    const STAT_BLOCK_BYTES: u64 = 512;
    Ok(memory.blocks() * STAT_BLOCK_BYTES)
}

/// Anonymous and file memory of the backend itself.
fn own_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = |field: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(field)?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse::<u64>()
                    .ok()
            })
            .with_context(|| format!("{path} has no {field}"))
    };
    Ok((kib("RssAnon:")? + kib("RssFile:")?) << 10)
}

/// The backend's memory is what was touched, not what the device has.
pub fn grows_with_touched_pages(session: &mut Session) -> Result<()> {
    /// A few pages that the driver's tables and the allocator share a huge page with.
    const SLACK: u64 = 8 << 20;
    const FILLED: u64 = 64 << 20;
    let whole = session.spec().device_memory.0;
    let pid = session.vm()?.backends()[0].pid();
    let info: serde_json::Value = serde_json::from_str(&session.text("cdmctl info --json")?)?;
    let metadata = info["devices"][0]["bytes_metadata"]
        .as_u64()
        .context("no bytes_metadata")?;
    let before = touched_bytes(pid)?;
    ensure!(
        before <= metadata + SLACK,
        "{before} bytes of {whole} are touched before a page moved; struct pages are {metadata}"
    );
    session.text(&format!("cdmctl run checksum --size {FILLED}"))?;
    let grown = touched_bytes(pid)? - before;
    ensure!(
        (FILLED..=FILLED + SLACK).contains(&grown),
        "{FILLED} bytes were moved in, and the device memory grew by {grown}"
    );
    let own = own_bytes(pid)?;
    ensure!(own < 64 << 20, "the backend itself takes {own} bytes");
    Ok(())
}
