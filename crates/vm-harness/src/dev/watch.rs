// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Waits for somebody to save a source.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use notify::event::{EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

/// An editor writes a file in several steps, and "save all" several files: this long after the last
/// one they are whole.
const SETTLE: Duration = Duration::from_millis(100);

/// Folders that are watched.
pub struct Watch {
    changes: Receiver<notify::Result<Event>>,
    /// Watches as long as it lives.
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches these folders and what is below them.
    pub fn new(folders: impl Iterator<Item = PathBuf>) -> Result<Self> {
        let (sender, changes) = channel();
        let mut watcher = notify::recommended_watcher(sender).context("cannot watch files")?;
        for folder in folders {
            watcher
                .watch(&folder, RecursiveMode::Recursive)
                .with_context(|| {
                    format!(
                        "cannot watch {}; 'sysctl fs.inotify.max_user_watches' may be too small",
                        folder.display()
                    )
                })?;
        }
        Ok(Self {
            changes,
            _watcher: watcher,
        })
    }

    /// Waits until a source has changed, and no other one changes; one that did.
    pub fn next(&self) -> Result<PathBuf> {
        loop {
            let event = self.changes.recv().context("nobody watches any more")?;
            let Some(changed) = source_of(event?) else {
                continue;
            };
            loop {
                match self.changes.recv_timeout(SETTLE) {
                    Ok(event) => drop(event?),
                    Err(RecvTimeoutError::Timeout) => return Ok(changed),
                    Err(RecvTimeoutError::Disconnected) => bail!("nobody watches any more"),
                }
            }
        }
    }
}

/// The source that an event says has changed: looking at one is no change, and what editors leave
/// beside it is none.
fn source_of(event: Event) -> Option<PathBuf> {
    let is_change = match event.kind {
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)) => false,
        EventKind::Any | EventKind::Other => false,
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) => true,
    };
    event
        .paths
        .into_iter()
        .find(|path| is_change && is_source(path))
}

fn is_source(path: &Path) -> bool {
    const ENDINGS: [&str; 3] = ["rs", "c", "h"];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = path.extension().and_then(|ending| ending.to_str());
    let has_ending = ending.is_some_and(|ending| ENDINGS.contains(&ending));
    !name.starts_with(['.', '#']) && (has_ending || name == "Kbuild" || name == "Makefile")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::thread;

    #[test]
    fn saved_source_is_noticed_once_and_what_editors_leave_is_not() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let folder = dir.path().join("src");
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("a.rs"), "old").expect("written");
        let watch = Watch::new([dir.path().to_owned()].into_iter()).expect("watched");
        let waiter = thread::spawn(move || {
            let first = watch.next().expect("a change");
            (first, watch)
        });
        for other in [".a.rs.swp", ".#a.rs", "#a.rs#", "a.o", "4913"] {
            fs::write(folder.join(other), "x").expect("written");
        }
        fs::read(folder.join("a.rs")).expect("read");
        thread::sleep(3 * SETTLE);
        assert!(!waiter.is_finished(), "a change was seen where none was");
        // As editors save: a new file takes the place of the old one.
        fs::write(folder.join("new.rs"), "new").expect("written");
        fs::rename(folder.join("new.rs"), folder.join("a.rs")).expect("renamed");
        let (changed, watch) = waiter.join().expect("it ends");
        assert!(
            changed.starts_with(&folder) && is_source(&changed),
            "{changed:?}"
        );
        let more = watch.changes.recv_timeout(3 * SETTLE);
        assert!(more.is_err(), "one save is two: {more:?}");
    }
}
