// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Disks that are files in memory, and what is made on them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::module::load_of_kernel;
use crate::stores::{Mounted, Stored, memory_file};

/// A disk made of a file in memory; detached on drop.
pub struct Loop {
    /// Its node.
    pub path: String,
    _file: File,
}

impl Loop {
    /// An empty disk.
    pub fn new(bytes: u64) -> Result<Self> {
        Self::of(memory_file(bytes as usize)?)
    }

    /// What a file holds, as a disk.
    pub fn of(file: File) -> Result<Self> {
        const CTL_GET_FREE: libc::c_ulong = 0x4C82;
        const SET_FD: libc::c_ulong = 0x4C00;
        load_of_kernel("loop")?;
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .context("the kernel has no loop devices")?;
        // SAFETY: the request has no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), CTL_GET_FREE as _) };
        ensure!(number >= 0, "no free loop device");
        let path = format!("/dev/loop{number}");
        let disk = File::options().read(true).write(true).open(&path)?;
        // SAFETY: the argument is a descriptor.
        let set = unsafe { libc::ioctl(disk.as_raw_fd(), SET_FD as _, file.as_raw_fd()) };
        ensure!(set == 0, "LOOP_SET_FD: {}", std::io::Error::last_os_error());
        Ok(Self { path, _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        const CLR_FD: libc::c_ulong = 0x4C01;
        if let Ok(disk) = File::open(&self.path) {
            // SAFETY: the request has no argument. The kernel waits for the last user by itself.
            let _ = unsafe { libc::ioctl(disk.as_raw_fd(), CLR_FD as _) };
        }
    }
}

/// A new ext4 on a disk, mounted.
pub fn mount_ext4(disk: &str, options: &str) -> Result<Mounted> {
    let made = Command::new("mke2fs")
        .args(["-F", "-b", "4096", disk])
        .output()
        .context("cannot start mke2fs")?;
    ensure!(
        made.status.success(),
        "mke2fs: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    load_of_kernel("ext4")?;
    Mounted::new(disk, "ext4", options)
}

/// A file on such an ext4.
pub fn ext4(disk: &str, options: &str) -> Result<Stored> {
    let mounted = mount_ext4(disk, options)?;
    let folder = mounted.path.clone();
    Stored::new(&folder, Some(mounted))
}
