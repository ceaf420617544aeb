// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The patch series as files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cache;

/// Where the series is, in the repository.
const FOLDER: &str = "images/kernel/patches";

/// The patches of the repository in their order.
pub fn patches(repo: &Path) -> Result<Vec<PathBuf>> {
    listed(&repo.join(FOLDER))
}

/// What the patches of the repository call themselves, in their order.
pub fn subjects(repo: &Path) -> Result<Vec<String>> {
    patches(repo)?.iter().map(|patch| subject(patch)).collect()
}

/// What a patch changes: neither its number nor its changelog nor the hash of a commit is
/// part of that.
pub fn diff(patch: &Path) -> Result<Vec<u8>> {
    let text = fs::read(patch).with_context(|| format!("cannot read {}", patch.display()))?;
    Ok(diff_in(&text).to_owned())
}

/// From the first file's header on; all of it where there is none.
fn diff_in(mail: &[u8]) -> &[u8] {
    let mut start = 0;
    for line in mail.split_inclusive(|&byte| byte == b'\n') {
        if line.starts_with(b"diff --git ") {
            return &mail[start..];
        }
        start += line.len();
    }
    mail
}

/// What a patch calls itself.
pub fn subject(patch: &Path) -> Result<String> {
    let text =
        fs::read_to_string(patch).with_context(|| format!("cannot read {}", patch.display()))?;
    subject_in(&text).with_context(|| format!("{} has no subject", patch.display()))
}

/// The subject of a mail, which may go on in indented lines, without `[PATCH 1/2]`.
fn subject_in(mail: &str) -> Option<String> {
    let mut lines = mail.lines();
    let first = lines.find_map(|line| line.strip_prefix("Subject: "))?;
    let folded = lines.take_while(|line| line.starts_with(' '));
    let whole: Vec<&str> = std::iter::once(first)
        .chain(folded)
        .map(str::trim)
        .collect();
    let whole = whole.join(" ");
    let plain = match whole
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, plain)) => plain,
        None => &whole,
    };
    Some(plain.to_owned())
}

/// The patches that `series` in this folder names, in its order. A patch beside
/// it that it does not name has been forgotten by somebody.
fn listed(dir: &Path) -> Result<Vec<PathBuf>> {
    let series = dir.join("series");
    let text =
        fs::read_to_string(&series).with_context(|| format!("cannot read {}", series.display()))?;
    let listed: Vec<PathBuf> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|name| !name.is_empty())
        .map(|name| dir.join(name))
        .collect();
    for path in cache::files_below(dir)? {
        if path.extension().is_some_and(|ext| ext == "patch") && !listed.contains(&path) {
            bail!(
                "{} does not name {}; add it in its place, or remove the patch",
                series.display(),
                path.strip_prefix(dir)?.display()
            );
        }
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_gives_the_order_and_forgets_no_patch() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("written");
        };
        write("0001-a.patch", "");
        write("0002-b.patch", "");
        write("series", "# base: 7.3\n0002-b.patch\n0001-a.patch # late\n");
        let names = ["0002-b.patch", "0001-a.patch"].map(|name| dir.path().join(name));
        assert_eq!(listed(dir.path()).expect("complete"), names);
        write("0003-c.patch", "");
        let error = listed(dir.path())
            .expect_err("one is forgotten")
            .to_string();
        assert!(error.contains("0003-c.patch"), "{error}");
    }

    #[test]
    fn subject_is_read_whole_and_without_its_number() {
        let mail = "From: x\nSubject: [PATCH 07/16] mm/migrate_device: let it\n take large folios\n\nBody\n";
        assert_eq!(
            subject_in(mail).as_deref(),
            Some("mm/migrate_device: let it take large folios")
        );
        assert_eq!(subject_in("Subject: plain\n").as_deref(), Some("plain"));
        assert_eq!(subject_in("Body\n"), None);
    }

    #[test]
    fn only_what_a_patch_changes_is_its_diff() {
        let diff = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-one\n+two\n";
        for changelog in ["", "Subject: mm: x\n\nWhy, at length\n---\n x | 2 +-\n"] {
            let mail = format!("{changelog}{diff}");
            assert_eq!(diff_in(mail.as_bytes()), diff.as_bytes());
        }
        assert_eq!(diff_in(b"--- a/x\n"), b"--- a/x\n");
    }
}
