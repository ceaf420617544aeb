// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the process gives up before a guest can talk to it.
//!
//! Two steps, because some of it must come before the first thread and some after the last
//! thing was set up:
//!
//! 1. [`Enclosure::enter`], while there is one thread: limits, namespaces, capabilities,
//!    landlock. What threads come later inherit it.
//! 2. [`Enclosure::close`], when everything is set up: seccomp for all threads. From there on
//!    a thread narrows itself down to what its [`Role`] needs ([`Sandbox::enter`]).
//!
//! What a host refuses is left out and told of; only seccomp's own failure at a role is
//! the end. `docs/explanation/security.md` says what each part protects from whom.

mod capabilities;
mod files;
mod limits;
mod namespaces;
mod policy;
mod report;
mod seccomp;
mod violation;

pub use policy::Role;
pub use report::Report;

use clap::ValueEnum;
use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Values of `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Nothing is given up
    None,
    /// No new privileges, and system calls by thread
    Seccomp,
    /// All of it
    Full,
}

/// The first step is done.
#[must_use = "seccomp is missing until this is closed"]
pub struct Enclosure {
    level: Level,
    report: Report,
}

/// The sandbox of a process, as its threads see it.
#[derive(Clone)]
pub struct Sandbox(Option<Arc<seccomp::Programs>>);

thread_local! {
    /// Whether this thread has narrowed itself down.
    static HAS_ROLE: Cell<bool> = const { Cell::new(false) };
}

impl Enclosure {
    /// Gives up what a process needs only to start. The process must have one thread.
    ///
    /// Files can be removed from `folders` afterwards, and nothing else can be done with any
    /// file that is not open.
    pub fn enter(level: Level, folders: &[BorrowedFd<'_>]) -> Self {
        let mut report = Report::default();
        if level == Level::Full {
            report.add("limits", limits::set());
            report.add("namespaces", namespaces::enter());
            report.add("capabilities", capabilities::drop_all());
        }
        if level != Level::None {
            report.add("no_new_privs", nix::sys::prctl::set_no_new_privs());
        }
        if level == Level::Full {
            report.add("landlock", files::lock(folders));
        }
        Self { level, report }
    }

    /// Allows all threads, those to come as well, only the system calls that some role needs.
    pub fn close(mut self) -> (Sandbox, Report) {
        if self.level == Level::None {
            return (Sandbox::none(), self.report);
        }
        let programs = seccomp::Programs::install();
        let sandbox = Sandbox(programs.as_ref().ok().cloned().map(Arc::new));
        self.report.add("seccomp", programs.map(drop));
        (sandbox, self.report)
    }
}

impl Sandbox {
    /// One that holds nobody.
    pub fn none() -> Self {
        Self(None)
    }

    /// Narrows the calling thread down to what `role` needs, for good. The first call counts.
    ///
    /// # Panics
    ///
    /// If the kernel does not take the filter: it took one like it before, so that is no
    /// shortcoming of the host.
    pub fn enter(&self, role: Role) {
        let Some(programs) = &self.0 else { return };
        if !HAS_ROLE.replace(true) {
            programs.narrow(role);
        }
    }
}

#[cfg(test)]
mod tests;
