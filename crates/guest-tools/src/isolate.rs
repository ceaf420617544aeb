// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs a piece of a test in a process of its own. The program that does so has one thread.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

/// Exit status of a child whose piece failed; what failed is in its pipe.
const FAILED: i32 = 101;

/// A child process; killed and reaped on drop.
pub struct Child {
    pid: Pid,
    reaped: bool,
    to: Option<File>,
    from: File,
}

impl Child {
    /// Starts `body` in a copy of this process. The body gets a [`Parent`] to talk to; an error
    /// of it is what [`Child::finish`] gives.
    pub fn spawn(body: impl FnOnce(&mut Parent) -> Result<()>) -> Result<Self> {
        let (to_read, to_write) = pipe().context("cannot make a pipe")?;
        let (from_read, from_write) = pipe().context("cannot make a pipe")?;
        // SAFETY: the programs have one thread when they fork, so no lock of another thread can be
        // held in the child.
        match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Child => {
                drop((to_write, from_read));
                let mut parent = Parent {
                    from: to_read.into(),
                    to: from_write.into(),
                };
                let code = run_body(&mut parent, body);
                // Not `process::exit`: handlers of the parent program must not run twice.
                // SAFETY: `_exit` takes any status and does not return.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => {
                drop((to_read, from_write));
                Ok(Self {
                    pid: child,
                    reaped: false,
                    to: Some(to_write.into()),
                    from: from_read.into(),
                })
            }
        }
    }

    /// Process id, as the ioctls take it.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits until the child calls [`Parent::arrive`].
    pub fn wait_for_arrival(&mut self) -> Result<()> {
        let mut byte = [0];
        let read = self.from.read(&mut byte)?;
        if byte[..read] == [ARRIVED] {
            return Ok(());
        }
        // It begins the message of a child that failed.
        self.end(&byte[..read])?;
        bail!("the child ended before it was ready")
    }

    /// Lets a child that waits in [`Parent::await_release`] go on.
    pub fn release(&mut self) -> Result<()> {
        let to = self
            .to
            .as_mut()
            .context("the child was released for good already")?;
        to.write_all(&[RELEASED]).context("the child is gone")
    }

    /// Waits for the end of the child; its error is this call's.
    pub fn finish(mut self) -> Result<()> {
        self.end(&[])
    }

    /// Waits for the end of the child, however it comes: the status, and what it had to say.
    pub fn end_message(mut self) -> Result<(WaitStatus, String)> {
        let message = self.message(&[])?;
        Ok((self.wait()?, message))
    }

    /// What the child says until its end, of which `begun` was read already.
    fn message(&mut self, begun: &[u8]) -> Result<String> {
        self.to = None;
        let mut message = begun.to_vec();
        self.from.read_to_end(&mut message)?;
        let message = String::from_utf8_lossy(&message);
        Ok(message.trim_matches(ARRIVED as char).to_owned())
    }

    /// Waits for the end of the child, of whose message `begun` was read already.
    fn end(&mut self, begun: &[u8]) -> Result<()> {
        let message = self.message(begun)?;
        match self.wait()? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, FAILED) => bail!("in the child: {message}"),
            other => bail!("the child ended with {other:?} {message}"),
        }
    }

    /// Kills the child and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        kill(self.pid, Signal::SIGKILL).context("cannot kill the child")?;
        match self.wait()? {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => Ok(()),
            other => bail!("the killed child ended with {other:?}"),
        }
    }

    /// Waits for the end of the child, however it comes.
    pub fn wait(&mut self) -> Result<WaitStatus> {
        let status = waitpid(self.pid, None).context("cannot wait for the child")?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // It may have ended already; either way it must not stay as a zombie.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

const ARRIVED: u8 = b'\x06';
const RELEASED: u8 = b'\x11';

/// What a child talks to.
pub struct Parent {
    from: File,
    to: File,
}

impl Parent {
    /// Tells the parent that the child has come to a certain point.
    pub fn arrive(&mut self) -> Result<()> {
        self.to.write_all(&[ARRIVED]).context("the parent is gone")
    }

    /// Waits until the parent lets the child go on.
    pub fn await_release(&mut self) -> Result<()> {
        let mut byte = [0];
        self.from
            .read_exact(&mut byte)
            .context("the parent is gone")
    }

    /// [`Self::arrive`], then [`Self::await_release`].
    pub fn meet(&mut self) -> Result<()> {
        self.arrive()?;
        self.await_release()
    }
}

fn run_body(parent: &mut Parent, body: impl FnOnce(&mut Parent) -> Result<()>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(|| body(parent)));
    let message = match result {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => format!("panic: {}", panic_message(panic.as_ref())),
    };
    // Without a parent nobody is there to read it.
    let _ = parent.to.write_all(message.as_bytes());
    FAILED
}

/// The text of a caught panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of an unknown kind")
}

/// A pipe as two files.
pub fn pipe_files() -> Result<(File, File)> {
    let (read, write): (OwnedFd, OwnedFd) = pipe().context("cannot make a pipe")?;
    Ok((read.into(), write.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::alone;
    use anyhow::ensure;

    fn error_of(body: impl FnOnce(&mut Parent) -> Result<()>) -> String {
        let child = Child::spawn(body).unwrap();
        child.finish().unwrap_err().to_string()
    }

    #[test]
    fn error_of_the_child_is_the_parents_to_see() {
        alone(|| assert!(error_of(|_| bail!("seven")).contains("seven")));
    }

    #[test]
    fn panic_of_the_child_is_an_error() {
        alone(|| assert!(error_of(|_| panic!("eight")).contains("eight")));
    }

    #[test]
    fn signal_that_ends_the_child_is_an_error() {
        alone(|| {
            let error = error_of(|_| {
                // SAFETY: `abort` ends this process, which is the test's own child.
                unsafe { libc::abort() }
            });
            assert!(error.contains("SIGABRT"), "{error}");
        });
    }

    #[test]
    fn parent_and_child_meet() {
        alone(|| {
            let mut child = Child::spawn(|parent| {
                parent.meet()?;
                ensure!(parent.await_release().is_err(), "released twice");
                Ok(())
            })
            .unwrap();
            child.wait_for_arrival().unwrap();
            child.release().unwrap();
            child.finish().unwrap();
        });
    }

    #[test]
    fn child_that_fails_before_the_meeting_says_why() {
        alone(|| {
            let mut child = Child::spawn(|_| bail!("early")).unwrap();
            let error = child.wait_for_arrival().unwrap_err().to_string();
            assert!(error.contains("early"), "{error}");
        });
    }
}
