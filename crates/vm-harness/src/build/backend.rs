// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device's process on the host.

use std::path::PathBuf;

use anyhow::Result;

use super::cargo::{self, Programs};
use crate::context::Context;

/// Builds the backend, and returns the program.
pub fn backend(ctx: &Context) -> Result<PathBuf> {
    let folder = cargo::build(
        ctx,
        &Programs {
            name: "backend",
            package: "cdm-backend",
            for_guest: false,
            inputs: &[],
        },
    )?;
    Ok(folder.join("cdm-backend"))
}
