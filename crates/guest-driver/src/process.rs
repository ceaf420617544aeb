// SPDX-License-Identifier: GPL-2.0-only

//! Whose memory a request is about.
//!
//! Facility: tasks and address spaces. C headers: `linux/sched/mm.h`, `linux/pid.h`.
//! Contexts: process context. Lock order: takes and leaves `exec_update_lock` of the
//! process; no driver lock may be held but the gate. Invariant: an address space is
//! handed out only to who may move its pages; the rule is `cdm_may_move()` in
//! `c/task.c`, next to what it is made of.

use core::ptr::NonNull;

use kernel::mm::MmWithUser;
use kernel::prelude::*;
use kernel::sync::aref::ARef;

use crate::sys;

/// The address space of the process `pid`, or of the current one for 0.
///
/// ESRCH if there is no such process or it has no memory, EPERM if it is not the
/// caller's to move, EINTR.
pub(crate) fn address_space(pid: i32) -> Result<ARef<MmWithUser>> {
    if pid == 0 {
        return Ok(kernel::current!().mm().ok_or(ESRCH)?.into());
    }
    let mut mm = core::ptr::null_mut();
    // SAFETY: Process context; the pointer is valid for writing.
    kernel::error::to_result(unsafe { sys::cdm_mm_of(pid, &mut mm) })?;
    let mm = NonNull::new(mm).ok_or(ESRCH)?;
    // SAFETY: The call took a reference for `mmput()`, which is what `ARef` drops;
    // `MmWithUser` is a transparent wrapper.
    Ok(unsafe { ARef::from_raw(mm.cast::<MmWithUser>()) })
}
