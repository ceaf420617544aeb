// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where a kernel's source comes from: the distribution's archive in the
//! toolbox, with or without the series, or a tree of the user's own.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::super::KernelChoice;
use super::config::Lost;
use super::series;
use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;

/// Where the toolbox's kernel source package puts its archive.
const ARCHIVES: &str = "/usr/src";
/// Files in a current kernel source, about; for progress only.
const ABOUT_FILES: u64 = 93_000;
/// Room that the unpacked source takes.
const SOURCE_MIB: u64 = 1900;

/// A kernel source.
#[derive(Clone, Debug)]
pub struct Source {
    /// The folder in the cache for its build trees.
    pub builds: PathBuf,
    /// The source tree.
    pub tree: PathBuf,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    /// The distribution's archive and patches on top.
    Archive {
        archive: PathBuf,
        patches: Vec<PathBuf>,
    },
    /// Somebody's tree: built as it is.
    Foreign,
}

impl Source {
    /// Finds out where the source is or will be. Unpacks nothing.
    pub fn find(ctx: &Context, choice: &KernelChoice) -> Result<Self> {
        let kernels = ctx.cache.join("kernel");
        match choice {
            KernelChoice::Tree(path) => {
                let tree = check_foreign(path)?;
                let builds = builds_of_foreign(&kernels, &tree);
                Ok(Self {
                    builds,
                    tree,
                    origin: Origin::Foreign,
                })
            }
            KernelChoice::Public | KernelChoice::Vanilla => {
                let patches = if *choice == KernelChoice::Public {
                    series::patches(&ctx.repo)?
                } else {
                    Vec::new()
                };
                let mut key = KeyBuilder::new();
                key.text("toolbox", &ctx.toolbox);
                for patch in &patches {
                    key.bytes("patch", &series::diff(patch)?);
                }
                let tree = kernels.join(format!("{choice}-{}", key.finish()));
                let archive = find_archive(Path::new(ARCHIVES))?;
                Ok(Self {
                    builds: tree.clone(),
                    tree,
                    origin: Origin::Archive { archive, patches },
                })
            }
        }
    }

    /// Whether the source can never change under its path.
    pub fn is_fixed(&self) -> bool {
        matches!(self.origin, Origin::Archive { .. })
    }

    /// Whether the source knows `CONFIG_DEVICE_PUBLIC`.
    pub fn has_device_public(&self) -> Result<bool> {
        match &self.origin {
            Origin::Archive { patches, .. } => Ok(!patches.is_empty()),
            Origin::Foreign => {
                let path = self.tree.join("mm/Kconfig");
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Ok(text
                    .lines()
                    .any(|line| line.trim_end() == "config DEVICE_PUBLIC"))
            }
        }
    }

    /// Unpacks and patches the source if that has not been done. The caller
    /// holds the kernel lock.
    pub fn prepare(&self, ctx: &Context) -> Result<()> {
        let Origin::Archive { archive, patches } = &self.origin else {
            return Ok(());
        };
        if self.tree.is_dir() {
            return Ok(());
        }
        let pristine = pristine(ctx, archive)?;
        cache::publish(&self.tree, |folder| {
            let task = ctx.progress.task("preparing the kernel source", None);
            link_tree(&pristine, folder)?;
            task.set_total(patches.len() as u64);
            for patch in patches {
                apply(ctx, folder, patch)?;
                task.advance();
            }
            Ok(())
        })
    }

    /// Judges options that kconfig dropped: our own kernels must have them all;
    /// of a user's kernel only what it can give is expected, and the rest told.
    pub fn on_lost_options(&self, ctx: &Context, lost: &[Lost]) -> Result<()> {
        let list: Vec<String> = lost.iter().map(Lost::to_string).collect();
        if self.is_fixed() {
            bail!(
                "the final kernel configuration lacks what images/kernel/config asks for; add \
                 what these depend on, or drop them:\n  {}",
                list.join("\n  ")
            );
        }
        ctx.progress.say(format!(
            "cdm: {} cannot give {} of the options asked for: {}",
            self.tree.display(),
            lost.len(),
            list.join(", ")
        ));
        Ok(())
    }
}

/// Where the build trees of a foreign source are: apart from it, as it is never written into. A
/// source that lies in the cache is nobody's but the tool's, and its build trees lie in it, where
/// ccache knows the objects of its twins.
fn builds_of_foreign(kernels: &Path, tree: &Path) -> PathBuf {
    if tree.starts_with(kernels) {
        return tree.to_owned();
    }
    let mut key = KeyBuilder::new();
    key.text("tree", tree.to_string_lossy());
    kernels.join(format!("tree-{}", key.finish()))
}

/// [`pristine`] of the toolbox's archive.
pub(super) fn pristine_source(ctx: &Context) -> Result<PathBuf> {
    pristine(ctx, &find_archive(Path::new(ARCHIVES))?)
}

/// The distribution's source as it is. All sources of one toolbox start as these files: unpacked
/// once, and shared by hard links. patch(1) writes a new file, never into a link. The caller holds
/// the kernel lock.
fn pristine(ctx: &Context, archive: &Path) -> Result<PathBuf> {
    let folder = ctx
        .cache
        .join("kernel")
        .join(format!("unpacked-{}", ctx.toolbox));
    if !folder.is_dir() {
        cache::require_space(&ctx.cache, SOURCE_MIB, "unpacking the kernel source")?;
        cache::publish(&folder, |folder| unpack(ctx, archive, folder))?;
    }
    Ok(folder)
}

/// Checks that a path is a kernel tree that can be built without touching it.
fn check_foreign(path: &Path) -> Result<PathBuf> {
    let tree = match fs::canonicalize(path) {
        Ok(tree) => tree,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "there is no kernel tree at {}; give --kernel the top folder of one, or 'public' or \
             'vanilla'",
            path.display()
        ),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", path.display()));
        }
    };
    for part in ["Makefile", "Kconfig", "mm/Kconfig", "arch/x86/Makefile"] {
        if !tree.join(part).is_file() {
            bail!(
                "{} is no kernel tree: it has no {part}; give --kernel the top folder of one",
                tree.display()
            );
        }
    }
    // kbuild refuses to build elsewhere what was built in place, and looks at
    // exactly these.
    for product in [".config", "include/config", "arch/x86/include/generated"] {
        if tree.join(product).exists() {
            bail!(
                "{} was built in place (it holds {product}), and kbuild cannot then build it \
                 elsewhere; run 'make mrproper' there after saving your .config, or give --kernel \
                 a clean checkout ('git worktree add')",
                tree.display()
            );
        }
    }
    Ok(tree)
}

/// The one kernel source archive of the toolbox.
fn find_archive(dir: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("linux-source-") && name.contains(".tar.") {
            found.push(dir.join(name));
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([archive]) => Ok(archive),
        Err(found) => bail!(
            "the toolbox has {} kernel source archives in {} instead of one; check \
             images/toolbox/packages, or use a kernel tree of your own with --kernel PATH",
            found.len(),
            dir.display()
        ),
    }
}

fn unpack(ctx: &Context, archive: &Path, folder: &Path) -> Result<()> {
    let log = ctx.logs().join("kernel-source.log");
    let task = ctx.progress.task("unpacking the kernel source", Some(&log));
    task.set_total(ABOUT_FILES);
    let mut files = 0;
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--verbose",
        "--strip-components=1",
        "--no-same-owner",
        "--file",
    ])
    .arg(archive)
    .arg("--directory")
    .arg(folder);
    run_logged(&mut tar, "unpacking the kernel source", &log, |_| {
        files += 1;
        task.set_position(files);
    })
}

/// Copies a tree by hard links.
pub(super) fn link_tree(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .args(["--archive", "--link", "--no-target-directory"])
        .arg(from)
        .arg(to)
        .status()
        .context("cannot start cp")?;
    if !status.success() {
        bail!(
            "cannot link {} into {} (cp: {status})",
            from.display(),
            to.display()
        );
    }
    Ok(())
}

/// Applies one patch, exactly: a hunk that fits only elsewhere or only nearly is
/// a failure, named with its file.
pub(super) fn apply(ctx: &Context, tree: &Path, patch: &Path) -> Result<()> {
    let name = patch.file_name().unwrap_or_default().to_string_lossy();
    let log = ctx.logs().join(format!("{name}.log"));
    let mut file = String::from("an unknown file");
    let mut failed = None;
    let mut command = Command::new("patch");
    command
        .args([
            "--strip=1",
            "--batch",
            "--forward",
            "--fuzz=0",
            "--no-backup-if-mismatch",
        ])
        .args(["--reject-file=-", "--directory"])
        .arg(tree)
        .arg("--input")
        .arg(patch)
        .env("LC_ALL", "C");
    let ended = run_logged(&mut command, "patch", &log, |line| {
        if let Some(rest) = line.strip_prefix("patching file ") {
            file = rest.to_owned();
        } else if failed.is_none() && (line.contains("FAILED") || line.contains("can't find file"))
        {
            failed = Some(format!("{file}: {line}"));
        } else if failed.is_none() && line.contains("previously applied") {
            failed = Some(format!("{file}: has this change already"));
        }
    });
    match (ended, failed) {
        (Ok(()), None) => Ok(()),
        (Ok(()) | Err(_), Some(place)) => bail!(
            "the patch {name} does not apply to the kernel source; {place}; port the series to \
             this source, or use --kernel vanilla (log: {})",
            log.display()
        ),
        (Err(error), None) => Err(error.context(format!(
            "the patch {name} does not apply to the kernel source"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "\
--- a/mm/memory.c
+++ b/mm/memory.c
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
";

    /// A tree with one file, its twin by hard link, and the patch.
    fn linked_trees(dir: &Path, contents: &str) -> (PathBuf, PathBuf, PathBuf) {
        let (pristine, tree) = (dir.join("pristine"), dir.join("tree"));
        fs::create_dir_all(pristine.join("mm")).expect("made");
        fs::write(pristine.join("mm/memory.c"), contents).expect("written");
        link_tree(&pristine, &tree).expect("linked");
        let patch = dir.join("0001-mm-shout.patch");
        fs::write(&patch, PATCH).expect("written");
        (pristine, tree, patch)
    }

    #[test]
    fn a_patch_changes_its_tree_and_not_the_one_it_is_linked_to() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (pristine, tree, patch) = linked_trees(dir.path(), "one\ntwo\nthree\n");
        apply(&Context::for_test(dir.path()), &tree, &patch).expect("applies");
        let read = |tree: &Path| fs::read_to_string(tree.join("mm/memory.c")).expect("there");
        assert_eq!(read(&tree), "one\nTWO\nthree\n");
        assert_eq!(read(&pristine), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named_with_its_file_and_the_next_step() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (_, tree, patch) = linked_trees(dir.path(), "something\nelse\nentirely\n");
        let error = apply(&Context::for_test(dir.path()), &tree, &patch).expect_err("does not fit");
        let text = error.to_string();
        for part in ["0001-mm-shout.patch", "mm/memory.c", "--kernel vanilla"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn a_patch_for_a_file_that_is_gone_is_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (_, tree, patch) = linked_trees(dir.path(), "x");
        fs::remove_file(tree.join("mm/memory.c")).expect("removed");
        let error = apply(&Context::for_test(dir.path()), &tree, &patch).expect_err("no file");
        assert!(error.to_string().contains("0001-mm-shout.patch"), "{error}");
    }

    #[test]
    fn an_unknown_kernel_path_is_refused_with_what_to_give_instead() {
        let error = check_foreign(Path::new("/no/such/tree")).expect_err("nothing there");
        assert!(error.to_string().contains("/no/such/tree"), "{error}");
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = check_foreign(dir.path()).expect_err("empty").to_string();
        assert!(
            error.contains("no kernel tree") && error.contains("Makefile"),
            "{error}"
        );
    }

    #[test]
    fn a_tree_that_was_built_in_place_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for part in ["Makefile", "Kconfig", "mm/Kconfig", "arch/x86/Makefile"] {
            let path = dir.path().join(part);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, "").expect("written");
        }
        assert!(check_foreign(dir.path()).is_ok());
        fs::write(dir.path().join(".config"), "").expect("written");
        let error = check_foreign(dir.path())
            .expect_err("not clean")
            .to_string();
        assert!(
            error.contains(".config") && error.contains("mrproper"),
            "{error}"
        );
    }

    #[test]
    fn source_of_the_users_own_is_not_built_into() {
        let kernels = Path::new("/cache/kernel");
        let foreign = builds_of_foreign(kernels, Path::new("/home/me/linux"));
        assert!(foreign.starts_with(kernels), "{}", foreign.display());
        let own = kernels.join("series-1");
        assert_eq!(builds_of_foreign(kernels, &own), own);
    }

    #[test]
    fn a_toolbox_without_the_kernel_source_says_how_to_go_on() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = find_archive(dir.path()).expect_err("none").to_string();
        assert!(error.contains("--kernel PATH"), "{error}");
        let archive = dir.path().join("linux-source-7.3.tar.xz");
        fs::write(&archive, "").expect("written");
        assert_eq!(find_archive(dir.path()).expect("one"), archive);
    }
}
