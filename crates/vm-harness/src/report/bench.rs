// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Figures of benchmarks, as 'just bench' writes them.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A figure, against one reference. Fields that are not shown may be added.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Figure {
    pub name: String,
    pub unit: String,
    pub reference: Option<String>,
    /// How it compares with the reference: above 1 it does better.
    pub ratio: Option<f64>,
    pub min: f64,
    pub median: f64,
    pub max: f64,
    pub runs: u32,
}

/// The figures, if there are any.
pub fn read(path: &Path) -> Result<Option<Vec<Figure>>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let figures = serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no list of figures; 'just bench' writes it anew",
            path.display()
        )
    })?;
    Ok(Some(figures))
}
