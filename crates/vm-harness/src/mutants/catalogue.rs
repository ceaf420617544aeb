// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The planted mistakes as files: `ci/mutants/PART/NN-name.patch`, each with a head that says
//! what the mistake is and what should see it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::build::series;
use crate::cache::{self, KeyBuilder};

/// Where they are, in the repository.
const FOLDER: &str = "ci/mutants";
/// Begins a line of the head with what should see the mistake: a command in the guest, or the name
/// of a test that drives the guest from outside.
const SEEN_BY: &str = "Seen-by: ";
/// Fewer of a part prove little of it.
const LEAST_OF_PART: usize = 4;

/// What a mistake is planted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The guest's kernel, with the series.
    Kernel,
    /// The driver.
    Driver,
    /// The device's process.
    Backend,
}

impl Part {
    /// All of them, the quickest to build first.
    pub const ALL: [Self; 3] = [Self::Driver, Self::Backend, Self::Kernel];

    /// Its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Driver => "driver",
            Self::Backend => "backend",
        }
    }

    /// Where its sources are: below the repository, or below a kernel's source.
    fn may_touch(self, path: &str) -> bool {
        match self {
            // A header would change what the driver was compiled with.
            Self::Kernel => path.ends_with(".c"),
            Self::Driver => path.starts_with("crates/guest-driver/src/"),
            Self::Backend => path.starts_with("crates/device-backend/src/"),
        }
    }

    /// Adds what the mistake is planted in to a key.
    pub fn add_to(self, key: &mut KeyBuilder, repo: &Path) -> Result<()> {
        let folders: &[&str] = match self {
            Self::Kernel => &["images/kernel/config"],
            Self::Driver => &["crates/guest-driver/src", "crates/device-protocol/src"],
            Self::Backend => &[
                "crates/device-backend/src",
                "crates/device-protocol/src",
                "crates/control-protocol/src",
            ],
        };
        for folder in folders {
            key.tree(repo, &repo.join(folder))?;
        }
        if self == Self::Kernel {
            for patch in series::patches(repo)? {
                key.bytes("patch", &series::diff(&patch)?);
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One planted mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// As `part/NN-name`.
    pub name: String,
    /// What it is planted in.
    pub part: Part,
    /// Its file.
    pub patch: PathBuf,
    /// What the mistake is, in one line.
    pub mistake: String,
    /// What should see it, the likeliest first: commands in the guest, or tests of it from outside.
    pub seen_by: Vec<String>,
}

/// All of them, checked, in the order in which they run.
pub fn all(repo: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for part in Part::ALL {
        let folder = repo.join(FOLDER).join(part.name());
        let of_part: Vec<PathBuf> = cache::files_below(&folder)?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|ext| ext == "patch"))
            .collect();
        ensure!(
            of_part.len() >= LEAST_OF_PART,
            "{} has {} patches; fewer than {LEAST_OF_PART} prove little of the {part}",
            folder.display(),
            of_part.len()
        );
        for patch in of_part {
            let text = fs::read_to_string(&patch)
                .with_context(|| format!("cannot read {}", patch.display()))?;
            let mutant = parse(part, &patch, &text)
                .with_context(|| format!("{} is no mutant", patch.display()))?;
            mutants.push(mutant);
        }
    }
    Ok(mutants)
}

fn parse(part: Part, patch: &Path, text: &str) -> Result<Mutant> {
    let stem = patch.file_stem().unwrap_or_default().to_string_lossy();
    let (number, _) = stem.split_once('-').unwrap_or_default();
    ensure!(
        number.len() == 2 && number.bytes().all(|byte| byte.is_ascii_digit()),
        "its name is not NN-what-it-is.patch"
    );
    let head: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("diff --git "))
        .collect();
    let touched: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("+++ b/"))
        .collect();
    ensure!(!touched.is_empty(), "it changes nothing");
    for path in touched {
        ensure!(
            part.may_touch(path),
            "{path} is not what a mutant of the {part} may change"
        );
    }
    let seen_by: Vec<String> = head
        .iter()
        .filter_map(|line| line.strip_prefix(SEEN_BY))
        .map(str::to_owned)
        .collect();
    ensure!(
        !seen_by.is_empty(),
        "its head has no line '{SEEN_BY}COMMAND'"
    );
    Ok(Mutant {
        name: format!("{part}/{stem}"),
        part,
        patch: patch.to_owned(),
        mistake: series::subject(patch)?,
        seen_by,
    })
}

/// Those whose name contains one of `names`; all of them without one.
pub fn chosen<'a>(mutants: &'a [Mutant], names: &[String]) -> Result<Vec<&'a Mutant>> {
    for name in names {
        ensure!(
            mutants.iter().any(|mutant| mutant.name.contains(name)),
            "no mutant is called '{name}'; see --list"
        );
    }
    let is_chosen =
        |mutant: &&Mutant| names.is_empty() || names.iter().any(|name| mutant.name.contains(name));
    Ok(mutants.iter().filter(is_chosen).collect())
}

/// Applies a mistake to a source, or only tries whether it would.
pub fn apply(mutant: &Mutant, tree: &Path, only_try: bool) -> Result<()> {
    let mut command = Command::new("patch");
    command
        .args(["--strip=1", "--batch", "--forward", "--fuzz=0"])
        .args(["--no-backup-if-mismatch", "--reject-file=-", "--directory"])
        .arg(tree)
        .arg("--input")
        .arg(&mutant.patch)
        .env("LC_ALL", "C");
    if only_try {
        command.arg("--dry-run");
    }
    let output = command.output().context("cannot start patch")?;
    if !output.status.success() {
        bail!(
            "{} does not apply any more; make the same mistake in the source as it is now:\n{}",
            mutant.patch.display(),
            String::from_utf8_lossy(&output.stdout).trim_end()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "\
Subject: [PATCH] the driver forgets
 something

Why it matters.

Seen-by: cdm-guest-tests --group fork
Seen-by: cdm-stress --seconds 30

diff --git a/crates/guest-driver/src/x.rs b/crates/guest-driver/src/x.rs
--- a/crates/guest-driver/src/x.rs
+++ b/crates/guest-driver/src/x.rs
@@ -1 +1 @@
-one
+two
";

    fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        (dir, path)
    }

    fn parsed(part: Part, name: &str, text: &str) -> Result<Mutant> {
        let (_dir, path) = written(name, text);
        parse(part, &path, text)
    }

    #[test]
    fn head_says_what_the_mistake_is_and_what_sees_it_first() {
        let mutant = parsed(Part::Driver, "01-it-forgets.patch", PATCH).expect("a mutant");
        assert_eq!(mutant.name, "driver/01-it-forgets");
        assert_eq!(mutant.mistake, "the driver forgets something");
        let commands = ["cdm-guest-tests --group fork", "cdm-stress --seconds 30"];
        assert_eq!(mutant.seen_by, commands);
    }

    #[test]
    fn patch_of_another_part_or_without_a_witness_is_refused() {
        let refused = |part, name: &str, text: &str| {
            format!("{:#}", parsed(part, name, text).expect_err("no mutant"))
        };
        let other = refused(Part::Backend, "01-x.patch", PATCH);
        assert!(other.contains("guest-driver/src/x.rs"), "{other}");
        let blind = refused(Part::Driver, "01-x.patch", &PATCH.replace(SEEN_BY, "Hm: "));
        assert!(blind.contains("Seen-by"), "{blind}");
        let nameless = refused(Part::Driver, "x.patch", PATCH);
        assert!(nameless.contains("NN-"), "{nameless}");
        let header = PATCH.replace("crates/guest-driver/src/x.rs", "include/linux/mm.h");
        let header = refused(Part::Kernel, "01-x.patch", &header);
        assert!(header.contains("mm.h"), "{header}");
    }

    #[test]
    fn mistake_applies_once_and_trying_changes_nothing() {
        let mutant = |patch: &Path| parse(Part::Driver, patch, PATCH).expect("a mutant");
        let (dir, path) = written("01-x.patch", PATCH);
        let source = dir.path().join("crates/guest-driver/src/x.rs");
        fs::create_dir_all(source.parent().expect("a folder")).expect("made");
        fs::write(&source, "one\n").expect("written");
        let read = || fs::read_to_string(&source).expect("there");
        apply(&mutant(&path), dir.path(), true).expect("fits");
        assert_eq!(read(), "one\n");
        apply(&mutant(&path), dir.path(), false).expect("fits");
        assert_eq!(read(), "two\n");
        let error = apply(&mutant(&path), dir.path(), true).expect_err("is there already");
        assert!(error.to_string().contains("01-x.patch"), "{error}");
    }

    #[test]
    fn names_choose_by_a_part_of_them_and_unknown_ones_are_refused() {
        let one = parsed(Part::Driver, "01-it-forgets.patch", PATCH).expect("a mutant");
        let mutants = [one];
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for good in [&[][..], &["driver"], &["forgets"]] {
            assert_eq!(chosen(&mutants, &names(good)).expect("known").len(), 1);
        }
        assert!(chosen(&mutants, &names(&["driver", "kernel"])).is_err());
    }
}
