// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A setting of the kernel's that a scenario changes for its time.

use std::fs;

use anyhow::{Context, Result};

/// A file in /proc or /sys; as it was again on drop.
pub struct Setting {
    path: &'static str,
    /// What is written first in the end, if anything.
    parting: Option<&'static str>,
    was: String,
}

impl Setting {
    /// From now on it is `value`.
    pub fn set(path: &'static str, value: &str) -> Result<Self> {
        let was = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        fs::write(path, value).with_context(|| format!("cannot write {value} to {path}"))?;
        Ok(Self {
            path,
            parting: None,
            was,
        })
    }

    /// The same; `parting` is written before what it was, to undo what it did.
    pub fn set_and_leave_with(
        path: &'static str,
        value: &str,
        parting: &'static str,
    ) -> Result<Self> {
        let mut setting = Self::set(path, value)?;
        setting.parting = Some(parting);
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Some(parting) = self.parting {
            let _ = fs::write(self.path, parting);
        }
        // Failure shows in the scenarios behind this one.
        let _ = fs::write(self.path, self.was.trim());
    }
}
