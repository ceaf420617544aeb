// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One kernel source that is taken through the series patch by patch, so that each
//! step builds only what its patch changes.
//!
//! The patches that are in it are kept beside the source. It goes back by reversing them,
//! never by putting an old file in place: make goes by dates, and an object that is newer
//! than a file from the past would stay as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::series;
use super::source::{self, apply, link_tree};
use crate::cache::{self, Lock};
use crate::command::run_logged;
use crate::context::Context;

/// In the source: the patches that it has, by number.
const APPLIED: &str = ".cdm-applied";
/// In the source while a patch is put in or taken out: it is neither.
const UNSURE: &str = ".cdm-unsure";

/// The source. Two at once would take it away from each other.
#[derive(Debug)]
pub struct WorkingTree {
    path: PathBuf,
    _lock: Lock,
}

impl WorkingTree {
    /// The source in the cache, as it was left, or made anew.
    pub fn open(ctx: &Context) -> Result<Self> {
        let lock = cache::lock(ctx, "series-check", "taking a kernel through its patches")?;
        let _building = cache::lock(ctx, "kernel", "building a kernel")?;
        let path = ctx
            .cache
            .join("kernel")
            .join(format!("series-{}", ctx.toolbox));
        if path.join(UNSURE).exists() {
            cache::remove_tree(&path)?;
        }
        if !path.is_dir() {
            let pristine = source::pristine_source(ctx)?;
            cache::publish(&path, |folder| {
                link_tree(&pristine, folder)?;
                cache::create_folder(&folder.join(APPLIED))
            })?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it the source with exactly these patches.
    pub fn set(&self, ctx: &Context, patches: &[PathBuf]) -> Result<()> {
        let has = self.applied()?;
        let mut common = 0;
        while common < has.len().min(patches.len())
            && series::diff(&has[common])? == series::diff(&patches[common])?
        {
            common += 1;
        }
        let unsure = self.path.join(UNSURE);
        if has.len() == common && patches.len() == common {
            return Ok(());
        }
        fs::write(&unsure, "").with_context(|| format!("cannot write {}", unsure.display()))?;
        for patch in has[common..].iter().rev() {
            reverse(ctx, &self.path, patch)?;
            fs::remove_file(patch).with_context(|| format!("cannot remove {}", patch.display()))?;
        }
        for (number, patch) in patches.iter().enumerate().skip(common) {
            apply(ctx, &self.path, patch)?;
            let kept = self.path.join(APPLIED).join(format!("{number:04}.patch"));
            fs::copy(patch, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
        }
        fs::remove_file(&unsure).with_context(|| format!("cannot remove {}", unsure.display()))
    }

    /// The patches that it has, in their order.
    fn applied(&self) -> Result<Vec<PathBuf>> {
        cache::files_below(&self.path.join(APPLIED))
    }
}

/// Takes a patch out again.
fn reverse(ctx: &Context, tree: &Path, patch: &Path) -> Result<()> {
    let log = ctx.logs().join("kernel-series-reverse.log");
    let mut command = Command::new("patch");
    command
        .args(["--strip=1", "--batch", "--reverse", "--fuzz=0"])
        .args(["--no-backup-if-mismatch", "--reject-file=-", "--directory"])
        .arg(tree)
        .arg("--input")
        .arg(patch)
        .env("LC_ALL", "C");
    let what = format!("taking {} out", patch.display());
    run_logged(&mut command, &what, &log, |_| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(dir: &Path, name: &str, from: &str, to: &str) -> PathBuf {
        let path = dir.join(name);
        let text = format!("--- a/file\n+++ b/file\n@@ -1 +1 @@\n-{from}\n+{to}\n");
        fs::write(&path, text).expect("written");
        path
    }

    #[test]
    fn tree_goes_to_any_prefix_and_to_another_series_with_new_dates() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let tree = WorkingTree {
            path: dir.path().join("tree"),
            _lock: cache::lock(&ctx, "tree", "testing").expect("free"),
        };
        fs::create_dir_all(tree.path().join(APPLIED)).expect("made");
        fs::write(tree.path().join("file"), "one\n").expect("written");
        let read = || fs::read_to_string(tree.path().join("file")).expect("there");
        let one = patch(dir.path(), "a.patch", "one", "two");
        let two = patch(dir.path(), "b.patch", "two", "three");
        let other = patch(dir.path(), "c.patch", "two", "four");

        tree.set(&ctx, &[one.clone(), two.clone()])
            .expect("forward");
        assert_eq!(read(), "three\n");
        let date = || {
            let meta = fs::metadata(tree.path().join("file")).expect("there");
            meta.modified().expect("a date")
        };
        let before = date();
        tree.set(&ctx, std::slice::from_ref(&one)).expect("back");
        assert_eq!(read(), "two\n");
        assert!(date() > before, "make would not see the change");
        tree.set(&ctx, &[one, other]).expect("aside");
        assert_eq!(read(), "four\n");
        tree.set(&ctx, &[]).expect("home");
        assert_eq!(read(), "one\n");
        assert_eq!(tree.applied().expect("a list"), Vec::<PathBuf>::new());

        let error = tree.set(&ctx, &[two]).expect_err("does not fit");
        assert!(error.to_string().contains("b.patch"), "{error}");
        assert!(
            tree.path().join(UNSURE).exists(),
            "half a patch may be in it"
        );
    }
}
