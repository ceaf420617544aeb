// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The upper layer of an image: a commit, and the part of the cache that runs need. What was built
//! keeps its place in the cache, and so is found again, under the same key.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build::{self, BuildKind, Kernel, KernelChoice};
use crate::cache;
use crate::command::run_logged;
use crate::context::Context;

/// The project in the image.
pub const REPO: &str = "cdm";
/// The cache in the image.
pub const CACHE: &str = "var/cache/cdm";
/// Folders of the cache that runs write to. Who makes the rest read-only mounts others here.
pub const WRITTEN: [&str; 4] = ["locks", "logs", "runs", "soak"];

/// At the top, as in every Debian.
const LINKS: [(&str, &str); 4] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
];
/// Where engines mount things.
const MOUNTED: [&str; 4] = ["dev", "proc", "run", "sys"];

/// What keys of the cache are made of.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "crates", "images", "qemu", "ci"];
/// Parts of a kernel's build tree: to find it and boot it, and to read what it says when it dies.
const OF_KERNEL: [&str; 6] = [
    ".cdm-finished",
    ".config",
    "arch/x86/boot/bzImage",
    "include/config/kernel.release",
    "source",
    "vmlinux",
];
/// Part of a kernel's source tree: it decodes back traces.
const OF_SOURCE: &str = "scripts/decode_stacktrace.sh";

/// An image holds a commit, so what it was built from must be in one.
pub fn ensure_committed(ctx: &Context) -> Result<()> {
    let output = Command::new("git")
        .current_dir(&ctx.repo)
        .args(["-c", "safe.directory=*", "status", "--porcelain", "--"])
        .args(SOURCES)
        .output()
        .context("cannot start git")?;
    let changes = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && changes.is_empty(),
        "an image holds a commit, and the clone has changes that are in none; commit or remove \
         them:\n{}{}",
        changes.trim_end(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

/// Builds what the image holds, and returns the files and folders, all of them in the cache.
pub fn products(
    ctx: &Context,
    kernels: &[KernelChoice],
    builds: &[BuildKind],
) -> Result<BTreeSet<PathBuf>> {
    let mut products = BTreeSet::from([this_program(ctx)?, just(ctx)?]);
    products.insert(folder_of(&build::backend(ctx)?)?);
    products.insert(build::guest_tools(ctx)?);
    for choice in kernels {
        for kind in builds {
            let kernel = build::kernel(ctx, choice, *kind)?;
            products.insert(build::kernel_modules(ctx, &kernel)?);
            products.insert(folder_of(&build::module(ctx, &kernel)?)?);
            products.insert(folder_of(&build::initramfs(ctx, &kernel)?)?);
            products.extend(parts_of(&kernel)?);
        }
    }
    Ok(products)
}

fn folder_of(file: &Path) -> Result<PathBuf> {
    let folder = file.parent().context("a product lies in a folder")?;
    Ok(folder.to_owned())
}

fn parts_of(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let mut parts: Vec<PathBuf> = OF_KERNEL
        .iter()
        .map(|part| kernel.objects.join(part))
        .collect();
    parts.push(folder_of(&kernel.objects)?.join(OF_SOURCE));
    Ok(parts)
}

/// `cdm` under the name by which `ci/just` finds it.
fn this_program(ctx: &Context) -> Result<PathBuf> {
    let program = env::current_exe().context("cannot find this program")?;
    ensure!(
        program.starts_with(ctx.cache.join("bin")),
        "{} is not in the cache; start this as 'ci/just image'",
        program.display()
    );
    Ok(program)
}

/// The cache's own `just`; a host that has one elsewhere never needed it there.
fn just(ctx: &Context) -> Result<PathBuf> {
    let just = ctx.cache.join("just/bin/just");
    if !just.is_file() {
        let log = ctx.logs().join("image-just.log");
        let _task = ctx.progress.task("fetching just", Some(&log));
        let mut bootstrap = Command::new(ctx.repo.join("ci/just"));
        bootstrap.arg("--version");
        run_logged(&mut bootstrap, "ci/just --version", &log, |_| {})?;
    }
    Ok(just)
}

/// Puts the layer together, in an empty folder on the cache's own disk.
pub fn stage(ctx: &Context, products: &BTreeSet<PathBuf>, stage: &Path) -> Result<()> {
    let cache = stage.join(CACHE);
    for product in products {
        let place = product.strip_prefix(&ctx.cache).with_context(|| {
            let product = product.display();
            format!("{product} is not in the cache, and so in no image")
        })?;
        link(product, &cache.join(place))?;
    }
    for folder in ["toolbox", "bin"] {
        cache::create_folder(&cache.join(folder))?;
    }
    for folder in MOUNTED {
        cache::create_folder(&stage.join(folder))?;
    }
    for (name, target) in LINKS {
        symlink(target, stage.join(name))?;
    }
    let written = WRITTEN.iter().map(|name| cache.join(name));
    for folder in written.chain([stage.join("tmp"), stage.join("var/tmp")]) {
        cache::create_folder(&folder)?;
        // Whoever the container runs as.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777))
            .with_context(|| format!("cannot open {} for all", folder.display()))?;
    }
    clone(ctx, &stage.join(REPO))?;
    // mkdtemp's own mode would become that of the image's root.
    fs::set_permissions(stage, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Copies a file, a symbolic link or a folder by hard links.
fn link(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("cannot put {} into the image", from.display());
    let kind = fs::symlink_metadata(from).with_context(failed)?.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(from).with_context(failed)? {
            let name = entry?.file_name();
            link(&from.join(&name), &to.join(&name))?;
        }
        return cache::create_folder(to);
    }
    if let Some(folder) = to.parent() {
        cache::create_folder(folder)?;
    }
    let made = if kind.is_symlink() {
        fs::read_link(from).and_then(|target| symlink(target, to))
    } else {
        fs::hard_link(from, to)
    };
    made.with_context(failed)
}

/// The commit that is checked out, with its name and without its history.
fn clone(ctx: &Context, to: &Path) -> Result<()> {
    let log = ctx.logs().join("image-clone.log");
    let mut git = Command::new("git");
    git.args(["clone", "--quiet", "--depth=1", "--no-tags", "--template="])
        .arg(format!("file://{}", ctx.repo.display()))
        .arg(to);
    run_logged(&mut git, "git clone", &log, |_| {})?;
    let mut forget = Command::new("git");
    forget
        .current_dir(to)
        .args(["-c", "safe.directory=*", "remote", "remove", "origin"]);
    run_logged(&mut forget, "git remote remove", &log, |_| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_keeps_its_place_in_the_cache_and_its_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("out/module/key")).expect("made");
        fs::write(from.join("out/module/key/cdm.ko"), "driver").expect("written");
        symlink("..", from.join("out/module/key/source")).expect("made");
        link(&from.join("out"), &to.join("out")).expect("linked");
        let inode = |root: &Path| {
            use std::os::unix::fs::MetadataExt;
            let file = root.join("out/module/key/cdm.ko");
            fs::metadata(file).expect("there").ino()
        };
        assert_eq!(inode(&from), inode(&to));
        let target = fs::read_link(to.join("out/module/key/source")).expect("a link");
        assert_eq!(target, Path::new(".."));
    }

    #[test]
    fn product_outside_of_the_cache_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(&dir.path().join("cache"));
        let products = BTreeSet::from([dir.path().join("elsewhere")]);
        let error = stage(&ctx, &products, dir.path()).expect_err("not in the cache");
        assert!(error.to_string().contains("elsewhere"), "{error}");
    }
}
