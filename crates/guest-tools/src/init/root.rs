// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A userland on a disk, in the place of the initramfs's own: `run-vm --rootfs`.
//!
//! The disk holds nothing of this project. Its programs, the driver and the kernel's modules
//! stay in the initramfs, which the userland has at [`INITRAMFS`], and are links into it: so they
//! are always those of the kernel that runs, at the places where the initramfs has them.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::kmsg::log;

/// The serial number that the machine gives such a disk.
const SERIAL: &str = "cdm-rootfs";
/// What is on it.
const FILE_SYSTEM: &str = "ext4";
/// Where it is mounted before it is everything.
const NEW_ROOT: &str = "/newroot";
/// Where the initramfs is then.
const INITRAMFS: &str = "/run/initramfs";
/// Its folder of files for the userland.
const BROUGHT: &str = "rootfs";
/// What is linked: whose names begin so, in which folder of the initramfs, to which one.
const LINKED: [(&str, &str, &str); 2] = [
    ("cdm", "bin", "/usr/bin"),
    ("", "lib/modules", "/usr/lib/modules"),
];

/// Goes on from the initramfs to the userland, if the machine has one.
pub fn hand_over() -> io::Result<()> {
    let Some(disk) = offered() else { return Ok(()) };
    enter(&disk).map_err(|error| {
        let why = format!("cannot enter the userland on {}: {error}", disk.display());
        io::Error::new(error.kind(), why)
    })?;
    for (prefix, from, to) in LINKED {
        link_all(prefix, &Path::new(INITRAMFS).join(from), Path::new(to))?;
    }
    let brought = Path::new(INITRAMFS).join(BROUGHT);
    match brought.is_dir() {
        true => copy_tree(&brought, Path::new("/")),
        false => Ok(()),
    }
}

/// Leaves the disk as whoever mounts it next wants to find it: the guest may reboot.
pub fn settle() {
    if !Path::new(INITRAMFS).is_dir() {
        return;
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>) {
        log(&format!("cannot make the userland read-only: {error}"));
    }
}

/// The disk that the machine offers.
fn offered() -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?;
    let is_it = |disk: &fs::DirEntry| {
        fs::read_to_string(disk.path().join("serial")).is_ok_and(|serial| serial.trim() == SERIAL)
    };
    let disk = disks.flatten().find(is_it)?;
    Some(Path::new("/dev").join(disk.file_name()))
}

fn enter(disk: &Path) -> io::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    // A kernel that has it built in has no such module; one that has it not says so below.
    let _ = Command::new("/bin/modprobe").arg(FILE_SYSTEM).output();
    let none = None::<&str>;
    mount(
        Some(disk),
        NEW_ROOT,
        Some(FILE_SYSTEM),
        MsFlags::empty(),
        none,
    )?;
    for target in mounted_below_root()? {
        let new = Path::new(NEW_ROOT).join(target.trim_start_matches('/'));
        fs::create_dir_all(&new)?;
        mount(Some(target.as_str()), &new, none, MsFlags::MS_MOVE, none)?;
    }
    let initramfs = Path::new(NEW_ROOT).join(INITRAMFS.trim_start_matches('/'));
    fs::create_dir_all(&initramfs)?;
    mount(Some("/"), &initramfs, none, MsFlags::MS_BIND, none)?;
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

/// Folders of the root that something is mounted at; what is mounted inside them goes with them.
fn mounted_below_root() -> io::Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let of_root = targets
        .filter(|target| target.len() > 1 && target.rfind('/') == Some(0) && *target != NEW_ROOT);
    Ok(of_root.map(str::to_owned).collect())
}

/// Makes links in `to` to everything in `from` whose name begins with `prefix`.
fn link_all(prefix: &str, from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with(prefix) {
            let link = to.join(&name);
            // A guest that rebooted has it already.
            match fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => symlink(from.join(&name), link)?,
            }
        }
    }
    Ok(())
}

/// Copies what is in a folder into another one, through links that are folders there.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if !target.is_dir() {
                fs::create_dir(&target)?;
                let mode = entry.metadata()?.permissions().mode();
                fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
            }
            copy_tree(&source, &target)?;
        } else {
            fs::copy(source, target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_copied_with_their_modes_through_links_to_folders() {
        let dir = std::env::temp_dir().join(format!("cdm-copy-tree-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("lib/new")).expect("made");
        fs::create_dir_all(to.join("usr/lib")).expect("made");
        symlink("usr/lib", to.join("lib")).expect("made");
        let script = from.join("lib/new/script");
        fs::write(&script, "exit 5").expect("written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).expect("set");
        // Twice, as after a reboot.
        for _ in 0..2 {
            copy_tree(&from, &to).expect("copied");
        }
        let copy = to.join("usr/lib/new/script");
        assert_eq!(fs::read_to_string(&copy).expect("there"), "exit 5");
        let mode = fs::metadata(&copy).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o750);
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn links_lead_to_what_is_named_so_and_are_made_anew() {
        let dir = std::env::temp_dir().join(format!("cdm-link-all-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(&from).expect("made");
        for name in ["cdmctl", "ls"] {
            fs::write(from.join(name), name).expect("written");
        }
        for _ in 0..2 {
            link_all("cdm", &from, &to).expect("linked");
        }
        assert_eq!(
            fs::read_to_string(to.join("cdmctl")).expect("a link"),
            "cdmctl"
        );
        assert!(!to.join("ls").exists());
        fs::remove_dir_all(dir).expect("removed");
    }
}
