// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A folder for the logs and results of each run, kept on success too: the last good run is what
//! a bad one is compared with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::cache;
use crate::calendar;
use crate::context::Context;
use crate::vm::MEMORY_DUMP;

/// Runs of guests.
pub const GUESTS: &str = "runs";
/// Runs of tests.
pub const TESTS: &str = "test-runs";

/// Runs of a kind that stay in the cache: enough to compare with, few enough to forget about.
const KEPT_RUNS: usize = 30;

/// Runs that keep the memory of guests that crashed: files of some hundred megabytes.
const KEPT_DUMPS: usize = 5;

/// Folders of this process, which no other one removes meanwhile.
static IN_USE: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());

/// Makes the folder of a run: `wanted`, or a new one in the cache, among those of its `kind`.
pub fn folder(ctx: &Context, kind: &str, wanted: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = wanted {
        cache::create_folder(path)?;
        return path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()));
    }
    let (path, lock) = new_in(&ctx.cache.join(kind), SystemTime::now())?;
    let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    in_use.push(lock);
    Ok(path)
}

/// The folder of a run that was: `wanted`, by its path or its name among those of its `kind`, or
/// the newest of them.
pub fn find(ctx: &Context, kind: &str, wanted: Option<&Path>) -> Result<PathBuf> {
    let runs = ctx.cache.join(kind);
    let Some(wanted) = wanted else {
        let names = fs::read_dir(&runs).into_iter().flatten().flatten();
        let newest = names.map(|entry| entry.path()).max();
        return newest.with_context(|| format!("there is no run in {} yet", runs.display()));
    };
    [runs.join(wanted), wanted.to_owned()]
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| {
            format!(
                "there is no run '{}' in {}, and no such folder",
                wanted.display(),
                runs.display()
            )
        })
}

/// Whether a process still works on the run with this folder.
pub fn is_under_way(folder: &Path) -> bool {
    try_lock(folder).is_err()
}

/// Ends a run of this process, as its end would.
#[cfg(test)]
pub fn release(folder: &Path) {
    let inode = |file: &File| {
        use std::os::unix::fs::MetadataExt;
        file.metadata().map(|meta| meta.ino()).ok()
    };
    let wanted = File::open(folder).ok().and_then(|file| inode(&file));
    let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    in_use.retain(|lock| inode(lock) != wanted);
}

/// A new folder, and the lock without which the next run may remove it.
fn new_in(runs: &Path, now: SystemTime) -> Result<(PathBuf, Flock<File>)> {
    cache::create_folder(runs)?;
    forget_old(runs)?;
    let stamp = calendar::stamp(now);
    for number in 1.. {
        let path = runs.join(match number {
            1 => stamp.clone(),
            _ => format!("{stamp}-{number}"),
        });
        match fs::create_dir(&path) {
            Ok(()) => {
                // The newest folder is nobody's to remove, so there is time for this. Who looks
                // whether a run is under way holds it for a moment.
                let lock = lock(&path, FlockArg::LockExclusive)
                    .with_context(|| format!("cannot lock {}", path.display()))?;
                return Ok((path, lock));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", path.display()));
            }
        }
    }
    unreachable!("numbers do not end")
}

fn lock(folder: &Path, how: FlockArg) -> std::io::Result<Flock<File>> {
    Flock::lock(File::open(folder)?, how).map_err(|(_, error)| error.into())
}

fn try_lock(folder: &Path) -> std::io::Result<Flock<File>> {
    lock(folder, FlockArg::LockExclusiveNonblock)
}

/// Names sort by time, so the oldest come first. Those of runs under way stay.
fn forget_old(runs: &Path) -> Result<()> {
    let mut names: Vec<PathBuf> = fs::read_dir(runs)
        .with_context(|| format!("cannot read {}", runs.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    let surplus = (names.len() + 1).saturating_sub(KEPT_RUNS);
    for old in &names[..surplus.min(names.len())] {
        if let Ok(_lock) = try_lock(old) {
            // Another run may have removed it first.
            let _ = fs::remove_dir_all(old);
        }
    }
    let without_dumps = (names.len() + 1).saturating_sub(KEPT_DUMPS);
    for old in &names[..without_dumps.min(names.len())] {
        if let Ok(_lock) = try_lock(old) {
            forget_dumps(old);
        }
    }
    Ok(())
}

/// Removes the memory of guests from a run; what else it left says enough of what is that old.
fn forget_dumps(run: &Path) {
    for file in cache::files_below(run).unwrap_or_default() {
        if file.ends_with(MEMORY_DUMP) {
            // Another run may have removed it first.
            let _ = fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn new(runs: &Path, second: u64) -> (PathBuf, Flock<File>) {
        new_in(runs, UNIX_EPOCH + Duration::from_secs(second)).expect("made")
    }

    #[test]
    fn two_runs_of_one_second_have_two_folders() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (first, _first) = new(dir.path(), 1);
        let (second, _second) = new(dir.path(), 1);
        assert_ne!(first, second);
        assert!(first < second, "later runs sort behind earlier ones");
    }

    #[test]
    fn only_the_last_runs_are_kept() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for second in 0..KEPT_RUNS as u64 + 5 {
            drop(new(dir.path(), second));
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

    #[test]
    fn memory_of_guests_goes_sooner_than_the_rest() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for second in 0..KEPT_DUMPS as u64 + 3 {
            let (run, _lock) = new(dir.path(), second);
            fs::create_dir(run.join("boot1")).expect("made");
            for file in [MEMORY_DUMP, "console.log"] {
                fs::write(run.join("boot1").join(file), "x").expect("written");
            }
        }
        let count = |name: &str| {
            let files = cache::files_below(dir.path()).expect("there");
            files.iter().filter(|file| file.ends_with(name)).count()
        };
        assert_eq!(count(MEMORY_DUMP), KEPT_DUMPS);
        assert_eq!(count("console.log"), KEPT_DUMPS + 3);
    }

    #[test]
    fn run_is_found_by_name_by_path_and_as_the_newest() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        assert!(find(&ctx, GUESTS, None).is_err());
        let runs = dir.path().join(GUESTS);
        let (old, _) = new(&runs, 0);
        let (young, lock) = new(&runs, 1);
        assert_eq!(find(&ctx, GUESTS, None).expect("found"), young);
        let name = Path::new(old.file_name().expect("a name"));
        assert_eq!(find(&ctx, GUESTS, Some(name)).expect("found"), old);
        assert_eq!(find(&ctx, GUESTS, Some(&old)).expect("found"), old);
        let error = find(&ctx, GUESTS, Some(Path::new("none"))).expect_err("none");
        assert!(error.to_string().contains("'none'"), "{error}");
        assert!(is_under_way(&young));
        drop(lock);
        assert!(!is_under_way(&young));
    }

    #[test]
    fn run_under_way_keeps_its_folder_however_many_come_after_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (long, lock) = new(dir.path(), 0);
        for second in 1..2 * KEPT_RUNS as u64 {
            drop(new(dir.path(), second));
        }
        assert!(long.exists());
        drop(lock);
        drop(new(dir.path(), 2 * KEPT_RUNS as u64));
        assert!(!long.exists());
    }
}
