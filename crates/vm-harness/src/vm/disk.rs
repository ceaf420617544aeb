// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A disk of a machine: a sparse file with a file system on it, made anew for
//! each boot and gone with the run's folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

/// What is on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Disk {
    /// An xfs with blocks of a page.
    Xfs,
}

/// The smallest disk that mkfs.xfs agrees to is 300 MiB; the file is sparse.
const BYTES: u64 = 320 << 20;

impl Disk {
    /// Where the file of the machine's `index`th disk is, in the run's folder.
    pub fn path(run: &Path, index: usize) -> PathBuf {
        run.join(format!("disk{index}.img"))
    }

    /// Makes the file.
    pub fn create(self, path: &Path) -> Result<()> {
        let cannot = || format!("cannot make the disk {}", path.display());
        let file = File::create(path).with_context(cannot)?;
        file.set_len(BYTES).with_context(cannot)?;
        let Self::Xfs = self;
        let output = Command::new("mkfs.xfs")
            .args(["-q", "-f", "-b", "size=4096"])
            .arg(path)
            .output()
            .context("mkfs.xfs is part of the toolbox; 'ci/just doctor' tells what is missing")?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", cannot(), why.trim_end());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn disk_has_an_xfs_and_takes_little_room() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = Disk::path(folder.path(), 0);
        Disk::Xfs.create(&path).expect("made");
        let mut magic = [0; 4];
        std::io::Read::read_exact(&mut File::open(&path).expect("there"), &mut magic)
            .expect("long enough");
        assert_eq!(&magic, b"XFSB");
        let touched = fs::metadata(&path).expect("there").blocks() * 512;
        assert!(touched < BYTES / 4, "{touched} bytes are written");
    }

    #[test]
    fn folder_that_is_not_there_is_named() {
        let error = Disk::Xfs
            .create(Path::new("/nonexistent/disk0.img"))
            .expect_err("no folder");
        assert!(format!("{error:#}").contains("/nonexistent/disk0.img"));
    }
}
