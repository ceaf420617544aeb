// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lines in the kernel log, in order with the kernel's own.

use std::fs::OpenOptions;
use std::io::Write;

/// Writes one line at the level "notice". A log that cannot be written is no
/// reason for process 1 to do anything.
pub fn log(line: &str) {
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record.
        let _ = kmsg.write_all(format!("<5>cdm-init: {line}\n").as_bytes());
    }
}
