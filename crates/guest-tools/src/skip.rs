// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What cannot be tried on this machine, and why.

use std::fmt;

use anyhow::Result;

/// Why a test could not be tried here.
#[derive(Debug)]
pub struct Skip(
    /// The reason.
    pub String,
);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a test as skipped.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}
