// SPDX-License-Identifier: GPL-2.0-only

//! cdm.ko: guest driver of the coherent device memory device.
//!
//! A device is a virtio function with its memory in a BAR. The driver hotplugs that
//! memory, so that pages of processes can live in it, moves them there and back, and
//! lets the device work on them. `device/` has the life of a device and the lock
//! order of the driver; docs/reference/driver.md describes it from outside.
//!
//! Each file is about one facility of the kernel, says so in its first lines, and
//! keeps the unsafe code that the facility needs. `ages.rs`, `alloc.rs`, `answer.rs`,
//! `batch.rs`, `choice.rs`, `heat.rs`, `identity.rs`, `look.rs`, `order.rs`, `plan.rs`, `stash.rs`,
//! `table.rs` and `tally.rs` need no kernel: `lib.rs` takes them in for `cargo test`.

// The derives that `wire.rs` uses; the kernel's zerocopy does not re-export them.
#[macro_use]
extern crate zerocopy_derive;

use kernel::prelude::*;

#[allow(unreachable_pub)] // shared with lib.rs
mod ages;
#[allow(unreachable_pub)] // shared with lib.rs
mod alloc;
#[allow(unreachable_pub)] // shared with lib.rs
mod answer;
#[allow(unreachable_pub)] // shared with lib.rs
mod batch;
mod chardev;
#[allow(unreachable_pub)] // shared with lib.rs
mod choice;
mod command;
mod copies;
mod device;
mod dmirror;
mod done;
mod engine;
mod evacuate;
mod events;
mod evict;
mod exclusive;
mod fault;
mod gate;
#[allow(unreachable_pub)] // shared with lib.rs
mod heat;
#[allow(unreachable_pub)] // shared with lib.rs
mod identity;
mod in_place;
#[allow(unreachable_pub)] // shared with lib.rs
mod look;
mod memory_error;
mod migrate;
mod mirror;
mod misc;
mod mover;
mod notifier;
mod number;
#[allow(unreachable_pub)] // shared with lib.rs
mod order;
mod pagemap;
mod pins;
#[allow(unreachable_pub)] // shared with lib.rs
mod plan;
mod process;
mod ram;
mod recovery;
mod residency;
mod run;
mod scan;
#[allow(dead_code, unreachable_pub)] // shared with lib.rs
mod stash;
mod stats;
mod sva;
mod sys;
#[allow(unreachable_pub)] // shared with lib.rs
mod table;
#[allow(unreachable_pub)] // shared with lib.rs
mod tally;
mod transfer;
mod user_batch;
mod virtio;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../device-protocol/src/wire.rs"]
mod wire;
mod work;

module! {
    type: CdmModule,
    name: "cdm",
    authors: ["cdm maintainers"],
    description: "Coherent device memory",
    license: "GPL",
}

/// The module, as long as it is loaded. Dropped in this order.
#[pin_data]
struct CdmModule {
    /// First the devices.
    #[pin]
    registration: virtio::Registration<device::Bound>,
    /// Then the queue that their last work is on.
    work: work::WorkQueue,
    folder: device::Folder,
    /// Last, when no device has a driver.
    left: virtio::LeftRunning,
}

impl kernel::InPlaceModule for CdmModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            // Before anything else, so that an impossible choice is refused at once.
            device::check_memory_types()?;
            let work = work::WorkQueue::new()?;
            // SAFETY: A module is initialised once.
            let folder = unsafe { device::Folder::new()? };
            Ok(try_pin_init!(Self {
                registration <- virtio::Registration::new(module, c"cdm", wire::VIRTIO_ID),
                work,
                folder,
                // SAFETY: The module has one, and drops it after the registration.
                left: unsafe { virtio::LeftRunning::new() },
            }? Error))
        })
    }
}
