// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The patch series by itself: it applies, it keeps to the kernel's style, and
//! off means compiled out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};

use super::run::Run;
use super::table::Table;
use crate::build::{self, BuildKind, Kernel, KernelChoice};
use crate::cache;
use crate::command::run_logged;
use crate::context::Context;
use crate::mutants::catalogue::{self, Part};

/// The stage `kernel`.
pub const KERNEL: Table = Table {
    name: "kernel",
    rows: &[
        ("kernel::series_lists_every_patch", series_is_complete),
        (
            "kernel::series_applies_to_the_pristine_source",
            series_applies,
        ),
        ("kernel::series_passes_checkpatch", series_passes_checkpatch),
        (
            "kernel::planted_mistakes_apply_to_the_series",
            planted_mistakes_apply,
        ),
        (
            "kernel::device_public_off_is_compiled_out",
            off_is_compiled_out,
        ),
    ],
};

fn built(run: &Run, choice: &KernelChoice) -> Result<Kernel> {
    build::kernel(run.ctx(), choice, BuildKind::Plain)
}

fn patches_folder(ctx: &Context) -> PathBuf {
    ctx.repo.join("images/kernel/patches")
}

/// The patches in their order.
fn patches(ctx: &Context) -> Result<Vec<PathBuf>> {
    build::series::patches(&ctx.repo)
}

/// Source tree of a kernel that was built out of tree.
fn source_of(kernel: &Kernel) -> Result<PathBuf> {
    let link = kernel.objects.join("source");
    fs::canonicalize(&link).with_context(|| format!("no kernel source at {}", link.display()))
}

fn series_is_complete(run: &Run) -> Result<()> {
    let listed: BTreeSet<PathBuf> = patches(run.ctx())?.into_iter().collect();
    let there: BTreeSet<PathBuf> = fs::read_dir(patches_folder(run.ctx()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "patch"))
        .collect();
    let difference: Vec<_> = listed.symmetric_difference(&there).collect();
    ensure!(
        difference.is_empty(),
        "in the series or in the folder, not in both: {difference:?}"
    );
    ensure!(!there.is_empty(), "the series is empty");
    Ok(())
}

/// Files that a patch changes or makes, as their path in the source.
fn touched(patch: &str) -> impl Iterator<Item = &str> {
    patch
        .lines()
        .filter_map(|line| line.strip_prefix("+++ b/"))
        .map(|rest| rest.split('\t').next().unwrap_or(rest))
}

fn series_applies(run: &Run) -> Result<()> {
    let source = source_of(&built(run, &KernelChoice::Vanilla)?)?;
    let work = tempfile::tempdir_in(run.folder())?;
    for patch in patches(run.ctx())? {
        let text = fs::read_to_string(&patch)?;
        for path in touched(&text) {
            let (from, to) = (source.join(path), work.path().join(path));
            // A file that an earlier patch touched is there already; one that this patch makes is
            // in no source.
            if from.exists() && !to.exists() {
                cache::create_folder(to.parent().context("a file in the source")?)?;
                fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        let log = run.folder().join("kernel-series-applies.log");
        let mut command = Command::new("patch");
        command
            .current_dir(work.path())
            .args(["-p1", "--fuzz=0", "--no-backup-if-mismatch", "-i"]);
        command.arg(&patch);
        run_logged(
            &mut command,
            &format!("applying {}", patch.display()),
            &log,
            |_| {},
        )?;
    }
    Ok(())
}

fn series_passes_checkpatch(run: &Run) -> Result<()> {
    let vanilla = built(run, &KernelChoice::Vanilla)?;
    let log = run.folder().join("kernel-checkpatch.log");
    let mut command = Command::new("perl");
    command
        .current_dir(source_of(&vanilla)?)
        .args([
            "scripts/checkpatch.pl",
            "--strict",
            "--terse",
            "--no-summary",
            "--color=never",
            // It looks for the commits of Fixes: lines in whatever git tree it runs in.
            "--ignore",
            "UNKNOWN_COMMIT_ID",
        ])
        .args(patches(run.ctx())?);
    let mut complaints = Vec::new();
    let ended = run_logged(&mut command, "checkpatch", &log, |line| {
        complaints.push(line.to_owned())
    });
    ensure!(
        complaints.is_empty(),
        "checkpatch complains:\n{}",
        complaints.join("\n")
    );
    ended
}

/// What `just mutants` plants in the kernel.
fn planted_mistakes_apply(run: &Run) -> Result<()> {
    let source = source_of(&built(run, &KernelChoice::Public)?)?;
    catalogue::all(&run.ctx().repo)?
        .iter()
        .filter(|mutant| mutant.part == Part::Kernel)
        .try_for_each(|mutant| catalogue::apply(mutant, &source, true))
}

/// Objects of the kernel proper that the series touches, in builds of it.
fn touched_objects(run: &Run, kernel: &Kernel) -> Result<Vec<String>> {
    let mut objects = BTreeSet::new();
    for patch in patches(run.ctx())? {
        let text = fs::read_to_string(&patch)?;
        let sources = touched(&text).filter_map(|path| path.strip_suffix(".c"));
        objects.extend(sources.map(|stem| format!("{stem}.o")));
    }
    Ok(objects
        .into_iter()
        .filter(|object| kernel.objects.join(object).exists())
        .collect())
}

/// Names in an object's symbol table that speak of public memory.
fn public_symbols(run: &Run, object: &Path) -> Result<Vec<String>> {
    let log = run.folder().join("kernel-symbols.log");
    let mut symbols = Vec::new();
    let mut nm = Command::new("llvm-nm");
    nm.arg(object);
    run_logged(&mut nm, "llvm-nm", &log, |line| {
        let name = line.split_whitespace().last().unwrap_or_default();
        if name.contains("device_public") {
            symbols.push(name.to_owned());
        }
    })?;
    Ok(symbols)
}

fn off_is_compiled_out(run: &Run) -> Result<()> {
    let ctx = run.ctx();
    let public = &built(run, &KernelChoice::Public)?;
    let source = source_of(public)?;
    let objects = touched_objects(run, public)?;
    ensure!(
        objects.len() > 5,
        "the series touches hardly anything: {objects:?}"
    );

    // With the option on, there are such symbols: the names to look for are right.
    let mut on = Vec::new();
    for object in &objects {
        on.extend(public_symbols(run, &public.objects.join(object))?);
    }
    ensure!(
        !on.is_empty(),
        "no object has a symbol of public memory even with the option on"
    );

    // Kept between runs, so that only what changed is built again.
    let out = ctx
        .cache
        .join("test")
        .join(format!("device-public-off-{}", public.key.as_str()));
    configure_off(run, public, &source, &out)?;
    let log = run.folder().join("kernel-device-public-off.log");
    let task = ctx
        .progress
        .task("building without CONFIG_DEVICE_PUBLIC", Some(&log));
    let mut command = make(ctx, &source, &out);
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    command.arg(format!("-j{jobs}")).args(&objects);
    run_logged(
        &mut command,
        "building without CONFIG_DEVICE_PUBLIC",
        &log,
        |line| {
            task.set_detail(line.trim());
        },
    )?;
    drop(task);
    for object in &objects {
        let symbols = public_symbols(run, &out.join(object))?;
        ensure!(
            symbols.is_empty(),
            "{object} has {symbols:?} although the option is off"
        );
    }
    Ok(())
}

/// The public kernel's configuration with the option off; without Rust, which nothing here needs.
fn configure_off(run: &Run, public: &Kernel, source: &Path, out: &Path) -> Result<()> {
    const OFF: &str = "# CONFIG_DEVICE_PUBLIC is not set";
    let config = out.join(".config");
    if !config.exists() {
        cache::create_folder(out)?;
        let text = fs::read_to_string(&public.config)?;
        let dropped = ["CONFIG_DEVICE_PUBLIC=", "CONFIG_RUST="];
        let kept = text
            .lines()
            .filter(|line| !dropped.iter().any(|name| line.starts_with(name)));
        let text: Vec<&str> = kept.chain([OFF, "# CONFIG_RUST is not set"]).collect();
        fs::write(&config, text.join("\n") + "\n")?;
        let log = run.folder().join("kernel-device-public-off.config.log");
        let mut command = make(run.ctx(), source, out);
        command.arg("olddefconfig");
        run_logged(
            &mut command,
            "configuring without CONFIG_DEVICE_PUBLIC",
            &log,
            |_| {},
        )?;
    }
    let text = fs::read_to_string(&config)?;
    ensure!(
        text.lines().any(|line| line == OFF),
        "the option cannot be switched off"
    );
    Ok(())
}

/// kbuild as the kernels are built, so that ccache knows the objects.
fn make(ctx: &Context, source: &Path, out: &Path) -> Command {
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(source)
        .arg(format!("O={}", out.display()))
        .args(["ARCH=x86_64", "LLVM=1", "CC=ccache clang", "LOCALVERSION="])
        .env("LC_ALL", "C")
        .env("CCACHE_DIR", ctx.cache.join("ccache"))
        .env("CCACHE_BASEDIR", ctx.cache.join("kernel"))
        .env("CCACHE_NOCOMPRESS", "1");
    for name in ["MAKEFLAGS", "MFLAGS", "KBUILD_OUTPUT", "CFLAGS", "KCFLAGS"] {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_files_are_read_from_a_patch() {
        let patch = "--- a/mm/rmap.c\n+++ b/mm/rmap.c\n@@ -1 +1 @@\n+++ not a file\n\
                     --- /dev/null\n+++ b/mm/new.c\t2026\n";
        assert_eq!(
            touched(patch).collect::<Vec<_>>(),
            ["mm/rmap.c", "mm/new.c"]
        );
    }
}
