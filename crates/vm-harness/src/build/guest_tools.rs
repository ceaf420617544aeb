// SPDX-License-Identifier: Apache-2.0 OR MIT

use crate::Context;
use anyhow::{Result, bail};
use std::path::PathBuf;
/// x
pub fn guest_tools(_ctx: &Context) -> Result<PathBuf> {
    bail!("not available yet")
}
