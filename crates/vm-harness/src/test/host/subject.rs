// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A `cdm` that is watched.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::pty::{Winsize, openpty};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid};

use super::super::run::Run;
use super::left::{Leftovers, MARK};

/// Longest that one `cdm` may take: a boot, what it runs, and an end in good order, on a host that
/// does something else too.
const LIMIT: Duration = Duration::from_secs(180);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A running `cdm`. Killed on drop.
pub struct Subject<'a> {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    said: String,
    stderr: Option<JoinHandle<String>>,
    _left: &'a Leftovers,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "exit code {code:?}\nstdout:\n{stdout}\nstderr:\n{stderr}"
        )
    }
}

/// Looks for what is awaited of a terminal; the guest needs far longer to say anything.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(20);

/// A running `cdm` that somebody types at. Killed on drop.
pub struct Typist<'a> {
    child: Child,
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
    /// How much of it was awaited.
    awaited: usize,
    _left: &'a Leftovers,
}

impl<'a> Typist<'a> {
    /// Starts `cdm` on a terminal; what is typed in its guests is kept in the file `history`.
    pub fn start(
        run: &Run,
        left: &'a Leftovers,
        history: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let size = Winsize {
            ws_row: 24,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).context("cannot make a terminal")?;
        let mut command = command(run, left, arguments)?;
        command
            .env("CDM_HISTORY", history)
            .env("TERM", "xterm")
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .stderr(pty.slave);
        let child = command.spawn().context("cannot start cdm once more")?;
        // Holds our copies of the slave: as long as they live, the terminal has no end.
        drop(command);
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let mut screen = File::from(pty.master.try_clone()?);
        let shown = Arc::clone(&seen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                shown.extend_from_slice(&buffer[..length]);
            }
        });
        Ok(Self {
            child,
            keys: File::from(pty.master),
            seen,
            awaited: 0,
            _left: left,
        })
    }

    fn screen(&self) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Waits until the terminal shows this, behind what was awaited before.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let screen = self.screen();
            let new = screen.get(self.awaited..).unwrap_or_default();
            if let Some(at) = new.find(text) {
                self.awaited += at + text.len();
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "the terminal does not show '{text}' ({ended:?}), but:\n{screen}"
            );
            thread::sleep(TERMINAL_INTERVAL);
        }
    }

    /// Presses keys.
    pub fn keys(&mut self, keys: &str) -> Result<()> {
        let typed = self.keys.write_all(keys.as_bytes());
        typed.context("cannot type")
    }

    /// Waits for its end, and gives all that the terminal has shown.
    pub fn finish(mut self) -> Result<Ended> {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            let screen = self.screen();
            ensure!(Instant::now() < deadline, "it still runs:\n{screen}");
            thread::sleep(LOOK_INTERVAL);
        };
        Ok(Ended {
            code: status.code(),
            stdout: self.screen(),
            stderr: String::new(),
        })
    }
}

impl Drop for Typist<'_> {
    fn drop(&mut self) {
        // It has ended in every test that went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This very program, with sockets and other traces in a folder of their own.
pub fn command(run: &Run, left: &Leftovers, arguments: &[&str]) -> Result<Command> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let ctx = run.ctx();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("CDM_REPO", &ctx.repo)
        .env("CDM_CACHE", &ctx.cache)
        .env("CDM_TOOLBOX", &ctx.toolbox)
        .env("TMPDIR", left.folder())
        .env(MARK, left.folder())
        .env("XDG_RUNTIME_DIR", left.folder())
        .current_dir(&ctx.repo)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

impl<'a> Subject<'a> {
    /// Starts `cdm` with these arguments.
    pub fn start(run: &Run, left: &'a Leftovers, arguments: &[&str]) -> Result<Self> {
        Self::spawn(command(run, left, arguments)?, left)
    }

    /// Starts `cdm` with its cache on a file system of a few MiB, mounted at `folder` for it alone.
    pub fn start_on_small_disk(
        run: &Run,
        left: &'a Leftovers,
        folder: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = command(run, left, arguments)?;
        command.env("CDM_CACHE", folder);
        Self::spawn_with_small_disk(command, left, folder)
    }

    /// Starts `cdm` with a file system of a few MiB, mounted at `folder` for it alone.
    pub fn start_with_small_disk(
        run: &Run,
        left: &'a Leftovers,
        folder: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        Self::spawn_with_small_disk(command(run, left, arguments)?, left, folder)
    }

    fn spawn_with_small_disk(
        mut command: Command,
        left: &'a Leftovers,
        folder: &Path,
    ) -> Result<Self> {
        let target = CString::new(folder.as_os_str().as_encoded_bytes())?;
        let (user, group) = (geteuid(), getegid());
        let mount = move || -> io::Result<()> {
            // A plain user gets the right to mount from a user namespace.
            let mut flags = CloneFlags::CLONE_NEWNS;
            if !user.is_root() {
                flags |= CloneFlags::CLONE_NEWUSER;
            }
            unshare(flags)?;
            if !user.is_root() {
                std::fs::write("/proc/self/setgroups", "deny")?;
                std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
                std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
            }
            nix::mount::mount(
                Some(c"cdm-test"),
                target.as_c_str(),
                Some(c"tmpfs"),
                nix::mount::MsFlags::empty(),
                Some(c"size=8m"),
            )?;
            Ok(())
        };
        // SAFETY: between fork and exec only this thread exists in the child; the standard
        // library's allocator is safe there, since glibc's fork puts its locks in order, and
        // nothing else that could be locked is used.
        unsafe { command.pre_exec(mount) };
        Self::spawn(command, left)
    }

    fn spawn(mut command: Command, left: &'a Leftovers) -> Result<Self> {
        let mut child = command.spawn().context("cannot start cdm once more")?;
        let mut stderr = child.stderr.take().context("stderr is piped")?;
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            // What was read until an error is what there is.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().context("stdout is piped")?),
            child,
            said: String::new(),
            stderr: Some(reader),
            _left: left,
        })
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        stdin
            .write_all(text.as_bytes())
            .context("cannot write to cdm")
    }

    /// Waits until it prints a line.
    pub fn wait_for_line(&mut self, wanted: &str) -> Result<()> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line)? == 0 {
                let said = self.stderr.take().map(JoinHandle::join);
                bail!("it ended without '{wanted}': {}{:?}", self.said, said);
            }
            self.said.push_str(&line);
            if line.trim_end() == wanted {
                return Ok(());
            }
        }
    }

    /// Sends a signal to it, and to nothing else.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("cannot signal cdm")
    }

    /// Waits for its end.
    pub fn finish(self) -> Result<Ended> {
        self.finish_within(LIMIT)
    }

    /// Waits for its end, for so long.
    pub fn finish_within(mut self, limit: Duration) -> Result<Ended> {
        self.stdin = None;
        let deadline = Instant::now() + limit;
        // Reading comes after the end: what it prints here is less than a pipe holds.
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "it still runs after {} s",
                limit.as_secs()
            );
            thread::sleep(LOOK_INTERVAL);
        };
        let mut stdout = std::mem::take(&mut self.said);
        self.stdout.read_to_string(&mut stdout)?;
        let stderr = self
            .stderr
            .take()
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default();
        Ok(Ended {
            code: status.code(),
            stdout,
            stderr,
        })
    }
}

impl Drop for Subject<'_> {
    fn drop(&mut self) {
        // It has ended in every test that went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
