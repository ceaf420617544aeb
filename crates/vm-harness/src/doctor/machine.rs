// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The machine: processors, memory, disk, virtualisation, namespaces, cache.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use super::Check;
use crate::cache;
use crate::context::Context;
use crate::vm::accel::Evidence;

/// Room for everything: toolbox, two kernels with their source, and cargo's
/// target folders. `ci/just` refuses to set up below the same number.
pub const NEEDED_DISK_MIB: u64 = 11_000;
/// Room that a warm machine still wants, for rebuilds and logs.
const SPARE_DISK_MIB: u64 = 2000;
/// Files of two guests with disks.
const TEMPORARY_MIB: u64 = 500;
/// One guest, its device memory and a compiler at work.
const NEEDED_MEMORY_MIB: u64 = 3000;

/// Looks at everything here.
pub fn checks(ctx: &Context) -> Vec<Check> {
    vec![
        processors(),
        memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        kvm(&Evidence::gather()),
        user(nix::unistd::geteuid().is_root()),
        toolbox_way(env::var("CDM_ENTERED").ok().as_deref()),
        namespaces(user_namespaces(), Path::new("/proc/sys")),
        disk(ctx),
        temporary_files(&env::temp_dir()),
        cache_folder(ctx),
    ]
}

fn processors() -> Check {
    let count = thread::available_parallelism().map_or(1, usize::from);
    if count >= 2 {
        Check::ok("processors", count.to_string())
    } else {
        Check::note(
            "processors",
            "1",
            "two or more: the guest always has two, and they share this one",
        )
    }
}

/// Memory that is free, or can be made so, in MiB.
pub fn available_mib() -> Option<u64> {
    available_in(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn memory(meminfo: &str) -> Check {
    match available_in(meminfo) {
        Some(mib) if mib >= NEEDED_MEMORY_MIB => {
            Check::ok("memory", format!("{mib} MiB available"))
        }
        Some(mib) => Check::note(
            "memory",
            format!("{mib} MiB available, {NEEDED_MEMORY_MIB} are comfortable"),
            "close other programs, or give the guest less: just run-vm --memory 512M",
        ),
        None => Check::note("memory", "unknown", "see 'free -m'"),
    }
}

/// How the evidence about a KVM begins that opens and does not work.
const OPENS: &str = "it opens, and ";

/// Judges KVM by the same evidence as a boot does: a /dev/kvm that opens is no
/// proof without the processor's extension.
fn kvm(evidence: &Evidence) -> Check {
    let name = "kvm";
    match (&evidence.device, evidence.extension) {
        (Ok(()), true) => Check::ok(name, "/dev/kvm opens, and the processor can"),
        (Ok(()), false) => Check::note(
            name,
            "/dev/kvm opens, but the processor shows neither vmx nor svm, and a guest could hang: \
             guests run under TCG, several times slower",
            "nothing here; to try it all the same: just run-vm --accel kvm",
        ),
        (Err(error), true) if error.starts_with(OPENS) => Check::note(
            name,
            format!("/dev/kvm: {error}: guests run under TCG, several times slower"),
            "end other hypervisors on this machine (VirtualBox, VMware), or reload the module as \
             root: modprobe -r kvm_intel kvm_amd; modprobe kvm_intel || modprobe kvm_amd",
        ),
        (Err(error), true) => Check::note(
            name,
            format!("/dev/kvm: {error}: guests run under TCG, several times slower"),
            "as root: modprobe kvm_intel || modprobe kvm_amd; then usermod --append --groups kvm \
             USER, and log in anew",
        ),
        (Err(error), false) => Check::note(
            name,
            format!(
                "the processor shows neither vmx nor svm (/dev/kvm: {error}): guests run under \
                 TCG, several times slower"
            ),
            "switch virtualisation on in the firmware; in a virtual machine, its host must allow \
             nested virtualisation",
        ),
    }
}

fn user(root: bool) -> Check {
    Check::ok("user", if root { "root" } else { "a plain user" })
}

/// How `ci/just` entered the toolbox; it says nothing where it was in it already.
fn toolbox_way(entered: Option<&str>) -> Check {
    let found = match entered {
        Some("bubblewrap") => "entered with bubblewrap; its namespaces work".to_owned(),
        Some(engine) => format!("entered as a container of {engine}"),
        None => "this container is one, as of 'just image'; nothing was entered".to_owned(),
    };
    Check::ok("toolbox", found)
}

/// Whether this user may make a user namespace with a mount namespace in it, and why not.
fn user_namespaces() -> Result<(), String> {
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("cannot start unshare: {error}")),
    }
}

/// Switches of kernels and distributions, with the values that forbid and allow user namespaces.
const NAMESPACE_SWITCHES: [(&str, &str, &str); 3] = [
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "10000"),
];

fn namespaces(tried: Result<(), String>, sysctls: &Path) -> Check {
    let name = "namespaces";
    let Err(error) = tried else {
        return Check::ok(name, "a plain user may make user namespaces");
    };
    let switch = NAMESPACE_SWITCHES.iter().find(|(path, forbids, _)| {
        fs::read_to_string(sysctls.join(path)).is_ok_and(|value| value.trim() == *forbids)
    });
    let mend = match switch {
        Some((path, _, allows)) => format!(
            "as root, on the host: sysctl {}={allows}",
            path.replace('/', ".")
        ),
        None => "the container that this runs in forbids them: docker run --security-opt \
                 seccomp=unconfined, or use podman"
            .to_owned(),
    };
    Check::note(
        name,
        format!("user namespaces are refused ({error}): a plain user's tests of a full disk fail"),
        mend,
    )
}

fn disk(ctx: &Context) -> Check {
    let name = "disk";
    let wanted = if ctx.cache.join("kernel").is_dir() {
        SPARE_DISK_MIB
    } else {
        NEEDED_DISK_MIB
    };
    match cache::free_mib(&ctx.cache) {
        Ok(free) if free >= wanted => Check::ok(name, format!("{free} MiB free, {wanted} needed")),
        Ok(free) => Check::lack(
            name,
            format!("{free} MiB free, {wanted} needed"),
            "just clean, or set CDM_CACHE to a folder on another disk",
        ),
        Err(error) => Check::lack(
            name,
            format!("{error:#}"),
            "set CDM_CACHE to another folder",
        ),
    }
}

/// Room for the sockets, disks and first file systems of guests.
fn temporary_files(folder: &Path) -> Check {
    let name = "temporary files";
    let mend = "set TMPDIR to a folder with more room, and a short path";
    match cache::free_mib(folder) {
        Ok(free) if free >= TEMPORARY_MIB => {
            Check::ok(name, format!("{}, {free} MiB free", folder.display()))
        }
        Ok(free) => Check::lack(
            name,
            format!(
                "{}, {free} MiB free, {TEMPORARY_MIB} needed",
                folder.display()
            ),
            mend,
        ),
        Err(error) => Check::lack(name, format!("{error:#}"), mend),
    }
}

fn cache_folder(ctx: &Context) -> Check {
    let _task = ctx.progress.task("measuring the cache", None);
    let mib = disk_usage(&ctx.cache) / (1 << 20);
    Check::ok("cache", format!("{}, {mib} MiB", ctx.cache.display()))
}

/// Bytes on disk below a folder, a file with several names counted once. What
/// cannot be read counts nothing.
pub fn disk_usage(folder: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            }
            if meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
                total += meta.blocks() * 512;
            }
        }
    }
    total
}

/// Names of the host's programs that `ci/just` found: the toolbox cannot see them.
pub fn host_tools() -> Option<Vec<String>> {
    let list = env::var("CDM_HOST_TOOLS").ok()?;
    Some(list.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn little_memory_is_noted_with_what_helps() {
        assert_eq!(memory("MemAvailable:   16000000 kB\n").status, Status::Ok);
        let check = memory("MemTotal: 1 kB\nMemAvailable:   1024000 kB\n");
        assert_eq!(check.status, Status::Note);
        assert!(check.found.starts_with("1000 MiB"), "{check:?}");
    }

    #[test]
    fn kvm_is_fine_only_with_the_device_and_the_extension() {
        let judge = |opens: bool, extension: bool| {
            let device = if opens {
                Ok(())
            } else {
                Err("Permission denied".to_owned())
            };
            kvm(&Evidence { extension, device })
        };
        assert_eq!(judge(true, true).status, Status::Ok);
        for (opens, extension) in [(true, false), (false, true), (false, false)] {
            let check = judge(opens, extension);
            assert_eq!(check.status, Status::Note);
            assert!(
                check.mend.is_some() && check.found.contains("TCG"),
                "{check:?}"
            );
        }
    }

    #[test]
    fn kvm_that_opens_and_does_not_work_is_told_from_one_that_lacks_rights() {
        let judge = |error: &str| {
            kvm(&Evidence {
                extension: true,
                device: Err(error.to_owned()),
            })
        };
        let mend = judge("Permission denied").mend.expect("something to do");
        assert!(mend.contains("usermod"), "{mend}");
        let error = crate::vm::accel::try_device(Path::new("/dev/null")).expect_err("no KVM");
        let mend = judge(&error).mend.expect("something to do");
        assert!(mend.contains("hypervisors"), "{mend}");
    }

    #[test]
    fn toolbox_that_is_a_container_is_not_called_entered_with_bubblewrap() {
        let found = |entered| toolbox_way(entered).found;
        assert!(found(Some("bubblewrap")).contains("bubblewrap"));
        assert!(found(Some("podman")).contains("container of podman"));
        assert!(!found(None).contains("bubblewrap"), "{}", found(None));
    }

    #[test]
    fn refused_namespaces_are_told_with_the_switch_that_refuses_them() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let judge = |tried: Result<(), &str>| namespaces(tried.map_err(str::to_owned), dir.path());
        assert_eq!(judge(Ok(())).status, Status::Ok);
        let mend = |check: Check| check.mend.expect("something to do");
        assert!(mend(judge(Err("no"))).contains("seccomp"));
        for folder in ["kernel", "user"] {
            fs::create_dir(dir.path().join(folder)).expect("made");
        }
        for (path, forbids, allows) in NAMESPACE_SWITCHES {
            fs::write(dir.path().join(path), format!("{allows}\n")).expect("written");
            assert!(mend(judge(Err("no"))).contains("seccomp"), "{path}");
            fs::write(dir.path().join(path), format!("{forbids}\n")).expect("written");
            let check = judge(Err("no"));
            assert_eq!(check.status, Status::Note);
            let line = format!("sysctl {}={allows}", path.replace('/', "."));
            assert!(mend(check).contains(&line), "{line}");
            fs::remove_file(dir.path().join(path)).expect("removed");
        }
    }

    #[test]
    fn temporary_folder_without_room_is_a_lack() {
        let none = temporary_files(Path::new("/none/such"));
        assert_eq!(none.status, Status::Lack);
        // A file system without any block.
        let full = temporary_files(Path::new("/proc"));
        assert_eq!(full.status, Status::Lack);
        assert!(full.mend.expect("something to do").contains("TMPDIR"));
    }

    #[test]
    fn a_file_with_two_names_counts_once() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("one"), vec![1; 1 << 20]).expect("written");
        let before = disk_usage(dir.path());
        assert!(before >= 1 << 20);
        fs::hard_link(dir.path().join("one"), dir.path().join("two")).expect("linked");
        assert_eq!(disk_usage(dir.path()), before);
    }

    #[test]
    fn the_bootstrap_asks_for_the_same_room() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("two parents");
        let script = fs::read_to_string(repo.join("ci/just")).expect("readable");
        assert!(script.contains(&format!("needed_mib={NEEDED_DISK_MIB}\n")));
    }
}
