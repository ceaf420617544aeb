// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks documents against the JSON schemas that the project promises (docs/reference/schemas).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

/// Reads a document, which must follow the schema of this name.
pub fn check(repo: &Path, schema: &str, document: &[u8]) -> Result<Value> {
    let path = repo.join("docs/reference/schemas").join(schema);
    fs::metadata(&path).with_context(|| format!("no schema at {}", path.display()))?;
    let value: Value = serde_json::from_slice(document)
        .with_context(|| format!("no JSON: {}", String::from_utf8_lossy(document)))?;
    let mut schemas = boon::Schemas::new();
    let index = boon::Compiler::new()
        .compile(&path.display().to_string(), &mut schemas)
        .map_err(|error| anyhow!("{error:#}"))?;
    if let Err(error) = schemas.validate(&value, index) {
        bail!("{error}\nin {value:#}");
    }
    Ok(value)
}

/// [`check`] with the repository's own schemas, for unit tests.
#[cfg(test)]
pub fn follows(schema: &str, document: &[u8]) -> Result<Value> {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    check(&repo.canonicalize()?, schema, document)
}
