// SPDX-License-Identifier: GPL-2.0-only

//! The module's own workqueues.
//!
//! Facility: workqueues. C header: `linux/workqueue.h`. Contexts: items run in process
//! context and may sleep; they are queued from interrupts. Invariant: no item of the
//! module is queued or running once the module's code may go away, which the
//! system's queues could not promise: [`WorkQueue`] drains itself when it is dropped.

use core::ptr::NonNull;

use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Release};
use kernel::workqueue::Queue;

use crate::sys;

/// The queue, for code that has no way to the module's data.
static QUEUE: Atomic<*mut sys::workqueue_struct> = Atomic::new(core::ptr::null_mut());
/// The same of the one for what nobody waits for.
static BACKGROUND: Atomic<*mut sys::workqueue_struct> = Atomic::new(core::ptr::null_mut());

/// Owner of the queues; the module holds it from load to unload.
///
/// # Invariants
///
/// `queue` and `background` are valid and are what [`QUEUE`] and [`BACKGROUND`] hold.
pub(crate) struct WorkQueue {
    queue: NonNull<sys::workqueue_struct>,
    background: NonNull<sys::workqueue_struct>,
}

// SAFETY: A workqueue may be used from any thread.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Process context, at module load.
        let queue = NonNull::new(unsafe { sys::cdm_workqueue_alloc(true) }).ok_or(ENOMEM)?;
        // SAFETY: As above.
        let Some(background) = NonNull::new(unsafe { sys::cdm_workqueue_alloc(false) }) else {
            // SAFETY: It was just made, and nobody has it.
            unsafe { sys::destroy_workqueue(queue.as_ptr()) };
            return Err(ENOMEM);
        };
        QUEUE.store(queue.as_ptr(), Release);
        BACKGROUND.store(background.as_ptr(), Release);
        Ok(Self { queue, background })
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: Valid by the type invariant; no device is left that could queue work.
        unsafe { sys::destroy_workqueue(self.background.as_ptr()) }
        // SAFETY: As above.
        unsafe { sys::destroy_workqueue(self.queue.as_ptr()) }
    }
}

/// The module's queue. Devices exist only while there is a [`WorkQueue`].
pub(crate) fn queue() -> &'static Queue {
    // SAFETY: Callers belong to a device, so the queue exists, and outlives them all.
    unsafe { Queue::from_raw(QUEUE.load(Acquire)) }
}

/// The module's queue for work that takes long, may need memory, and that nobody waits for.
pub(crate) fn background() -> &'static Queue {
    // SAFETY: As for `queue`.
    unsafe { Queue::from_raw(BACKGROUND.load(Acquire)) }
}
