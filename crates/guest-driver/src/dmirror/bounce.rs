// SPDX-License-Identifier: GPL-2.0-only

//! Pages of the kernel for data on its way between a device and a process.
//!
//! Facility: the page allocator. C header: `linux/gfp.h`. Contexts: process context. Lock
//! order: none; user memory is touched under no lock. Invariant: what a device may still
//! write to is given up by [`crate::engine::Engine::forsake`] before it is dropped.

use kernel::page::Page;
use kernel::prelude::*;
use kernel::uaccess::{UserSliceReader, UserSliceWriter};

use crate::batch::PAGE_BYTES;
use crate::pagemap::Region;
use crate::plan::Segment;
use crate::sys;

/// Pages that the device and the CPU take turns on.
pub(super) struct Bounce {
    pages: KVec<Page>,
    segments: KVec<Segment>,
}

impl Bounce {
    /// `pages` pages, where the region's device finds them.
    pub(super) fn new(region: &Region, pages: usize) -> Result<Self> {
        let mut this = Self {
            pages: KVec::with_capacity(pages, GFP_KERNEL)?,
            segments: KVec::with_capacity(pages, GFP_KERNEL)?,
        };
        for _ in 0..pages {
            let page = Page::alloc_page(GFP_KERNEL)?;
            // SAFETY: The page is ours.
            let segment = unsafe { region.segment_of(page.as_ptr(), 0, PAGE_BYTES) };
            this.segments.push(segment, GFP_KERNEL)?;
            this.pages.push(page, GFP_KERNEL)?;
        }
        Ok(this)
    }

    /// The first `pages` pages for the device.
    pub(super) fn segments(&self, pages: usize) -> &[Segment] {
        &self.segments[..pages]
    }

    /// Gives the first `pages` pages to a process.
    pub(super) fn write_to(&self, pages: usize, user: &mut UserSliceWriter) -> Result {
        self.pages[..pages].iter().try_for_each(|page| {
            // SAFETY: The page is ours, mapped, and the device is done with it.
            user.write_slice(unsafe {
                core::slice::from_raw_parts(address(page), PAGE_BYTES as usize)
            })
        })
    }

    /// Takes the first `pages` pages from a process.
    pub(super) fn read_from(&mut self, pages: usize, user: &mut UserSliceReader) -> Result {
        self.pages[..pages].iter().try_for_each(|page| {
            // SAFETY: As above, and nobody else has the page.
            user.read_slice(unsafe {
                core::slice::from_raw_parts_mut(address(page), PAGE_BYTES as usize)
            })
        })
    }
}

fn address(page: &Page) -> *mut u8 {
    // SAFETY: The page is the kernel's own, so it is mapped.
    unsafe { sys::cdm_page_address(page.as_ptr()).cast() }
}
