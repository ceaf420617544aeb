// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A folder for the logs of each run, kept on success too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use crate::calendar;
use crate::context::Context;

/// Runs whose logs stay in the cache; some 100 KiB each.
const KEPT_RUNS: usize = 30;

/// Makes the log folder of a run: `wanted`, or a new one in the cache.
pub fn folder(ctx: &Context, wanted: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = wanted {
        fs::create_dir_all(path)
            .with_context(|| format!("cannot make the log folder {}", path.display()))?;
        return path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()));
    }
    new_in(&ctx.cache.join("runs"), SystemTime::now())
}

fn new_in(runs: &Path, now: SystemTime) -> Result<PathBuf> {
    fs::create_dir_all(runs).with_context(|| format!("cannot make {}", runs.display()))?;
    forget_old(runs)?;
    let stamp = calendar::stamp(now);
    for number in 1.. {
        let path = runs.join(match number {
            1 => stamp.clone(),
            _ => format!("{stamp}-{number}"),
        });
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", path.display()));
            }
        }
    }
    unreachable!("numbers do not end")
}

/// Names sort by time, so the oldest come first.
fn forget_old(runs: &Path) -> Result<()> {
    let mut names: Vec<PathBuf> = fs::read_dir(runs)
        .with_context(|| format!("cannot read {}", runs.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    let surplus = (names.len() + 1).saturating_sub(KEPT_RUNS);
    for old in &names[..surplus.min(names.len())] {
        // Another run may have removed it first.
        let _ = fs::remove_dir_all(old);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn two_runs_of_one_second_have_two_folders() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let first = new_in(dir.path(), now).expect("made");
        let second = new_in(dir.path(), now).expect("made");
        assert_ne!(first, second);
        assert!(first < second, "later runs sort behind earlier ones");
    }

    #[test]
    fn only_the_last_runs_are_kept() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for second in 0..KEPT_RUNS as u64 + 5 {
            new_in(dir.path(), UNIX_EPOCH + Duration::from_secs(second)).expect("made");
        }
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .expect("there")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        left.sort();
        assert_eq!(left.len(), KEPT_RUNS);
        assert_eq!(left[0], "19700101-000005");
    }
}
