// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The folder of one run's sockets. It is gone when the run is: removed by its
//! destructor, by the signal thread, or, after a SIGKILL, by the next run.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::cleanup;

/// How such folders are called.
const PREFIX: &str = "cdm-run-";
/// Locked as long as the run lives.
const LOCK: &str = "lock";
/// Longest path of a Unix socket, without the byte that ends it.
const SOCKET_PATH_MAX: usize = 107;
/// Longest name of a socket in here, with its slash.
const SOCKET_NAME_MAX: usize = 20;

/// A folder for sockets.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes a folder where the user's sockets belong.
    pub fn create() -> Result<Self> {
        let runtime = env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|dir| dir.is_dir());
        match runtime.map(|dir| Self::create_in(&dir)) {
            Some(Ok(dir)) => Ok(dir),
            // A runtime folder of somebody else, as after su(1).
            Some(Err(_)) | None => Self::create_in(&env::temp_dir()),
        }
    }

    fn create_in(parent: &Path) -> Result<Self> {
        cleanup::install();
        sweep(parent);
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .with_context(|| {
                format!(
                    "cannot make a folder in {}; set TMPDIR to a folder you can write to",
                    parent.display()
                )
            })?
            .keep();
        cleanup::add_folder(&path);
        let lock = lock(&path.join(LOCK))
            .with_context(|| format!("cannot lock {}", path.join(LOCK).display()))?;
        let dir = Self { path, _lock: lock };
        let longest = dir.path.as_os_str().as_bytes().len() + SOCKET_NAME_MAX;
        ensure!(
            longest <= SOCKET_PATH_MAX,
            "{} is too long for a socket's path; set TMPDIR to a shorter one",
            dir.path.display()
        );
        Ok(dir)
    }

    /// The folders of all runs of this user that live.
    pub fn living() -> Vec<PathBuf> {
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        // Both may be one folder.
        let parents: BTreeSet<PathBuf> = runtime.into_iter().chain([env::temp_dir()]).collect();
        parents
            .iter()
            .flat_map(|parent| living_in(parent))
            .collect()
    }

    /// What people call the run with this folder.
    pub fn name_of(path: &Path) -> String {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(PREFIX).unwrap_or(&name).to_owned()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        let _ = fs::remove_dir_all(&self.path);
        cleanup::remove_folder(&self.path);
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

/// Folders of runs, and whether the run lives. One without a lock file may be in the making
/// and is left out.
fn runs(parent: &Path) -> Vec<(PathBuf, bool)> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()))
        .filter_map(|entry| {
            let path = entry.path();
            let file = File::open(path.join(LOCK)).ok()?;
            let lives = Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err();
            Some((path, lives))
        })
        .collect()
}

fn living_in(parent: &Path) -> Vec<PathBuf> {
    let living = runs(parent).into_iter().filter(|(_, lives)| *lives);
    living.map(|(path, _)| path).collect()
}

/// Removes folders of runs that were killed.
fn sweep(parent: &Path) {
    for (path, lives) in runs(parent) {
        if !lives {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_run() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let dir = RunDir::create_in(parent.path()).expect("made");
        let path = dir.path().to_owned();
        fs::write(path.join("x.sock"), "").expect("written");
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_what_lives_is_not() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let dead = parent.path().join("cdm-run-dead");
        let other = parent.path().join("other");
        for folder in [&dead, &other] {
            fs::create_dir(folder).expect("made");
            fs::write(folder.join(LOCK), "").expect("written");
        }
        let living = RunDir::create_in(parent.path()).expect("made");
        let second = RunDir::create_in(parent.path()).expect("made");
        assert!(!dead.exists(), "the dead run's folder is still there");
        assert!(other.exists(), "a folder of somebody else was removed");
        assert!(living.path().exists() && second.path().exists());
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join(LOCK), "").expect("written");
        let mut found = living_in(parent.path());
        found.sort();
        let mut expected = [living.path().to_owned(), second.path().to_owned()];
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let long = parent.path().join("x".repeat(100));
        fs::create_dir(&long).expect("made");
        let error = RunDir::create_in(&long).expect_err("too long");
        assert!(error.to_string().contains("TMPDIR"), "{error}");
    }
}
