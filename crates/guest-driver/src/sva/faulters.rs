// SPDX-License-Identifier: GPL-2.0-only

//! Workers that wait in page faults, and how they are told to stop that.
//!
//! Facility: signals to kernel threads. C headers: `linux/signal.h`, `linux/sched/signal.h`.
//! Contexts: process context. Lock order: `Faulters::list`, then the signal lock of a task.
//! Invariant: a task in the list runs in its [`Faulting`], and heeds SIGKILL; it leaves the list
//! before it does anything else.
//!
//! A fault may wait for a process that serves it (userfaultfd), or for a file server, and so for
//! ever. The kernel gives such a wait up when the waiting task is killed. A worker of a
//! workqueue can be killed only while it says so, which it does here.

use kernel::prelude::*;
use kernel::sync::{new_spinlock, SpinLock};

use crate::sys;

/// Most workers that wait for one address space at a time. A device has as many requests
/// under way as it has threads, and one that a command left behind ends with the last command.
const FAULTERS_MAX: usize = 16;

/// Workers that may wait.
struct List {
    tasks: [*mut sys::task_struct; FAULTERS_MAX],
    is_stopped: bool,
}

// SAFETY: The pointers are only used under the lock, while the tasks are alive.
unsafe impl Send for List {}

/// The workers that fault pages in for one address space.
#[pin_data]
pub(super) struct Faulters {
    #[pin]
    list: SpinLock<List>,
}

impl Faulters {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_spinlock!(List {
                tasks: [core::ptr::null_mut(); FAULTERS_MAX],
                is_stopped: false,
            }),
        })
    }

    /// The current worker is about to fault pages in; `None` if it shall not, because nobody
    /// needs them any more or too many wait already.
    pub(super) fn enter(&self) -> Option<Faulting<'_>> {
        // SAFETY: Process context, in a worker of the module.
        let task = unsafe { sys::cdm_current() };
        // SAFETY: As above; before anybody could tell it anything.
        unsafe { sys::cdm_heed_kill(true) };
        let faulting = Faulting { list: self, task };
        let mut list = self.list.lock();
        let is_stopped = list.is_stopped;
        let place = list.tasks.iter_mut().find(|place| place.is_null());
        match place {
            Some(place) if !is_stopped => *place = task,
            // Dropped after the lock, and finds itself nowhere.
            _ => {
                drop(list);
                return None;
            }
        }
        drop(list);
        Some(faulting)
    }

    /// Whether nobody waits any more, and never will.
    pub(super) fn are_stopped(&self) -> bool {
        self.list.lock().is_stopped
    }

    /// Whoever waits stops doing so, and looks whether there is still a reason.
    pub(super) fn interrupt(&self) {
        let list = self.list.lock();
        for task in list.tasks.iter().filter(|task| !task.is_null()) {
            // SAFETY: By the file's invariant the task is alive: it cannot leave the list now.
            unsafe { sys::cdm_kill(*task) };
        }
    }

    /// Nobody waits from here on.
    pub(super) fn stop_all(&self) {
        self.list.lock().is_stopped = true;
        self.interrupt();
    }
}

/// The current worker may wait in a page fault.
pub(super) struct Faulting<'a> {
    list: &'a Faulters,
    task: *mut sys::task_struct,
}

impl Faulting<'_> {
    /// Whether it was told to stop waiting.
    pub(super) fn is_interrupted(&self) -> bool {
        // SAFETY: Process context, no lock held.
        unsafe { sys::cdm_dying() }
    }
}

impl Drop for Faulting<'_> {
    fn drop(&mut self) {
        let mut list = self.list.list.lock();
        if let Some(place) = list.tasks.iter_mut().find(|place| **place == self.task) {
            *place = core::ptr::null_mut();
        }
        drop(list);
        // SAFETY: Process context; nobody tells it anything any more.
        unsafe { sys::cdm_heed_kill(false) };
    }
}
