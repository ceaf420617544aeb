// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What may depend on what: the tables of the page on the architecture, against the manifests of
//! all crates and the paths that modules use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache;

/// Where the tables are.
const PAGE: &str = "docs/explanation/architecture.md";
/// First cells of their heads.
const CRATES: &str = "| crate |";
const MODULES: &str = "| module |";

/// Names of crates, as their folders are called.
type Names = BTreeSet<String>;

/// Compares both tables with the code.
pub fn are_those_of_the_page(repo: &Path) -> Result<()> {
    let page =
        fs::read_to_string(repo.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let mut wrong = crates(&page, repo)?;
    wrong.extend(modules(&page, repo)?);
    ensure!(
        wrong.is_empty(),
        "not as {PAGE} has it; change what depends, or the page and say why:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// Rows of the table whose head begins so: what stands between backquotes, cell by cell.
fn rows(page: &str, head: &str) -> Result<Vec<Vec<Names>>> {
    let quoted = |cell: &str| -> Names {
        let inside = cell.split('`').skip(1).step_by(2);
        inside.map(str::to_owned).collect()
    };
    let rows: Vec<Vec<Names>> = page
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(quoted).collect())
        .collect();
    ensure!(
        !rows.is_empty(),
        "{PAGE} has no table that begins with '{head}'"
    );
    Ok(rows)
}

fn only(names: &Names) -> Result<&str> {
    match names.iter().collect::<Vec<_>>()[..] {
        [one] => Ok(one),
        _ => bail!("the first cell of a row of {PAGE} names not one thing but {names:?}"),
    }
}

fn crates(page: &str, repo: &Path) -> Result<Vec<String>> {
    let mut on_page = BTreeMap::new();
    for row in rows(page, CRATES)? {
        let [name, always, in_tests] = &row[..] else {
            bail!("a row of {PAGE} has {} cells", row.len());
        };
        on_page.insert(only(name)?.to_owned(), (always.clone(), in_tests.clone()));
    }
    let in_code = manifests(repo)?;
    let mut wrong = Vec::new();
    for name in on_page
        .keys()
        .chain(in_code.keys())
        .collect::<BTreeSet<_>>()
    {
        let (page, code) = (on_page.get(name), in_code.get(name));
        if page != code {
            wrong.push(format!(
                "crate {name}: the page has {page:?}, its manifest {code:?}"
            ));
        }
    }
    Ok(wrong)
}

/// What each crate of `crates/` depends on among them: always, and in its tests.
fn manifests(repo: &Path) -> Result<BTreeMap<String, (Names, Names)>> {
    let mut read = Vec::new();
    for entry in fs::read_dir(repo.join("crates")).context("cannot read crates")? {
        let folder = entry?.path();
        let manifest = folder.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)
            .with_context(|| format!("cannot read {}", manifest.display()))?;
        let table: toml::Table = toml::from_str(&text)
            .with_context(|| format!("cannot understand {}", manifest.display()))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        read.push((name.into_owned(), table));
    }
    let folder_of: BTreeMap<&str, &str> = read
        .iter()
        .filter_map(|(folder, table)| {
            let package = table.get("package")?.get("name")?.as_str()?;
            Some((package, folder.as_str()))
        })
        .collect();
    let among = |table: &toml::Table, kind: &str| -> Names {
        let packages = table.get(kind).and_then(toml::Value::as_table);
        let names = packages.into_iter().flat_map(toml::Table::keys);
        let folders = names.filter_map(|name| folder_of.get(name.as_str()));
        folders.map(|folder| (*folder).to_owned()).collect()
    };
    Ok(read
        .iter()
        .map(|(name, table)| {
            let both = (
                among(table, "dependencies"),
                among(table, "dev-dependencies"),
            );
            (name.clone(), both)
        })
        .collect())
}

fn modules(page: &str, repo: &Path) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for row in rows(page, MODULES)? {
        let [module, forbidden] = &row[..] else {
            bail!("a row of {PAGE} has {} cells", row.len());
        };
        let folder = repo.join(only(module)?);
        for path in cache::files_below(&folder)? {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            for used in used(&text).intersection(forbidden) {
                wrong.push(format!("{} uses crate::{used}", path.display()));
            }
        }
    }
    Ok(wrong)
}

/// Modules of the own crate that a text names from its top.
fn used(text: &str) -> Names {
    let paths = text.split("crate::").skip(1).flat_map(|rest| {
        if rest.starts_with('{') {
            listed(rest)
        } else {
            vec![rest.to_owned()]
        }
    });
    let module = |path: String| -> String {
        let word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        path.trim_start().chars().take_while(word).collect()
    };
    paths.map(module).collect()
}

/// The paths of `{a::{b, c}, d}`, as far as its outer braces have them: `a::` and `d`.
fn listed(text: &str) -> Vec<String> {
    let mut paths = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => paths.push(String::new()),
            c if depth == 1 => paths.last_mut().expect("one at least").push(c),
            _ => {}
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(page: &str, source: &str) -> tempfile::TempDir {
        let repo = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = repo.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write(PAGE, page);
        write("crates/wire/Cargo.toml", "[package]\nname = \"x-wire\"\n");
        let both = "[package]\nname = \"x-tool\"\n[dependencies]\nx-wire.workspace = true\nserde = \
                    \"1\"\n";
        write("crates/tool/Cargo.toml", both);
        write("crates/tool/src/a/mod.rs", source);
        repo
    }

    fn page(of_tool: &str) -> String {
        format!(
            "# A\n\n| crate | on | in tests on |\n|---|---|---|\n| `wire` | – | – |\n| `tool` | \
             {of_tool} | – |\n\n| module | does not use |\n|---|---|\n| `crates/tool/src/a` | `b`, \
             `c` |\n"
        )
    }

    #[test]
    fn page_that_says_what_is_so_is_taken() {
        let repo = repository(&page("`wire`"), "use crate::d::b;");
        are_those_of_the_page(repo.path()).expect("as the page has it");
    }

    #[test]
    fn crate_that_the_page_does_not_know_to_be_used_is_named() {
        let repo = repository(&page("–"), "");
        let error = are_those_of_the_page(repo.path())
            .expect_err("one more")
            .to_string();
        assert!(
            error.contains("crate tool") && error.contains("wire"),
            "{error}"
        );
    }

    #[test]
    fn module_that_uses_a_forbidden_one_is_named_with_its_file() {
        for source in [
            "use crate::b::x;",
            "use crate::{\n    d::{e, f}, c::e};",
            "fn f() { crate::b() }",
        ] {
            let repo = repository(&page("`wire`"), source);
            let error = are_those_of_the_page(repo.path()).expect_err("forbidden");
            assert!(
                error.to_string().contains("src/a/mod.rs uses crate::"),
                "{error}"
            );
        }
    }
}
