// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver, built by kbuild against one guest kernel.
//!
//! The driver takes in files of other crates by relative path, so the build reads a
//! copy of `crates/` that keeps the layout. The copy, and the objects beside it,
//! belong to the kernel and stay, with the date of every file that did not change,
//! so that kbuild compiles only what did, whichever clone asks for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Kernel;
use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;
use crate::ide::Built;

/// The driver's crate.
const DRIVER: &str = "crates/guest-driver";
/// What the module is compiled from: the driver, and the wire contract that it
/// includes.
pub const SOURCES: [&str; 2] = [DRIVER, "crates/device-protocol/src"];
/// The product's name.
const MODULE: &str = "cdm.ko";

/// Builds the driver for a kernel, and returns the module's path.
pub fn module(ctx: &Context, kernel: &Kernel) -> Result<PathBuf> {
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox)
        .text("kernel", kernel.key.as_str());
    for source in SOURCES {
        key.tree(&ctx.repo, &ctx.repo.join(source))?;
    }
    let what = format!("building the driver for the {} kernel", kernel.choice);
    let folder = cache::entry(ctx, "module", &key.finish(), &what, |folder| {
        let home = ctx.cache.join("module").join(kernel.key.as_str());
        let (copy, objects) = (home.join("source"), home.join("objects"));
        cache::create_folder(&objects)?;
        for source in SOURCES {
            mirror(&ctx.repo.join(source), &copy.join(source))?;
        }
        kbuild(ctx, kernel, &copy.join(DRIVER), &objects, &what)?;
        let built = objects.join(MODULE);
        fs::copy(&built, folder.join(MODULE))
            .with_context(|| format!("kbuild left no {}", built.display()))?;
        Ok(())
    })?;
    Ok(folder.join(MODULE))
}

/// Has the kernel's build make the modules of a folder. What it writes goes to `objects`.
pub(super) fn kbuild(
    ctx: &Context,
    kernel: &Kernel,
    sources: &Path,
    objects: &Path,
    what: &str,
) -> Result<()> {
    let log = ctx.logs().join("module.log");
    let task = ctx.progress.task(what, Some(&log));
    let mut make = make(kernel, sources, objects, "modules");
    run_logged(&mut make, what, &log, |line| task.set_detail(line.trim()))
}

/// The command that has kbuild make something of a folder of sources.
fn make(kernel: &Kernel, sources: &Path, objects: &Path, target: &str) -> Command {
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&kernel.objects)
        .arg(format!("M={}", sources.display()))
        .arg(format!("MO={}", objects.display()))
        .args(["ARCH=x86_64", "LLVM=1", target])
        .env("LC_ALL", "C")
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970");
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "KBUILD_OUTPUT",
        "KCFLAGS",
        "RUSTFLAGS",
    ] {
        make.env_remove(name);
    }
    make
}

/// Builds the driver, and gives what editors need to know of it.
pub fn rust_analyzer(ctx: &Context, kernel: &Kernel) -> Result<Built> {
    module(ctx, kernel)?;
    let home = ctx.cache.join("module").join(kernel.key.as_str());
    let bindings = home.join("objects/src/bindings_generated.rs");
    ensure!(
        bindings.is_file(),
        "there is no {}, which a build of the driver leaves; 'just clean' has it built again",
        bindings.display()
    );
    // Kbuild writes into the folder of objects, and the module's own are left alone.
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let log = ctx.logs().join("rust-analyzer.log");
    let mut make = make(
        kernel,
        &home.join("source").join(DRIVER),
        scratch.path(),
        "rust-analyzer",
    );
    run_logged(&mut make, "describing the kernel's crates", &log, |_| {})?;
    let path = scratch.path().join("rust-project.json");
    let kernel_crates = fs::read_to_string(&path)
        .with_context(|| format!("kbuild left no {}; log: {}", path.display(), log.display()))?;
    Ok(Built {
        kernel_crates,
        bindings,
    })
}

/// Makes the sources in `to` equal to those in `from`, and writes only files
/// that differ.
pub fn mirror(from: &Path, to: &Path) -> Result<()> {
    let mut wanted = BTreeSet::new();
    for path in cache::files_below(from)? {
        let copy = to.join(path.strip_prefix(from)?);
        mirror_file(&path, &copy)?;
        wanted.insert(copy);
    }
    for path in cache::files_below(to)? {
        if !wanted.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// [`mirror`] for one file, which may be a program.
pub fn mirror_file(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).ok().as_deref() == Some(&bytes) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        cache::create_folder(folder)?;
    }
    // The copy gets the date of now and the mode of what it is a copy of.
    fs::copy(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_writes_only_what_differs_and_drops_what_is_gone() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("src")).expect("made");
        for name in ["src/same.rs", "src/changed.rs", "src/gone.rs"] {
            fs::write(from.join(name), "old").expect("written");
        }
        mirror(&from, &to).expect("copied");
        let date = |name: &str| {
            fs::metadata(to.join(name))
                .and_then(|meta| meta.modified())
                .expect("there")
        };
        let before = date("src/same.rs");
        fs::write(from.join("src/same.rs"), "old").expect("written with a new date");
        fs::write(from.join("src/changed.rs"), "new").expect("written");
        fs::remove_file(from.join("src/gone.rs")).expect("removed");
        mirror(&from, &to).expect("copied");
        assert_eq!(date("src/same.rs"), before);
        assert_eq!(
            fs::read_to_string(to.join("src/changed.rs")).expect("there"),
            "new"
        );
        assert!(!to.join("src/gone.rs").exists());
    }
}
