// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The programs that run in the guest.

use std::path::PathBuf;

use anyhow::Result;

use super::cargo::{self, Programs};
use crate::context::Context;

/// Builds the guest's programs, and returns the folder that holds them.
pub fn guest_tools(ctx: &Context) -> Result<PathBuf> {
    cargo::build(
        ctx,
        &Programs {
            name: "guest-tools",
            package: "cdm-guest-tools",
            for_guest: true,
            // Their bindings are generated from the driver's header.
            inputs: &["crates/guest-driver/uapi"],
        },
    )
}
