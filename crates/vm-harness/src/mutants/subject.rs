// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a mutant's guest is made of: everything as always, but for the one part that has the
//! mistake.
//!
//! A mistake in the driver or in the backend is planted in a copy of the workspace that stays in
//! the cache, so that cargo and kbuild compile only what the mistake is in. One in the kernel is
//! a patch more in the source that goes from patch to patch; it changes no header, so driver,
//! modules and initramfs of the good kernel fit it.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::catalogue::{self, Mutant, Part};
use crate::build::{self, Kernel, KernelChoice, WorkingTree, series};
use crate::cache::{self, Lock};
use crate::context::Context;
use crate::vm::Parts;

/// What the copy of the workspace has: all that a guest is built from, but the kernel.
const FILES: [&str; 3] = ["Cargo.toml", "Cargo.lock", "ci/rustc"];
const FOLDERS: [&str; 3] = ["crates", "images/initramfs", "qemu"];

/// Builds mutants. One at a time has the copies.
pub struct Workshop<'a> {
    ctx: &'a Context,
    kernel: Kernel,
    /// The workspace with the mistake.
    copy: Context,
    /// Made when the first mutant of the kernel is.
    tree: Option<WorkingTree>,
    _lock: Lock,
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
        let lock = cache::lock(ctx, "mutants", "trying mutants")?;
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
            tree: None,
            _lock: lock,
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

    fn kernel_with(&mut self, patch: &Path) -> Result<Subject> {
        if self.tree.is_none() {
            self.tree = Some(WorkingTree::open(self.ctx)?);
        }
        let tree = self.tree.as_ref().context("opened just now")?;
        let mut patches = series::patches(&self.ctx.repo)?;
        patches.push(patch.to_owned());
        tree.set(self.ctx, &patches)?;
        let choice = KernelChoice::Tree(tree.path().to_owned());
        let mutated = build::kernel(self.ctx, &choice, self.kernel.kind)?;
        Ok(Subject {
            ctx: self.ctx.clone(),
            kernel: Kernel {
                image: mutated.image,
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
    use std::fs;
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
