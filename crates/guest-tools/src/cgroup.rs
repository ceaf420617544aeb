// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A control group of one's own (Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::wait_until_nothing;

const ROOT: &str = "/sys/fs/cgroup";
/// How long the kernel may take to uncharge what was freed, and to say so: small changes of its
/// statistics are added up every two seconds, by a worker that a busy machine keeps waiting, and a
/// removed group goes after several grace periods of RCU. What is lost does not come back, however
/// long it is waited for: the limit is that of the slowest kernel on the busiest machine.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// Groups that this process made. Each has a name of its own, as one that something still holds
/// keeps its name.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A group; removed on drop.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new group whose memory is counted.
    pub fn new() -> Result<Self> {
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory")
            .context("the kernel counts no memory of groups")?;
        let name = format!(
            "cdm-test-{}-{}",
            std::process::id(),
            MADE.fetch_add(1, Relaxed)
        );
        let path = PathBuf::from(ROOT).join(name);
        fs::create_dir(&path).context("cannot make a group")?;
        Ok(Self { path })
    }

    /// Takes the calling process in.
    pub fn enter(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Writes to a file of the group.
    pub fn write(&self, name: &str, value: &str) -> Result<()> {
        fs::write(self.path.join(name), value).with_context(|| format!("{name} = {value}"))
    }

    fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.path.join(name)).with_context(|| format!("cannot read {name}"))
    }

    /// Bytes that are charged to it.
    pub fn current(&self) -> Result<u64> {
        let text = self.read("memory.current")?;
        text.trim().parse().with_context(|| format!("'{text}'"))
    }

    /// A figure of a file that has one a line, such as `oom_kill` of memory.events.
    pub fn figure(&self, file: &str, name: &str) -> Result<u64> {
        let text = self.read(file)?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.with_context(|| format!("{file} has no {name}"))?;
        value.parse().with_context(|| format!("{name} {value}"))
    }

    /// Whether the kernel has groups that count memory; one of the user's own may not.
    pub fn is_possible() -> bool {
        fs::read_to_string(format!("{ROOT}/cgroup.controllers"))
            .is_ok_and(|names| names.split_ascii_whitespace().any(|name| name == "memory"))
    }

    /// Waits until no page of a process or of a file is charged to it any more.
    pub fn expect_no_pages(&self) -> Result<()> {
        wait_until_nothing(SETTLE_LIMIT, || {
            let mut charged = Vec::new();
            for kind in ["anon", "file", "shmem"] {
                charged.push((kind, self.figure("memory.stat", kind)?));
            }
            charged.retain(|(_, bytes)| *bytes > 0);
            if charged.is_empty() {
                return Ok(None);
            }
            // Makes every CPU hand in its batches of pages, which it frees late.
            fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop caches")?;
            Ok(Some(format!(
                "the control group is still charged with {charged:?} bytes"
            )))
        })
    }

    /// Waits until at most `bytes` are charged.
    pub fn expect_at_most(&self, bytes: u64) -> Result<()> {
        wait_until_nothing(SETTLE_LIMIT, || {
            let current = self.current()?;
            let is_more = current > bytes;
            Ok(is_more.then(|| format!("{current} bytes are charged, not {bytes} at most")))
        })
    }

    /// Removes it, which shows that it is empty, and waits until nothing holds its remains.
    pub fn remove(self) -> Result<()> {
        wait_until_nothing(SETTLE_LIMIT, || {
            let removed = fs::remove_dir(&self.path);
            Ok(removed
                .err()
                .map(|error| format!("cannot remove the group: {error}")))
        })?;
        // Pages that are still charged to the group keep it alive.
        wait_until_nothing(SETTLE_LIMIT, || {
            // Per-CPU stocks of charges go when somebody needs memory, or is told to.
            fs::write("/proc/sys/vm/drop_caches", "2").context("cannot call the shrinkers")?;
            let text = fs::read_to_string(format!("{ROOT}/cgroup.stat")).context("cgroup.stat")?;
            let dying = text
                .lines()
                .find_map(|line| line.strip_prefix("nr_dying_descendants "))
                .context("cgroup.stat has no nr_dying_descendants")?;
            Ok((dying != "0").then(|| format!("{dying} removed groups are still held")))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails if it was removed before, or has a process that the runner will end.
        let _ = fs::remove_dir(&self.path);
    }
}
