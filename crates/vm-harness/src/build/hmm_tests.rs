// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own suite for device memory, `hmm-tests`, from the source that a
//! kernel was built from: unmodified, and static, since a guest has no libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Kernel;
use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;

/// Folder of the suite in a kernel source, and what is linked from it (its Makefile says so).
const FOLDER: &str = "tools/testing/selftests/mm";
const SOURCES: [&str; 3] = ["hmm-tests.c", "vm_util.c", "hugepage_settings.c"];
/// Headers that it takes in from elsewhere in the source. Those of the kernel's interface to user
/// space are the toolbox's, which has them from the same release.
const HEADERS: [&str; 4] = [
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "lib/test_hmm_uapi.h",
    "mm/gup_test.h",
];
/// The program's name.
const PROGRAM: &str = "hmm-tests";

/// Builds the suite, and returns the program.
pub fn hmm_tests(ctx: &Context, kernel: &Kernel) -> Result<PathBuf> {
    let source = source(kernel)?;
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox)
        .tree(&source, &source.join(FOLDER))?;
    for header in HEADERS {
        key.file(&source, &source.join(header))?;
    }
    let what = format!("building hmm-tests of the {} kernel", kernel.choice);
    let folder = cache::entry(ctx, "hmm-tests", &key.finish(), &what, |folder| {
        let log = ctx.logs().join("hmm-tests.log");
        let _task = ctx.progress.task(&what, Some(&log));
        let mut command = compiler(&source);
        command.arg("-o").arg(folder.join(PROGRAM));
        run_logged(&mut command, &what, &log, |_| {})
    })?;
    Ok(folder.join(PROGRAM))
}

/// The source tree that a kernel was built from.
fn source(kernel: &Kernel) -> Result<PathBuf> {
    let link = kernel.objects.join("source");
    fs::canonicalize(&link).with_context(|| format!("no kernel source at {}", link.display()))
}

/// The compiler, with the flags of the suite's Makefile.
fn compiler(source: &Path) -> Command {
    let mut command = Command::new("gcc");
    command
        .current_dir(source.join(FOLDER))
        .args([
            "-Wall",
            "-O2",
            "-static",
            "-D_GNU_SOURCE=",
            "-U_FORTIFY_SOURCE",
        ])
        .arg("-I")
        .arg(source)
        .arg("-I")
        .arg(source.join("tools/testing/selftests"))
        .arg("-isystem")
        .arg(source.join("tools/include/uapi"))
        .args(SOURCES)
        .args(["-lrt", "-lpthread", "-lm"]);
    command
}
