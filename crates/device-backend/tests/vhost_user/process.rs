// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Running the backend.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything here takes on a loaded machine; a wait that reaches it is a hang.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A running `cdm-backend`, killed on drop.
pub struct Backend {
    child: Child,
    folder: TempDir,
}

/// The program, without arguments.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdm-backend"));
    command.env("CDM_LOG", "").stdin(Stdio::null());
    command
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "timed out: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

impl Backend {
    /// Starts one with 256 MiB and two command queues.
    pub fn start() -> Self {
        Self::start_with(&["--memory-size", "256M", "--command-queues", "2"])
    }

    /// Starts one and waits until it listens.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    /// Starts one with 256 MiB, two command queues and a control socket, and more arguments.
    pub fn start_controlled(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control");
        let usual = ["--memory-size=256M", "--command-queues=2", "--control"];
        let usual = [&usual, &[control.to_str().unwrap()][..]].concat();
        Self::start_in(folder, &[&usual, arguments].concat())
    }

    fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        let child = program()
            .arg("--socket-path")
            .arg(folder.path().join("socket"))
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let backend = Self { child, folder };
        let path = backend.socket_path();
        wait_until("the backend listens", || path.exists());
        backend
    }

    /// Where it listens.
    pub fn socket_path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A path that is free, beside the socket.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that are in its page tables.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    /// Time of a processor that its threads have taken.
    pub fn processor_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let nanoseconds = threads.map(|thread| -> u64 {
            let path = thread.unwrap().path().join("schedstat");
            let text = std::fs::read_to_string(path).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Threads.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .count()
    }

    /// Whether it runs still.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal by name and waits for the end; the log comes with it.
    pub fn end_by(&mut self, signal: &str) -> (ExitStatus, String) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .unwrap();
        assert!(sent.success());
        let mut status = None;
        wait_until("the backend ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut log = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        (status.unwrap(), log)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Leaves a socket file behind that nobody listens at.
pub fn make_stale_socket(path: &Path) {
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    assert!(path.exists());
    assert!(UnixStream::connect(path).is_err());
}
