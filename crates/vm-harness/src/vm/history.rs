// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What people typed in guests, kept on the host: a guest forgets everything.
//!
//! A shell for people is bash, which busybox's is no match for: it knows completion, and writes
//! each line down at once. It comes from the toolbox, and only into guests that somebody types in.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use cdm_agent_protocol::{Command, Exec};

use super::agent::{Event, Input};
use super::boot::Vm;
use super::spec::{FileCopy, Rootfs};
use super::visit::next;
use crate::context::Context;

/// Where the guest's shell writes what was typed; images/initramfs/bash_profile says so too.
const IN_GUEST: &str = "/root/.bash_history";
/// Lines that a guest gets.
const LINES: usize = 1000;
/// Lines beyond which the host's file is cut down to those.
const LINES_MAX: usize = 4 * LINES;

/// bash, and what it needs to run and to edit lines: each at the place that it looks in.
const BASH: [(&str, &str); 5] = [
    ("/usr/bin/bash", "/bin/bash"),
    (
        "/usr/lib64/ld-linux-x86-64.so.2",
        "/lib64/ld-linux-x86-64.so.2",
    ),
    (
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/libc.so.6",
    ),
    (
        "/usr/lib/x86_64-linux-gnu/libtinfo.so.6",
        "/lib/x86_64-linux-gnu/libtinfo.so.6",
    ),
    ("/usr/share/terminfo", "/lib/terminfo"),
];
/// What it reads when it starts, in the repository and in the guest.
const PROFILE: (&str, &str) = ("images/initramfs/bash_profile", "/root/.bash_profile");

/// What a guest needs for people to type in.
pub fn shell_files(ctx: &Context, rootfs: Rootfs) -> Vec<FileCopy> {
    let copy = |host: PathBuf, guest: &str| FileCopy {
        host,
        guest: guest.to_owned(),
    };
    // Debian has its own.
    let bash: &[_] = match rootfs {
        Rootfs::Small => &BASH,
        Rootfs::Debian => &[],
    };
    let mut files: Vec<FileCopy> = bash
        .iter()
        .map(|(host, guest)| copy(host.into(), guest))
        .collect();
    files.push(copy(ctx.repo.join(PROFILE.0), PROFILE.1));
    files
}

/// The lines on the host, of all guests of this user.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
}

impl History {
    /// The one in the cache, or where `CDM_HISTORY` says.
    pub fn of(ctx: &Context) -> Self {
        let path = std::env::var_os("CDM_HISTORY").map(PathBuf::from);
        Self {
            path: path.unwrap_or_else(|| ctx.cache.join("history")),
        }
    }

    /// The last lines; a file that has grown too long is cut.
    fn last_lines(&self) -> Result<Vec<u8>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.path.display()));
            }
        };
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let last = lines[lines.len().saturating_sub(LINES)..].concat();
        if lines.len() > LINES_MAX {
            let parent = self.path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(parent)?;
            file.write_all(&last)?;
            fs::set_permissions(file.path(), Permissions::from_mode(0o600))?;
            file.persist(&self.path)?;
        }
        Ok(last)
    }

    /// Keeps lines, which are whole.
    fn keep(&self, lines: &[u8]) -> Result<()> {
        // Opened each time: another guest may have cut it. One write is not torn by others.
        File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|mut file| file.write_all(lines))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Gives the guest what was typed in others, and keeps from now on what is typed in it, also
    /// if it does not end well.
    pub fn attach(self, vm: &Vm) -> Result<Attached> {
        let lines = self.last_lines()?;
        vm.exec_with_input(&format!("cat > {IN_GUEST}"), &lines)?
            .text()?;
        let mut guest = GuestLines {
            history: self,
            taken: lines.len(),
            partial: Vec::new(),
        };
        let mut running = vm.start(Exec {
            command: Command::Shell(format!("exec tail -f {}", guest.rest())),
            tty: None,
            env: Vec::new(),
            cwd: None,
        })?;
        let follower = running.input();
        let thread = thread::spawn(move || {
            loop {
                match next(&mut running) {
                    Event::Stdout(data) => guest.take(&data)?,
                    Event::Stderr(_) => {}
                    Event::Exit(_) | Event::Failed(_) | Event::Lost(_) => return Ok(guest),
                }
            }
        });
        Ok(Attached { follower, thread })
    }
}

/// How far the lines of one guest are kept.
struct GuestLines {
    history: History,
    taken: usize,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl GuestLines {
    /// What tail(1) is to print: the lines that are not taken yet.
    fn rest(&self) -> String {
        format!("-c +{} {IN_GUEST}", self.taken + 1)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.taken += bytes.len();
        self.partial.extend_from_slice(bytes);
        let whole = self.partial.iter().rposition(|byte| *byte == b'\n');
        let Some(end) = whole else {
            return Ok(());
        };
        let rest = self.partial.split_off(end + 1);
        let lines = std::mem::replace(&mut self.partial, rest);
        self.history.keep(&lines)
    }
}

/// A guest whose lines are kept as they come.
pub struct Attached {
    follower: Input,
    thread: JoinHandle<Result<GuestLines>>,
}

impl Attached {
    /// Takes what was typed last: the follower looks once a second.
    pub fn finish(self, vm: &Vm) -> Result<()> {
        self.follower.signal(libc::SIGTERM);
        let Ok(guest) = self.thread.join() else {
            return Ok(());
        };
        let mut guest = guest.context("what was typed is not kept")?;
        let rest = vm.exec(&format!("tail {}", guest.rest()))?;
        guest.take(&rest.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(dir: &tempfile::TempDir) -> History {
        History {
            path: dir.path().join("history"),
        }
    }

    #[test]
    fn lines_are_kept_once_they_are_whole_and_behind_those_of_others() {
        let dir = tempfile::tempdir().expect("temporary folder");
        history(&dir).keep(b"earlier\n").expect("kept");
        let mut guest = GuestLines {
            history: history(&dir),
            taken: 8,
            partial: Vec::new(),
        };
        guest.take(b"fir").expect("taken");
        guest.take(b"st\nsec").expect("taken");
        assert_eq!(guest.rest(), format!("-c +18 {IN_GUEST}"));
        let kept = history(&dir).last_lines().expect("read");
        assert_eq!(kept, b"earlier\nfirst\n");
    }

    #[test]
    fn guest_gets_the_last_lines_and_a_long_file_is_cut() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert!(history(&dir).last_lines().expect("none yet").is_empty());
        for (lines, left) in [(LINES_MAX, LINES_MAX), (LINES_MAX + 1, LINES)] {
            let text: String = (0..lines).map(|line| format!("{line}\n")).collect();
            fs::write(&history(&dir).path, text).expect("written");
            let last = String::from_utf8(history(&dir).last_lines().expect("read")).expect("text");
            assert_eq!(last.lines().count(), LINES);
            assert!(last.ends_with(&format!("\n{}\n", lines - 1)), "{last}");
            let kept = fs::read_to_string(history(&dir).path).expect("there");
            assert_eq!(kept.lines().count(), left);
        }
    }

    #[test]
    fn all_that_a_guests_shell_needs_is_in_the_toolbox() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut ctx = Context::for_test(dir.path());
        ctx.repo = crate::vm::testing::repo();
        for file in shell_files(&ctx, Rootfs::Small) {
            assert!(file.host.exists(), "there is no {}", file.host.display());
        }
        let profile = fs::read_to_string(ctx.repo.join(PROFILE.0)).expect("there");
        assert!(
            profile.contains(&format!("HISTFILE={IN_GUEST}")),
            "{profile}"
        );
    }
}
