// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Modules of anybody's, built by kbuild against a guest's kernel: the examples, or a driver that
//! takes the place of ours.
//!
//! kbuild reads the sources where they are, since it cannot be known what they include, and keeps
//! objects in the cache. It finds out by itself what changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use super::module::kbuild;
use super::{Kernel, KernelOptions, kernel};
use crate::cache::{self, KeyBuilder};
use crate::context::Context;

/// Arguments of `cdm module`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just module examples/minimal-driver
  just module ~/src/driver --kernel vanilla
  just run-vm --file $(just module examples/first-driver):/root/first.ko

DIR has a Kbuild or Makefile, as 'make -C KERNEL M=DIR modules' reads it. Prints the path of each
module; nothing is written into DIR.")]
pub struct ModuleArgs {
    /// Folder with the module's sources
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    #[command(flatten)]
    kernel: KernelOptions,
}

/// `cdm module`: builds modules, and prints where they are.
pub fn run_module(ctx: &Context, args: &ModuleArgs) -> Result<ExitCode> {
    let kernel = kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    for module in own_modules(ctx, &kernel, &args.folder)? {
        println!("{}", module.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the modules of a folder for a kernel; their paths.
pub fn own_modules(ctx: &Context, kernel: &Kernel, folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder
        .canonicalize()
        .with_context(|| format!("there is no {}", folder.display()))?;
    ensure!(
        ["Kbuild", "Makefile"]
            .iter()
            .any(|name| folder.join(name).is_file()),
        "{} has neither a Kbuild nor a Makefile; 'obj-m := NAME.o' in a Kbuild is enough",
        folder.display()
    );
    let mut key = KeyBuilder::new();
    key.text("folder", folder.to_string_lossy());
    let key = key.finish();
    let what = format!(
        "building {} for the {} kernel",
        folder.display(),
        kernel.choice
    );
    let _lock = cache::lock(ctx, &format!("module-{}", key.as_str()), &what)?;
    let home = ctx.cache.join("module").join(kernel.key.as_str());
    let objects = home.join("own").join(key.as_str());
    cache::create_folder(&objects)?;
    // One that is no longer built must not be taken for one that is.
    for old in modules_in(&objects)? {
        fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    kbuild(ctx, kernel, &folder, &objects, &what)?;
    let built = modules_in(&objects)?;
    if built.is_empty() {
        bail!(
            "{} builds no module; 'obj-m := NAME.o' in its Kbuild makes one of NAME.c or NAME.rs",
            folder.display()
        );
    }
    Ok(built)
}

fn modules_in(folder: &Path) -> Result<Vec<PathBuf>> {
    cache::files_ending_in(folder, "ko")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_ending_in_order() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["b.ko", "a.ko", "a.o", "ko"] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        let found = modules_in(dir.path()).expect("readable");
        assert_eq!(found, [dir.path().join("a.ko"), dir.path().join("b.ko")]);
    }
}
