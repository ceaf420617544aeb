// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest kernel: source, configuration, build.
//!
//! In the cache, `kernel/<source key>` is a whole source tree, with a build tree
//! `<build key>` right in it: kbuild then names every file by a relative path, the
//! same whatever the keys, and ccache gives a changed series all the objects that
//! it did not change. The build tree for a user's own source lies apart from it. A
//! build tree is finished when it holds [`FINISHED`]; an unfinished one is taken up
//! where it was left.

mod config;
pub mod series;
mod source;
mod working_tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};

use self::config::Fragments;
use self::source::Source;
pub use self::working_tree::WorkingTree;
use super::{BuildKind, KernelChoice};

use crate::cache::{self, Key, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;

/// A kernel that has been built.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Which source it was built from.
    pub choice: KernelChoice,
    /// How much it checks itself.
    pub kind: BuildKind,
    /// The image QEMU boots (bzImage).
    pub image: PathBuf,
    /// The build tree (`O=`), with vmlinux and all that a module build needs.
    pub objects: PathBuf,
    /// The configuration it was built with.
    pub config: PathBuf,
    /// Stands for all that went into it, in keys of what is built for it.
    pub key: Key,
}

/// In a build tree: everything was built, and this many steps it took.
const FINISHED: &str = ".cdm-finished";

/// Room that a kernel takes besides its source; with debug information, more.
const fn build_mib(kind: BuildKind) -> u64 {
    match kind {
        BuildKind::Plain => 700,
        BuildKind::Debug => 4000,
    }
}

/// Part of every build tree's key; a new number makes all of them build anew.
const RECIPE: &str = "2";

/// Builds a kernel, or finds it built.
pub fn kernel(ctx: &Context, choice: &KernelChoice, kind: BuildKind) -> Result<Kernel> {
    let source = Source::find(ctx, choice)?;
    let fragments = Fragments::read(&ctx.repo.join("images/kernel/config"), &source, kind)?;
    let mut key = KeyBuilder::new();
    key.text("recipe", RECIPE)
        .text("toolbox", &ctx.toolbox)
        .text("config", fragments.text());
    let objects = source.builds.join(format!("{kind}-{}", key.finish()));

    if source.is_fixed() && objects.join(FINISHED).is_file() {
        return finished(ctx, choice, kind, &source, &objects);
    }
    let _lock = cache::lock(ctx, "kernel", "building a kernel")?;
    if !(source.is_fixed() && objects.join(FINISHED).is_file()) {
        source.prepare(ctx)?;
        build(ctx, choice, kind, &source, &fragments, &objects)?;
    }
    finished(ctx, choice, kind, &source, &objects)
}

/// A kernel's source, unpacked and patched if nothing was built from it yet.
pub fn source_of(ctx: &Context, choice: &KernelChoice) -> Result<PathBuf> {
    let source = Source::find(ctx, choice)?;
    if !source.tree.is_dir() {
        let _lock = cache::lock(ctx, "kernel", "preparing a kernel source")?;
        source.prepare(ctx)?;
    }
    Ok(source.tree)
}

fn finished(
    ctx: &Context,
    choice: &KernelChoice,
    kind: BuildKind,
    source: &Source,
    objects: &Path,
) -> Result<Kernel> {
    let mut key = KeyBuilder::new();
    // Its place in the cache says it all, and a cache that lies elsewhere is the same one.
    let place = objects.strip_prefix(&ctx.cache).unwrap_or(objects);
    key.text("objects", place.to_string_lossy());
    if !source.is_fixed() {
        // A tree that its owner works on: whatever changed shows in these.
        for name in [
            ".config",
            "Module.symvers",
            "include/generated/utsrelease.h",
        ] {
            key.file(objects, &objects.join(name))?;
        }
        let image = fs::metadata(objects.join("vmlinux"))
            .with_context(|| format!("cannot read {}/vmlinux", objects.display()))?;
        key.text(
            "vmlinux",
            format!("{:?} {}", image.modified()?, image.len()),
        );
    }
    Ok(Kernel {
        choice: choice.clone(),
        kind,
        image: objects.join("arch/x86/boot/bzImage"),
        objects: objects.to_owned(),
        config: objects.join(".config"),
        key: key.finish(),
    })
}

fn build(
    ctx: &Context,
    choice: &KernelChoice,
    kind: BuildKind,
    source: &Source,
    fragments: &Fragments,
    objects: &Path,
) -> Result<()> {
    if !objects.join("vmlinux").exists() {
        cache::require_space(&ctx.cache, build_mib(kind), "building the kernel")?;
    }
    cache::create_folder(objects)?;
    let name = match choice {
        KernelChoice::Tree(_) => "tree".to_owned(),
        named => named.to_string(),
    };
    let what = format!("building the {name} kernel ({kind})");
    let log = ctx.logs().join(format!("kernel-{name}-{kind}.log"));
    let make = |targets: &[&str]| make(ctx, source, objects, targets);

    // Touching a configuration that did not change would rebuild everything.
    let wanted = objects.join(".cdm-fragments");
    if fs::read_to_string(&wanted).ok().as_deref() != Some(fragments.text())
        || !objects.join(".config").is_file()
    {
        let merged = objects.join("cdm.config");
        fs::write(&merged, fragments.text())
            .with_context(|| format!("cannot write {}", merged.display()))?;
        let mut configure = make(&["allnoconfig"]);
        configure.env("KCONFIG_ALLCONFIG", &merged);
        let config_log = log.with_extension("config.log");
        run_logged(
            &mut configure,
            "configuring the kernel",
            &config_log,
            |_| {},
        )?;
        let final_config = fs::read_to_string(objects.join(".config"))?;
        let lost = fragments.lost_in(&final_config);
        if !lost.is_empty() {
            source.on_lost_options(ctx, &lost)?;
        }
        fs::write(&wanted, fragments.text())?;
    }

    let steps_file = ctx.cache.join("kernel").join(format!("steps-{kind}"));
    let expected = fs::read_to_string(&steps_file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let task = ctx.progress.task(&what, Some(&log));
    task.set_total(expected.unwrap_or(ABOUT_STEPS));
    // A build tree that is taken up again starts where it was left.
    let mut steps = count_objects(objects);
    let fresh = steps == 0;
    task.set_position(steps);
    // A module that is built alone brings the symbols that modules outside the tree need; the others
    // wait until a machine wants them.
    let targets: &[&str] = match config_has(objects, "CONFIG_TEST_HMM=m")? {
        true => &["bzImage", "lib/test_hmm.ko"],
        false => &["bzImage", "modules"],
    };
    let mut all = make(targets);
    all.arg(format!("-j{}", jobs()));
    run_logged(&mut all, &what, &log, |line| {
        if let Some(step) = Step::parse(line) {
            steps += 1;
            task.set_position(steps);
            task.set_detail(step.folder);
        }
    })?;
    drop(task);
    fs::write(objects.join(FINISHED), format!("{steps}\n"))?;
    if fresh {
        fs::write(&steps_file, format!("{steps}\n"))?;
    }
    Ok(())
}

/// Whether a line is in a build tree's final configuration.
fn config_has(objects: &Path, wanted: &str) -> Result<bool> {
    let path = objects.join(".config");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().any(|line| line == wanted))
}

/// Builds the modules of a kernel's configuration, or finds them built: a folder that is
/// `/lib/modules/RELEASE` of the guest, in which `modprobe` finds its way.
pub fn modules(ctx: &Context, kernel: &Kernel) -> Result<PathBuf> {
    let source = Source::find(ctx, &kernel.choice)?;
    let root = kernel.objects.join(".cdm-modules");
    let release = fs::read_to_string(kernel.objects.join("include/config/kernel.release"))
        .with_context(|| format!("cannot read the release of {}", kernel.objects.display()))?;
    let folder = root.join("lib/modules").join(release.trim());
    // The last file that installing them writes.
    if source.is_fixed() && folder.join("modules.dep.bin").is_file() {
        return Ok(folder);
    }
    let _lock = cache::lock(ctx, "kernel", "building a kernel")?;
    let what = format!("building the modules of the {} kernel", kernel.choice);
    let log = ctx.logs().join("kernel-modules.log");
    let task = ctx.progress.task(&what, Some(&log));
    let mut command = make(ctx, &source, &kernel.objects, &["modules"]);
    command.arg(format!("-j{}", jobs()));
    run_logged(&mut command, &what, &log, |line| {
        if let Some(step) = Step::parse(line) {
            task.set_detail(step.folder);
        }
    })?;
    let mut install = make(ctx, &source, &kernel.objects, &["modules_install"]);
    install.arg(format!("INSTALL_MOD_PATH={}", root.display()));
    let log = ctx.logs().join("kernel-modules-install.log");
    run_logged(
        &mut install,
        "installing the kernel's modules",
        &log,
        |_| {},
    )?;
    // A link to the host's build tree, which the guest does not have.
    let _ = fs::remove_file(folder.join("build"));
    Ok(folder)
}

fn jobs() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// How many steps a build has, until one has been counted on this machine.
const ABOUT_STEPS: u64 = 1950;

/// kbuild, for this source and build tree, with everything that could make two
/// builds of the same source differ pinned.
fn make(ctx: &Context, source: &Source, objects: &Path, targets: &[&str]) -> Command {
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(&source.tree)
        .arg(format!("O={}", objects.display()))
        .args(["ARCH=x86_64", "LLVM=1", "CC=ccache clang", "LOCALVERSION="])
        .args(targets)
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        .env("KBUILD_BUILD_USER", "cdm")
        .env("KBUILD_BUILD_HOST", "cdm")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("LC_ALL", "C")
        .env("CCACHE_DIR", ctx.cache.join("ccache"))
        .env("CCACHE_MAXSIZE", "4G")
        .env("CCACHE_NOCOMPRESS", "1")
        // Saves a run of the preprocessor for every object that is not in the cache.
        .env("CCACHE_DEPEND", "1");
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "KBUILD_OUTPUT",
        "CFLAGS",
        "KCFLAGS",
        "RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

/// Objects that an earlier, interrupted build left: about its number of steps.
fn count_objects(objects: &Path) -> u64 {
    let files = cache::files_below(objects).unwrap_or_default();
    files
        .iter()
        .filter(|file| file.extension().is_some_and(|ext| ext == "o"))
        .count() as u64
}

/// One step of kbuild's short output: `  CC      mm/memory.o`.
struct Step<'a> {
    folder: &'a str,
}

impl<'a> Step<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let rest = line.strip_prefix("  ")?;
        let (verb, rest) = rest.split_once(char::is_whitespace)?;
        let known = verb.len() > 1 && verb.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        let file = rest.trim_start().trim_start_matches("[M]").trim_start();
        known.then(|| Self {
            folder: file.rsplit_once('/').map_or("", |(folder, _)| folder),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_kbuild_is_told_from_other_output() {
        assert_eq!(
            Step::parse("  CC      mm/memory.o").map(|s| s.folder),
            Some("mm")
        );
        assert_eq!(
            Step::parse("  CC [M]  lib/test_hmm.o").map(|s| s.folder),
            Some("lib")
        );
        assert_eq!(Step::parse("  LD      vmlinux").map(|s| s.folder), Some(""));
        assert!(Step::parse("make[1]: Entering directory '/x'").is_none());
        assert!(Step::parse("  warning: something").is_none());
    }
}
