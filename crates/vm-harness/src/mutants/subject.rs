// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a mutant's guest is made of: everything as always, but for the one part that has the
//! mistake.
//!
//! A mistake in the driver or in the backend is planted in a copy of the workspace that stays in
//! the cache, so that cargo and kbuild compile only what the mistake is in. One in the kernel is
//! a patch more in the source that goes from patch to patch; it changes no header, so driver,
//! modules and initramfs of the good kernel fit it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::catalogue::{self, Mutant, Part};
use crate::build::{self, Kernel, KernelChoice, WorkingTree, series};
use crate::cache::{self, KeyBuilder, Lock};
use crate::context::Context;
use crate::vm::Parts;

/// What the copy of the workspace has: all that a guest is built from, but the kernel.
const FILES: [&str; 3] = ["Cargo.toml", "Cargo.lock", "ci/rustc"];
const FOLDERS: [&str; 3] = ["crates", "images/initramfs", "qemu"];

/// What is kept of a kernel.
const IMAGE: &str = "bzImage";

/// Builds mutants.
pub struct Workshop<'a> {
    ctx: &'a Context,
    kernel: Kernel,
    /// The workspace with the mistake.
    copy: Context,
    /// Taken when the first mistake is planted there: two runs would take it away from each other.
    copy_lock: Option<Lock>,
    /// Made when the first mutant of the kernel is.
    tree: Option<WorkingTree>,
}

/// What to boot.
pub struct Subject {
    /// Its repository is where driver and backend come from.
    pub ctx: Context,
    pub kernel: Kernel,
}

impl<'a> Workshop<'a> {
    /// A workshop for mutants of what runs on `kernel`.
    pub fn open(ctx: &'a Context, kernel: Kernel) -> Result<Self> {
        let repo = ctx.cache.join("mutants/workspace");
        cache::create_folder(&repo)?;
        let copy = Context {
            repo,
            ..ctx.clone()
        };
        Ok(Self {
            ctx,
            kernel,
            copy,
            copy_lock: None,
            tree: None,
        })
    }

    /// Everything without a mistake.
    pub fn healthy(&self) -> Subject {
        Subject {
            ctx: self.ctx.clone(),
            kernel: self.kernel.clone(),
        }
    }

    /// Builds a mutant.
    pub fn build(&mut self, mutant: &Mutant) -> Result<Subject> {
        let subject = match mutant.part {
            Part::Kernel => self.kernel_with(&mutant.patch)?,
            Part::Driver | Part::Backend => {
                if self.copy_lock.is_none() {
                    self.copy_lock = Some(cache::lock(self.ctx, "mutants", "trying mutants")?);
                }
                mirror(&self.ctx.repo, &self.copy.repo)?;
                catalogue::apply(mutant, &self.copy.repo, false)?;
                Subject {
                    ctx: self.copy.clone(),
                    kernel: self.kernel.clone(),
                }
            }
        };
        Parts::build(&subject.ctx, &subject.kernel)?;
        Ok(subject)
    }

    /// The image is kept: what no test has found is tried again with other tests.
    fn kernel_with(&mut self, patch: &Path) -> Result<Subject> {
        let mut patches = series::patches(&self.ctx.repo)?;
        patches.push(patch.to_owned());
        let mut key = KeyBuilder::new();
        key.text("good kernel", self.kernel.key.as_str())
            .bytes("mistake", &series::diff(patch)?);
        let what = "building a kernel with a mistake";
        let folder = cache::entry(self.ctx, "mutant-kernel", &key.finish(), what, |folder| {
            if self.tree.is_none() {
                self.tree = Some(WorkingTree::open(self.ctx)?);
            }
            let tree = self.tree.as_ref().context("opened just now")?;
            tree.set(self.ctx, &patches)?;
            let choice = KernelChoice::Tree(tree.path().to_owned());
            let built = build::kernel(self.ctx, &choice, self.kernel.kind)?;
            fs::copy(&built.image, folder.join(IMAGE))
                .with_context(|| format!("cannot copy {}", built.image.display()))?;
            Ok(())
        })?;
        Ok(Subject {
            ctx: self.ctx.clone(),
            kernel: Kernel {
                image: folder.join(IMAGE),
                ..self.kernel.clone()
            },
        })
    }
}

/// Makes a copy of the workspace equal to the workspace, with the date of what does not change.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    for file in FILES {
        build::mirror_file(&from.join(file), &to.join(file))?;
    }
    for folder in FOLDERS {
        cache::create_folder(&to.join(folder))?;
        build::mirror(&from.join(folder), &to.join(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn copy_of_the_workspace_loses_its_mistake_and_keeps_its_programs() {
        let dir = tempfile::tempdir().expect("a folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for folder in FOLDERS {
            fs::create_dir_all(from.join(folder)).expect("made");
        }
        fs::create_dir_all(from.join("ci")).expect("made");
        for file in FILES {
            fs::write(from.join(file), "good").expect("written");
        }
        let program = fs::Permissions::from_mode(0o755);
        fs::set_permissions(from.join("ci/rustc"), program).expect("changed");
        fs::write(from.join("crates/x.rs"), "good").expect("written");

        mirror(&from, &to).expect("copied");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&to.join("ci/rustc")) & 0o111, 0o111);
        fs::write(to.join("crates/x.rs"), "bad").expect("written");
        mirror(&from, &to).expect("copied again");
        let text = fs::read_to_string(to.join("crates/x.rs")).expect("there");
        assert_eq!(text, "good");
    }
}
