// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The cache: results kept under a hash of everything that went into them.
//!
//! Invariant: a folder `out/<kind>/<key>` exists only when it is complete. It is
//! made under another name and renamed at the end, so an interruption at any
//! moment leaves either nothing or a whole result. One process at a time makes
//! a kind of result; the others wait for it and find it done.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::context::Context;

/// Names a result by what went into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hexadecimal digits of the hash that make a key: 64 bits, far from any
/// chance of two inputs meeting, and still readable in a path.
const KEY_DIGITS: usize = 16;

/// Collects the inputs of a [`Key`].
///
/// Each input is framed by its name and length, so that two different lists of
/// inputs never look the same.
#[derive(Clone, Debug, Default)]
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// No inputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes under a name.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        for part in [name.as_bytes(), bytes] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a text under a name.
    pub fn text(&mut self, name: &str, text: impl AsRef<str>) -> &mut Self {
        self.bytes(name, text.as_ref().as_bytes())
    }

    /// Adds a file's contents and whether it is executable, under its path
    /// below `root`.
    pub fn file(&mut self, root: &Path, path: &Path) -> Result<&mut Self> {
        let name = path
            .strip_prefix(root)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned();
        let read = || -> io::Result<(Vec<u8>, u32)> {
            Ok((
                fs::read(path)?,
                fs::metadata(path)?.permissions().mode() & 0o100,
            ))
        };
        let (bytes, executable) =
            read().with_context(|| format!("cannot read {}", path.display()))?;
        self.bytes(&name, &bytes);
        Ok(self.bytes("executable", &[u8::from(executable != 0)]))
    }

    /// Adds every file below `dir`, in order of name.
    pub fn tree(&mut self, root: &Path, dir: &Path) -> Result<&mut Self> {
        for path in files_below(dir)? {
            self.file(root, &path)?;
        }
        Ok(self)
    }

    /// The key.
    pub fn finish(&self) -> Key {
        let digest = self.0.clone().finalize();
        let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        hex.truncate(KEY_DIGITS);
        Key(hex)
    }
}

/// Folders that hold products, never sources.
const PRODUCT_FOLDERS: [&str; 2] = ["target", ".git"];

/// What lies in a folder and has this ending, sorted.
pub fn files_ending_in(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// All regular files below a folder, sorted; products are left out.
pub fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let list = || -> io::Result<Vec<fs::DirEntry>> { fs::read_dir(&folder)?.collect() };
        for entry in list().with_context(|| format!("cannot list {}", folder.display()))? {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if !PRODUCT_FOLDERS
                    .iter()
                    .any(|name| entry.file_name() == *name)
                {
                    folders.push(entry.path());
                }
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// A lock on a name in the cache, held until dropped. The kernel releases it
/// when the process dies, whatever the reason.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Takes the lock `name`, waiting for another process if need be. `what` says
/// what the other process is doing, for the progress line.
pub fn lock(ctx: &Context, name: &str, what: &str) -> Result<Lock> {
    let folder = ctx.cache.join("locks");
    create_folder(&folder)?;
    let path = folder.join(name);
    let open = || {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
    };
    let file = open().with_context(|| format!("cannot open the lock {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => return Ok(Lock { _file: held }),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        Err((_, error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    };
    let _waiting = ctx
        .progress
        .task(format!("waiting for another process that is {what}"), None);
    match Flock::lock(file, FlockArg::LockExclusive) {
        Ok(held) => Ok(Lock { _file: held }),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Returns the folder `out/<kind>/<key>`, made by `make` if it is not there.
/// `make` fills the empty folder that it is given.
pub fn entry(
    ctx: &Context,
    kind: &str,
    key: &Key,
    what: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = ctx.cache.join("out").join(kind);
    let done = folder.join(key.as_str());
    if done.is_dir() {
        return Ok(done);
    }
    let _lock = lock(ctx, &format!("out-{kind}"), what)?;
    if done.is_dir() {
        return Ok(done);
    }
    create_folder(&folder)?;
    publish(&done, make)?;
    Ok(done)
}

/// Makes the folder `done` in one step as others see it. The caller holds a
/// lock that keeps others from making the same folder.
pub fn publish(done: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = done
        .file_name()
        .context("a result needs a name")?
        .to_string_lossy();
    let unfinished = done.with_file_name(format!(".unfinished-{name}"));
    remove_tree(&unfinished)?;
    create_folder(&unfinished)?;
    let made = make(&unfinished).and_then(|()| {
        fs::rename(&unfinished, done)
            .with_context(|| format!("cannot rename {} to its place", unfinished.display()))
    });
    if made.is_err() {
        // The first error is the one to tell.
        let _ = remove_tree(&unfinished);
    }
    made
}

/// Writes a file whole or not at all: an interruption leaves what was there.
pub fn write_whole(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, contents)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Creates a folder and its parents.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create the folder {}", path.display()))
}

/// Removes a folder with everything in it; a folder that is not there is fine.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Refuses to start work that the disk has no room for.
pub fn require_space(folder: &Path, needed_mib: u64, what: &str) -> Result<()> {
    let free_mib = free_mib(folder)?;
    if free_mib < needed_mib {
        bail!(
            "{what} needs {needed_mib} MiB in {}, which has {free_mib} MiB free; make room \
             ('just clean' helps), or set CDM_CACHE to a folder on another disk",
            folder.display()
        );
    }
    Ok(())
}

/// Free space, as an ordinary user may fill it.
pub fn free_mib(folder: &Path) -> Result<u64> {
    Ok(free_bytes(folder)? >> 20)
}

/// [`free_mib`] to the byte.
pub fn free_bytes(folder: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(folder)
        .with_context(|| format!("cannot tell the free space of {}", folder.display()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        KeyBuilder::new().text("test", text).finish()
    }

    #[test]
    fn a_key_depends_on_every_input_and_on_nothing_else() {
        assert_eq!(key("a"), key("a"));
        assert_ne!(key("a"), key("b"));
        assert_ne!(
            KeyBuilder::new().text("a", "bc").finish(),
            KeyBuilder::new().text("ab", "c").finish(),
        );
        assert_eq!(key("a").as_str().len(), KEY_DIGITS);
    }

    #[test]
    fn a_tree_has_one_key_wherever_it_lies() {
        let keys = [(); 2].map(|()| {
            let dir = tempfile::tempdir().expect("temporary folder");
            fs::create_dir_all(dir.path().join("src/target")).expect("made");
            fs::write(dir.path().join("src/lib.rs"), "code").expect("written");
            fs::write(
                dir.path().join("src/target/product"),
                format!("{:?}", dir.path()),
            )
            .expect("written");
            let mut builder = KeyBuilder::new();
            builder
                .tree(dir.path(), &dir.path().join("src"))
                .expect("readable");
            builder.finish()
        });
        assert_eq!(keys[0], keys[1]);
    }

    #[test]
    fn a_file_that_is_renamed_changes_the_key_of_its_tree() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let of = |dir: &Path| {
            let mut builder = KeyBuilder::new();
            builder.tree(dir, dir).expect("readable");
            builder.finish()
        };
        fs::write(dir.path().join("one"), "same").expect("written");
        let before = of(dir.path());
        fs::rename(dir.path().join("one"), dir.path().join("two")).expect("renamed");
        assert_ne!(before, of(dir.path()));
    }

    #[test]
    fn a_result_is_made_once() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        let mut made = 0;
        for _ in 0..2 {
            let path = entry(&ctx, "thing", &key("k"), "making a thing", |folder| {
                made += 1;
                Ok(fs::write(folder.join("file"), "whole")?)
            })
            .expect("made");
            assert_eq!(
                fs::read_to_string(path.join("file")).expect("there"),
                "whole"
            );
        }
        assert_eq!(made, 1);
    }

    #[test]
    fn a_failed_make_leaves_nothing_and_the_next_one_starts_clean() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        let failed = entry(&ctx, "thing", &key("k"), "making a thing", |folder| {
            fs::write(folder.join("half"), "")?;
            bail!("no luck")
        });
        assert_eq!(failed.expect_err("failed").to_string(), "no luck");
        assert_eq!(
            files_below(&dir.path().join("out")).expect("list"),
            Vec::<PathBuf>::new()
        );
        entry(&ctx, "thing", &key("k"), "making a thing", |folder| {
            assert_eq!(fs::read_dir(folder)?.count(), 0);
            Ok(())
        })
        .expect("made");
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("state.json");
        for text in ["first, and long", "second"] {
            write_whole(&path, text).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
        assert_eq!(files_below(dir.path()).expect("list"), [path]);
        let nowhere = dir.path().join("no/state.json");
        let error = write_whole(&nowhere, "").expect_err("no such folder");
        assert!(error.to_string().contains("no/state.json"), "{error}");
    }

    #[test]
    fn leftovers_of_a_killed_process_do_not_reach_the_result() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        let leftover = dir
            .path()
            .join("out/thing")
            .join(format!(".unfinished-{}", key("k")));
        fs::create_dir_all(&leftover).expect("made");
        fs::write(leftover.join("half"), "").expect("written");
        let made = entry(&ctx, "thing", &key("k"), "making a thing", |_| Ok(())).expect("made");
        assert!(!made.join("half").exists());
    }

    #[test]
    fn a_lock_is_exclusive_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        let held = lock(&ctx, "name", "testing").expect("free");
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let _second = lock(&ctx, "name", "testing").expect("free in the end");
            sender.send(()).expect("somebody listens");
        });
        let early = receiver.recv_timeout(std::time::Duration::from_millis(100));
        assert!(early.is_err(), "two held one lock");
        drop(held);
        receiver
            .recv_timeout(std::time::Duration::from_secs(10))
            .expect("the waiter got it");
        waiter.join().expect("no panic");
    }

    #[test]
    fn too_little_disk_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = require_space(dir.path(), u64::MAX, "the kernel").expect_err("no such disk");
        let text = error.to_string();
        assert!(
            text.contains(&u64::MAX.to_string()) && text.contains("CDM_CACHE"),
            "{text}"
        );
        assert!(require_space(dir.path(), 0, "nothing").is_ok());
    }
}
