// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which parts of the sandbox are on, in one line.

use std::fmt::Display;
use tracing::{info, warn};

/// What is on, and what the host refused.
#[derive(Debug, Default)]
pub struct Report {
    on: Vec<&'static str>,
    refused: Vec<String>,
}

impl Report {
    /// Notes how a part went.
    pub fn add(&mut self, part: &'static str, result: Result<(), impl Display>) {
        match result {
            Ok(()) => self.on.push(part),
            Err(error) => self.refused.push(format!("{part} ({error})")),
        }
    }

    /// What the host refused.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// Writes the line.
    pub fn log(&self) {
        let on = match self.on.as_slice() {
            [] => "nothing".to_owned(),
            parts => parts.join(", "),
        };
        if self.refused.is_empty() {
            info!(%on, "sandbox");
        } else {
            warn!(%on, refused = %self.refused.join(", "), "sandbox");
        }
    }
}
