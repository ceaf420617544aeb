// SPDX-License-Identifier: GPL-2.0

//! What is needed of a device to have it work: shared by everything that submits commands.
//!
//! Facility: none of its own. Contexts: any. Lock order: none. Invariant: it outlives the
//! region whose pages it copies, because the region holds a reference; pages of private
//! memory are faulted back by code that knows nothing else of the device.

use kernel::sync::Arc;

use crate::stats::Counters;
use crate::virtio::Transport;

/// A device as a worker.
pub(crate) struct Engine {
    number: u32,
    transport: Arc<Transport>,
    counters: Counters,
}

impl Engine {
    pub(crate) fn new(number: u32, transport: Arc<Transport>) -> Self {
        Self {
            number,
            transport,
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

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}
