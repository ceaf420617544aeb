// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Links of documents: what they lead to must be there, down to the heading.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::markdown::{self, Target};

/// Checks the links and images of documents against the files and headings of the repository.
pub fn lead_somewhere(repo: &Path, documents: &[String]) -> Result<()> {
    let mut headings = Headings::new(repo);
    let mut broken = Vec::new();
    let mut seen = 0;
    for document in documents {
        let text = read(repo, document)?;
        for link in markdown::links(&text) {
            let Target::Inside { path, anchor } = link.target() else {
                continue;
            };
            seen += 1;
            if let Some(fault) = fault(&mut headings, document, &path, anchor.as_deref())? {
                broken.push(format!("{document}:{}: {}: {fault}", link.line, link.to));
            }
        }
    }
    ensure!(
        seen > 0,
        "no document has a link to another one, which means that none was recognised"
    );
    ensure!(
        broken.is_empty(),
        "links that lead nowhere:\n{}",
        broken.join("\n")
    );
    Ok(())
}

/// What is wrong with a link, if anything is.
fn fault(
    headings: &mut Headings<'_>,
    document: &str,
    path: &str,
    anchor: Option<&str>,
) -> Result<Option<String>> {
    let target = if path.is_empty() {
        PathBuf::from(document)
    } else {
        match beside(document, path) {
            Some(target) => target,
            None => return Ok(Some("outside of the repository".into())),
        }
    };
    if !headings.repo.join(&target).exists() {
        return Ok(Some(format!("there is no {}", target.display())));
    }
    let Some(anchor) = anchor else {
        return Ok(None);
    };
    if target.extension().is_none_or(|end| end != "md") {
        return Ok(Some("only a document has headings".into()));
    }
    let has = headings.of(&target)?.contains(anchor);
    Ok((!has).then(|| format!("{} has no such heading", target.display())))
}

/// A path as seen from the top of the repository, of one that a document has.
fn beside(document: &str, path: &str) -> Option<PathBuf> {
    let folder = Path::new(document).parent().unwrap_or(Path::new(""));
    let mut whole = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::ParentDir if !whole.pop() => return None,
            Component::ParentDir | Component::CurDir => {}
            other => whole.push(other),
        }
    }
    Some(whole)
}

/// Anchors of documents, read once each.
struct Headings<'a> {
    repo: &'a Path,
    known: BTreeMap<PathBuf, BTreeSet<String>>,
}

impl<'a> Headings<'a> {
    fn new(repo: &'a Path) -> Self {
        Self {
            repo,
            known: BTreeMap::new(),
        }
    }

    fn of(&mut self, document: &Path) -> Result<&BTreeSet<String>> {
        if !self.known.contains_key(document) {
            let text = read(self.repo, &document.to_string_lossy())?;
            self.known
                .insert(document.to_owned(), markdown::anchors(&text));
        }
        Ok(&self.known[document])
    }
}

fn read(repo: &Path, document: &str) -> Result<String> {
    fs::read_to_string(repo.join(document)).with_context(|| format!("cannot read {document}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)]) -> Result<()> {
        let repo = tempfile::tempdir().expect("a folder");
        fs::create_dir(repo.path().join("docs")).expect("made");
        for (name, text) in files {
            fs::write(repo.path().join(name), text).expect("written");
        }
        let names: Vec<String> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
        lead_somewhere(repo.path(), &names)
    }

    fn error(files: &[(&str, &str)]) -> String {
        check(files).expect_err("a broken link").to_string()
    }

    #[test]
    fn links_to_files_folders_and_headings_are_found() {
        let readme = "[a](docs/a.md#two-words) [b](docs) ![c](docs/a.md) [d](https://e.x/#f)";
        let page = "# One\n## Two words\n[up](../README.md) [here](#one)";
        check(&[("README.md", readme), ("docs/a.md", page)]).expect("all there");
    }

    #[test]
    fn missing_file_is_named_with_document_and_line() {
        let told = error(&[("docs/a.md", "x\n\n[gone](gone.md)")]);
        assert!(
            told.contains("docs/a.md:3: gone.md: there is no docs/gone.md"),
            "{told}"
        );
    }

    #[test]
    fn missing_heading_is_named() {
        let told = error(&[("docs/a.md", "# One\n[x](#two)")]);
        assert!(told.contains("docs/a.md has no such heading"), "{told}");
    }

    #[test]
    fn link_beyond_the_repository_is_refused() {
        let told = error(&[("docs/a.md", "[x](../../etc/passwd)")]);
        assert!(told.contains("outside of the repository"), "{told}");
    }
}
