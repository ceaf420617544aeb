// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a user has without the series: test_hmm on the kernel as it is released, in a guest of its
//! own. It is a reference of group `migrate`, and has its turns while the other guest is idle.

use std::path::Path;

use anyhow::{Context as _, Result};
use cdm_agent_protocol::Sample;

use super::{guest, machine};
use crate::build::{self, BuildKind, KernelChoice};
use crate::context::Context;
use crate::progress::Task;
use crate::stress::hmm::device;
use crate::test::Session;
use crate::vm::{MemoryType, VmSpec};

/// The group that has this reference.
pub const OF_GROUP: &str = "migrate";
/// What the program in the guest measures of it.
pub const PART: &str = "unpatched";

/// The guest.
pub struct Unpatched<'a>(Session<'a>);

impl<'a> Unpatched<'a> {
    /// Boots it, with a kernel of this build.
    pub fn boot(ctx: &'a Context, build: BuildKind, logs: &Path) -> Result<Self> {
        let mut spec = VmSpec::new(build::kernel(ctx, &KernelChoice::Vanilla, build)?);
        spec.memory = machine::MEMORY;
        spec.devices = 0;
        spec.load_module = false;
        spec.files = vec![device::upstream_file(&spec.kernel)?];
        let mut session = Session::new(ctx, spec, logs.join(PART));
        session.vm()?;
        device::load_upstream(MemoryType::Private, &mut session)
            .context("test_hmm cannot be loaded in a guest without the series")?;
        Ok(Self(session))
    }

    /// Measures a round; `arguments` are those of the program.
    pub fn round(&mut self, arguments: &[String], progress: &Task) -> Result<Vec<Sample>> {
        guest::measure(&mut self.0, arguments, progress)
    }

    /// Looks at its log and turns it off.
    pub fn end(mut self) -> Result<()> {
        self.0.judge_log()?;
        self.0.end()
    }
}
