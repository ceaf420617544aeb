// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where the files of a scenario are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cdm_guest_tools::disks::{Loop, mount_ext4};
use cdm_guest_tools::stores::{Mounted, memory_file, xfs_disk};

/// A folder for files, or memory for files without a name.
pub struct Place {
    /// Gone before its disk.
    folder: Option<Folder>,
    _mounted: Option<Mounted>,
    _disk: Option<Loop>,
    /// Whether its pages can go to a device at all.
    pub can_move: bool,
}

/// Bytes of the disk for an ext4.
const EXT4_BYTES: u64 = 64 << 20;

impl Place {
    /// Files without a name.
    pub fn memfd() -> Self {
        Self {
            folder: None,
            _mounted: None,
            _disk: None,
            can_move: true,
        }
    }

    /// The file system in memory that the guest has.
    pub fn tmpfs() -> Result<Self> {
        Ok(Self {
            folder: Some(Folder::new(Path::new("/dev/shm"))?),
            ..Self::memfd()
        })
    }

    /// The disk that the harness gives the guest.
    pub fn xfs() -> Result<Self> {
        Self::mounted(Mounted::new(xfs_disk()?, "xfs", "")?)
    }

    /// A disk in memory. The folios of an ext4 have buffer heads, and stay.
    pub fn ext4() -> Result<Self> {
        let disk = Loop::new(EXT4_BYTES)?;
        let mounted = mount_ext4(&disk.path, "")?;
        Ok(Self {
            _disk: Some(disk),
            can_move: false,
            ..Self::mounted(mounted)?
        })
    }

    fn mounted(mounted: Mounted) -> Result<Self> {
        Ok(Self {
            folder: Some(Folder::new(&mounted.path)?),
            _mounted: Some(mounted),
            ..Self::memfd()
        })
    }

    /// A new file of `bytes` bytes.
    pub fn file(&self, name: &str, bytes: usize) -> Result<File> {
        let Some(folder) = &self.folder else {
            return memory_file(bytes);
        };
        let path = folder.0.join(name);
        let file =
            File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.set_len(bytes as u64)?;
        Ok(file)
    }
}

/// A folder with nothing else in it; removed with all files on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("cdm-stress-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it shows in the counts of pages.
        let _ = fs::remove_dir_all(&self.0);
    }
}
