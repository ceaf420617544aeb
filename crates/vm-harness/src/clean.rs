// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Removes what was built from the cache.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::cache;
use crate::context::Context;

/// Arguments of `cdm clean`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just clean         what was built goes; the toolbox, just and the compiler cache stay
  just clean --all   everything in the cache goes")]
pub struct CleanArgs {
    /// Remove the toolbox, just and the compiler cache too
    #[arg(long)]
    all: bool,
}

/// What a plain clean keeps: it came from elsewhere, or makes the next build
/// quick.
const KEPT: [&str; 4] = ["toolbox", "just", "ccache", "locks"];

/// `cdm clean`.
pub fn run(ctx: &Context, args: &CleanArgs) -> Result<ExitCode> {
    // Nobody may be building what is about to go.
    let _kernel = cache::lock(ctx, "kernel", "building a kernel")?;
    let list = || -> std::io::Result<Vec<fs::DirEntry>> { fs::read_dir(&ctx.cache)?.collect() };
    let mut entries = list().with_context(|| format!("cannot list {}", ctx.cache.display()))?;
    // The toolbox last: the rest can still be removed should this be interrupted.
    entries.sort_by_key(|entry| entry.file_name() == "toolbox");
    for entry in entries {
        let name = entry.file_name();
        if !args.all && KEPT.iter().any(|kept| name == *kept) {
            continue;
        }
        let task = format!("removing {}", entry.path().display());
        let _task = ctx.progress.task(task, None);
        if entry.file_type()?.is_dir() {
            cache::remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_after_clean(all: bool) -> Vec<String> {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        for name in [
            "toolbox/key",
            "out/module",
            "kernel/public",
            "ccache",
            "logs",
        ] {
            fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        run(&ctx, &CleanArgs { all }).expect("cleaned");
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .expect("still there")
            .map(|entry| {
                entry
                    .expect("listed")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_clean_keeps_the_toolbox_and_the_compiler_cache() {
        assert_eq!(names_after_clean(false), ["ccache", "locks", "toolbox"]);
    }

    #[test]
    fn a_full_clean_keeps_nothing() {
        assert_eq!(names_after_clean(true), Vec::<String>::new());
    }
}
