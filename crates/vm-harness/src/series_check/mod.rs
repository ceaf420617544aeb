// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm series-check`: whoever bisects through the series must be able to build and
//! boot any point of it. So each prefix is built, with the driver for it, and booted.
//!
//! It takes long, and is no part of `cdm test`. What has been checked is kept: an
//! interrupted check goes on where it was, and a changed patch costs the prefixes from
//! that patch on.

mod record;
mod smoke;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use self::record::{Checked, Document, Store};
use crate::build::{self, BuildKind, Kernel, KernelChoice, WorkingTree, series};
use crate::cache::{self, Key, KeyBuilder};
use crate::context::Context;
use crate::git::Commit;
use crate::runs;
use crate::vm::Parts;

const HELP: &str = "\
Examples:
  just series-check
  just series-check --minutes 30
  just series-check --record

A prefix passes when the kernel with the first patches of the series and the driver for it
build, the guest boots with the driver, pages move to the device and back with their contents,
and the guest's kernel log is clean. Prefix 0 is the kernel without any patch.

What passed is kept in the cache under what the patches change and the kernel's configuration,
with the commit whose driver it passed with, and is not checked again unless --anew asks for it;
an interrupted check goes on where it was. The
results folder (--keep-logs, or a new folder in the cache) gets results.json, and for each prefix
a folder with the guest's console.log, command line and kernel configuration.

Exit status: 0 each prefix passed, 1 one failed or is not checked yet, 2 could not run.";

/// Arguments of `cdm series-check`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP, after_help = "\
Examples:
  just series-check
  just series-check --record")]
pub struct SeriesCheckArgs {
    /// Check again what has passed before
    #[arg(long)]
    anew: bool,

    /// Begin no prefix after NUM minutes; the next run goes on
    #[arg(long, value_name = "NUM")]
    minutes: Option<u64>,

    /// Write the result into docs/results too
    #[arg(long)]
    record: bool,

    /// Keep logs and results in DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

/// `cdm series-check`.
pub fn run(ctx: &Context, args: &SeriesCheckArgs) -> Result<ExitCode> {
    let commit = Commit::of_run(ctx, args.record)?;
    let prefixes = prefixes(ctx)?;
    let folder = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    // First, as only one check at a time has it: what another one found is known then.
    let tree = WorkingTree::open(ctx)?;
    let mut store = match args.anew {
        true => Store::empty(ctx)?,
        false => Store::open(ctx)?,
    };
    let check = Check {
        ctx,
        commit: &commit,
        folder: &folder,
        tree,
    };
    let started = Instant::now();
    let mut results = BTreeMap::new();
    for (number, prefix) in prefixes.iter().enumerate() {
        if let Some(before) = store.passed(&prefix.key) {
            results.insert(number, before.clone());
            continue;
        }
        let limit = args
            .minutes
            .map(|minutes| Duration::from_secs(minutes * 60));
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            continue;
        }
        let checked = check.prefix(number, prefix);
        println!("{}", checked.line(number, &prefix.subject));
        store.add(&prefix.key, &checked)?;
        results.insert(number, checked);
    }
    let subjects: Vec<String> = prefixes.into_iter().map(|prefix| prefix.subject).collect();
    let document = Document::new(&commit, &subjects, &results);
    println!("{}", document.count());
    document.publish(ctx, &folder, args.record)?;
    ctx.progress
        .say(format!("logs and results: {}", folder.display()));
    Ok(if document.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The kernel with the first patches of the series.
struct Prefix {
    patches: Vec<PathBuf>,
    /// Subject of its last patch.
    subject: String,
    /// Stands for what goes into its check.
    key: Key,
}

/// All prefixes, that without a patch first.
fn prefixes(ctx: &Context) -> Result<Vec<Prefix>> {
    let patches = series::patches(&ctx.repo)?;
    (0..=patches.len())
        .map(|number| {
            let patches = &patches[..number];
            Ok(Prefix {
                key: key(ctx, patches)?,
                subject: match patches.last() {
                    Some(last) => series::subject(last)?,
                    None => "the kernel without a patch".to_owned(),
                },
                patches: patches.to_vec(),
            })
        })
        .collect()
}

fn key(ctx: &Context, patches: &[PathBuf]) -> Result<Key> {
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox)
        .text("smoke", smoke::TESTS.join(" "));
    key.tree(&ctx.repo, &ctx.repo.join("images/kernel/config"))?;
    for patch in patches {
        key.bytes("patch", &series::diff(patch)?);
    }
    Ok(key.finish())
}

/// What checks of all prefixes share.
struct Check<'a> {
    ctx: &'a Context,
    commit: &'a Commit,
    folder: &'a std::path::Path,
    tree: WorkingTree,
}

impl Check<'_> {
    /// Builds and boots one prefix. Whatever goes wrong is its result.
    fn prefix(&self, number: usize, prefix: &Prefix) -> Checked {
        let started = Instant::now();
        let built = self.build(prefix);
        let build_seconds = started.elapsed().as_secs();
        let (kernel, parts) = match built {
            Ok(built) => built,
            Err(error) => return Checked::failed(self.commit, build_seconds, &error),
        };
        let logs = self.folder.join(format!("prefix{number}"));
        let booted = smoke::run(self.ctx, &kernel, logs);
        let boot_seconds = started.elapsed().as_secs() - build_seconds;
        // Nothing uses it again: the next prefix has another kernel.
        let dropped = self.drop_parts(&kernel, &parts);
        match booted.and_then(|memory_type| dropped.map(|()| memory_type)) {
            Ok(memory_type) => {
                Checked::passed(self.commit, build_seconds, boot_seconds, memory_type)
            }
            Err(error) => Checked::failed(self.commit, build_seconds, &error),
        }
    }

    fn build(&self, prefix: &Prefix) -> Result<(Kernel, Parts)> {
        self.tree.set(self.ctx, &prefix.patches)?;
        let choice = KernelChoice::Tree(self.tree.path().to_owned());
        let kernel = build::kernel(self.ctx, &choice, BuildKind::Plain)?;
        let parts = Parts::build(self.ctx, &kernel)?;
        Ok((kernel, parts))
    }

    /// Removes what was built for one prefix alone: dozens of them would fill the cache.
    fn drop_parts(&self, kernel: &Kernel, parts: &Parts) -> Result<()> {
        let module = self.ctx.cache.join("module").join(kernel.key.as_str());
        cache::remove_tree(&module)?;
        match parts.initramfs.parent() {
            Some(folder) => cache::remove_tree(folder),
            None => Ok(()),
        }
    }
}
