// SPDX-License-Identifier: GPL-2.0-only

//! A device, and what the whole driver keeps to.
//!
//! Facility: none of its own; probe and remove are in `bound.rs`, the end is in `end.rs`.
//! Contexts: any, as far as the parts of a device allow.
//!
//! Lock order of the whole driver, outermost first:
//!
//! 1. device lock (driver core), `misc_mtx` (while a node is opened or deregistered);
//!    `Recovery::turn`, under which only 7 is taken, and nobody waits for memory
//! 2. [`Gate`] (SRCU read side; its writer waits for all of the following)
//! 3. `exec_update_lock` of another process, taken and left before 4
//! 4. `Binding::is_bound` or `Spaces::table`; `Scan::state`; mmap lock, for reading, for one batch
//! 5. folio locks of a batch, page table locks (kernel)
//! 6. `Mirror::follower`; the device may be waited for under it, memory may not
//! 7. `Recovery::parked`, `Recovery::state`; `Queue::ring`, `Request::parked`, with interrupts
//!    off; `Region::copies`; `Binding::hot`, `Binding::account`; `Scan::recent`; `Hot::backlog`, with interrupts
//!    off
//! 8. a CPU's stash of free pages, with interrupts off
//! 9. `Region::alloc`, `Region::ages` or the lock of its failed pages, never two of them, with
//!    interrupts off, innermost
//!
//! Invariant: the order of the end. No new work, then no work under way, then no page
//! in use, then no struct pages, then no mapping, which the virtio reset takes away. Each
//! step has a limit. Where one does not come about, those behind it do not either, and
//! what they would take apart stays for good.

mod bound;
mod end;
mod folder;
mod setup;

use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::Atomic;
use kernel::sync::Arc;
use kernel::workqueue::Work;

use crate::command::Control;
use crate::engine::Engine;
use crate::events::EventSink;
use crate::gate::Gate;
use crate::identity::Identity;
use crate::pagemap::Region;
use crate::scan::Scan;
use crate::stats::Counters;
use crate::sva::{Hot, Spaces};
use crate::virtio::Transport;
use crate::wire;

pub(crate) use bound::Bound;
pub(crate) use folder::Folder;
pub(crate) use setup::check_memory_types;

const MIB: u64 = 1 << 20;

/// A device that works.
#[pin_data]
pub(crate) struct Device {
    /// Dropped first, should it still be mapped: nothing may outlive the mapping.
    region: Pin<KBox<Region>>,
    identity: Identity,
    dev: ARef<kernel::device::Device>,
    events: Arc<EventSink>,
    engine: Arc<Engine>,
    control: Control,
    #[pin]
    spaces: Spaces,
    #[pin]
    gate: Gate,
    /// Whether it was said that pages that fail cannot be taken from their users.
    pub(crate) has_complained: Atomic<bool>,
    #[pin]
    pub(crate) memory_errors: Work<Device>,
    /// What the device says that it uses much.
    #[pin]
    hot: Hot,
    /// Moves that.
    #[pin]
    pub(crate) hot_work: Work<Device, 1>,
    /// What the CPUs use much.
    #[pin]
    scan: Scan,
    /// Brings that back.
    #[pin]
    pub(crate) scan_work: Work<Device, 2>,
}

impl Device {
    pub(crate) fn number(&self) -> u32 {
        self.engine.number()
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn dev(&self) -> &kernel::device::Device {
        &self.dev
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.engine.counters()
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn events(&self) -> &EventSink {
        &self.events
    }

    pub(crate) fn transport(&self) -> &Transport {
        self.engine.transport()
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Address spaces of processes that the device knows.
    pub(crate) fn spaces(&self) -> &Spaces {
        &self.spaces
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What the device says that it uses much.
    pub(crate) fn hot(&self) -> &Hot {
        &self.hot
    }

    /// What the CPUs use much.
    pub(crate) fn scan(&self) -> &Scan {
        &self.scan
    }

    /// Bytes that pages can migrate to.
    pub(crate) fn bytes_total(&self) -> u64 {
        u64::from(self.region.pages()) * crate::batch::PAGE_BYTES
    }

    /// Of these, bytes that hold no page.
    pub(crate) fn bytes_free(&self) -> u64 {
        u64::from(self.region.free_pages()) * crate::batch::PAGE_BYTES
    }

    /// Pages that moved from the device, for whatever reason.
    pub(crate) fn pages_to_system(&self) -> u64 {
        self.counters().pages_to_system() + self.region.relieved_pages()
    }

    /// Of these, pages that nobody asked for by address.
    pub(crate) fn pages_evicted(&self) -> u64 {
        self.counters().pages_evicted() + self.region.relieved_pages()
    }

    pub(crate) fn num_command_queues(&self) -> u16 {
        self.transport().num_queues() as u16 - wire::QUEUE_FIRST_COMMAND
    }
}
