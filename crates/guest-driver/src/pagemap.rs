// SPDX-License-Identifier: GPL-2.0

//! The device memory as memory of the kernel.
//!
//! Facility: `dev_pagemap`. C header: `linux/memremap.h`.
//!
//! Contexts: [`Region::map`] and [`Region::unmap`] in process context. `folio_free`
//! runs wherever the last reference is dropped: in interrupts, under page table locks.
//! It only returns the pages to the allocator.
//!
//! Lock order: `alloc` is innermost of all driver locks and is taken with interrupts
//! off.
//!
//! Invariant: every folio is home before the region is unmapped. `unmap` asks for it,
//! and the kernel would wait for ever for a folio that is not.

use core::marker::PhantomPinned;

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Release};
use kernel::sync::{new_spinlock_irq, SpinLockIrq};
use kernel::types::Opaque;

use crate::alloc::{words_needed, PageAlloc};
use crate::batch::PAGE_BYTES;
use crate::sys;

/// Type of the struct pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryType {
    /// MEMORY_DEVICE_COHERENT, which every 7.3 kernel has.
    Coherent,
    /// MEMORY_DEVICE_PUBLIC, which the patch series adds.
    Public,
}

impl MemoryType {
    /// Whether the kernel that the module was built for has it.
    pub(crate) fn is_available(self) -> bool {
        self != Self::Public || sys::CDM_MEMORY_TYPE_PUBLIC != 0
    }

    /// Its number on the ioctl interface.
    pub(crate) fn uapi(self) -> u32 {
        match self {
            Self::Coherent => sys::cdm_memory_type_CDM_MEMORY_COHERENT,
            Self::Public => sys::cdm_memory_type_CDM_MEMORY_PUBLIC,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Coherent => "coherent",
            Self::Public => "public",
        }
    }

    /// Its number in `enum memory_type`.
    fn number(self) -> u32 {
        match self {
            Self::Coherent => sys::CDM_MEMORY_TYPE_COHERENT,
            Self::Public => sys::CDM_MEMORY_TYPE_PUBLIC,
        }
    }

    /// Its flag of `struct migrate_vma`.
    fn select(self) -> u64 {
        match self {
            Self::Coherent => sys::CDM_SELECT_COHERENT,
            Self::Public => sys::CDM_SELECT_PUBLIC,
        }
    }
}

/// Names a region towards `migrate_vma`, also a region of another device.
///
/// Only compared and passed to the kernel, never followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) owner: *mut c_void,
    pub(crate) select: u64,
}

/// What a region is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) memory_type: MemoryType,
    /// Guest-physical address of the device memory.
    pub(crate) base: u64,
    /// Its length.
    pub(crate) bytes: u64,
    /// Bytes at its start that hold the struct pages of all of it; zero if guest
    /// memory does.
    pub(crate) metadata_bytes: u64,
    /// Node that it belongs to.
    pub(crate) node: i32,
}

/// Bytes that the struct pages of `bytes` of memory take.
///
/// The kernel maps them in 2 MiB pieces, and each piece comes from one place.
pub(crate) fn metadata_bytes(bytes: u64) -> u64 {
    // SAFETY: Returns a constant.
    let each = unsafe { sys::cdm_struct_page_bytes() };
    (bytes / PAGE_BYTES * each).next_multiple_of(sys::CDM_PMD_BYTES)
}

/// Methods of the struct pages; the kernel asks for no more than this one.
struct Ops(sys::dev_pagemap_ops);

// SAFETY: The table is never written to.
unsafe impl Sync for Ops {}

static OPS: Ops = Ops(sys::dev_pagemap_ops {
    folio_free: Some(folio_free),
    // SAFETY: All zero bytes are no methods.
    ..unsafe { core::mem::zeroed() }
});

/// Device memory that is hotplugged, and the allocator of its pages.
///
/// # Invariants
///
/// - While `is_mapped`, `pgmap` is live and its `owner` is the address of this value.
/// - The allocator has as free exactly the pages that the kernel does not use.
/// - `first_pfn` and `layout` never change.
#[pin_data(PinnedDrop)]
pub(crate) struct Region {
    #[pin]
    pgmap: Opaque<sys::dev_pagemap>,
    is_mapped: Atomic<bool>,
    layout: Layout,
    /// Page frame of the allocator's page 0.
    first_pfn: u64,
    /// Pages of the allocator.
    pages: u32,
    #[pin]
    alloc: SpinLockIrq<PageAlloc<KVVec<u64>>>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: What is shared is behind `alloc`, atomic, or the kernel's to lock.
unsafe impl Send for Region {}
// SAFETY: As above.
unsafe impl Sync for Region {}

impl Region {
    /// Hotplugs the memory. The device has mapped it, and guards the metadata.
    pub(crate) fn map(layout: Layout) -> Result<Pin<KBox<Self>>> {
        let pages = u32::try_from((layout.bytes - layout.metadata_bytes) / PAGE_BYTES)
            .map_err(|_| EINVAL)?;
        let words = KVVec::zeroed(words_needed(pages), GFP_KERNEL)?;
        let alloc = PageAlloc::new(pages, words).ok_or(EINVAL)?;
        let this = KBox::pin_init(
            pin_init!(Self {
                pgmap: Opaque::zeroed(),
                is_mapped: Atomic::new(false),
                layout,
                first_pfn: (layout.base + layout.metadata_bytes) / PAGE_BYTES,
                pages,
                alloc <- new_spinlock_irq!(alloc),
                _pin: PhantomPinned,
            }),
            GFP_KERNEL,
        )?;

        let pgmap = this.pgmap.get();
        let owner = this.owner().owner;
        let base_pfn = (layout.base / PAGE_BYTES) as usize;
        // SAFETY: The structure is ours alone until `memremap_pages()`, and zeroed.
        unsafe {
            (*pgmap).type_ = layout.memory_type.number();
            (*pgmap).ops = &OPS.0;
            (*pgmap).owner = owner;
            (*pgmap).nr_range = 1;
            *(*pgmap).__bindgen_anon_1.range.as_mut() = sys::range {
                start: layout.base,
                end: layout.base + layout.bytes - 1,
            };
            if layout.metadata_bytes != 0 {
                (*pgmap).flags = sys::CDM_PGMAP_ALTMAP_VALID;
                (*pgmap).altmap.base_pfn = base_pfn;
                (*pgmap).altmap.free = (layout.metadata_bytes / PAGE_BYTES) as usize;
            }
        }
        // SAFETY: The structure is complete and pinned. It lives until `unmap`.
        let mapped = unsafe { sys::memremap_pages(pgmap, layout.node) };
        kernel::error::from_err_ptr(mapped)?;
        // INVARIANT: Live from here on.
        this.is_mapped.store(true, Release);
        Ok(this)
    }

    /// Takes the memory out again. Every page is free; otherwise this waits for it.
    pub(crate) fn unmap(&self) {
        if self.is_mapped.xchg(false, Full) {
            // SAFETY: Live by the type invariant, and unmapped once, thanks to the flag.
            unsafe { sys::memunmap_pages(self.pgmap.get()) };
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How the kernel names this region's pages.
    pub(crate) fn owner(&self) -> Owner {
        Owner {
            owner: core::ptr::from_ref(self).cast_mut().cast(),
            select: self.layout.memory_type.select(),
        }
    }

    /// Pages for processes, in all.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages that nobody uses.
    pub(crate) fn free_pages(&self) -> u32 {
        self.alloc.lock().free_pages()
    }

    /// Free blocks of an order.
    pub(crate) fn free_blocks(&self, order: u32) -> u32 {
        self.alloc.lock().free_blocks(order)
    }

    /// Pages in use.
    pub(crate) fn used_pages(&self) -> u32 {
        self.pages - self.free_pages()
    }

    /// Fills `frames` with the frames in use from page `from` on; the page to go on
    /// from, or `None` at the end.
    pub(crate) fn used_frames(&self, from: u32, frames: &mut KVec<usize>) -> Option<u32> {
        let alloc = self.alloc.lock();
        let mut next = from;
        while let Some(page) = alloc.next_used(next) {
            let Ok(()) = frames.push_within_capacity((self.first_pfn + u64::from(page)) as usize)
            else {
                return Some(page);
            };
            next = page + 1;
        }
        None
    }

    /// Offset into the device memory of a physical address; `None` if it is elsewhere.
    pub(crate) fn offset_of(&self, physical: u64) -> Option<u64> {
        let offset = physical.checked_sub(self.layout.base)?;
        (offset < self.layout.bytes).then_some(offset)
    }

    /// Takes free pages for as many as `frames` has room for; fewer if there are not
    /// so many. They are nobody's until [`Region::hand_out`] or [`Region::give_back`].
    pub(crate) fn reserve(&self, slots: &mut [u32]) -> usize {
        self.alloc.lock().alloc_bulk(slots)
    }

    /// Returns a reserved page that was not handed out.
    pub(crate) fn give_back(&self, slot: u32) {
        self.free(slot, 0);
    }

    /// Makes a reserved page a folio: locked, with one reference, the caller's.
    pub(crate) fn hand_out(&self, slot: u32) -> *mut sys::page {
        // SAFETY: The page is in the mapped region, free, and reserved for the caller;
        // the pagemap is live because the caller is inside the device's gate.
        unsafe {
            let page = sys::cdm_pfn_to_page((self.first_pfn + u64::from(slot)) as usize);
            sys::cdm_page_init(page, self.pgmap.get());
            page
        }
    }

    fn free(&self, slot: u32, order: u32) {
        if let Err(err) = self.alloc.lock().free(slot, order) {
            // A page that comes back twice is a bug that must not spread: it stays in use.
            kernel::warn_on!(true);
            pr_err!("page {} of order {} came back: {:?}\n", slot, order, err);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Region {
    fn drop(self: Pin<&mut Self>) {
        self.unmap();
    }
}

/// The last reference to a folio is gone. Any context.
///
/// # Safety
///
/// The kernel calls it for a folio of a pagemap with the methods [`OPS`].
unsafe extern "C" fn folio_free(folio: *mut sys::folio) {
    // SAFETY: The kernel passes a folio of a pagemap with these methods; its owner is
    // the region, which is mapped, because this folio was not home.
    let (region, pfn, order) = unsafe {
        let pgmap = sys::cdm_folio_pgmap(folio);
        let region = &*(*pgmap).owner.cast::<Region>();
        (
            region,
            sys::cdm_folio_pfn(folio),
            sys::cdm_folio_order(folio),
        )
    };
    region.free((pfn as u64 - region.first_pfn) as u32, order);
}

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// System memory, or a kind of device memory that is not ours.
    System,
    /// The region of some device of this driver.
    Cdm(Owner),
}

/// Finds where a page is.
///
/// # Safety
///
/// The page is mapped or referenced, and stays so during the call.
pub(crate) unsafe fn home_of(page: *mut sys::page) -> Home {
    // SAFETY: The page is valid, and so is its pagemap, which its reference holds.
    unsafe {
        let pgmap = sys::cdm_page_pgmap(page);
        if pgmap.is_null() || !core::ptr::eq((*pgmap).ops, &OPS.0) {
            return Home::System;
        }
        let select = if (*pgmap).type_ == sys::CDM_MEMORY_TYPE_COHERENT {
            sys::CDM_SELECT_COHERENT
        } else {
            sys::CDM_SELECT_PUBLIC
        };
        Home::Cdm(Owner {
            owner: (*pgmap).owner,
            select,
        })
    }
}
