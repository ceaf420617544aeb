// SPDX-License-Identifier: GPL-2.0

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
use crate::plan::{Request, Segment};
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
    /// Pins what lies under `[address, address + length)`, for the device to write to if
    /// `is_written`. EFAULT if a part of it is not mapped, or not writable.
    fn pin(address: u64, length: u64, is_written: bool) -> Result<Self> {
        let first = address & !(PAGE_BYTES - 1);
        let end = address.checked_add(length).ok_or(EINVAL)?;
        let count = (end - first).div_ceil(PAGE_BYTES) as usize;
        let flags = if is_written { sys::FOLL_WRITE } else { 0 };
        let mut this = Self {
            pages: KVVec::with_capacity(count, GFP_KERNEL)?,
            is_written,
        };
        while this.pages.len() < count {
            if kernel::current!().signal_pending() {
                return Err(EINTR);
            }
            let want = (count - this.pages.len()).min(CHUNK_PAGES);
            let at = first + this.pages.len() as u64 * PAGE_BYTES;
            let spare = this.pages.spare_capacity_mut();
            // SAFETY: The spare capacity has room for `want` pointers.
            let pinned = unsafe {
                sys::pin_user_pages_fast(at as usize, want as i32, flags, spare.as_mut_ptr().cast())
            };
            match pinned {
                1.. => {
                    // INVARIANT: These pages are pinned now.
                    // SAFETY: The call filled in that many pointers, at most `want`.
                    unsafe { this.pages.inc_len(pinned as usize) };
                }
                0 => return Err(EFAULT),
                _ if pinned == ENOMEM.to_errno() => return Err(ENOMEM),
                _ if pinned == EINTR.to_errno() => return Err(EINTR),
                _ => return Err(EFAULT),
            }
        }
        Ok(this)
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
    fn new(address: u64, length: u64, is_written: bool, region: &Region) -> Result<Self> {
        let pages = Pages::pin(address, length, is_written)?;
        let mut segments: KVVec<Segment> = KVVec::new();
        let mut offset = address % PAGE_BYTES;
        let mut left = length;
        for page in &pages.pages {
            let bytes = (PAGE_BYTES - offset).min(left);
            // SAFETY: The page is pinned.
            let segment = unsafe { region.segment_of(*page, offset, bytes) };
            if !segments
                .last_mut()
                .is_some_and(|last| last.absorb(&segment))
            {
                segments.push(segment, GFP_KERNEL)?;
            }
            offset = 0;
            left -= bytes;
        }
        Ok(Self {
            _pages: pages,
            segments,
        })
    }
}

/// The operands of a command.
pub(crate) struct Operands {
    source: Option<Operand>,
    destination: Option<Operand>,
}

impl Operands {
    /// Pins the operands of a valid request.
    pub(crate) fn pin(request: &Request, region: &Region) -> Result<Arc<Self>> {
        let operand = |address: u64, bytes: u64, is_written: bool| -> Result<Option<Operand>> {
            if address == 0 {
                return Ok(None);
            }
            Ok(Some(Operand::new(address, bytes, is_written, region)?))
        };
        let source = operand(request.source, request.source_bytes(), false)?;
        let destination = operand(
            request.destination,
            request.destination_bytes(),
            request.writes_destination(),
        )?;
        Ok(Arc::new(
            Self {
                source,
                destination,
            },
            GFP_KERNEL,
        )?)
    }

    /// Source segments; empty if there is no source.
    pub(crate) fn source(&self) -> &[Segment] {
        self.source
            .as_ref()
            .map_or(&[], |operand| &operand.segments)
    }

    /// Destination segments; empty if there is no destination.
    pub(crate) fn destination(&self) -> &[Segment] {
        self.destination
            .as_ref()
            .map_or(&[], |operand| &operand.segments)
    }
}
