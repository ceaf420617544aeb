// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a backend takes of the host's memory.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context as _, Result};

/// What stat counts in, whatever the file system's block size is.
const STAT_BLOCK_BYTES: u64 = 512;

/// Bytes of the device memory of the backend with this process number that the host has given
/// pages for.
pub fn touched_bytes(pid: u32) -> Result<u64> {
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
    Ok(memory.blocks() * STAT_BLOCK_BYTES)
}

/// Anonymous and file memory of that process itself, in bytes.
pub fn own_bytes(pid: u32) -> Result<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::Write;

    #[test]
    fn device_memory_counts_as_far_as_it_was_touched() {
        let pid = std::process::id();
        let mut file =
            fs::File::from(memfd_create("cdm-test", MFdFlags::empty()).expect("a memfd"));
        file.set_len(64 << 20).expect("long enough");
        assert_eq!(touched_bytes(pid).expect("there"), 0);
        file.write_all(&[1; 3 * 4096]).expect("written");
        assert_eq!(touched_bytes(pid).expect("there"), 3 * 4096);
        assert!(own_bytes(pid).expect("this process") > 0);
    }

    #[test]
    fn process_that_is_no_backend_is_refused() {
        assert!(touched_bytes(1).is_err());
        assert!(own_bytes(u32::MAX).is_err());
    }
}
