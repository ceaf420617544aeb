// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Code that documents show is code that there is: each block of Rust or C of the tutorial stands
//! in a file of `examples`, line for line.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::cache;
use crate::markdown;

/// Documents that show code of the examples.
const PLACE: &str = "docs/tutorial/";
/// Languages that the examples are written in.
const LANGUAGES: [&str; 2] = ["rust", "c"];

/// Looks for each block in the examples.
pub fn is_of_the_examples(repo: &Path, documents: &[String]) -> Result<()> {
    let mut sources = String::new();
    for path in cache::files_below(&repo.join("examples"))? {
        let text = fs::read_to_string(&path);
        sources += &text.with_context(|| format!("cannot read {}", path.display()))?;
    }
    let mut seen = 0;
    let mut wrong = Vec::new();
    for document in documents.iter().filter(|name| name.starts_with(PLACE)) {
        let text = fs::read_to_string(repo.join(document))
            .with_context(|| format!("cannot read {document}"))?;
        for (language, block) in markdown::blocks(&text) {
            if !LANGUAGES.contains(&language.as_str()) {
                continue;
            }
            seen += 1;
            if !sources.contains(&block) {
                wrong.push(format!("{document}:\n{block}"));
            }
        }
    }
    ensure!(seen > 0, "no code was recognised in {PLACE}");
    ensure!(
        wrong.is_empty(),
        "code that is in no file of examples:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(page: &str) -> Result<()> {
        let repo = tempfile::tempdir().expect("a folder");
        for (path, text) in [
            ("docs/tutorial/a.md", page),
            ("examples/a.rs", "fn a() {\n    b();\n}\n"),
        ] {
            let path = repo.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        is_of_the_examples(repo.path(), &["docs/tutorial/a.md".into()])
    }

    #[test]
    fn code_of_an_example_is_taken() {
        check("```rust\n    b();\n}\n```\n\n```text\nno code\n```\n").expect("there");
    }

    #[test]
    fn code_that_is_in_no_example_is_shown() {
        let error = check("```rust\n    c();\n```\n").expect_err("not there");
        assert!(
            error.to_string().contains("docs/tutorial/a.md:\n    c();"),
            "{error}"
        );
    }
}
