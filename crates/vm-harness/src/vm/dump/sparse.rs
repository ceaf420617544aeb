// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From a pipe into a file with holes where there are zeros only.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What is a hole or is not: a page, as file systems have it.
const BLOCK: usize = 4096;
/// What is read at once, and what the pipe holds at most.
const CHUNK: usize = 1 << 20;

/// A named pipe that is open for reading, so that the writer need not wait.
pub struct Pipe(File);

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Length of the file.
    pub length: u64,
    /// Bytes of it that are no holes.
    pub written: u64,
}

impl Pipe {
    /// Opens a named pipe, before there is a writer.
    pub fn open(path: &Path) -> Result<Self> {
        let pipe = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // A small pipe is slower and as good.
        let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(CHUNK as i32));
        Ok(Self(pipe))
    }

    /// Copies until the writer is done, at most `room` bytes that are no holes, and no longer than
    /// until `deadline`. There is a writer.
    pub fn copy(mut self, to: &Path, room: u64, deadline: Instant) -> Result<Copied> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut buffer = vec![0; CHUNK];
        let mut copied = Copied {
            length: 0,
            written: 0,
        };
        loop {
            let filled = self.fill(&mut buffer, deadline)?;
            if filled == 0 {
                break;
            }
            for (index, block) in buffer[..filled].chunks(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    copied.written += block.len() as u64;
                    ensure!(
                        copied.written <= room,
                        "it is larger than the {} MiB that the disk can spare",
                        room >> 20
                    );
                    file.write_all_at(block, copied.length + (index * BLOCK) as u64)
                        .with_context(|| format!("cannot write {}", to.display()))?;
                }
            }
            copied.length += filled as u64;
        }
        file.set_len(copied.length)
            .with_context(|| format!("cannot write {}", to.display()))?;
        Ok(copied)
    }

    /// Reads until the buffer is full or the writer is done.
    fn fill(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "QEMU takes too long");
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut ready, timeout).context("cannot wait for QEMU")? == 0 {
                continue;
            }
            match self
                .0
                .read(&mut buffer[filled..])
                .context("cannot read from QEMU")?
            {
                0 => break,
                length => filled += length,
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::thread;
    use std::time::Duration;

    fn copy(bytes: &[u8], room: u64) -> (tempfile::TempDir, Result<Copied>) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("pipe");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("made");
        let pipe = Pipe::open(&path).expect("open");
        let mut writer = File::options().write(true).open(&path).expect("open");
        let copied = thread::scope(|scope| {
            scope.spawn(move || {
                // A reader that gives up is part of a test.
                let _ = writer.write_all(bytes);
            });
            pipe.copy(
                &dir.path().join("file"),
                room,
                Instant::now() + Duration::from_secs(60),
            )
        });
        (dir, copied)
    }

    #[test]
    fn zeros_become_holes_and_all_else_stays_where_it_was() {
        let mut bytes = vec![0; 3 * CHUNK + 17];
        bytes[5000] = 1;
        bytes[2 * CHUNK..2 * CHUNK + 10_000].fill(7);
        let (dir, copied) = copy(&bytes, u64::MAX);
        let copied = copied.expect("copied");
        assert_eq!(
            (copied.length, copied.written),
            (bytes.len() as u64, 4 * 4096)
        );
        let file = dir.path().join("file");
        assert_eq!(fs::read(&file).expect("there"), bytes);
        let blocks = fs::metadata(&file).expect("there").blocks();
        assert!(blocks * 512 < CHUNK as u64, "{blocks} blocks of 512 bytes");
    }

    #[test]
    fn what_is_larger_than_there_is_room_is_refused() {
        let (_dir, copied) = copy(&vec![1; 3 * CHUNK], CHUNK as u64);
        let error = copied.expect_err("too large").to_string();
        assert!(error.contains("larger than the 1 MiB"), "{error}");
    }

    #[test]
    fn writer_that_stops_is_not_waited_for_beyond_the_deadline() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("pipe");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("made");
        let pipe = Pipe::open(&path).expect("open");
        let _writer = File::options().write(true).open(&path).expect("open");
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = pipe.copy(&dir.path().join("file"), u64::MAX, deadline);
        assert!(error.expect_err("silent").to_string().contains("too long"));
    }
}
