// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A folder for the logs of each run, kept on success too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

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
    let stamp = utc(now.duration_since(UNIX_EPOCH).unwrap_or_default());
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

/// `20260131-235959` in UTC.
fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of a day since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_the_date_in_utc() {
        for (seconds, stamp) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (1_735_689_599, "20241231-235959"),
            (1_709_251_199, "20240229-235959"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), stamp);
        }
    }

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
