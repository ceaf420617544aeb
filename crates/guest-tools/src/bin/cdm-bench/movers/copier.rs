// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The subject with the copies left to one of those who can make them: what it is compared with
//! to tell whether it chose well.

use anyhow::{Context, Result};
use cdm_guest_tools::memory::Mapping;
use std::fs;

use super::Mover;
use crate::memory::PageSize;

const PARAMETER: &str = "/sys/module/cdm/parameters/copy";
/// By the CPU.
pub const BY_CPU: &str = "cdm-copy-cpu";
/// By the engines of the device.
pub const BY_ENGINE: &str = "cdm-copy-engine";

/// The driver with its parameter `copy` set; as it was when this is dropped.
pub struct Copier {
    mover: Box<dyn Mover>,
    before: String,
}

impl Copier {
    /// Has `copier` make the copies of `mover`.
    pub fn new(mover: Box<dyn Mover>, copier: &str) -> Result<Self> {
        let read = fs::read_to_string(PARAMETER);
        let before = read.with_context(|| format!("cannot read {PARAMETER}"))?;
        let this = Self { mover, before };
        fs::write(PARAMETER, copier).with_context(|| format!("cannot set {PARAMETER}"))?;
        Ok(this)
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        // What was read from there can be written to it.
        let _ = fs::write(PARAMETER, self.before.trim());
    }
}

impl Mover for Copier {
    fn there(&self, part: usize) -> Result<()> {
        self.mover.there(part)
    }

    fn back(&self, part: usize) -> Result<()> {
        self.mover.back(part)
    }

    fn expect_there(&self) -> Result<()> {
        self.mover.expect_there()
    }

    fn expect_back(&self, memory: &Mapping, pages: PageSize) -> Result<()> {
        self.mover.expect_back(memory, pages)
    }
}
