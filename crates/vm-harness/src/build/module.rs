// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::Kernel;
use crate::Context;
use anyhow::{Result, bail};
use std::path::PathBuf;
/// x
pub fn module(_ctx: &Context, _kernel: &Kernel) -> Result<PathBuf> {
    bail!("not available yet")
}
