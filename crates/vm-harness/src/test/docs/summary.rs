// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The book's table of contents: it has each page of `docs` once. A page that it lacks is in no
//! book, and links to it lead nowhere there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::markdown::{self, Target};

/// Where the book is.
const BOOK: &str = "docs/";
/// Its table of contents.
const CONTENTS: &str = "docs/SUMMARY.md";

/// Compares the table of contents with the documents that there are.
pub fn has_every_page(repo: &Path, documents: &[String]) -> Result<()> {
    let text = fs::read_to_string(repo.join(CONTENTS))
        .with_context(|| format!("cannot read {CONTENTS}"))?;
    let mut times: BTreeMap<&str, usize> = documents
        .iter()
        .filter_map(|document| document.strip_prefix(BOOK))
        .filter(|page| BOOK.to_owned() + page != CONTENTS)
        .map(|page| (page, 0))
        .collect();
    let links = markdown::links(&text);
    for link in &links {
        if let Target::Inside { path, .. } = link.target()
            && let Some(times) = times.get_mut(path.as_str())
        {
            *times += 1;
        }
    }
    let wrong: Vec<String> = times
        .iter()
        .filter(|(_, times)| **times != 1)
        .map(|(page, times)| format!("{BOOK}{page}: {times} times"))
        .collect();
    ensure!(
        wrong.is_empty(),
        "pages that {CONTENTS} has not once; add or remove lines there:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(contents: &str, documents: &[&str]) -> Result<()> {
        let repo = tempfile::tempdir().expect("a folder");
        fs::create_dir(repo.path().join("docs")).expect("made");
        fs::write(repo.path().join(CONTENTS), contents).expect("written");
        let documents: Vec<String> = documents.iter().map(|name| (*name).to_owned()).collect();
        has_every_page(repo.path(), &documents)
    }

    #[test]
    fn each_page_is_in_the_contents_once() {
        let contents = "# C\n[a](README.md)\n- [b](how-to/b.md)\n";
        let pages = [CONTENTS, "README.md", "docs/README.md", "docs/how-to/b.md"];
        check(contents, &pages).expect("whole");
    }

    #[test]
    fn forgotten_and_doubled_pages_are_named() {
        let error = check("[a](a.md)\n[a](a.md)", &["docs/a.md", "docs/b.md"]);
        let told = error.expect_err("wrong").to_string();
        assert!(
            told.contains("docs/a.md: 2 times") && told.contains("docs/b.md: 0 times"),
            "{told}"
        );
    }
}
