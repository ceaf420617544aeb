// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A folder for each failure, with all that is known of it: what failed, the line that repeats
//! it, and what its guest left, with the kernel's back traces decoded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build::Kernel;
use crate::cache;
use crate::context::Context;
use crate::vm::{MEMORY_DUMP, decode};

/// Name of the folder of all failures, in the folder of a run.
const FAILURES: &str = "failures";
/// Failures of one run that get a folder. Where more fails, they have a cause in common.
const FOLDERS_MAX: usize = 25;

/// What a guest left, or has so far.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Its logs.
    pub logs: &'a Path,
    /// What it ran.
    pub kernel: &'a Kernel,
    /// Repository and cache, for the module.
    pub ctx: &'a Context,
}

/// Where a run keeps its failures.
pub fn folder_in(run: &Path) -> PathBuf {
    run.join(FAILURES)
}

/// The line that runs a test of `cdm test` again.
pub fn repeat_test(name: &str) -> String {
    format!("ci/just test {name}")
}

/// Makes the folder of a failed test, unless it has one.
pub fn of_failure(run: &Path, name: &str, detail: &str, guest: Option<Guest<'_>>) -> Result<()> {
    of_named(run, name, detail, &repeat_test(name), guest)
}

/// Makes the folder of whatever failed under this name, unless it has one.
pub fn of_named(
    run: &Path,
    name: &str,
    detail: &str,
    repeat: &str,
    guest: Option<Guest<'_>>,
) -> Result<()> {
    let all = folder_in(run);
    let folder = all.join(name.replace("::", ".").replace('/', "-"));
    let full = || fs::read_dir(&all).is_ok_and(|folders| folders.count() >= FOLDERS_MAX);
    if folder.exists() || full() {
        return Ok(());
    }
    cache::create_folder(&folder)?;
    let write = |file: &str, text: &str| {
        let path = folder.join(file);
        fs::write(&path, format!("{text}\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    };
    write("failure.txt", &format!("{name}\n\n{detail}"))?;
    write("repeat.txt", repeat)?;
    match guest {
        Some(guest) => take_along(guest, &folder),
        None => Ok(()),
    }
}

/// [`of_failure`] where the logs have a folder of their own: what is missing there.
pub fn beside_logs(guest: Guest<'_>, repeat: &str) -> Result<()> {
    let path = guest.logs.join("repeat.txt");
    fs::write(&path, format!("{repeat}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    decode::decode(guest.ctx, guest.kernel, guest.logs)
}

/// Copies what a guest has written so far: it may go on, for other tests.
fn take_along(guest: Guest<'_>, folder: &Path) -> Result<()> {
    for file in cache::files_below(guest.logs)? {
        let to = folder.join(file.strip_prefix(guest.logs)?);
        if let Some(parent) = to.parent() {
            cache::create_folder(parent)?;
        }
        let taken = match file.ends_with(MEMORY_DUMP) {
            // It is large, and nobody writes to it any more.
            true => fs::hard_link(&file, &to),
            false => fs::copy(&file, &to).map(|_| ()),
        };
        taken.with_context(|| format!("cannot copy {}", file.display()))?;
    }
    decode::decode(guest.ctx, guest.kernel, folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testing;

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).expect("written")
    }

    #[test]
    fn folder_of_a_failure_has_what_failed_how_to_repeat_it_and_all_of_its_guest() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (run, logs) = (dir.path().join("run"), dir.path().join("logs"));
        fs::create_dir_all(logs.join("plugged1")).expect("made");
        for file in ["console.log", "plugged1/backend0.log", MEMORY_DUMP] {
            fs::write(logs.join(file), file).expect("written");
        }
        let ctx = Context::for_test(dir.path());
        let spec = testing::spec();
        let guest = Guest {
            logs: &logs,
            kernel: &spec.kernel,
            ctx: &ctx,
        };
        of_failure(&run, "e2e::public::a::b", "1 < 2", Some(guest)).expect("gathered");
        // Not again, with less.
        of_failure(&run, "e2e::public::a::b", "later", None).expect("nothing to do");
        let folder = run.join("failures/e2e.public.a.b");
        assert!(read(folder.join("failure.txt")).ends_with("\n1 < 2\n"));
        assert_eq!(
            read(folder.join("repeat.txt")),
            "ci/just test e2e::public::a::b\n"
        );
        for file in ["console.log", "plugged1/backend0.log", MEMORY_DUMP] {
            assert_eq!(read(folder.join(file)), file);
        }
    }

    #[test]
    fn run_in_which_all_fails_keeps_a_few_folders() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for number in 0..FOLDERS_MAX + 10 {
            of_failure(dir.path(), &format!("unit::t{number}"), "x", None).expect("gathered");
        }
        let kept = fs::read_dir(folder_in(dir.path())).expect("there").count();
        assert_eq!(kept, FOLDERS_MAX);
    }
}
