// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which commit of the project a result belongs to.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::context::Context;

/// A state of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its hash.
    pub hash: String,
    /// Whether files that git knows differ from it.
    pub changed: bool,
}

impl Commit {
    /// The commit that is checked out.
    pub fn current(ctx: &Context) -> Result<Self> {
        let hash = git(ctx, &["rev-parse", "HEAD"])?;
        let status = git(ctx, &["status", "--porcelain", "--untracked-files=no"])?;
        Ok(Self {
            hash: hash.trim().to_owned(),
            changed: has_changes(&status),
        })
    }

    /// The commit that is checked out, for a run whose result is written down if `record`
    /// says so: then it must be the whole truth about what ran.
    pub fn of_run(ctx: &Context, record: bool) -> Result<Self> {
        let commit = Self::current(ctx)?;
        ensure!(!(record && commit.changed), NO_COMMIT);
        Ok(commit)
    }

    /// A printed commit, short enough for a table.
    pub fn short(printed: &str) -> String {
        let (hash, changes) = match printed.split_once(' ') {
            Some((hash, changes)) => (hash, format!(" {changes}")),
            None => (printed, String::new()),
        };
        hash.chars().take(12).chain(changes.chars()).collect()
    }
}

/// When the commit that is checked out was made, as RFC 2822 writes it.
pub fn date_of_commit(ctx: &Context) -> Result<String> {
    let date = git(ctx, &["show", "--no-patch", "--format=%cD", "HEAD"])?;
    Ok(date.trim().to_owned())
}

/// What `--record` asks of the clone.
const NO_COMMIT: &str = "--record writes down what a commit did, and the clone has changes that \
                         are in none; commit them, or leave --record away";

impl std::fmt::Display for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.hash)?;
        if self.changed {
            f.write_str(" with changes")?;
        }
        Ok(())
    }
}

/// Whether anything but results has changed: those are what a run writes, and change nothing of
/// what it runs.
fn has_changes(status: &str) -> bool {
    const RESULTS: &str = "docs/results/";
    status
        .lines()
        .filter_map(|line| line.get(3..))
        .any(|path| !path.trim_matches('"').starts_with(RESULTS))
}

fn git(ctx: &Context, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(&ctx.repo)
        // The toolbox's user need not be the one that owns the clone.
        .args(["-c", "safe.directory=*"])
        .args(arguments)
        .output()
        .context("cannot start git")?;
    ensure!(
        output.status.success(),
        "a result belongs to a commit, and git cannot tell which one {} is: {}",
        ctx.repo.display(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_no_change_of_what_is_tested() {
        assert!(!has_changes(""));
        assert!(!has_changes(" M docs/results/series-check.md\n"));
        assert!(has_changes(" M docs/results/x.md\n M justfile\n"));
    }

    #[test]
    fn commit_with_changes_says_so() {
        let mut commit = Commit {
            hash: "abc".into(),
            changed: false,
        };
        assert_eq!(commit.to_string(), "abc");
        commit.changed = true;
        assert_eq!(commit.to_string(), "abc with changes");
        assert_eq!(Commit::short("0123456789abcdef"), "0123456789ab");
        commit.hash = "0123456789abcdef".into();
        assert_eq!(
            Commit::short(&commit.to_string()),
            "0123456789ab with changes"
        );
    }
}
