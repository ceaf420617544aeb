// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device costs the host.

use anyhow::{Context as _, Result, ensure};

use super::Session;
use crate::vm::footprint::{own_bytes, touched_bytes};

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
