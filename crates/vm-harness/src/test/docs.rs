// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the documents name must exist.

mod code;
mod dependencies;
mod links;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::run::Run;
use super::select::STAGES;
use super::table::Table;
use crate::book;

/// The stage `docs`.
pub const DOCS: Table = Table {
    name: "docs",
    rows: &[
        (
            "docs::every_path_that_a_document_names_exists",
            every_path_exists,
        ),
        (
            "docs::every_test_that_a_document_names_exists",
            every_test_exists,
        ),
        (
            "docs::every_link_leads_to_a_file_and_a_heading",
            every_link_leads_somewhere,
        ),
        ("docs::book_has_every_page_once", book_has_every_page),
        (
            "docs::book_is_made_and_its_links_lead_to_its_pages",
            book_is_made,
        ),
        (
            "docs::code_of_the_tutorial_is_that_of_the_examples",
            code_is_there,
        ),
        (
            "docs::dependencies_are_those_of_the_page",
            dependencies_are_known,
        ),
        (
            "docs::behaviour_table_has_its_rows_and_each_row_a_test",
            behaviour_table,
        ),
    ],
};

fn every_path_exists(run: &Run) -> Result<()> {
    let repo = &run.ctx().repo;
    paths_exist(repo, &documents(run)?)
}

fn every_link_leads_somewhere(run: &Run) -> Result<()> {
    links::lead_somewhere(&run.ctx().repo, &documents(run)?)
}

fn book_has_every_page(run: &Run) -> Result<()> {
    summary::has_every_page(&run.ctx().repo, &documents(run)?)
}

fn code_is_there(run: &Run) -> Result<()> {
    code::is_of_the_examples(&run.ctx().repo, &documents(run)?)
}

fn book_is_made(run: &Run) -> Result<()> {
    book::make(run.ctx(), &run.folder().join("book"), &run.log("docs-book"))
}

fn dependencies_are_known(run: &Run) -> Result<()> {
    dependencies::are_those_of_the_page(&run.ctx().repo)
}

fn every_test_exists(run: &Run) -> Result<()> {
    let repo = &run.ctx().repo;
    let named = named_tests(repo, &documents(run)?)?;
    let mut names = Vec::new();
    for mut stage in super::all_stages() {
        // A stage that nobody speaks of need not be built for its names.
        if named.keys().any(|name| stage_of(name) == stage.name()) {
            names.extend(stage.list(run)?);
        }
    }
    tests_exist(&named, &names)
}

fn behaviour_table(run: &Run) -> Result<()> {
    let names = super::e2e::guest_tests(run.ctx())?;
    crate::behaviour::check(&run.ctx().repo, &names)
}

fn documents(run: &Run) -> Result<Vec<String>> {
    let files = super::lint::tracked_files(&run.ctx().repo, &run.log("docs-files"))?;
    Ok(files
        .into_iter()
        .filter(|file| file.ends_with(".md"))
        .collect())
}

/// What documents call tests, with the documents.
fn named_tests(repo: &Path, documents: &[String]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for document in documents {
        let text = fs::read_to_string(repo.join(document))
            .with_context(|| format!("cannot read {document}"))?;
        for name in tests(&text) {
            named.entry(name).or_default().insert(document.clone());
        }
    }
    ensure!(
        !named.is_empty(),
        "no document names any test, which means that none was recognised"
    );
    Ok(named)
}

fn tests_exist(named: &BTreeMap<String, BTreeSet<String>>, names: &[String]) -> Result<()> {
    let is_there = |named: &str| {
        names.iter().any(|name| {
            // A group of tests is named by how their names begin.
            name.strip_prefix(named)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
    };
    let missing: Vec<String> = named
        .iter()
        .filter(|(name, _)| !is_there(name))
        .map(|(name, documents)| {
            let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
            format!("{}: {name}", documents.join(", "))
        })
        .collect();
    ensure!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
    Ok(())
}

fn stage_of(test: &str) -> &str {
    test.split("::").next().unwrap_or(test)
}

/// Names of tests in a text: words that begin with a stage.
fn tests(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .map(|word| word.trim_matches(':'))
        .filter(|word| word.contains("::") && STAGES.contains(&stage_of(word)))
        // A type of a crate that is called like a stage is none.
        .filter(|word| !word.contains(char::is_uppercase))
        .map(str::to_owned)
        .collect()
}

fn paths_exist(repo: &Path, documents: &[String]) -> Result<()> {
    let mut missing = BTreeSet::new();
    let mut seen = 0;
    for document in documents {
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
    const FOLDERS: &[&str] = &[
        "crates/",
        "docs/",
        "examples/",
        "images/",
        "qemu/",
        "ci/",
        ".ci/",
    ];
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
        let text = "See `crates/a/src/lib.rs` and [this](docs/reference/device.md#status), not \
                    `crates/*/Cargo.toml`, `mm/memory.c` or `ci/just run-vm`.";
        assert_eq!(
            paths(text),
            ["crates/a/src/lib.rs", "ci/just", "docs/reference/device.md"]
        );
    }

    #[test]
    fn missing_path_is_named_with_its_document() {
        let repo = tempfile::tempdir().expect("a folder");
        fs::write(repo.path().join("A.md"), "`docs/none.md`").expect("written");
        let error = paths_exist(repo.path(), &["A.md".into()]).expect_err("missing");
        assert!(error.to_string().contains("A.md: docs/none.md"), "{error}");
    }

    #[test]
    fn tests_are_found_in_quotes_and_in_commands_and_other_words_are_not() {
        let text = "`e2e::public::fork::x`, `ci/just test host::ctrl_c_leaves_nothing`: not \
                    `std::fs`, `kernel::Module` and not kernel alone.";
        assert_eq!(
            tests(text),
            ["e2e::public::fork::x", "host::ctrl_c_leaves_nothing"]
        );
    }

    #[test]
    fn missing_test_is_named_with_its_document_and_a_group_is_none() {
        let repo = tempfile::tempdir().expect("a folder");
        fs::write(repo.path().join("A.md"), "`e2e::a::b` `e2e::a` `e2e::gone`").expect("written");
        let named = named_tests(repo.path(), &["A.md".into()]).expect("some");
        let error = tests_exist(&named, &["e2e::a::b".into()]).expect_err("one is missing");
        assert_eq!(error.to_string(), "no such test:\nA.md: e2e::gone");
    }
}
