// SPDX-License-Identifier: GPL-2.0-only

//! The end of a device.
//!
//! Facility: none of its own. Contexts: process context under the device lock. Lock order:
//! as the driver's. Invariant: an unbind takes a limited time, and an unload does unless
//! processes have private memory that this kernel cannot take from them, or the kernel itself
//! keeps a page of it; what is left behind is neither freed nor used again. An unplug leaves
//! nothing behind, and takes as long as it takes.

use kernel::prelude::*;
use kernel::sync::Arc;

use super::Device;
use crate::command::CONTROL_MS;
use crate::wire::ControlOpcode;
use crate::{evacuate, stats, sys};

/// Shortest time that a device has for an answer when its driver goes, whatever the
/// parameter says: an emulated machine may stand still for a moment.
const ANSWER_MS_MIN: u32 = 1_000;

/// Between two tries to let a device go that has to go.
const PAUSE_MS: u32 = 100;

impl Device {
    /// Ends all work and brings all pages back. False if pages are still in use, or may be
    /// soon, because somebody who is inside did not leave in time.
    pub(super) fn retire(&self, patience_ms: u32) -> bool {
        self.gate.shut();
        self.scan.stop();
        let answer_ms = patience_ms.clamp(ANSWER_MS_MIN, CONTROL_MS);
        self.transport().limit_answers(answer_ms);
        // Whoever waits for a command shall not hold this up.
        self.judge(self.engine.recovery().reset());
        // Nor for a page; and what the device knows of processes, it knows no more.
        self.spaces.close();
        self.events.serve(None);
        let is_alone = self.gate.wait(answer_ms.saturating_add(patience_ms));
        let is_empty = evacuate::run(self, patience_ms);
        is_alone && is_empty
    }

    /// Takes the memory, of which no page is in use, out of the kernel. Whether the device
    /// may be reset now.
    pub(super) fn close(&self) -> bool {
        self.region.unmap();
        // Nobody relies on what it guards, as a reset follows; and it is the last question
        // before that reset, which has no limit.
        let unguard = self.control.call(ControlOpcode::SET_METADATA, 0, 0);
        self.judge(unguard.map(drop));
        !self.transport().is_gone()
    }

    /// Judges a device by how a request ended that one which lives answers. One that did not is
    /// taken for dead.
    fn judge(&self, ended: Result) {
        match ended {
            Ok(()) => {}
            // A refusal is an answer, too; and without memory, nothing was asked.
            Err(err) if err == EIO || err == ENOMEM => {}
            Err(_) => self.transport().declare_gone(),
        }
    }

    /// The driver leaves the device: in a limited time, unless the device itself goes away.
    ///
    /// In an unplug the slot is ejected when this returns, whatever became of the memory, and
    /// QEMU does not survive that while the memory is mapped. So the unplug waits for who has
    /// pages of the device, and for a device that does not answer.
    pub(super) fn part(self: &Arc<Self>) {
        self.events.detach();
        // SAFETY: Returns a module parameter.
        let patience_ms = unsafe { sys::cdm_param_evacuate_ms() };
        let mut is_retired = self.retire(patience_ms) || self.give_up_memory(patience_ms);
        let mut is_closed = is_retired && self.close();
        if !is_closed && self.transport().is_leaving() {
            dev_warn!(
                self.dev(),
                "cdm{}: unplug waits: {}\n",
                self.number(),
                if is_retired {
                    "the device does not answer"
                } else {
                    "pages are still in use"
                }
            );
        }
        while !is_closed && self.is_to_be_waited_for(is_retired) {
            // SAFETY: Process context, no lock held that somebody needs to get on.
            unsafe { sys::msleep(PAUSE_MS) };
            if self.transport().is_leaving() {
                self.transport().ask_again();
            }
            is_retired = is_retired || self.retire(patience_ms) || self.give_up_memory(patience_ms);
            is_closed = is_retired && self.close();
        }
        if !is_retired {
            self.strand();
        } else if is_closed {
            self.transport().stop();
            dev_info!(
                self.dev(),
                "cdm{}: removed, {} pages brought back to system memory\n",
                self.number(),
                self.counters().pages_evacuated()
            );
        } else {
            self.transport().leave_running();
            dev_err!(
                self.dev(),
                "cdm{}: device does not answer, so it cannot be reset: it is left running and \
                 unusable until the guest restarts; {} pages of system memory that it may yet \
                 write to are never used again\n",
                self.number(),
                self.counters().pages_forsaken()
            );
        }
    }

    /// Private memory that did not come back is of use to nobody without the device. Takes it
    /// from who has it, if the kernel can: who touches it gets SIGBUS, and not from the driver,
    /// which may go. Whether no page is in use now, nor will be.
    fn give_up_memory(&self, patience_ms: u32) -> bool {
        if self.region.is_cpu_addressable() || !sys::CDM_CAN_POISON {
            return false;
        }
        let pages = evacuate::lose(self, patience_ms);
        if pages != 0 {
            stats::lost(pages);
            dev_err!(
                self.dev(),
                "cdm{}: {} pages of private memory are lost, whoever touches one gets SIGBUS\n",
                self.number(),
                pages
            );
        }
        self.gate.wait(patience_ms) && self.region.used_pages() == 0
    }

    /// Whether waiting is all that can be done. An unplug must not go on; and who has a page of
    /// private memory comes to the module for it, which is being unloaded, and the device could
    /// still give it back.
    ///
    /// That goes for a kernel that can take the memory from processes, too. A reference of its own
    /// is all that can keep a page then, and it ends some time: the unload waits for it in any case
    /// ([`Device::strand`]), and here the device is reset afterwards, and free for the next driver.
    fn is_to_be_waited_for(&self, is_retired: bool) -> bool {
        // SAFETY: Reads the state of this module.
        let is_live = unsafe { sys::cdm_module_is_live() };
        let is_needed = !is_live && !self.region.is_cpu_addressable();
        let could_answer = !self.transport().is_gone();
        self.transport().is_leaving() || (is_needed && !is_retired && could_answer)
    }

    /// Pages do not leave, and the driver must. What the CPU can reach stays where it is, for
    /// whoever has it. Private memory that the kernel could not take from the processes is lost:
    /// who touches it comes to the driver, and gets SIGBUS. An unload has to wait until nobody
    /// can.
    ///
    /// A reset would take the memory from under whoever has it, and the struct pages with
    /// it. What they are made of stays allocated until the guest restarts, and so long no
    /// driver can have the device again.
    fn strand(self: &Arc<Self>) {
        let is_private = !self.region.is_cpu_addressable();
        let pages = self.region.used_pages();
        if is_private {
            stats::lost(pages.into());
        }
        // INVARIANT: Neither region nor transport is dropped.
        core::mem::forget(self.clone());
        let is_module_kept = self.transport().leave_running();
        dev_err!(
            self.dev(),
            "cdm{}: {} pages {}; the device is left running and unusable until the guest \
             restarts; {} pages of system memory that it may yet write to are never used again\n",
            self.number(),
            pages,
            if is_private {
                "of private memory are lost, whoever touches one gets SIGBUS"
            } else {
                "did not leave in time, they stay where they are"
            },
            self.counters().pages_forsaken()
        );
        if is_module_kept {
            return;
        }
        if is_private {
            evacuate::wait_for_users(self);
        }
        self.region.abandon();
    }
}
