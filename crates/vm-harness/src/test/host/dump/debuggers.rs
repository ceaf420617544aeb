// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Debuggers, used as `docs/how-to/failures.md` tells it for a kernel without types: given nothing but the
//! dump and the kernel's file with symbols.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build::Kernel;

/// What is typed into drgn. The last two lines read memory that was mapped at run time: only the
/// kernel's page tables tell where it is.
const DRGN_LINES: &str = r#"
import sys
print(prog["UTS_RELEASE"])
kernel = prog.main_module()
kernel.loaded_file_status = drgn.ModuleFileStatus.WANT
kernel.try_file(sys.argv[1])
banner = prog.symbol("linux_banner")
print(prog.read(banner.address, banner.size).decode())
newest = prog.read_u64(prog.symbol("modules").address)
print(prog.read(newest + 16, 4))
"#;

/// What gdb says.
pub fn in_gdb(dump: &Path, kernel: &Kernel) -> Result<String> {
    let output = Command::new("gdb")
        .args(["-nx", "-batch"])
        .arg(kernel.objects.join("vmlinux"))
        .arg(dump)
        .args(["-ex", "x/s &linux_banner", "-ex", "info threads"])
        .args(["-ex", "info symbol &init_uts_ns"])
        .output()
        .context("gdb is part of the toolbox")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What drgn says.
pub fn in_drgn(dump: &Path, kernel: &Kernel) -> Result<String> {
    let vmlinux = kernel.objects.join("vmlinux");
    let output = Command::new("drgn")
        .arg("-c")
        .arg(dump)
        .arg("-s")
        .arg(&vmlinux)
        .args(["-e", DRGN_LINES])
        .arg(&vmlinux)
        .output()
        .context("drgn is part of the toolbox")?;
    let (said, error) = (output.stdout, output.stderr);
    ensure!(
        output.status.success(),
        "drgn fails, {}: {}",
        output.status,
        String::from_utf8_lossy(&error)
    );
    Ok(String::from_utf8_lossy(&said).into_owned())
}
