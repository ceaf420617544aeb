// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where the files of a test are kept: one file system each.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::module::load_of_kernel;
use crate::skip::skip;

/// A kind of place for files.
pub struct Store {
    /// Its name in messages.
    pub name: &'static str,
    /// Whether the contents are written to a disk some time.
    pub is_disk: bool,
    make: fn() -> Result<Stored>,
}

/// A file in memory, without a name, which may be sealed.
pub fn memory_file(bytes: usize) -> Result<File> {
    let fd: OwnedFd = memfd_create(c"cdm-test", MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(bytes as u64)?;
    Ok(file)
}

/// Files without a name.
pub const MEMFD: Store = Store {
    name: "memfd",
    is_disk: false,
    make: || {
        Ok(Stored {
            file: memory_file(0)?,
            path: None,
            _mounted: None,
        })
    },
};

/// The file system in memory that can be swapped out.
pub const TMPFS: Store = Store {
    name: "tmpfs",
    is_disk: false,
    make: || Stored::new(Path::new("/dev/shm"), None),
};

/// The file system in memory that is page cache and nothing else.
pub const RAMFS: Store = Store {
    name: "ramfs",
    is_disk: false,
    make: || {
        let mounted = Mounted::new("ramfs", "ramfs", "")?;
        let path = mounted.path.clone();
        Stored::new(&path, Some(mounted))
    },
};

/// A file system on a disk, whose folios carry no private data as long as they are a block.
pub const XFS: Store = Store {
    name: "xfs",
    is_disk: true,
    make: || {
        let mounted = Mounted::new(xfs_disk()?, "xfs", "")?;
        let path = mounted.path.clone();
        Stored::new(&path, Some(mounted))
    },
};

/// The disk that the harness gives the guest with an xfs on it, and the kernel's module for that.
pub fn xfs_disk() -> Result<&'static str> {
    const DISK: &str = "/dev/vda";
    if !Path::new(DISK).exists() {
        return skip(format!("the machine has no disk {DISK} with an xfs"));
    }
    load_of_kernel("xfs")?;
    Ok(DISK)
}

impl Store {
    /// A new file of `bytes` bytes.
    pub fn file(&self, bytes: usize) -> Result<Stored> {
        let stored = (self.make)().with_context(|| format!("no file on {}", self.name))?;
        stored.file.set_len(bytes as u64)?;
        Ok(stored)
    }
}

/// A file; removed with its file system on drop.
pub struct Stored {
    /// It, open to read and write.
    pub file: File,
    path: Option<PathBuf>,
    _mounted: Option<Mounted>,
}

impl Stored {
    /// A new file in a folder, of a file system that goes with it.
    pub fn new(folder: &Path, mounted: Option<Mounted>) -> Result<Self> {
        let path = folder.join(format!("cdm-test-{}", std::process::id()));
        let file =
            File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file,
            path: Some(path),
            _mounted: mounted,
        })
    }

    /// Takes the name away; the file lives on until it is closed.
    pub fn unlink(&mut self) -> Result<()> {
        match self.path.take() {
            Some(path) => Ok(fs::remove_file(path)?),
            None => Ok(()),
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        // What is left goes with the guest.
        let _ = self.unlink();
    }
}

/// A mounted file system; unmounted on drop.
pub struct Mounted {
    /// Where it is.
    pub path: PathBuf,
}

impl Mounted {
    /// Mounts at a folder of its own.
    pub fn new(source: &str, kind: &str, options: &str) -> Result<Self> {
        let path = PathBuf::from(format!("/run/cdm-{kind}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        mount(
            Some(source),
            &path,
            Some(kind),
            MsFlags::empty(),
            Some(options),
        )
        .with_context(|| format!("cannot mount {source} as {kind}"))?;
        Ok(Self { path })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Detached: the caller may still have a file of it open, which is closed in a moment.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.path);
    }
}
