// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Packages for Debian, by dpkg-buildpackage and what `images/debian` says of them.
//!
//! They are built in a copy of the clone's files, which stays in the cache with their dates: cargo
//! and debhelper write beside the sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build::{mirror, mirror_file, set_environment};
use crate::cache;
use crate::command::run_logged;
use crate::context::Context;
use crate::git;

/// What the packages are, in the repository.
const DEFINITION: &str = "images/debian";
/// What they are made from.
const SOURCES: [&str; 7] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSES",
    "crates",
    "docs/reference/man",
    "qemu",
    "rustfmt.toml",
];
/// Who made them, as in the definition.
const MAINTAINER: &str = "cdm maintainers <maintainers@cdm.example>";

/// Builds the packages and moves them into a folder; where they are then.
pub fn build(ctx: &Context, to: &Path) -> Result<Vec<PathBuf>> {
    let what = "building packages for Debian";
    let _lock = cache::lock(ctx, "debian", what)?;
    let home = ctx.cache.join("debian");
    let source = home.join("source");
    stage(ctx, &source)?;
    let log = ctx.logs().join("debian.log");
    let task = ctx.progress.task(what, Some(&log));
    let mut dpkg = Command::new("dpkg-buildpackage");
    set_environment(&mut dpkg, ctx, "host");
    // Beside those of the clone, whose crates lie elsewhere.
    dpkg.env("CARGO_TARGET_DIR", home.join("target"))
        .current_dir(&source)
        // Nothing is signed, and the toolbox has the packages that are needed to build, but for
        // the metapackage of compilers.
        .args(["--build=binary", "--no-sign", "--no-check-builddeps"]);
    run_logged(&mut dpkg, what, &log, |line| task.set_detail(line.trim()))?;
    drop(task);
    let made = cache::files_ending_in(&home, "deb")?;
    ensure!(
        !made.is_empty(),
        "dpkg-buildpackage left no package; log: {}",
        log.display()
    );
    made.iter()
        .map(|package| {
            let moved = to.join(package.file_name().context("a package has a name")?);
            fs::copy(package, &moved)
                .with_context(|| format!("cannot write {}", moved.display()))?;
            fs::remove_file(package)
                .with_context(|| format!("cannot remove {}", package.display()))?;
            Ok(moved)
        })
        .collect()
}

/// The version of everything in the workspace.
pub const fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Makes a source package's folder: the files, and `debian` with a changelog that says which
/// version they are.
fn stage(ctx: &Context, to: &Path) -> Result<()> {
    for path in SOURCES {
        let from = ctx.repo.join(path);
        match from.is_dir() {
            true => mirror(&from, &to.join(path))?,
            false => mirror_file(&from, &to.join(path))?,
        }
    }
    let debian = to.join("debian");
    mirror(&ctx.repo.join(DEFINITION), &debian)?;
    let changelog = format!(
        "cdm ({}) unstable; urgency=medium\n\n  * CHANGELOG.md of the repository tells what is \
         new.\n\n -- {MAINTAINER}  {}\n",
        version(),
        git::date_of_commit(ctx)?
    );
    let path = debian.join("changelog");
    fs::write(&path, changelog).with_context(|| format!("cannot write {}", path.display()))
}
