// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own tests of memory management (tools/testing/selftests/mm), from the
//! source that a kernel was built from: unmodified, and static, since a guest has no
//! libraries. What they use of libnuma is in `crates/vm-harness/selftests`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Kernel;
use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;

/// Folder of the tests in a kernel source.
const FOLDER: &str = "tools/testing/selftests/mm";
/// Linked with each of them (its Makefile says so).
const COMMON: [&str; 2] = ["vm_util.c", "hugepage_settings.c"];
/// Headers that they take in from elsewhere in the source. Those of the kernel's interface to user
/// space are the toolbox's, which has them from the same release.
const HEADERS: [&str; 5] = [
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/pidfd/pidfd.h",
    "lib/test_hmm_uapi.h",
    "mm/gup_test.h",
];
/// What stands for libraries, in the repository, and what of it is linked in.
const LIBRARIES: &str = "crates/vm-harness/selftests";
const NUMA: &str = "numa.c";

/// The suite for device memory.
const HMM_TESTS: &str = "hmm-tests";
/// Its source, in a kernel's.
pub const HMM_TESTS_SOURCE: &str = "tools/testing/selftests/mm/hmm-tests.c";

/// Builds the suite for device memory, and returns the program.
pub fn hmm_tests(ctx: &Context, kernel: &Kernel) -> Result<PathBuf> {
    Ok(build(ctx, kernel, HMM_TESTS, &[HMM_TESTS])?.join(HMM_TESTS))
}

/// Builds some of the other tests, and returns the folder of the programs.
pub fn mm_selftests(ctx: &Context, kernel: &Kernel, programs: &[&str]) -> Result<PathBuf> {
    build(ctx, kernel, "mm-selftests", programs)
}

/// Builds programs, each from a source of its name.
fn build(ctx: &Context, kernel: &Kernel, name: &str, programs: &[&str]) -> Result<PathBuf> {
    let source = source(kernel)?;
    let libraries = ctx.repo.join(LIBRARIES);
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox)
        .text("programs", programs.join(" "))
        .tree(&source, &source.join(FOLDER))?
        .tree(&ctx.repo, &libraries)?;
    for header in HEADERS {
        key.file(&source, &source.join(header))?;
    }
    let what = format!("building {name} of the {} kernel", kernel.choice);
    cache::entry(ctx, name, &key.finish(), &what, |folder| {
        let log = ctx.logs().join(format!("{name}.log"));
        let _task = ctx.progress.task(&what, Some(&log));
        for program in programs {
            let mut command = compiler(&source, &libraries, program);
            command.arg("-o").arg(folder.join(program));
            run_logged(&mut command, &what, &log, |_| {})?;
        }
        Ok(())
    })
}

/// The source tree that a kernel was built from.
fn source(kernel: &Kernel) -> Result<PathBuf> {
    let link = kernel.objects.join("source");
    fs::canonicalize(&link).with_context(|| format!("no kernel source at {}", link.display()))
}

/// The compiler for a program, with the flags of the tests' Makefile.
fn compiler(source: &Path, libraries: &Path, program: &str) -> Command {
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
        .arg("-I")
        .arg(libraries)
        .arg(format!("{program}.c"))
        .args(COMMON);
    // The Makefile's further sources and libraries of single programs.
    if program.starts_with("uffd-") {
        command.arg("uffd-common.c");
    }
    if ["ksm_tests", "migration", "rmap"].contains(&program) {
        command.arg(libraries.join(NUMA));
    }
    command.args(["-lrt", "-lpthread", "-lm"]);
    command
}
