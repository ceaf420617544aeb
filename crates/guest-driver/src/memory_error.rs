// SPDX-License-Identifier: GPL-2.0-only

//! Device memory that has failed.
//!
//! Facility: `memory_failure()`. C header: `linux/mm.h`. Contexts: process context, in probe or
//! on the module's workqueue. Lock order: the gate, then those of the region, one at a time;
//! `memory_failure()` takes folio locks and page table locks of its own, under none of the
//! driver's. Invariant: a page is out of the allocator, or will never get back there, before
//! anything else happens to it.
//!
//! Where the kernel can take a page from its users (public and private memory, with the series),
//! it does: who touches it next gets SIGBUS. Elsewhere the driver can only see to it that nobody
//! gets the page anew, and says so once.

use core::ops::Range;

use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::Arc;
use kernel::workqueue::{impl_has_work, WorkItem};

use crate::batch::PAGE_BYTES;
use crate::command::Control;
use crate::device::Device;
use crate::evict::Evictor;
use crate::identity::Identity;
use crate::pagemap::{Failure, Region, Remedy};
use crate::wire::{ERROR_BYTES, FEATURE_MEMORY_ERROR};
use crate::{stats, sys};

/// Stretches of failed memory that a device may have: with more of them it is broken.
const STRETCHES_MAX: usize = 1 << 16;

/// How often a page that is busy is tried, and after what time.
const TRIES: u32 = 20;
const PAUSE_MS: u32 = 10;
/// How often the device is asked what has failed: an answer may get lost.
const ASKED_MAX: u32 = 3;

const _: () = assert!(ERROR_BYTES == PAGE_BYTES);

/// Failed memory of a device, in stretches.
pub(crate) struct FailedMemory(KVVec<Range<u64>>);

impl FailedMemory {
    /// Asks a device for all of it, and to tell of what fails later. EIO if the answers make no
    /// sense, ETIMEDOUT if there are none.
    pub(crate) fn of(control: &Control, identity: &Identity) -> Result<Self> {
        let mut stretches = KVVec::new();
        if identity.features & FEATURE_MEMORY_ERROR != 0 {
            let find = |from| control.find_bad(None, from);
            walk(find, identity, 0..identity.memory_bytes, |stretch| {
                Ok(stretches.push(stretch, GFP_KERNEL)?)
            })?;
        }
        Ok(Self(stretches))
    }

    /// Whether some of the first `bytes` bytes have failed.
    pub(crate) fn is_in_first(&self, bytes: u64) -> bool {
        self.0.first().is_some_and(|first| first.start < bytes)
    }

    /// Keeps it from ever being used in a region that nobody uses yet; how many pages.
    pub(crate) fn retire(&self, region: &Region) -> u64 {
        let pages = self.0.iter().flat_map(pages_of);
        let is_retired = |offset: &u64| region.fail(*offset) == Failure::Retired;
        pages.filter(is_retired).count() as u64
    }
}

/// Offsets of the pages of a stretch.
fn pages_of(stretch: &Range<u64>) -> impl Iterator<Item = u64> {
    (stretch.start..stretch.end).step_by(PAGE_BYTES as usize)
}

/// Hands every stretch of failed memory to `each` that begins in `range`, or reaches into it, as
/// `find` says: where the first one is from an offset on, and how much of it follows.
fn walk(
    find: impl Fn(u64) -> Result<(u64, u64)>,
    identity: &Identity,
    range: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> Result,
) -> Result {
    let end = range.end.min(identity.memory_bytes);
    let mut from = range.start & !(ERROR_BYTES - 1);
    for _ in 0..STRETCHES_MAX {
        if from >= end {
            return Ok(());
        }
        let (first, bytes) = find(from)?;
        if first >= end {
            return Ok(());
        }
        let next = first.checked_add(bytes).ok_or(EIO)?;
        let is_sound = first >= from && bytes != 0 && next <= identity.memory_bytes;
        if !is_sound || (first | bytes) % ERROR_BYTES != 0 {
            return Err(EIO);
        }
        each(first..next)?;
        from = next;
    }
    Err(EIO)
}

impl_has_work! {
    impl HasWork<Self> for Device { self.memory_errors }
}

/// Looks at what the device said has failed.
impl WorkItem for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // Of a device that goes away nobody gets memory any more.
        let Ok(_inside) = this.gate().enter() else {
            return;
        };
        let Some(range) = this.events().take_failed() else {
            return;
        };
        for asked in 1.. {
            let Err(err) = look_at(&this, &range) else {
                return;
            };
            // Whoever wants the driver to go waits for this.
            if this.gate().is_shut() {
                return;
            }
            if asked >= ASKED_MAX || this.transport().is_gone() {
                // With the next event.
                this.events().note_failed(range);
                dev_err!(
                    this.dev(),
                    "cdm{}: device does not say what memory has failed: error {}\n",
                    this.number(),
                    err.to_errno()
                );
                return;
            }
        }
    }
}

/// Does what is to be done about failed memory in a range; ENODEV if the driver leaves the device,
/// else errors as for [`Control::find_bad`].
fn look_at(device: &Device, range: &Range<u64>) -> Result {
    let recovery = device.engine().recovery();
    let find = |from| device.control().find_bad(Some(recovery), from);
    walk(find, device.identity(), range.clone(), |stretch| {
        pages_of(&stretch).try_for_each(|offset| {
            if device.gate().is_shut() {
                return Err(ENODEV);
            }
            fail(device, offset);
            Ok(())
        })
    })
}

/// The page at an offset has failed.
fn fail(device: &Device, offset: u64) {
    match device.region().fail(offset) {
        Failure::Known | Failure::Retired => {}
        Failure::Metadata => dev_err!(
            device.dev(),
            "cdm{}: memory has failed at offset {:#x}, where the struct pages of the device memory \
             are: what the kernel knows of its pages may be wrong; unbind the device, and bind it \
             again to have them in guest memory\n",
            device.number(),
            offset
        ),
        Failure::InUse { page } => match device.region().remedy() {
            Some(Remedy::MemoryFailure) => {
                // What came of it is in the kernel's log. The page does not come back in any case.
                // SAFETY: Process context, no lock held; the frame is in the mapped region.
                unsafe { sys::cdm_memory_failure(device.region().frame(page)) };
            }
            Some(Remedy::Markers) => take_private_page(device, page),
            None => {
                if !device.has_complained.xchg(true, Relaxed) {
                    dev_warn!(
                        device.dev(),
                        "cdm{}: this kernel cannot take {} memory that has failed from who uses it; \
                         such pages are not used again once they are free\n",
                        device.number(),
                        device.region().layout().memory_type.name()
                    );
                }
            }
        },
    }
}

/// Takes a page of private memory from all who have it, with what it holds: who touches it gets
/// SIGBUS. If it stays busy, that comes from the driver, as the device does not copy it.
fn take_private_page(device: &Device, page: u32) {
    let region = device.region();
    let Ok(mut evictor) = Evictor::new() else {
        return;
    };
    for _ in 0..TRIES {
        if region.separate(page) && evictor.lose_pages(region, page..page + 1).0 != 0 {
            stats::lost(1);
            return;
        }
        // SAFETY: Process context, no lock held.
        unsafe { sys::msleep(PAUSE_MS) };
    }
}
