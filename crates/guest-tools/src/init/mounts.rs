// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The file systems that programs take for granted.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::kmsg::log;

struct Mount {
    kind: &'static str,
    target: &'static str,
    options: &'static str,
    /// A kernel of the user's own may lack it; then there is nothing to say.
    optional: bool,
}

const fn needed(kind: &'static str, target: &'static str, options: &'static str) -> Mount {
    Mount {
        kind,
        target,
        options,
        optional: false,
    }
}

const fn optional(kind: &'static str, target: &'static str) -> Mount {
    Mount {
        kind,
        target,
        options: "",
        optional: true,
    }
}

/// In this order: a target may lie inside an earlier one.
const MOUNTS: [Mount; 10] = [
    needed("devtmpfs", "/dev", "mode=0755"),
    needed("proc", "/proc", ""),
    needed("sysfs", "/sys", ""),
    needed("devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666"),
    needed("tmpfs", "/dev/shm", "mode=1777"),
    needed("tmpfs", "/tmp", "mode=1777"),
    needed("tmpfs", "/run", "mode=0755"),
    optional("debugfs", "/sys/kernel/debug"),
    optional("tracefs", "/sys/kernel/tracing"),
    optional("cgroup2", "/sys/fs/cgroup"),
];

/// Tag that the machine gives the folder it shares with the guest.
const SHARE_TAG: &str = "host";
/// Where that folder appears.
const SHARE_TARGET: &str = "/host";

/// Mounts everything there is to mount.
pub fn mount_all() {
    for entry in &MOUNTS {
        if let Err(error) = mount_one(entry.kind, entry.kind, entry.target, entry.options)
            && !entry.optional
        {
            log(&format!(
                "cannot mount {} at {}: {error}",
                entry.kind, entry.target
            ));
        }
    }
    if share_is_offered()
        && let Err(error) = mount_one(
            SHARE_TAG,
            "9p",
            SHARE_TARGET,
            // The largest message that virtio carries in one request.
            "trans=virtio,version=9p2000.L,msize=512000,cache=none",
        )
    {
        log(&format!("cannot mount the host's folder: {error}"));
    }
}

fn mount_one(source: &str, kind: &str, target: &str, options: &str) -> std::io::Result<()> {
    // Under /sys the kernel has made the folder, or lacks the file system.
    if !target.starts_with("/sys/") {
        fs::create_dir_all(target)?;
    }
    mount(
        Some(source),
        target,
        Some(kind),
        MsFlags::empty(),
        Some(options),
    )?;
    Ok(())
}

/// Whether the machine has a 9p device with the share's tag.
fn share_is_offered() -> bool {
    let Ok(devices) = fs::read_dir(Path::new("/sys/bus/virtio/drivers/9pnet_virtio")) else {
        return false;
    };
    devices.flatten().any(|device| {
        fs::read(device.path().join("mount_tag")).is_ok_and(|tag| {
            tag.trim_ascii_end().strip_suffix(b"\0").unwrap_or(&tag) == SHARE_TAG.as_bytes()
        })
    })
}
