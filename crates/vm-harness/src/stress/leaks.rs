// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of the kernel that nothing points to any more, which the debug kernel can tell
//! (Documentation/dev-tools/kmemleak.rst).

use anyhow::{Result, ensure};

use super::said::SILENCE;
use crate::test::Session;

const FILE: &str = "/sys/kernel/debug/kmemleak";

/// Has the kernel forget what it has lost so far.
pub fn forget(session: &mut Session<'_>) -> Result<()> {
    session.text(&format!("echo clear > {FILE}")).map(drop)
}

/// Has the kernel look for memory that it lost since [`forget`]. What is on its way from one owner
/// to the next may look lost once; what is younger than five seconds is not looked at.
pub fn find(session: &mut Session<'_>) -> Result<()> {
    let line = format!("for scan in 1 2; do sleep 6; echo scan > {FILE}; done; cat {FILE}");
    let mut said = Vec::new();
    let vm = session.vm()?;
    let status = vm.exec_streaming_within(SILENCE, &line, |_, text| said.push(text.to_owned()))?;
    ensure!(
        status.shell_code() == 0 && said.is_empty(),
        "the kernel has lost memory:\n{}",
        said.join("\n")
    );
    Ok(())
}
