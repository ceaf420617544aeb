// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where a run of tests leaves its logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::cache;
use crate::context::Context;

/// Runs that the cache keeps: enough to compare with, few enough to forget about.
const KEPT_RUNS: usize = 10;

/// A new folder for one run: the user's choice, or a numbered one in the cache. Results are kept on
/// success too, since the last good run is what a bad one is compared with.
pub fn folder(ctx: &Context, chosen: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(folder) = chosen {
        cache::create_folder(&folder)?;
        return Ok(folder);
    }
    let runs = ctx.cache.join("test-runs");
    cache::create_folder(&runs)?;
    forget_old(&runs)?;
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    // The process id tells apart runs that start in the same second.
    let folder = runs.join(format!("{seconds}-{}", std::process::id()));
    cache::create_folder(&folder)?;
    Ok(folder)
}

fn forget_old(runs: &Path) -> Result<()> {
    let entries = fs::read_dir(runs).with_context(|| format!("cannot list {}", runs.display()))?;
    let mut folders: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let seconds: u64 = name.split('-').next()?.parse().ok()?;
            Some((seconds, entry.path()))
        })
        .collect();
    folders.sort();
    let surplus = (folders.len() + 1).saturating_sub(KEPT_RUNS);
    folders
        .iter()
        .take(surplus)
        .try_for_each(|(_, folder)| cache::remove_tree(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_runs_go_and_foreign_folders_stay() {
        let runs = tempfile::tempdir().expect("a folder");
        for number in 1..=12 {
            fs::create_dir(runs.path().join(format!("{number}-77"))).expect("created");
        }
        fs::create_dir(runs.path().join("mine")).expect("created");
        forget_old(runs.path()).expect("cleaned");
        let left = fs::read_dir(runs.path()).expect("listed").count();
        assert_eq!(left, KEPT_RUNS - 1 + 1);
        assert!(!runs.path().join("3-77").exists());
        assert!(runs.path().join("4-77").exists() && runs.path().join("mine").exists());
    }
}
