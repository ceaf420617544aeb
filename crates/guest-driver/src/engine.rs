// SPDX-License-Identifier: GPL-2.0-only

//! What is needed of a device to have it work: shared by everything that submits commands.
//!
//! Facility: none of its own. Contexts: any. Lock order: none. Invariant: it outlives the
//! region whose pages it copies, because the region holds a reference; pages of private
//! memory are faulted back by code that knows nothing else of the device.

use kernel::sync::Arc;

use crate::batch::PAGE_BYTES;
use crate::command::Control;
use crate::plan::Segment;
use crate::recovery::Recovery;
use crate::stats::Counters;
use crate::sys;
use crate::virtio::Transport;
use crate::wire::{
    Space, FEATURE_ACCESS_COUNTERS, FEATURE_CANCEL, FEATURE_EXCLUSIVE_ATOMICS, FEATURE_SVA,
    FEATURE_UNORDERED, QUEUE_FIRST_COMMAND,
};

/// A device as a worker.
pub(crate) struct Engine {
    number: u32,
    transport: Arc<Transport>,
    recovery: Arc<Recovery>,
    /// The device knows commands by tags, and cancels them.
    has_tags: bool,
    /// It carries out all commands of a queue in their order, and knows no FENCE.
    is_in_order: bool,
    /// The device wants pages of the system for itself where it does atomic operations.
    has_exclusive_atomics: bool,
    /// The device counts accesses.
    has_counters: bool,
    /// Queue for commands on addresses of processes, and for nothing else; none if the device
    /// cannot have them.
    process_queue: Option<usize>,
    counters: Counters,
}

impl Engine {
    pub(crate) fn new(
        number: u32,
        transport: Arc<Transport>,
        recovery: Arc<Recovery>,
        features: u64,
    ) -> Self {
        Self {
            number,
            process_queue: process_queue(features, transport.num_queues()),
            transport,
            recovery,
            has_tags: features & FEATURE_CANCEL != 0,
            is_in_order: features & FEATURE_UNORDERED == 0,
            has_exclusive_atomics: features & FEATURE_EXCLUSIVE_ATOMICS != 0,
            has_counters: features & FEATURE_ACCESS_COUNTERS != 0,
            counters: Counters::new(),
        }
    }

    /// N of `/dev/cdmN`.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// What resets the device when it does not answer.
    pub(crate) fn recovery(&self) -> &Arc<Recovery> {
        &self.recovery
    }

    /// Whether commands are given tags.
    pub(crate) fn has_tags(&self) -> bool {
        self.has_tags
    }

    /// Whether the device can do nothing but carry out a queue's commands one after another.
    pub(crate) fn is_in_order(&self) -> bool {
        self.is_in_order
    }

    /// Whether the device may have pages of the system for itself.
    pub(crate) fn has_exclusive_atomics(&self) -> bool {
        self.has_exclusive_atomics
    }

    /// Whether the device counts what it uses of processes.
    pub(crate) fn counts_accesses(&self) -> bool {
        self.process_queue.is_some() && self.has_counters
    }

    /// Index of the queue for commands on addresses of processes.
    ///
    /// They wait for pages, which may take for ever, and the driver's own commands may be what
    /// brings such a page. So these must not stand in a queue behind those.
    pub(crate) fn process_queue(&self) -> Option<usize> {
        self.process_queue
    }

    /// Index of the queue for other commands from this CPU.
    pub(crate) fn queue_of_cpu(&self) -> usize {
        // SAFETY: Returns a number; which CPU this is may change at any time, and need not
        // be exact.
        let cpu = unsafe { sys::cdm_cpu() } as usize;
        let first = usize::from(QUEUE_FIRST_COMMAND);
        let end = self.process_queue.unwrap_or(self.transport.num_queues());
        first + cpu.checked_rem(end - first).unwrap_or(0)
    }

    /// A way to the control queue.
    pub(crate) fn control(&self) -> Control {
        Control::new(self.transport.clone())
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The device does not answer, and may yet write to this memory, whose pages are in use
    /// by the caller or by a page table whose lock is held: those of system memory are never
    /// used again. What is in the device goes with it.
    pub(crate) fn forsake(&self, destination: &[Segment]) {
        for segment in destination {
            if segment.space != Space::GUEST {
                continue;
            }
            let first = segment.address / PAGE_BYTES;
            let end = (segment.address + segment.bytes).div_ceil(PAGE_BYTES);
            for frame in first..end {
                // SAFETY: The page is in use, so it is valid.
                unsafe { sys::cdm_page_get(sys::cdm_pfn_to_page(frame as usize)) };
            }
            self.counters.forsaken(end - first);
        }
    }
}

/// What commands on addresses of processes need of a device: translations, an order of their
/// own, and an end on request.
pub(crate) const PROCESS_FEATURES: u64 = FEATURE_SVA | FEATURE_UNORDERED | FEATURE_CANCEL;

/// The last queue, if the device has the features and another one.
fn process_queue(features: u64, num_queues: usize) -> Option<usize> {
    let has_two = num_queues >= usize::from(QUEUE_FIRST_COMMAND) + 2;
    (features & PROCESS_FEATURES == PROCESS_FEATURES && has_two).then(|| num_queues - 1)
}
