// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What unit tests of machines share.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::spec::VmSpec;
use crate::build::{BuildKind, Kernel, KernelChoice};
use crate::cache::KeyBuilder;

/// The repository.
pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/vm-harness has two parents")
        .to_owned()
}

/// The default machine, with a kernel that nobody boots.
pub fn spec() -> VmSpec {
    VmSpec::new(Kernel {
        choice: KernelChoice::Public,
        kind: BuildKind::Plain,
        image: "/cache/kernel/arch/x86/boot/bzImage".into(),
        objects: "/cache/kernel".into(),
        config: "/cache/kernel/.config".into(),
        key: KeyBuilder::new().finish(),
    })
}

/// Makes an executable shell script.
pub fn script(path: &Path, line: &str) {
    fs::write(path, format!("#!/bin/sh\n{line}\n")).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("made executable");
}
