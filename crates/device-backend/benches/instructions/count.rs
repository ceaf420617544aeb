// SPDX-License-Identifier: Apache-2.0 OR MIT

//! This program under callgrind, for one path.

use super::paths::Path;
use serde::{Deserialize, Serialize};
use std::env;
use std::process::{Command, Stdio};

/// What a path takes.
#[derive(Debug, Deserialize, Serialize)]
pub struct Count {
    /// Of the path.
    pub name: String,
    /// Instructions of one operation, on the average.
    pub value: f64,
    /// Always `instructions`.
    pub unit: String,
    /// Operations that were counted.
    pub runs: u64,
}

/// Counts the instructions of a path.
pub fn of(path: &Path) -> Result<Count, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
        .arg("--toggle-collect=cdm_counted")
        .arg(format!("--callgrind-out-file={}", file.path().display()))
        .arg(program)
        .args(["--path", path.name])
        .stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("'{}' failed: {words}", path.name));
    }
    let report = std::fs::read_to_string(file.path()).map_err(|error| error.to_string())?;
    let all = report
        .lines()
        .find_map(|line| line.strip_prefix("summary: ")?.trim().parse::<u64>().ok())
        .filter(|all| *all > 0)
        .ok_or_else(|| format!("callgrind has counted nothing of '{}'", path.name))?;
    Ok(Count {
        name: path.name.to_owned(),
        value: all as f64 / path.operations as f64,
        unit: "instructions".to_owned(),
        runs: path.operations,
    })
}
