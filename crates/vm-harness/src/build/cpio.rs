// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Archives that the kernel unpacks into its first file system: newc cpio,
//! bytewise the same for the same entries.
//!
//! The kernel takes several archives one after the other, so files for a single
//! run go into a small archive of their own behind the cached one.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ::cpio::newc::{Builder, ModeFileType, trailer};
use anyhow::{Context as _, Result, ensure};

/// One name in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path in the guest. A leading slash is dropped.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub node: Node,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder. Folders come before what is in them.
    Directory,
    /// A file with the contents of a file on the host.
    File(PathBuf),
    /// A file with these contents.
    Bytes(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(String),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Writes a whole archive, trailer and padding included. Entries appear in the
/// order given, owned by root and dated 1970.
pub fn write(entries: &[Entry], out: &mut impl Write) -> Result<()> {
    let mut out = Counted {
        inner: out,
        written: 0,
    };
    for (index, entry) in entries.iter().enumerate() {
        write_entry(entry, index, &mut out)
            .with_context(|| format!("cannot put {} into the archive", entry.path))?;
    }
    trailer(&mut out)?;
    // The kernel wants an archive that follows to begin at a multiple of four.
    while !out.written.is_multiple_of(4) {
        out.write_all(&[0])?;
    }
    Ok(())
}

/// [`write`] into a new file.
pub fn write_file(entries: &[Entry], path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = io::BufWriter::new(file);
    write(entries, &mut out)?;
    out.flush()
        .with_context(|| format!("cannot write {}", path.display()))
}

fn write_entry(entry: &Entry, index: usize, out: &mut impl Write) -> Result<()> {
    let name = entry.path.trim_start_matches('/');
    ensure!(!name.is_empty(), "an entry needs a name");
    let header = Builder::new(name)
        .ino(u32::try_from(index)? + 1)
        .mode(entry.mode & 0o7777)
        .nlink(if entry.node == Node::Directory { 2 } else { 1 });
    match &entry.node {
        Node::Directory => {
            header
                .set_mode_file_type(ModeFileType::Directory)
                .write(out, 0)
                .finish()?;
        }
        Node::File(source) => {
            let mut file =
                File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
            let meta = file.metadata()?;
            ensure!(meta.is_file(), "{} is not a file", source.display());
            let length = u32::try_from(meta.len()).with_context(|| {
                format!(
                    "{} is larger than the 4 GiB an archive can hold",
                    source.display()
                )
            })?;
            let mut data = header
                .set_mode_file_type(ModeFileType::Regular)
                .write(out, length);
            io::copy(&mut file, &mut data)?;
            data.finish()?;
        }
        Node::Bytes(bytes) => write_bytes(header, ModeFileType::Regular, bytes, out)?,
        Node::Symlink(target) => {
            write_bytes(header, ModeFileType::Symlink, target.as_bytes(), out)?;
        }
        Node::CharDevice { major, minor } => {
            header
                .rdev_major(*major)
                .rdev_minor(*minor)
                .set_mode_file_type(ModeFileType::Char)
                .write(out, 0)
                .finish()?;
        }
    }
    Ok(())
}

fn write_bytes(
    header: Builder,
    kind: ModeFileType,
    bytes: &[u8],
    out: &mut impl Write,
) -> Result<()> {
    let length = u32::try_from(bytes.len()).context("more than 4 GiB")?;
    let mut data = header.set_mode_file_type(kind).write(out, length);
    data.write_all(bytes)?;
    data.finish()?;
    Ok(())
}

/// Counts what goes through, for the padding.
struct Counted<W> {
    inner: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample(source: &Path) -> Vec<Entry> {
        vec![
            Entry {
                path: "/bin".into(),
                mode: 0o755,
                node: Node::Directory,
            },
            Entry {
                path: "/bin/tool".into(),
                mode: 0o755,
                node: Node::File(source.into()),
            },
            Entry {
                path: "/bin/alias".into(),
                mode: 0o777,
                node: Node::Symlink("tool".into()),
            },
            Entry {
                path: "/note".into(),
                mode: 0o600,
                node: Node::Bytes(b"odd".to_vec()),
            },
            Entry {
                path: "/console".into(),
                mode: 0o600,
                node: Node::CharDevice { major: 5, minor: 1 },
            },
        ]
    }

    #[test]
    fn an_independent_reader_lists_what_was_written() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let source = dir.path().join("tool");
        std::fs::write(&source, "contents").expect("written");
        let mut archive = Vec::new();
        write(&sample(&source), &mut archive).expect("archive");

        let mut child = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is part of the toolbox");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(&archive)
            .expect("cpio reads");
        let listing = child.wait_with_output().expect("cpio ends");
        assert!(listing.status.success());
        let listing = String::from_utf8(listing.stdout).expect("text");
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 5, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x   2 0"), "{listing}");
        assert!(lines[1].starts_with("-rwxr-xr-x   1 0"), "{listing}");
        assert!(lines[2].ends_with("bin/alias -> tool"), "{listing}");
        assert!(lines[3].starts_with("-rw-------"), "{listing}");
        assert!(
            lines[4].starts_with("crw-------") && lines[4].contains("5,   1"),
            "{listing}"
        );
    }

    #[test]
    fn the_same_entries_give_the_same_bytes_at_any_time() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let source = dir.path().join("tool");
        let mut archives = [Vec::new(), Vec::new()];
        for archive in &mut archives {
            std::fs::write(&source, "contents").expect("written anew, with a new date");
            write(&sample(&source), archive).expect("archive");
        }
        assert_eq!(archives[0], archives[1]);
    }

    #[test]
    fn an_archive_ends_where_another_may_begin() {
        for length in 0..4 {
            let entry = Entry {
                path: "f".into(),
                mode: 0o644,
                node: Node::Bytes(vec![1; length]),
            };
            let mut archive = Vec::new();
            write(&[entry], &mut archive).expect("archive");
            assert_eq!(archive.len() % 4, 0);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let entry = Entry {
            path: "/bin/x".into(),
            mode: 0o755,
            node: Node::File("/no/such/file".into()),
        };
        let error = write(&[entry], &mut Vec::new()).expect_err("no such file");
        let text = format!("{error:#}");
        assert!(
            text.contains("/no/such/file") && text.contains("/bin/x"),
            "{text}"
        );
    }
}
