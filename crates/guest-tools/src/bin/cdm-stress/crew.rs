// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes of a scenario that work at once.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cdm_guest_tools::process;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use crate::stage::{Stage, caught};

/// How long a process may take from the end of the scenario to its own: it compares all of its
/// memory once more, on a machine that may be slow and not its own.
pub const END_LIMIT: Duration = Duration::from_secs(300);
/// How long one that was killed may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Exit status of a process that failed and said why; a signal or an exit of its own has another.
const FAILED: i32 = 1;
/// What fits into a pipe without anybody who reads.
const WORDS_MAX: usize = 60 << 10;

/// A process, and what it will say if it fails.
pub struct Member {
    name: String,
    pid: Pid,
    words: File,
}

impl Member {
    /// Starts `body` in a process of its own.
    pub fn start(name: &str, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        let (from, to): (OwnedFd, OwnedFd) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("cannot make a pipe")?;
        // SAFETY: whoever forks here has one thread, so no lock of another can be held in the child.
        let pid = match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop(from);
                let status = match caught(body) {
                    Ok(()) => 0,
                    Err(error) => {
                        let mut words = format!("{error:#}").into_bytes();
                        words.truncate(WORDS_MAX);
                        // Without a parent nobody is there to read it.
                        let _ = File::from(to).write_all(&words);
                        FAILED
                    }
                };
                // SAFETY: `_exit` takes any status and does not return.
                unsafe { libc::_exit(status) }
            }
        };
        Ok(Self {
            name: name.to_owned(),
            pid,
            words: from.into(),
        })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<Result<()>> {
        let status = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return None,
            Ok(status) => status,
            Err(error) => return Some(Err(error.into())),
        };
        let result = match status {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, FAILED) => Err(anyhow!("{}", self.words())),
            WaitStatus::Exited(_, code) => Err(anyhow!("it ended with exit status {code}")),
            WaitStatus::Signaled(_, signal, _) => Err(anyhow!("it was ended by {signal}")),
            other => Err(anyhow!("it ended with {other:?}")),
        };
        Some(result.with_context(|| self.name.clone()))
    }

    /// Waits for its end; its failure is this call's. It must come to its end by itself.
    pub fn wait(mut self) -> Result<()> {
        loop {
            if let Some(result) = self.ended() {
                return result;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it said. Others may still hold the pipe, so its end is not waited for.
    fn words(&mut self) -> String {
        let mut words = vec![0; WORDS_MAX];
        let length = self.words.read(&mut words).unwrap_or(0);
        String::from_utf8_lossy(&words[..length]).into_owned()
    }

    /// Who it is and what its threads do, for who waits in vain.
    fn doings(&self) -> String {
        let threads = process::threads(self.pid.as_raw()).join(", ");
        format!("{} ({threads})", self.name)
    }

    /// Kills it; whether it is gone.
    pub fn end(&mut self) -> bool {
        // Harmless if it ended by itself: it is not reaped yet, so its number is not reused.
        let _ = kill(self.pid, Signal::SIGKILL);
        let deadline = Instant::now() + KILL_LIMIT;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }
}

/// Processes that work at once; those that are left are killed on drop.
pub struct Crew<'a> {
    stage: &'a Stage,
    members: Vec<Member>,
}

impl<'a> Crew<'a> {
    /// Nobody yet.
    pub fn new(stage: &'a Stage) -> Self {
        Self {
            stage,
            members: Vec::new(),
        }
    }

    /// Starts `body` in one more process. If it fails, the scenario comes to its end.
    pub fn start(&mut self, name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let counts = self.stage.counts();
        let body = || caught(body).inspect_err(|_| counts.stop());
        self.members.push(Member::start(name, body)?);
        Ok(())
    }

    /// Waits for all of them; the first failure is this call's.
    pub fn finish(mut self) -> Result<()> {
        let mut failure = None;
        let mut ending = None;
        while !self.members.is_empty() {
            self.members.retain_mut(|member| match member.ended() {
                None => true,
                Some(Ok(())) => false,
                Some(Err(error)) => {
                    failure.get_or_insert(error);
                    self.stage.counts().stop();
                    false
                }
            });
            if ending.is_none() && self.stage.is_over() {
                ending = Some(Instant::now());
            }
            if ending.is_some_and(|since| since.elapsed() > END_LIMIT) {
                let late = self.members.iter().map(Member::doings);
                let late = late.collect::<Vec<_>>().join("; ");
                let late = anyhow!("did not come to their end in {END_LIMIT:?}: {late}");
                return Err(failure.unwrap_or(late));
            }
            thread::sleep(POLL);
        }
        failure.map_or(Ok(()), Err)
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        for member in &mut self.members {
            // One that cannot be killed is told of by what it leaves behind.
            member.end();
        }
    }
}
