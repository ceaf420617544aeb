// SPDX-License-Identifier: GPL-2.0

//! What is needed of a device to have it work: shared by everything that submits commands.
//!
//! Facility: none of its own. Contexts: any. Lock order: none. Invariant: it outlives the
//! region whose pages it copies, because the region holds a reference; pages of private
//! memory are faulted back by code that knows nothing else of the device.

use kernel::sync::Arc;

use crate::batch::PAGE_BYTES;
use crate::plan::Segment;
use crate::recovery::Recovery;
use crate::stats::Counters;
use crate::sys;
use crate::virtio::Transport;
use crate::wire::{Space, FEATURE_CANCEL};

/// A device as a worker.
pub(crate) struct Engine {
    number: u32,
    transport: Arc<Transport>,
    recovery: Arc<Recovery>,
    /// The device knows commands by tags, and cancels them.
    has_tags: bool,
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
            transport,
            recovery,
            has_tags: features & FEATURE_CANCEL != 0,
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
