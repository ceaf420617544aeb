// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table for people.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::run::{ColumnResults, Found, Tried};
use super::table::{DATA, Table};
use crate::git::Commit;
use crate::results::{Origin, cell};

/// The table, in the repository.
pub const PAGE: &str = "docs/reference/behaviour.md";
/// The command that makes it.
const COMMAND: &str = "just behaviour-table --record";

/// What the tests found.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    columns: Vec<ColumnResults>,
}

impl Document {
    /// What the tests of all columns found.
    pub fn new(commit: &Commit, columns: Vec<ColumnResults>) -> Self {
        Self {
            origin: Origin::new(COMMAND, commit.to_string()),
            columns,
        }
    }

    /// The page. Each cell that is not a plain yes has a note below.
    pub fn page(&self, table: &Table) -> Result<String> {
        let mut page = self.origin.head("What memory in the device can do");
        let _ = writeln!(page, "{}", table.introduction.trim());
        let mut notes: Vec<String> = Vec::new();
        for section in &table.section {
            let names: Vec<&str> = self.columns.iter().map(|column| &*column.name).collect();
            let _ = writeln!(page, "\n## {}\n", section.name);
            let _ = writeln!(page, "| | {} | test |", names.join(" | "));
            let _ = writeln!(page, "|---|{}", "---|".repeat(names.len() + 1));
            for row in &section.row {
                let cells: Vec<String> = self
                    .columns
                    .iter()
                    .map(|column| Ok(in_cell(column.result(&row.test)?, &mut notes)))
                    .collect::<Result<_>>()?;
                let (what, cells) = (cell(&row.what), cells.join(" | "));
                let _ = writeln!(page, "| {what} | {cells} | `{}` |", row.test);
            }
        }
        if !notes.is_empty() {
            page += "\n## Notes\n\n";
            for (index, note) in notes.iter().enumerate() {
                let _ = writeln!(page, "{}. {note}", index + 1);
            }
        }
        Ok(page)
    }
}

impl ColumnResults {
    fn result(&self, test: &str) -> Result<&Tried> {
        let mut found = self.results.iter().filter(|result| result.test == test);
        found
            .next()
            .with_context(|| format!("'{test}' has no result for {}", self.name))
    }
}

/// A result in a word or two, and the number of the note that says why.
fn in_cell(result: &Tried, notes: &mut Vec<String>) -> String {
    let word = match result.found {
        Found::Works => return "yes".to_owned(),
        Found::Fails => "no",
        Found::Inapplicable => "does not apply",
        Found::Breaks => "BREAKS THE KERNEL",
    };
    let note = match result.why.trim() {
        "" => "the test gives no reason".to_owned(),
        why => cell(why),
    };
    let number = match notes.iter().position(|known| *known == note) {
        Some(index) => index + 1,
        None => {
            notes.push(note);
            notes.len()
        }
    };
    format!("{word} ({number})")
}

/// Whether each row of the data has a test, and a page that was made of it has the same rows.
/// `names` are those of the tests inside the guest.
pub fn check(repo: &Path, names: &[String]) -> Result<()> {
    let table = Table::read(repo)?;
    let missing: Vec<String> = table
        .tests()
        .into_iter()
        .filter(|test| !names.contains(test))
        .collect();
    ensure!(
        missing.is_empty(),
        "{DATA} names what is no test: {}",
        missing.join(", ")
    );
    let page = match fs::read_to_string(repo.join(PAGE)) {
        Ok(page) => page,
        // Nobody has tried all columns yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format!("cannot read {PAGE}")),
    };
    for row in table.rows() {
        let start = format!("| {} |", cell(&row.what));
        let end = format!("| `{}` |", row.test);
        ensure!(
            page.lines()
                .any(|line| line.starts_with(&start) && line.ends_with(&end)),
            "{PAGE} lacks the row '{}' of {DATA}; make it anew: {COMMAND}",
            row.what
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
introduction = "As it is."
[[column]]
name = "PUBLIC"
kernel = "public"
memory-type = "public"
[[column]]
name = "COHERENT, unpatched"
kernel = "vanilla"
memory-type = "coherent"
[[section]]
name = "Large folios"
[[section.row]]
what = "2 MiB out"
test = "huge::out"
[[section.row]]
what = "2 MiB in"
test = "huge::in"
"#;

    fn table() -> Table {
        toml::from_str(TABLE).expect("well formed")
    }

    fn document(vanilla: [(Found, &str); 2]) -> Document {
        let results = |found: [(Found, &str); 2]| {
            let tests = ["huge::out", "huge::in"];
            let one = |(test, (found, why)): (&str, (Found, &str))| Tried {
                test: test.into(),
                found,
                why: why.into(),
            };
            tests.into_iter().zip(found).map(one).collect()
        };
        let column = |name: &str, found| ColumnResults {
            name: name.into(),
            results: results(found),
        };
        let commit = Commit {
            hash: "abc".into(),
            changed: false,
        };
        let good = [(Found::Works, ""), (Found::Works, "")];
        let columns = vec![
            column("PUBLIC", good),
            column("COHERENT, unpatched", vanilla),
        ];
        Document::new(&commit, columns)
    }

    #[test]
    fn cells_say_what_was_found_and_notes_say_why_once() {
        let found = [
            (Found::Fails, "no page | moved"),
            (Found::Fails, "no page | moved"),
        ];
        let page = document(found).page(&table()).expect("complete");
        for line in [
            "| 2 MiB out | yes | no (1) | `huge::out` |",
            "| 2 MiB in | yes | no (1) | `huge::in` |",
            "1. no page \\| moved",
        ] {
            assert!(page.contains(line), "{line} is not in:\n{page}");
        }
        let found = [
            (Found::Breaks, "BUG: x"),
            (Found::Inapplicable, "no such memory"),
        ];
        let page = document(found).page(&table()).expect("complete");
        assert!(page.contains("| BREAKS THE KERNEL (1) |"), "{page}");
        assert!(page.contains("| does not apply (2) |"), "{page}");
    }

    #[test]
    fn table_without_a_result_is_none() {
        let mut document = document([(Found::Works, ""), (Found::Works, "")]);
        document.columns[1].results.pop();
        let error = document.page(&table()).expect_err("one is missing");
        assert!(error.to_string().contains("huge::in"), "{error}");
    }

    #[test]
    fn committed_page_must_have_each_row_and_each_row_a_test() {
        let repo = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(repo.path().join("docs/reference")).expect("made");
        fs::write(repo.path().join(DATA), TABLE).expect("written");
        let good = document([(Found::Works, ""), (Found::Works, "")]);
        let names = ["huge::out", "huge::in"].map(str::to_owned);
        check(repo.path(), &names).expect("no page yet");
        let page = good.page(&table()).expect("complete");
        fs::write(repo.path().join(PAGE), page).expect("written");
        check(repo.path(), &names).expect("as it should be");
        let error = check(repo.path(), &names[..1]).expect_err("a test is gone");
        assert!(error.to_string().contains("huge::in"), "{error}");
        fs::write(repo.path().join(PAGE), "old").expect("written");
        let error = check(repo.path(), &names).expect_err("a row is missing");
        assert!(error.to_string().contains("2 MiB out"), "{error}");
    }
}
