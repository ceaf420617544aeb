// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a `cdm` leaves behind: processes, sockets, folders, mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long children may take to die with their parent: the kernel tells them at once, and frees
/// gigabytes of guest memory before they are gone.
const END_LIMIT: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The variable that tells by whom a process was started. The one for temporary files would not do:
/// QEMU has a folder of its own for them.
pub const MARK: &str = "CDM_TEST_MARK";

/// A folder for traces, and the mounts as they were.
pub struct Leftovers {
    folder: tempfile::TempDir,
    mounts: String,
}

impl Leftovers {
    /// Starts to watch. Whoever is started with [`Leftovers::folder`] in the variable [`MARK`] is
    /// known by it, and so are those that he starts.
    pub fn watch() -> Result<Self> {
        // Short, since a socket's path is.
        let folder = tempfile::Builder::new().prefix("cdmt").tempdir_in("/tmp")?;
        Ok(Self {
            folder,
            mounts: mounts()?,
        })
    }

    /// Where temporary files go.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Processes that were started with this folder as their mark.
    fn processes(&self) -> Result<Vec<(Pid, String)>> {
        let mark = format!("{MARK}={}", self.folder.path().display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("cannot list /proc")? {
            let path = entry?.path();
            let Some(pid) = path
                .file_name()
                .and_then(|name| name.to_str()?.parse::<i32>().ok())
            else {
                continue;
            };
            // A process may go while it is looked at; a zombie has no environment.
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            if environment
                .split(|byte| *byte == 0)
                .any(|word| word == mark.as_bytes())
            {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                found.push((Pid::from_raw(pid), name.trim_end().to_owned()));
            }
        }
        Ok(found)
    }

    /// Kills the one process of this name (as `comm` has it, 15 bytes).
    pub fn kill(&self, name: &str, signal: Signal) -> Result<()> {
        let processes = self.processes()?;
        let named: Vec<_> = processes.iter().filter(|(_, comm)| comm == name).collect();
        let [(pid, _)] = named[..] else {
            bail!("there is not one {name} among {processes:?}")
        };
        kill(*pid, signal).with_context(|| format!("cannot kill {name}"))
    }

    /// Expects that no process is left.
    pub fn expect_no_process(&self) -> Result<()> {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes are left: {left:?}");
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Expects that nothing at all is left.
    pub fn expect_none(&self) -> Result<()> {
        self.expect_no_process()?;
        let left: Vec<PathBuf> = fs::read_dir(self.folder.path())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        ensure!(left.is_empty(), "files are left: {left:?}");
        let mounts = mounts()?;
        ensure!(
            mounts == self.mounts,
            "mounts changed:\n{}\nnow:\n{mounts}",
            self.mounts
        );
        Ok(())
    }
}

fn mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")
}
