// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `--file HOST:GUEST`: a small archive behind the cached initramfs. The kernel
//! unpacks one after the other. For a userland on a disk the files lie in a folder
//! of their own there, from which process 1 takes them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::spec::{FileCopy, Rootfs, VmSpec};
use crate::build::cpio::{self, Entry, Node};
use crate::context::Context;

/// Where the initramfs has files for a userland on a disk; `init/root.rs` of the guest's programs
/// says so, too.
const FOR_ROOTFS: &str = "/rootfs";
/// What both have: the userland gets links to it.
const SHARED: &str = "/lib/modules/";

/// Files behind the initramfs of a machine.
pub fn of_machine(ctx: &Context, spec: &VmSpec) -> Result<Vec<FileCopy>> {
    let mut files = spec.files.clone();
    if spec.rootfs == Rootfs::Small {
        return Ok(files);
    }
    // Its file system is a module.
    let modules = FileCopy::kernel_modules(ctx, &spec.kernel)?;
    if !files.contains(&modules) {
        files.push(modules);
    }
    files.iter_mut().for_each(put_aside);
    Ok(files)
}

fn put_aside(file: &mut FileCopy) {
    if !file.guest.starts_with(SHARED) {
        file.guest.insert_str(0, FOR_ROOTFS);
    }
}

/// Writes `base` and the files behind it into `out`.
pub fn append(base: &Path, files: &[FileCopy], out: &Path) -> Result<()> {
    let mut names = names_in(base)?;
    let mut entries = Vec::new();
    for file in files {
        add_parents(&file.guest, &mut names, &mut entries);
        add(&file.host, &file.guest, &mut entries)?;
    }
    fs::copy(base, out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut archive = File::options()
        .append(true)
        .open(out)
        .with_context(|| format!("cannot open {}", out.display()))?;
    // An archive begins at a multiple of four.
    let length = archive.metadata()?.len();
    let padding = length.next_multiple_of(4) - length;
    archive.write_all(&[0; 4][..padding as usize])?;
    cpio::write(&entries, &mut archive)
}

/// Names that an archive holds. A folder that is there already must not be written
/// again: what is a link there would become a folder.
fn names_in(archive: &Path) -> Result<BTreeSet<String>> {
    let file = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let mut reader: Box<dyn io::Read> = Box::new(BufReader::new(file));
    let mut names = BTreeSet::new();
    loop {
        let entry = ::cpio::NewcReader::new(reader)
            .with_context(|| format!("{} is not a newc archive", archive.display()))?;
        if entry.entry().is_trailer() {
            return Ok(names);
        }
        names.insert(entry.entry().name().trim_start_matches("./").to_owned());
        reader = entry.finish()?;
    }
}

fn add_parents(guest: &str, names: &mut BTreeSet<String>, entries: &mut Vec<Entry>) {
    let guest = guest.trim_start_matches('/');
    for (end, _) in guest.match_indices('/') {
        if names.insert(guest[..end].to_owned()) {
            entries.push(Entry {
                path: guest[..end].to_owned(),
                mode: 0o755,
                node: Node::Directory,
            });
        }
    }
}

fn add(host: &Path, guest: &str, entries: &mut Vec<Entry>) -> Result<()> {
    let meta = fs::metadata(host)
        .with_context(|| format!("cannot copy {} into the guest", host.display()))?;
    let mode = meta.permissions().mode() & 0o7777;
    let mut push = |node| {
        entries.push(Entry {
            path: guest.to_owned(),
            mode,
            node,
        });
    };
    if meta.is_file() {
        push(Node::File(host.to_owned()));
    } else if meta.is_dir() {
        push(Node::Directory);
        let mut children = fs::read_dir(host)
            .with_context(|| format!("cannot read {}", host.display()))?
            .collect::<io::Result<Vec<_>>>()?;
        children.sort_by_key(fs::DirEntry::file_name);
        for child in children {
            let name = child.file_name();
            add(
                &child.path(),
                &format!("{guest}/{}", name.display()),
                entries,
            )?;
        }
    } else {
        bail!(
            "cannot copy {} into the guest: it is neither a file nor a folder",
            host.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn listing(archive: &Path) -> Vec<String> {
        // Reads every archive of the file, as the kernel does.
        let mut names = Vec::new();
        let bytes = fs::read(archive).expect("an archive");
        let mut rest = bytes.as_slice();
        while rest.iter().any(|byte| *byte != 0) {
            let mut reader: Box<dyn io::Read> = Box::new(rest);
            let mut used = 0;
            loop {
                let entry = ::cpio::NewcReader::new(reader).expect("newc");
                let name = entry.entry().name().to_owned();
                let header = (110 + name.len() + 1).next_multiple_of(4);
                used += header + (entry.entry().file_size() as usize).next_multiple_of(4);
                if entry.entry().is_trailer() {
                    break;
                }
                names.push(name);
                reader = entry.finish().expect("newc");
            }
            rest = &rest[used..];
        }
        names
    }

    fn base(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("base.cpio");
        let entries = [
            Entry {
                path: "bin".into(),
                mode: 0o755,
                node: Node::Directory,
            },
            Entry {
                path: "sbin".into(),
                mode: 0o777,
                node: Node::Symlink("bin".into()),
            },
        ];
        cpio::write_file(&entries, &path).expect("written");
        path
    }

    fn copy(host: &Path, guest: &str) -> FileCopy {
        FileCopy {
            host: host.to_owned(),
            guest: guest.to_owned(),
        }
    }

    #[test]
    fn files_and_folders_follow_the_base_with_the_folders_they_need() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("b"), "b").expect("written");
        fs::write(folder.join("a"), "odd").expect("written");
        let out = dir.path().join("out.cpio");
        append(
            &base(dir.path()),
            &[
                copy(&folder.join("a"), "/opt/x/a"),
                copy(&folder, "/opt/folder"),
                copy(&folder.join("a"), "/sbin/tool"),
            ],
            &out,
        )
        .expect("appended");
        assert_eq!(
            listing(&out),
            [
                "bin",
                "sbin",
                "opt",
                "opt/x",
                "opt/x/a",
                "opt/folder",
                "opt/folder/a",
                "opt/folder/b",
                "sbin/tool"
            ]
        );
    }

    #[test]
    fn an_independent_reader_takes_the_archive() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let source = dir.path().join("file");
        fs::write(&source, "contents").expect("written");
        let out = dir.path().join("out.cpio");
        append(&base(dir.path()), &[copy(&source, "/root/file")], &out).expect("appended");
        let listed = Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(Stdio::from(File::open(&out).expect("written")))
            .output()
            .expect("cpio is part of the toolbox");
        // It stops at the first trailer: the base is whole.
        assert_eq!(listed.stdout, b"bin\nsbin\n");
    }

    #[test]
    fn files_for_a_userland_are_put_aside_and_modules_are_not() {
        let mut files = ["/root/x", "/lib/modules/7.3.4"].map(|guest| copy(Path::new("x"), guest));
        files.iter_mut().for_each(put_aside);
        assert_eq!(
            files.map(|file| file.guest),
            ["/rootfs/root/x", "/lib/modules/7.3.4"]
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = append(
            &base(dir.path()),
            &[copy(Path::new("/no/such/file"), "/x")],
            &dir.path().join("out"),
        )
        .expect_err("no such file");
        assert!(format!("{error:#}").contains("/no/such/file"), "{error:#}");
    }
}
