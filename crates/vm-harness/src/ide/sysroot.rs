// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The toolbox's Rust for an editor outside of it.
//!
//! The kernel's macros were compiled by the toolbox's compiler, and only programs of the same
//! release can load them. Those start outside only with the toolbox's own libraries.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cache;
use crate::vm::qemu::shell_line;

/// What editors start: the compiler, which they ask for its settings, and what expands macros.
const PROGRAMS: [&str; 2] = ["bin/rustc", "libexec/rust-analyzer-proc-macro-srv"];
/// Where the toolbox has its libraries, below `/usr`.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

/// Makes the folder `sysroot` of the Rust below `usr`, seen from outside.
pub fn make(usr: &Path, sysroot: &Path) -> Result<()> {
    for program in PROGRAMS {
        let path = sysroot.join(program);
        if let Some(parent) = path.parent() {
            cache::create_folder(parent)?;
        }
        let text = |path: &str| usr.join(path).display().to_string();
        let words = ["--library-path".to_owned(), text(LIBRARIES), text(program)];
        let line = shell_line(&text(LOADER), &words);
        fs::write(&path, format!("#!/bin/sh\nexec {line} \"$@\"\n"))
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let link = sysroot.join("lib");
    match symlink(usr.join("lib"), &link) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", link.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn compiler_of_the_toolbox_starts_with_its_own_libraries_and_answers() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for _ in 0..2 {
            make(Path::new("/usr"), dir.path()).expect("made, also again");
        }
        let rustc = dir.path().join("bin/rustc");
        let output = Command::new(rustc).args(["--print", "cfg"]).output();
        let output = output.expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("target_arch=\"x86_64\""), "{output:?}");
        assert!(dir.path().join("lib/rustlib").is_dir());
        let server = Path::new("/usr").join(PROGRAMS[1]);
        assert!(server.is_file(), "there is no {}", server.display());
    }
}
