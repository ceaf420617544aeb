// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the kernel says while a test has it do what it reports loudly.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};

/// Levels of messages; the first number is what the console shows.
const CONSOLE: &str = "/proc/sys/kernel/printk";

/// Keeps what the kernel tells about a process that it ends for want of memory, back traces
/// included, off the console, where it would be taken for a fault. Faults are looked for here.
pub struct Quiet {
    levels: String,
    log: fs::File,
}

impl Quiet {
    /// From now on.
    pub fn start() -> Result<Self> {
        let mut log = fs::File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("cannot open /dev/kmsg")?;
        Self::drain(&mut log);
        let levels = fs::read_to_string(CONSOLE)?;
        // Errors and worse.
        fs::write(CONSOLE, "4")?;
        Ok(Self { levels, log })
    }

    fn drain(log: &mut fs::File) -> Vec<String> {
        let mut records = Vec::new();
        let mut record = [0; 8192];
        while let Ok(bytes) = log.read(&mut record) {
            records.push(String::from_utf8_lossy(&record[..bytes]).into_owned());
        }
        records
    }

    /// What the kernel said since the last look, which must not be about a fault of its own.
    pub fn look(&mut self) -> Result<Vec<String>> {
        let said = Self::drain(&mut self.log);
        for record in &said {
            let is_fault = ["WARNING:", "BUG:", "Bad ", "kernel BUG", "Oops"]
                .iter()
                .any(|word| record.contains(word));
            ensure!(!is_fault, "the kernel said: {record}");
        }
        Ok(said)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = fs::write(CONSOLE, &self.levels);
    }
}
