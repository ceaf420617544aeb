// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reference pages and manual pages of a program, from the definition that clap parses its
//! arguments with.
//!
//! They are committed, so that people read them where they read the code. Each program has a test
//! that calls [`check`]; the same test writes the pages anew where `CDM_RECORD_REFERENCE` is set,
//! which is what `just reference --record` does.

pub mod completion;
mod manual;
mod page;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use clap::Command;

/// Set by who wants the pages written.
const RECORD: &str = "CDM_RECORD_REFERENCE";
/// Where the pages are, in the repository.
const PAGES: &str = "docs/reference/cli";
/// Where the manual pages are, a folder for each program.
const MANUALS: &str = "docs/reference/man";

/// Compares the pages of a program with its definition, or writes them.
///
/// # Errors
///
/// What differs, and how to write it anew.
pub fn check(program: &str, command: Command) -> Result<(), String> {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let pages = Pages::of(program, command);
    if env::var_os(RECORD).is_some() {
        pages
            .write(&repo)
            .map_err(|error| format!("cannot write the pages of {program}: {error}"))
    } else {
        pages.compare(&repo)
    }
}

/// What a program's pages are to be.
struct Pages {
    program: String,
    /// Text by path below the repository.
    files: BTreeMap<PathBuf, String>,
}

impl Pages {
    fn of(program: &str, command: Command) -> Self {
        // A page must not depend on whose terminal it was made on.
        let mut command = command.bin_name(program).term_width(100);
        // What it prints is on these pages.
        command = command.disable_help_subcommand(true);
        command.build();
        let mut files = BTreeMap::new();
        let place = Path::new(PAGES).join(format!("{program}.md"));
        files.insert(place, page::of(&command));
        for (name, text) in manual::of(program, &command) {
            let place = Path::new(MANUALS).join(program).join(name);
            files.insert(place, text);
        }
        Self {
            program: program.to_owned(),
            files,
        }
    }

    fn write(&self, repo: &Path) -> io::Result<()> {
        for forgotten in self.forgotten(repo) {
            fs::remove_file(repo.join(forgotten))?;
        }
        for (path, text) in &self.files {
            let path = repo.join(path);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(path, text)?;
        }
        Ok(())
    }

    fn compare(&self, repo: &Path) -> Result<(), String> {
        let mut wrong: Vec<String> = self
            .files
            .iter()
            .filter(|(path, text)| fs::read_to_string(repo.join(path)).ok().as_ref() != Some(text))
            .map(|(path, _)| path.display().to_string())
            .collect();
        wrong.extend(
            self.forgotten(repo)
                .into_iter()
                .map(|path| format!("{} (of a command that is gone)", path.display())),
        );
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!(
            "not what the command line of {} is; run 'just reference --record': {}",
            self.program,
            wrong.join(", ")
        ))
    }

    /// Manual pages of commands that the program no longer has.
    fn forgotten(&self, repo: &Path) -> Vec<PathBuf> {
        let folder = Path::new(MANUALS).join(&self.program);
        let Ok(entries) = fs::read_dir(repo.join(&folder)) else {
            return Vec::new();
        };
        entries
            .flatten()
            .map(|entry| folder.join(entry.file_name()))
            .filter(|path| !self.files.contains_key(path))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Pages {
        let sub = Command::new("turn").about("Turn it");
        Pages::of("tool", Command::new("tool").about("Do").subcommand(sub))
    }

    #[test]
    fn what_was_written_is_what_the_command_line_says() {
        let repo = tempfile::tempdir().expect("a folder");
        pages().write(repo.path()).expect("written");
        pages().compare(repo.path()).expect("the same");
    }

    #[test]
    fn missing_and_changed_pages_are_named_with_what_to_run() {
        let repo = tempfile::tempdir().expect("a folder");
        pages().write(repo.path()).expect("written");
        fs::write(repo.path().join(PAGES).join("tool.md"), "old").expect("written");
        fs::remove_file(repo.path().join(MANUALS).join("tool/tool-turn.1")).expect("removed");
        let told = pages().compare(repo.path()).expect_err("differs");
        for part in ["cli/tool.md", "tool/tool-turn.1", "just reference --record"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn manual_page_of_a_command_that_is_gone_is_found_and_removed() {
        let repo = tempfile::tempdir().expect("a folder");
        pages().write(repo.path()).expect("written");
        let left = repo.path().join(MANUALS).join("tool/tool-gone.1");
        fs::write(&left, "x").expect("written");
        let told = pages().compare(repo.path()).expect_err("differs");
        assert!(told.contains("tool-gone.1"), "{told}");
        pages().write(repo.path()).expect("written");
        assert!(!left.exists());
    }
}
