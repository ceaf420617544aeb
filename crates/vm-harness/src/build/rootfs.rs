// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Userlands for guests beside that of the initramfs. `ci/just` makes them, outside of the toolbox,
//! as it makes the toolbox, before this process starts: it asks [`is_asked`] whether to.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The disk with Debian on it: `ci/just` says where it is, or would be.
const DISK: &str = "CDM_ROOTFS";
/// Why it could not be made.
const WHY: &str = "CDM_ROOTFS_WHY";
/// Set where a run is only asked whether it wants one.
const ASK: &str = "CDM_ROOTFS_ASK";

/// Whether this process is to tell by its exit status if it wants a userland, and to do nothing.
pub fn is_asked() -> bool {
    env::var_os(ASK).is_some()
}

/// The disk with Debian's userland on it.
pub fn debian() -> Result<PathBuf> {
    let disk = env::var_os(DISK).map(PathBuf::from);
    let disk = disk.with_context(|| format!("{DISK} is not set; start this with 'ci/just'"))?;
    there(disk, env::var(WHY).ok())
}

/// The disk, or why it is not there.
fn there(disk: PathBuf, why: Option<String>) -> Result<PathBuf> {
    if disk.is_file() {
        return Ok(disk);
    }
    match why {
        Some(why) => bail!("the guest gets no Debian userland: {why}"),
        None => bail!(
            "the guest gets no Debian userland: {} is not there; 'ci/just run-vm --rootfs debian' \
             makes it",
            disk.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_that_is_not_there_is_an_error_with_the_reason_or_the_next_step() {
        let nowhere = PathBuf::from("/nonexistent/disk.img");
        let error = there(nowhere.clone(), Some("no network".to_owned())).expect_err("none");
        assert!(error.to_string().ends_with("no network"), "{error}");
        let error = there(nowhere, None).expect_err("none").to_string();
        assert!(
            error.contains("/nonexistent") && error.contains("--rootfs"),
            "{error}"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        let why = Some("long mended".to_owned());
        assert_eq!(there(file.path().into(), why).expect("there"), file.path());
    }
}
