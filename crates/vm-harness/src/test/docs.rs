// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the documents name must exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Stage;
use super::run::Run;

/// The stage `docs`.
#[derive(Debug)]
pub struct Docs;

const PATHS: &str = "docs::every_path_that_a_document_names_exists";

impl Stage for Docs {
    fn name(&self) -> &'static str {
        "docs"
    }

    fn list(&mut self, _run: &Run) -> Result<Vec<String>> {
        Ok(vec![PATHS.to_owned()])
    }

    fn run(&mut self, run: &mut Run, _chosen: &[String]) -> Result<()> {
        let log = run.folder().join("docs-files.log");
        let files = super::lint::tracked_files(&run.ctx().repo, &log)?;
        let repo = run.ctx().repo.clone();
        run.check(PATHS, |_| paths_exist(&repo, &files));
        Ok(())
    }
}

fn paths_exist(repo: &Path, files: &[String]) -> Result<()> {
    let mut missing = BTreeSet::new();
    let mut seen = 0;
    for document in files.iter().filter(|file| file.ends_with(".md")) {
        let text = fs::read_to_string(repo.join(document))
            .with_context(|| format!("cannot read {document}"))?;
        for path in paths(&text) {
            seen += 1;
            if !repo.join(&path).exists() {
                missing.insert(format!("{document}: {path}"));
            }
        }
    }
    ensure!(
        seen > 0,
        "no document names any path, which means that none was recognised"
    );
    let list: Vec<_> = missing.into_iter().collect();
    ensure!(
        list.is_empty(),
        "no such file or folder:\n{}",
        list.join("\n")
    );
    Ok(())
}

/// Paths of the repository that a text names: between backquotes, or as the target of a link.
fn paths(text: &str) -> Vec<String> {
    const FOLDERS: &[&str] = &["crates/", "docs/", "images/", "qemu/", "ci/", ".ci/"];
    let quoted = text.split('`').skip(1).step_by(2);
    let linked = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    quoted
        .chain(linked)
        .filter_map(|piece| {
            let path = piece.split(['#', ' ', ':']).next()?.trim_end_matches('/');
            let named = FOLDERS.iter().any(|folder| path.starts_with(folder));
            // A pattern or a placeholder is not one path.
            let one = !path.contains(['*', '{', '<', '…', '$', '\n']);
            (named && one).then(|| path.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_quotes_and_links_are_found_and_patterns_are_not() {
        let text = "See `crates/a/src/lib.rs` and [this](docs/specs/device.md#status), not \
                    `crates/*/Cargo.toml`, `mm/memory.c` or `ci/just run-vm`.";
        assert_eq!(
            paths(text),
            ["crates/a/src/lib.rs", "ci/just", "docs/specs/device.md"]
        );
    }

    #[test]
    fn missing_path_is_named_with_its_document() {
        let repo = tempfile::tempdir().expect("a folder");
        fs::write(repo.path().join("A.md"), "`docs/none.md`").expect("written");
        let error = paths_exist(repo.path(), &["A.md".into()]).expect_err("missing");
        assert!(error.to_string().contains("A.md: docs/none.md"), "{error}");
    }
}
