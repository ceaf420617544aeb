// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest's console with the kernel's back traces decoded: each address with the file and line that
//! it comes from, by the kernel's own script.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::kernel_log::breaches;
use crate::build::{self, Kernel};
use crate::command::run_logged_within;
use crate::context::Context;

/// The decoded console, beside the console.
const DECODED: &str = "console.decoded.log";
/// The kernel's script, in its build tree.
const SCRIPT: &str = "source/scripts/decode_stacktrace.sh";
/// Reading the debug information of a kernel takes some seconds for each object that is named.
const LIMIT: Duration = Duration::from_secs(300);

/// Decodes the console in a folder, if the kernel has lines to tell and the console a report.
pub fn decode(ctx: &Context, kernel: &Kernel, folder: &Path) -> Result<()> {
    let console = folder.join("console.log");
    let log = fs::read(&console).unwrap_or_default();
    if breaches(&String::from_utf8_lossy(&log)).is_empty() || !has_lines(kernel)? {
        return Ok(());
    }
    let module = build::module(ctx, kernel)?;
    let modules = module.parent().context("the module is in a folder")?;
    let mut command = Command::new("bash");
    command
        // The script reads its standard input.
        .args(["-c", r#"exec "$@" < "$0""#])
        .arg(&console)
        .arg(kernel.objects.join(SCRIPT))
        .arg(kernel.objects.join("vmlinux"))
        .arg(kernel.objects.canonicalize()?)
        .arg(modules)
        .env("LLVM", "1");
    run_logged_within(
        LIMIT,
        &mut command,
        "decoding the guest's console",
        &folder.join(DECODED),
        |_| {},
    )
}

/// Whether a kernel was built with debug information.
fn has_lines(kernel: &Kernel) -> Result<bool> {
    let config = fs::read_to_string(&kernel.config);
    // What unit tests speak of was never built.
    let config = config.unwrap_or_default();
    Ok(config.lines().any(|line| line == "CONFIG_DEBUG_INFO=y"))
}
