// SPDX-License-Identifier: GPL-2.0-only

//! The memory of a command's operands, kept in place while the device works on it.
//!
//! Facility: short-term pins. C header: `linux/mm.h`. Contexts: process context;
//! dropping [`Pages`] may sleep. Lock order: takes the caller's mmap lock; no driver
//! lock may be held. Invariant: a page that a device may access is pinned from before
//! its address is known to the device until the device is done.
//!
//! The pins are short-term, so they may rest on device memory; nothing here lets a
//! process keep them, because a command ends or is reset. Private memory cannot be
//! pinned: pinning brings it back to system memory first.

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::batch::PAGE_BYTES;
use crate::pagemap::Region;
use crate::plan::{self, in_pages, Request, Segment};
use crate::sys;

/// Pages pinned in one call, so that a signal is seen in between.
const CHUNK_PAGES: usize = 512;

/// Pinned pages of the current process.
///
/// # Invariants
///
/// Every page in `pages` has one pin of ours.
struct Pages {
    pages: KVVec<*mut sys::page>,
    is_written: bool,
}

// SAFETY: Pins belong to pages, not to threads.
unsafe impl Send for Pages {}
// SAFETY: Shared references only read the list.
unsafe impl Sync for Pages {}

impl Pages {
    /// Pins what an operand of the current process lies in, in the order of its pieces, for the
    /// device to write to if `is_written`. EFAULT if a part of it is not mapped, or not writable.
    fn pin(operand: &[Segment], is_written: bool) -> Result<Self> {
        let mut this = Self {
            pages: KVVec::with_capacity(in_pages(operand).count(), GFP_KERNEL)?,
            is_written,
        };
        for range in operand {
            this.pin_more(range)?;
        }
        Ok(this)
    }

    /// Pins what lies under a range; there is room for its pages.
    fn pin_more(&mut self, range: &Segment) -> Result {
        let first = range.address & !(PAGE_BYTES - 1);
        let end = range.address.checked_add(range.bytes).ok_or(EINVAL)?;
        let mut at = first;
        while at < end {
            if kernel::current!().signal_pending() {
                return Err(EINTR);
            }
            let spare = self.pages.spare_capacity_mut();
            let want = (end - at).div_ceil(PAGE_BYTES) as usize;
            let want = want.min(CHUNK_PAGES).min(spare.len());
            let flags = if self.is_written { sys::FOLL_WRITE } else { 0 };
            // SAFETY: The spare capacity has room for `want` pointers.
            let pinned = unsafe {
                sys::pin_user_pages_fast(at as usize, want as i32, flags, spare.as_mut_ptr().cast())
            };
            match pinned {
                1.. => {
                    // INVARIANT: These pages are pinned now.
                    // SAFETY: The call filled in that many pointers, at most `want`.
                    unsafe { self.pages.inc_len(pinned as usize) };
                    at = at.saturating_add(pinned as u64 * PAGE_BYTES);
                }
                0 => return Err(EFAULT),
                _ if pinned == ENOMEM.to_errno() => return Err(ENOMEM),
                _ if pinned == EINTR.to_errno() => return Err(EINTR),
                _ => return Err(EFAULT),
            }
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.pages.is_empty() {
            return;
        }
        // SAFETY: By the type invariant; process context.
        unsafe {
            sys::unpin_user_pages_dirty_lock(
                self.pages.as_mut_ptr(),
                self.pages.len(),
                self.is_written,
            )
        };
    }
}

/// One operand: pinned pages, and where they are for the device.
struct Operand {
    /// Pinned as long as the segments are in use.
    _pages: Pages,
    segments: KVVec<Segment>,
}

impl Operand {
    /// `None` for an operand of no ranges.
    fn new(ranges: &[Segment], is_written: bool, region: &Region) -> Result<Option<Self>> {
        if ranges.is_empty() {
            return Ok(None);
        }
        let pages = Pages::pin(ranges, is_written)?;
        let mut segments: KVVec<Segment> = KVVec::new();
        for (page, piece) in pages.pages.iter().zip(in_pages(ranges)) {
            let offset = piece.address % PAGE_BYTES;
            // SAFETY: The page is pinned.
            let segment = unsafe { region.segment_of(*page, offset, piece.bytes) };
            if !segments
                .last_mut()
                .is_some_and(|last| last.absorb(&segment))
            {
                segments.push(segment, GFP_KERNEL)?;
            }
        }
        Ok(Some(Self {
            _pages: pages,
            segments,
        }))
    }

    fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// The operands of a command.
pub(crate) struct Operands {
    source: Option<Operand>,
    destination: Option<Operand>,
}

impl Operands {
    /// Pins the operands that the current process named for a request.
    pub(crate) fn pin(
        request: &Request,
        named: plan::Operands<'_>,
        region: &Region,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                source: Operand::new(named.source, false, region)?,
                destination: Operand::new(named.destination, request.writes_destination(), region)?,
            },
            GFP_KERNEL,
        )?)
    }

    /// Where the device finds them.
    pub(crate) fn found(&self) -> plan::Operands<'_> {
        plan::Operands {
            source: self.source.as_ref().map_or(&[], Operand::segments),
            destination: self.destination.as_ref().map_or(&[], Operand::segments),
        }
    }
}
