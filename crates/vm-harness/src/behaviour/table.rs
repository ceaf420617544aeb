// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rows and columns of the table, as data.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::vm::MemoryType;

/// Where they are, in the repository.
pub const DATA: &str = "docs/reference/behaviour.toml";

/// What the page shows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Text above the table.
    pub introduction: String,
    /// One for each guest.
    pub column: Vec<Column>,
    /// Rows, by topic.
    pub section: Vec<Section>,
}

/// One type of memory on one kernel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// `public` or `vanilla`.
    pub kernel: String,
    /// Type of the device memory.
    pub memory_type: MemoryType,
}

/// Rows that belong together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its heading.
    pub name: String,
    /// Its rows.
    pub row: Vec<Row>,
}

/// Something that one can do with memory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// The test, as `group::name`.
    pub test: String,
}

impl Table {
    /// Reads the repository's.
    pub fn read(repo: &Path) -> Result<Self> {
        let path = repo.join(DATA);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let table: Self = toml::from_str(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        ensure!(
            !table.tests().is_empty() && !table.column.is_empty(),
            "{} has no row or no column",
            path.display()
        );
        Ok(table)
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.section.iter().flat_map(|section| &section.row)
    }

    /// All tests, each once.
    pub fn tests(&self) -> Vec<String> {
        let mut tests: Vec<String> = Vec::new();
        for row in self.rows() {
            if !tests.contains(&row.test) {
                tests.push(row.test.clone());
            }
        }
        tests
    }
}
