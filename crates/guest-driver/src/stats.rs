// SPDX-License-Identifier: GPL-2.0-only

//! Counters, and the debugfs files that show them.
//!
//! Facility: debugfs. C header: `linux/debugfs.h`. Contexts: counting anywhere,
//! showing in process context. Invariant: the files are gone before the device is.
//!
//! docs/reference/driver.md says which figure is here and which in sysfs, and why.

use kernel::debugfs::{Dir, File, Scope, ScopedDir};
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::Arc;

use crate::alloc::ORDER_MAX;
use crate::device::Device;
use crate::mover::Direction;
use crate::tally::{Reason, Tally};

/// Pages of private memory whose contents were lost, of all devices since load.
static LOST: Atomic<u64> = Atomic::new(0);
/// Pages of system memory that are never used again, because a device may write to them.
static FORSAKEN: Atomic<u64> = Atomic::new(0);

/// A device went away with the contents of so many pages.
pub(crate) fn lost(pages: u64) {
    LOST.add(pages, Relaxed);
}

/// What happened since probe.
pub(crate) struct Counters {
    to_device: Atomic<u64>,
    to_system: Atomic<u64>,
    failed_to_device: [Atomic<u64>; Reason::ALL.len()],
    failed_to_system: [Atomic<u64>; Reason::ALL.len()],
    evacuated: Atomic<u64>,
    evicted: Atomic<u64>,
    failed_to_evict: [Atomic<u64>; Reason::ALL.len()],
    faulted: Atomic<u64>,
    forsaken: Atomic<u64>,
    bytes_by_cpu: Atomic<u64>,
    bytes_by_engine: Atomic<u64>,
    engine_copies_failed: Atomic<u64>,
    commands: Atomic<u64>,
    commands_refused: Atomic<u64>,
    commands_abandoned: Atomic<u64>,
    resets: Atomic<u64>,
    page_requests: Atomic<u64>,
    page_requests_refused: Atomic<u64>,
    pages_exclusive: Atomic<u64>,
    invalidations: Atomic<u64>,
    access_reports: Atomic<u64>,
    hot_moved: Atomic<u64>,
    hot_over_rate: Atomic<u64>,
    hot_recent: Atomic<u64>,
    failed_hot: [Atomic<u64>; Reason::ALL.len()],
}

impl Counters {
    pub(crate) fn new() -> Self {
        let zeroes = || core::array::from_fn(|_| Atomic::new(0));
        Self {
            to_device: Atomic::new(0),
            to_system: Atomic::new(0),
            failed_to_device: zeroes(),
            failed_to_system: zeroes(),
            evacuated: Atomic::new(0),
            evicted: Atomic::new(0),
            failed_to_evict: zeroes(),
            faulted: Atomic::new(0),
            forsaken: Atomic::new(0),
            bytes_by_cpu: Atomic::new(0),
            bytes_by_engine: Atomic::new(0),
            engine_copies_failed: Atomic::new(0),
            commands: Atomic::new(0),
            commands_refused: Atomic::new(0),
            commands_abandoned: Atomic::new(0),
            resets: Atomic::new(0),
            page_requests: Atomic::new(0),
            page_requests_refused: Atomic::new(0),
            pages_exclusive: Atomic::new(0),
            invalidations: Atomic::new(0),
            access_reports: Atomic::new(0),
            hot_moved: Atomic::new(0),
            hot_over_rate: Atomic::new(0),
            hot_recent: Atomic::new(0),
            failed_hot: zeroes(),
        }
    }

    /// Adds the account of a batch.
    pub(crate) fn moved(&self, direction: Direction, tally: &Tally) {
        let (moved, failed) = match direction {
            Direction::ToDevice => (&self.to_device, &self.failed_to_device),
            Direction::ToSystem => (&self.to_system, &self.failed_to_system),
        };
        moved.add(tally.moved(), Relaxed);
        for (sum, more) in failed.iter().zip(tally.failed()) {
            sum.add(more, Relaxed);
        }
    }

    /// Pages left the device because it goes away.
    pub(crate) fn evacuated(&self, pages: u64) {
        self.evacuated.add(pages, Relaxed);
        self.to_system.add(pages, Relaxed);
    }

    /// Pages left the device, or should have, that nobody asked for by address.
    pub(crate) fn evicted(&self, tally: &Tally) {
        self.evicted.add(tally.moved(), Relaxed);
        self.to_system.add(tally.moved(), Relaxed);
        for (sum, more) in self.failed_to_evict.iter().zip(tally.failed()) {
            sum.add(more, Relaxed);
        }
    }

    /// Pages that left the device by [`evicted`](Self::evicted).
    pub(crate) fn pages_evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    /// Pages left the device because a CPU touched them.
    pub(crate) fn faulted(&self, pages: u64) {
        self.faulted.add(pages, Relaxed);
        self.to_system.add(pages, Relaxed);
    }

    /// Pages of system memory must never be used again, because of the device.
    pub(crate) fn forsaken(&self, pages: u64) {
        self.forsaken.add(pages, Relaxed);
        FORSAKEN.add(pages, Relaxed);
    }

    /// The CPU copied contents of pages that move.
    pub(crate) fn copied_by_cpu(&self, bytes: u64) {
        self.bytes_by_cpu.add(bytes, Relaxed);
    }

    /// The device copied them, though the CPU could have.
    pub(crate) fn copied_by_engine(&self, bytes: u64) {
        self.bytes_by_engine.add(bytes, Relaxed);
    }

    /// The device was to do so, and did not.
    pub(crate) fn engine_copy_failed(&self) {
        self.engine_copies_failed.add(1, Relaxed);
    }

    /// Bytes of pages on the move that the CPU copied.
    pub(crate) fn bytes_copied_by_cpu(&self) -> u64 {
        self.bytes_by_cpu.load(Relaxed)
    }

    /// Bytes of pages on the move that the device copied, though the CPU could have.
    pub(crate) fn bytes_copied_by_engine(&self) -> u64 {
        self.bytes_by_engine.load(Relaxed)
    }

    /// The device answered a command.
    pub(crate) fn answered(&self, is_ok: bool) {
        self.commands.add(1, Relaxed);
        if !is_ok {
            self.commands_refused.add(1, Relaxed);
        }
    }

    /// A process did not wait for its command.
    pub(crate) fn abandoned(&self) {
        self.commands_abandoned.add(1, Relaxed);
    }

    /// The device was reset on request.
    pub(crate) fn reset(&self) {
        self.resets.add(1, Relaxed);
    }

    /// The device asked for pages of a process.
    pub(crate) fn page_requested(&self) {
        self.page_requests.add(1, Relaxed);
    }

    /// It gets none.
    pub(crate) fn page_request_refused(&self) {
        self.page_requests_refused.add(1, Relaxed);
    }

    /// The device got a page of a process for itself.
    pub(crate) fn page_made_exclusive(&self) {
        self.pages_exclusive.add(1, Relaxed);
    }

    /// The device had to forget pages of a process.
    pub(crate) fn invalidated(&self) {
        self.invalidations.add(1, Relaxed);
    }

    /// The device reported a granule that it uses much.
    pub(crate) fn access_reported(&self) {
        self.access_reports.add(1, Relaxed);
    }

    /// Pages that moved to the device because it uses them much.
    pub(crate) fn hot_moved(&self) -> u64 {
        self.hot_moved.load(Relaxed)
    }

    /// Pages moved to the device because it uses them much, or did not.
    pub(crate) fn hot(&self, tally: &Tally, over_rate: u64, recent: u64) {
        self.hot_moved.add(tally.moved(), Relaxed);
        self.hot_over_rate.add(over_rate, Relaxed);
        self.hot_recent.add(recent, Relaxed);
        for (sum, more) in self.failed_hot.iter().zip(tally.failed()) {
            sum.add(more, Relaxed);
        }
    }

    /// Pages of system memory that are never used again.
    pub(crate) fn pages_forsaken(&self) -> u64 {
        self.forsaken.load(Relaxed)
    }

    /// Pages that left the device because it went away.
    pub(crate) fn pages_evacuated(&self) -> u64 {
        self.evacuated.load(Relaxed)
    }

    /// Pages that moved to the device.
    pub(crate) fn pages_to_device(&self) -> u64 {
        self.to_device.load(Relaxed)
    }

    /// Pages that moved from the device, also those that were evacuated or faulted back.
    pub(crate) fn pages_to_system(&self) -> u64 {
        self.to_system.load(Relaxed)
    }
}

/// Defines the functions that show one figure each, and the call that makes their files.
macro_rules! figures {
    ($($name:literal => |$device:ident| $value:expr;)+) => {
        fn add_figures<'data>(dir: &ScopedDir<'data, '_>, device: &'data Arc<Device>) {
            $(dir.read_callback_file(
                $name,
                device,
                &|$device: &Arc<Device>, f: &mut fmt::Formatter<'_>| writeln!(f, "{}", $value),
            );)+
        }
    };
}

figures! {
    c"pages_to_device" => |device| device.counters().pages_to_device();
    c"pages_to_system" => |device| device.pages_to_system();
    c"pages_evacuated" => |device| device.counters().pages_evacuated();
    c"pages_evicted" => |device| device.pages_evicted();
    c"pages_relieved" => |device| device.region().relieved_pages();
    c"pages_faulted" => |device| device.counters().faulted.load(Relaxed);
    c"to_device_not_present" => |device| failed_to_device(device, Reason::NotPresent);
    c"to_device_no_memory" => |device| failed_to_device(device, Reason::NoMemory);
    c"to_device_busy" => |device| failed_to_device(device, Reason::Busy);
    c"to_device_pinned" => |device| failed_to_device(device, Reason::Pinned);
    c"to_device_writeback" => |device| failed_to_device(device, Reason::Writeback);
    c"to_device_private_data" => |device| failed_to_device(device, Reason::PrivateData);
    c"to_device_mapping" => |device| failed_to_device(device, Reason::Mapping);
    c"to_device_split" => |device| failed_to_device(device, Reason::Split);
    c"to_device_unsupported" => |device| failed_to_device(device, Reason::Unsupported);
    c"to_system_not_present" => |device| failed_to_system(device, Reason::NotPresent);
    c"to_system_no_memory" => |device| failed_to_system(device, Reason::NoMemory);
    c"to_system_busy" => |device| failed_to_system(device, Reason::Busy);
    c"to_system_pinned" => |device| failed_to_system(device, Reason::Pinned);
    c"to_system_writeback" => |device| failed_to_system(device, Reason::Writeback);
    c"to_system_private_data" => |device| failed_to_system(device, Reason::PrivateData);
    c"to_system_mapping" => |device| failed_to_system(device, Reason::Mapping);
    c"to_system_split" => |device| failed_to_system(device, Reason::Split);
    c"to_system_unsupported" => |device| failed_to_system(device, Reason::Unsupported);
    c"evict_no_memory" => |device| failed_to_evict(device, Reason::NoMemory);
    c"evict_busy" => |device| failed_to_evict(device, Reason::Busy);
    c"evict_pinned" => |device| failed_to_evict(device, Reason::Pinned);
    c"evict_writeback" => |device| failed_to_evict(device, Reason::Writeback);
    c"evict_private_data" => |device| failed_to_evict(device, Reason::PrivateData);
    c"evict_mapping" => |device| failed_to_evict(device, Reason::Mapping);
    c"evict_split" => |device| failed_to_evict(device, Reason::Split);
    c"evict_unsupported" => |device| failed_to_evict(device, Reason::Unsupported);
    c"pages_forsaken" => |device| device.counters().pages_forsaken();
    c"engine_copies_failed" => |device| device.counters().engine_copies_failed.load(Relaxed);
    c"commands" => |device| device.counters().commands.load(Relaxed);
    c"commands_refused" => |device| device.counters().commands_refused.load(Relaxed);
    c"commands_abandoned" => |device| device.counters().commands_abandoned.load(Relaxed);
    c"kicks" => |device| device.transport().kicks();
    c"resets" => |device| device.counters().resets.load(Relaxed);
    c"timeouts" => |device| device.engine().recovery().timeouts();
    c"address_spaces" => |device| device.spaces().count();
    c"page_requests" => |device| device.counters().page_requests.load(Relaxed);
    c"page_requests_refused" => |device| device.counters().page_requests_refused.load(Relaxed);
    c"pages_exclusive" => |device| device.counters().pages_exclusive.load(Relaxed);
    c"invalidations" => |device| device.counters().invalidations.load(Relaxed);
    c"access_reports" => |device| device.counters().access_reports.load(Relaxed);
    c"access_reports_lost" => |device| device.hot().lost();
    c"hot_moved" => |device| device.counters().hot_moved();
    c"hot_over_rate" => |device| device.counters().hot_over_rate.load(Relaxed);
    c"hot_recent" => |device| device.counters().hot_recent.load(Relaxed);
    c"hot_no_memory" => |device| failed_hot(device, Reason::NoMemory);
    c"hot_failed" => |device| failed_hot_otherwise(device);
    c"cpu_looks" => |device| device.scan().looks();
    c"cpu_used" => |device| device.scan().used();
    c"cpu_busy" => |device| device.scan().busy();
    c"cpu_spared" => |device| device.scan().spared();
    c"cpu_over_rate" => |device| device.scan().over_rate();
    c"cpu_returned" => |device| device.scan().returned();
    c"queue_errors" => |device| device.events().queue_errors();
    c"pages_total" => |device| device.region().pages();
    c"pages_poisoned" => |device| device.region().poisoned_pages();
    c"pages_free" => |device| device.region().free_pages();
    c"pages_in_use" => |device| device.region().used_pages();
}

fn failed_to_device(device: &Device, reason: Reason) -> u64 {
    device.counters().failed_to_device[reason.index()].load(Relaxed)
}

fn failed_to_system(device: &Device, reason: Reason) -> u64 {
    device.counters().failed_to_system[reason.index()].load(Relaxed)
}

fn failed_to_evict(device: &Device, reason: Reason) -> u64 {
    device.counters().failed_to_evict[reason.index()].load(Relaxed)
}

fn failed_hot(device: &Device, reason: Reason) -> u64 {
    device.counters().failed_hot[reason.index()].load(Relaxed)
}

/// Hot pages that did not move, for another reason than those that have figures of their own.
fn failed_hot_otherwise(device: &Device) -> u64 {
    let other = |reason: &&Reason| !matches!(reason, Reason::NotPresent | Reason::NoMemory);
    let failed = Reason::ALL.iter().filter(other);
    failed.map(|reason| failed_hot(device, *reason)).sum()
}

/// A figure of the module; its file goes when this is dropped.
pub(crate) type Figure = File<()>;

/// Makes the files for what outlives its device, in the module's folder.
pub(crate) fn module_files(dir: &Dir) -> Result<[Pin<KBox<Figure>>; 2]> {
    let lost = &|(): &(), f: &mut fmt::Formatter<'_>| writeln!(f, "{}", LOST.load(Relaxed));
    let forsaken = &|(): &(), f: &mut fmt::Formatter<'_>| writeln!(f, "{}", FORSAKEN.load(Relaxed));
    Ok([
        KBox::pin_init(dir.read_callback_file(c"pages_lost", (), lost), GFP_KERNEL)?,
        KBox::pin_init(
            dir.read_callback_file(c"pages_forsaken", (), forsaken),
            GFP_KERNEL,
        )?,
    ])
}

/// The debugfs folder of a device; it goes when this is dropped.
pub(crate) type Files = Scope<Arc<Device>>;

/// Makes `cdmN` under the module's folder.
pub(crate) fn files(parent: &Dir, device: &Arc<Device>) -> Result<Pin<KBox<Files>>> {
    let name = CString::try_from_fmt(fmt!("cdm{}", device.number()))?;
    KBox::pin_init(
        parent.scope(device.clone(), &name, |device: &Arc<Device>, dir| {
            add_figures(dir, device);
            dir.read_callback_file(
                c"free_blocks",
                device,
                &|device: &Arc<Device>, f: &mut fmt::Formatter<'_>| {
                    for order in 0..=ORDER_MAX {
                        writeln!(f, "{} {}", order, device.region().free_blocks(order))?;
                    }
                    Ok(())
                },
            );
        }),
        GFP_KERNEL,
    )
}
