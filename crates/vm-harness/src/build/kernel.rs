// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::{BuildKind, KernelChoice};
use crate::Context;
use anyhow::{Result, bail};
use std::path::PathBuf;
/// A kernel that has been built.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Which source it was built from.
    pub choice: KernelChoice,
    /// How much it checks itself.
    pub kind: BuildKind,
    /// The image QEMU boots (bzImage).
    pub image: PathBuf,
    /// The build tree (`O=`), with vmlinux and all that a module build needs.
    pub objects: PathBuf,
    /// The configuration it was built with.
    pub config: PathBuf,
}
/// Builds.
pub fn kernel(_ctx: &Context, _choice: &KernelChoice, _kind: BuildKind) -> Result<Kernel> {
    bail!("not available yet")
}
