// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Layout and lints of all Rust code, and what CI systems are given.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::run::Run;
use super::table::Table;
use super::workflows;
use crate::command::run_logged;
use crate::mutants::catalogue::{self, Part};

/// The stage `lint`.
pub const LINT: Table = Table {
    name: "lint",
    rows: &[
        ("lint::rustfmt", rustfmt),
        ("lint::rustfmt_of_the_driver", rustfmt_driver),
        ("lint::clippy", clippy),
        ("lint::planted_mistakes_apply", planted_mistakes),
        ("lint::workflows", workflows::are_clean),
        (
            "lint::workflows_with_mistakes_are_refused",
            workflows::mistakes_are_found,
        ),
    ],
};

fn rustfmt(run: &Run) -> Result<()> {
    let mut command = Command::new("cargo");
    command
        .current_dir(&run.ctx().repo)
        .args(["fmt", "--all", "--check", "--", "--color=never"]);
    run_logged(
        &mut command,
        "cargo fmt --check",
        &run.log("lint-rustfmt"),
        |_| {},
    )
    .context("'cargo fmt --all' in the toolbox lays the code out")
}

/// What Kbuild compiles, the driver and an example, is no part of the workspace.
fn rustfmt_driver(run: &Run) -> Result<()> {
    let repo = &run.ctx().repo;
    let roots = [
        "crates/guest-driver/src/cdm_main.rs",
        "examples/first-driver/first_main.rs",
    ];
    let mut command = Command::new("rustfmt");
    // The edition that the kernel compiles modules with.
    command
        .args(["--check", "--color=never", "--edition", "2021"])
        .args(roots.map(|root| repo.join(root)));
    run_logged(
        &mut command,
        "rustfmt --check",
        &run.log("lint-rustfmt-driver"),
        |_| {},
    )
}

fn clippy(run: &Run) -> Result<()> {
    let mut command = super::unit::cargo(run.ctx());
    // Clippy takes the place of ci/rustc, which keeps clones apart that share a folder. So it
    // gets one of the clone's own.
    command.env_remove("CARGO_BUILD_BUILD_DIR").args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]);
    let log = run.log("lint-clippy");
    let task = run.ctx().progress.task("running clippy", Some(&log));
    run_logged(&mut command, "cargo clippy", &log, |line| {
        if let Some(what) = line.trim_start().strip_prefix("Checking ") {
            task.set_detail(what);
        }
    })
}

/// What `just mutants` plants in the driver and in the backend. The stage `kernel` looks at the
/// rest.
fn planted_mistakes(run: &Run) -> Result<()> {
    let repo = &run.ctx().repo;
    catalogue::all(repo)?
        .iter()
        .filter(|mutant| mutant.part != Part::Kernel)
        .try_for_each(|mutant| catalogue::apply(mutant, repo, true))
}

/// Files of the repository, or all files where there is no git.
pub fn tracked_files(repo: &Path, log: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut git = Command::new("git");
    git.current_dir(repo)
        .args(["-c", "safe.directory=*", "ls-files"]);
    match run_logged(&mut git, "git ls-files", log, |line| {
        if !line.starts_with("fatal") {
            files.push(line.to_owned());
        }
    }) {
        Ok(()) if files.is_empty() => bail!("git lists no file in {}", repo.display()),
        Ok(()) => Ok(files),
        Err(_) => {
            let found = crate::cache::files_below(repo)?;
            let relative = |path: &Path| Some(path.strip_prefix(repo).ok()?.to_str()?.to_owned());
            let inside = found.iter().filter_map(|path| relative(path));
            Ok(inside
                .filter(|path| !path.starts_with(".git/") && !path.starts_with("target/"))
                .collect())
        }
    }
}
