// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Namespaces of our own: no users, no network, no files.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

/// A step that the host did not allow.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct NamespaceError {
    step: &'static str,
    source: Errno,
}

/// Where the empty root is put up for the moment: a folder that every system has.
const STAGE: &str = "/proc";

/// Leaves the host's namespaces. The process must have one thread.
///
/// Sockets and files that are open stay open, and stay in the network that they were made
/// in. There is no PID namespace, since the process starts no other.
pub fn enter() -> Result<(), NamespaceError> {
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    // No users are mapped: we open nothing by name any more, so nobody's rights are needed.
    // Where user namespaces are not to be had, root can do without.
    unshare(own | CloneFlags::CLONE_NEWUSER)
        .or_else(|_| unshare(own))
        .map_err(in_step("unshare"))?;
    take_an_empty_root()
}

fn take_an_empty_root() -> Result<(), NamespaceError> {
    const NONE: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, "/", NONE, private, NONE).map_err(in_step("make mounts private"))?;
    let bare = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let smallest = Some("size=4k,nr_inodes=1,mode=555");
    mount(Some("none"), STAGE, Some("tmpfs"), bare, smallest).map_err(in_step("mount"))?;
    chdir(STAGE).map_err(in_step("chdir"))?;
    // Puts the old root over the new one, from where it is taken off: pivot_root(2).
    pivot_root(".", ".").map_err(in_step("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(in_step("umount"))?;
    chdir("/").map_err(in_step("chdir"))?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | bare;
    mount(NONE, "/", NONE, read_only, NONE).map_err(in_step("remount"))
}

fn in_step(step: &'static str) -> impl Fn(Errno) -> NamespaceError {
    move |source| NamespaceError { step, source }
}
