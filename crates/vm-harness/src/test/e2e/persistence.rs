// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device memory outlives a guest.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, ensure};

use super::Session;
use crate::vm::Backend;

/// What the first guest leaves in the device, 8 bytes again and again.
const LEFT: u64 = 0x5ca1_ab1e_0ddb_a115;
const LEFT_BYTES: usize = 4 << 20;

/// How much of the device memory holds what the first guest left.
fn left_over(backend: &Backend) -> Result<usize> {
    let folder = format!("/proc/{}/fd", backend.pid());
    let path = std::fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let target = std::fs::read_link(path).unwrap_or_default();
            target.to_string_lossy().contains("memfd:cdm")
        })
        .context("the backend holds no device memory (a memfd called cdm...)")?;
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut found = 0;
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let bytes = file.read_at(&mut chunk, offset)?;
        if bytes == 0 {
            return Ok(found);
        }
        let words = chunk[..bytes].as_chunks::<8>().0;
        found += words
            .iter()
            .filter(|word| **word == LEFT.to_le_bytes())
            .count()
            * 8;
        offset += bytes as u64;
    }
}

/// A second guest, in another QEMU, on the backend of the first one.
pub fn second_guest(session: &mut Session) -> Result<()> {
    session.text(&format!(
        "cdmctl run fill --size {LEFT_BYTES} --value {LEFT:#x}"
    ))?;
    session.judge_log()?;
    let pid = session.vm()?.backends()[0].pid();
    let mut left = 0;
    session.next_guest(|backends| {
        left = left_over(&backends[0])?;
        Ok(())
    })?;
    ensure!(
        left >= LEFT_BYTES,
        "only {left} of {LEFT_BYTES} bytes outlive the guest"
    );
    let backend = &session.vm()?.backends()[0];
    ensure!(backend.pid() == pid, "it is another backend");
    let again = left_over(backend)?;
    // The driver lays its struct pages over the start of the memory, and over nothing else.
    ensure!(
        again >= LEFT_BYTES,
        "the second guest finds {again} of {LEFT_BYTES} bytes"
    );
    session.text("cdmctl run checksum --size 16M")?;
    session
        .text("cdm-guest-tests --exact migration::what_the_device_wrote_survives_the_way_back")?;
    Ok(())
}
