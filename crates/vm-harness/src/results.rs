// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results that are committed: JSON for programs and a page for people, both written
//! by the command that they name.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cache;
use crate::context::Context;

/// The licence of what is generated.
// REUSE-IgnoreStart: this is what files of results get.
pub(crate) const LICENCE: &str = "SPDX-License-Identifier: Apache-2.0 OR MIT";
// REUSE-IgnoreEnd
/// Version of the form of all results. It grows when a field goes or changes its meaning.
const VERSION: u32 = 1;

/// Where committed results are, in the repository.
const FOLDER: &str = "docs/results";

/// Where a result comes from: the first fields of each, and the head of its page.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    #[serde(rename = "$comment")]
    comment: &'static str,
    version: u32,
    command: String,
    commit: String,
}

impl Origin {
    /// The command that leads to the result again, and the commit that it ran on.
    pub fn new(command: impl Into<String>, commit: impl Into<String>) -> Self {
        Self {
            comment: LICENCE,
            version: VERSION,
            command: command.into(),
            commit: commit.into(),
        }
    }

    /// The command.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// The commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The head of a page: what it is, and how to have it again.
    pub fn head(&self, title: &str) -> String {
        format!(
            "<!-- {LICENCE} -->\n# {title}\n\nWritten by the command below; not by hand.\n\n    \
             {}\n\nCommit {}.\n\n",
            self.command, self.commit
        )
    }
}

/// Text in a table's cell.
pub fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Writes a result into the repository.
pub fn record(ctx: &Context, name: &str, json: &str, page: &str) -> Result<()> {
    let folder = ctx.repo.join(FOLDER);
    cache::create_folder(&folder)?;
    write(&folder.join(format!("{name}.json")), json)?;
    write(&folder.join(format!("{name}.md")), page)?;
    ctx.progress
        .say(format!("cdm: written: {FOLDER}/{name}.md and {name}.json"));
    Ok(())
}

/// Writes a text that ends with one line feed.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let text = format!("{}\n", text.trim_end());
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_recorded_as_page_and_as_json() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let page = Origin::new("just it", "abc").head("A title");
        record(&ctx, "name", "{}", &page).expect("written");
        let read = |name: &str| fs::read_to_string(dir.path().join(FOLDER).join(name));
        assert_eq!(read("name.json").expect("there"), "{}\n");
        let page = read("name.md").expect("there");
        assert!(
            page.starts_with("<!-- SPDX") && page.contains("    just it\n"),
            "{page}"
        );
        assert!(page.ends_with("Commit abc.\n"), "{page}");
    }

    #[test]
    fn cell_holds_no_bar_and_no_line_feed() {
        assert_eq!(cell("a|b\nc"), "a\\|b c");
    }
}
