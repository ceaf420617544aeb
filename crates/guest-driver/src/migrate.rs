// SPDX-License-Identifier: GPL-2.0-only

//! Moving pages: the kernel's three calls as types.
//!
//! Facility: `migrate_vma_*` and `migrate_device_*`. C header: `linux/migrate.h`.
//!
//! Contexts: process context; a batch of an address space is moved under its mmap lock
//! for reading, a batch of page frames under no lock.
//!
//! Lock order: mmap lock, then the locks of the folios of the batch, which this file
//! holds from [`Collected`] to the end of [`Committed`]; the allocator's lock inside.
//!
//! Invariant: finalize runs once, on every path. [`Collected`] and [`Committed`] share
//! one value whose destructor does it; what was not committed is restored.
//! [`Collected::give_up`] takes its place.

use kernel::mm::MmapReadGuard;
use kernel::prelude::*;

use crate::batch::{PageRange, BATCH_PAGES, PAGE_BYTES};
use crate::fault::Area;
use crate::sys;
use crate::tally::Reason;

/// The arrays of a batch, for reuse.
pub(crate) struct Arrays {
    src: KVec<usize>,
    dst: KVec<usize>,
}

impl Arrays {
    /// Room for any batch.
    pub(crate) fn new() -> Result<Self> {
        Self::with_room(BATCH_PAGES)
    }

    /// Room for a batch of at most `pages` pages.
    pub(crate) fn with_room(pages: usize) -> Result<Self> {
        Ok(Self {
            src: KVec::from_elem(0, pages, GFP_KERNEL)?,
            dst: KVec::from_elem(0, pages, GFP_KERNEL)?,
        })
    }
}

/// Which pages to collect.
#[derive(Clone, Copy)]
pub(crate) struct Select {
    /// `MIGRATE_VMA_SELECT_*`
    pub(crate) flags: u64,
    /// Owner of the device pages among them; null if there are none.
    pub(crate) owner: *mut c_void,
}

/// How the batch was collected, which decides how it ends.
enum Kind {
    Vma(sys::migrate_vma),
    Frames,
}

/// Pages that are locked and unmapped.
///
/// # Invariants
///
/// - The first `pages` entries of the arrays are what the kernel left in them, plus
///   destinations in `dst`, each a locked page with a reference that is ours.
/// - Finalize has not run.
struct Batch<'a> {
    kind: Kind,
    arrays: &'a mut Arrays,
    pages: usize,
    is_committed: bool,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.is_committed {
            // Nothing was copied for sure: the kernel shall map the sources again and
            // drop the destinations.
            for entry in &mut self.arrays.src[..self.pages] {
                *entry &= !(sys::CDM_MPFN_MIGRATE as usize);
            }
        }
        let (src, dst) = (self.arrays.src.as_mut_ptr(), self.arrays.dst.as_mut_ptr());
        match &mut self.kind {
            // SAFETY: Collected by `migrate_vma_setup()` and not finalized before; the
            // mmap lock is still held: `Collected::of_area` borrows it, and the caller of
            // `Collected::of_fault` promised it.
            Kind::Vma(args) => unsafe { sys::migrate_vma_finalize(args) },
            // SAFETY: Collected by `migrate_device_pfns()` and not finalized before.
            Kind::Frames => unsafe { sys::migrate_device_finalize(src, dst, self.pages) },
        }
    }
}

/// What was collected at one place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing to move: not selected, not movable now, or not there.
    Skipped,
    /// There is no page, or the zero page; one could be put there.
    Empty,
    /// A page that waits for its destination.
    Page(*mut sys::page),
}

/// Pages that are locked and unmapped and wait for their destinations.
pub(crate) struct Collected<'a>(Batch<'a>);

impl<'a> Collected<'a> {
    /// Collects the selected pages of a part of an area of at most a batch.
    ///
    /// `None` if the kernel does not migrate that kind of area.
    pub(crate) fn of_area(
        area: &'a Area<'_>,
        select: Select,
        arrays: &'a mut Arrays,
        _locked: &'a MmapReadGuard<'_>,
    ) -> Option<Self> {
        // SAFETY: The area is valid and covers the range, because the mmap lock is held.
        unsafe { Self::of_range(area.as_ptr(), area.range, select, arrays, None) }
    }

    /// Collects the selected pages around one that a CPU touched.
    ///
    /// # Safety
    ///
    /// The fault's page is locked, and referenced once for that; the fault's area covers
    /// the range, and its mmap lock is held for `'a`.
    pub(crate) unsafe fn of_fault(
        vmf: *mut sys::vm_fault,
        range: PageRange,
        select: Select,
        arrays: &'a mut Arrays,
    ) -> Option<Self> {
        // SAFETY: By the function's contract.
        unsafe {
            let (vma, page) = (sys::cdm_fault_vma(vmf), sys::cdm_fault_page(vmf));
            Self::of_range(vma, range, select, arrays, Some(page))
        }
    }

    /// # Safety
    ///
    /// The area covers the range, and its mmap lock is held for `'a`. The page of a fault
    /// is locked.
    unsafe fn of_range(
        vma: *mut sys::vm_area_struct,
        range: PageRange,
        select: Select,
        arrays: &'a mut Arrays,
        fault_page: Option<*mut sys::page>,
    ) -> Option<Self> {
        let pages = range.pages();
        arrays.src[..pages].fill(0);
        arrays.dst[..pages].fill(0);
        // SAFETY: All zero bytes are a valid `struct migrate_vma`.
        let mut args: sys::migrate_vma = unsafe { core::mem::zeroed() };
        args.vma = vma;
        args.src = arrays.src.as_mut_ptr();
        args.dst = arrays.dst.as_mut_ptr();
        args.start = range.start() as usize;
        args.end = range.end() as usize;
        args.pgmap_owner = select.owner;
        args.flags = select.flags as usize;
        args.fault_page = fault_page.unwrap_or(core::ptr::null_mut());
        // SAFETY: By the function's contract; the arrays have room for the range.
        if unsafe { sys::migrate_vma_setup(&mut args) } != 0 {
            return None;
        }
        Some(Self(Batch {
            kind: Kind::Vma(args),
            arrays,
            pages,
            is_committed: false,
        }))
    }

    /// Collects page frames of device memory, of a region that stays mapped meanwhile.
    ///
    /// Frames whose page is free, locked by somebody, or referenced are left alone.
    pub(crate) fn of_frames(frames: &[usize], arrays: &'a mut Arrays) -> Self {
        let pages = frames.len().min(BATCH_PAGES);
        arrays.src[..pages].copy_from_slice(&frames[..pages]);
        arrays.dst[..pages].fill(0);
        // SAFETY: The frames have struct pages, as their region is mapped.
        unsafe { sys::migrate_device_pfns(arrays.src.as_mut_ptr(), pages) };
        Self(Batch {
            kind: Kind::Frames,
            arrays,
            pages,
            is_committed: false,
        })
    }

    /// Pages of the batch.
    pub(crate) fn pages(&self) -> usize {
        self.0.pages
    }

    /// What was collected at the `index`th place.
    pub(crate) fn source(&self, index: usize) -> Source {
        let entry = self.0.arrays.src[index] as u64;
        if entry & sys::CDM_MPFN_MIGRATE == 0 {
            Source::Skipped
        } else if entry & sys::CDM_MPFN_VALID == 0 {
            Source::Empty
        } else {
            // SAFETY: The entry names a page that the kernel locked for us.
            Source::Page(unsafe { sys::cdm_pfn_to_page((entry >> sys::CDM_MPFN_SHIFT) as usize) })
        }
    }

    /// Whether the `index`th entry stands for all pages of a large folio, or of a hole of
    /// that size; the entries of its other pages then say nothing.
    pub(crate) fn is_compound(&self, index: usize) -> bool {
        let both = sys::CDM_MPFN_COMPOUND | sys::CDM_MPFN_MIGRATE;
        self.0.arrays.src[index] as u64 & both == both
    }

    /// Why the kernel left the `index`th page alone, if it says.
    pub(crate) fn reason(&self, index: usize) -> Option<Reason> {
        // SAFETY: Takes a value only.
        Reason::of_raw(unsafe { sys::cdm_mpfn_reason(self.0.arrays.src[index]) })
    }

    /// Gives the `index`th page its destination, with the data already in it.
    ///
    /// A large source that gets small destinations is split on the way, if it is anonymous.
    ///
    /// # Safety
    ///
    /// `page` is the first of a locked folio of that order, and the caller passes on its
    /// reference to it.
    pub(crate) unsafe fn give(&mut self, index: usize, page: *mut sys::page, order: u32) {
        // SAFETY: The page is valid.
        let pfn = unsafe { sys::cdm_page_to_pfn(page) } as u64;
        let compound = if order == 0 {
            0
        } else {
            sys::CDM_MPFN_COMPOUND
        };
        self.0.arrays.dst[index] =
            (pfn << sys::CDM_MPFN_SHIFT | sys::CDM_MPFN_VALID | compound) as usize;
    }

    /// Takes the pages, which were collected as frames of private memory, from those who map
    /// them, with their contents: who touches them gets SIGBUS. Needs `CDM_CAN_POISON`.
    pub(crate) fn give_up(self) {
        let src = self.0.arrays.src.as_mut_ptr();
        // SAFETY: Collected by `migrate_device_pfns()`, and not finalized, neither before nor,
        // as the batch is forgotten, after.
        unsafe { sys::cdm_mpfns_poison(src, self.0.pages) };
        core::mem::forget(self);
    }

    /// Lets the kernel put the destinations in the sources' place.
    pub(crate) fn commit(mut self) -> Committed<'a> {
        let batch = &mut self.0;
        let (src, dst) = (batch.arrays.src.as_mut_ptr(), batch.arrays.dst.as_mut_ptr());
        match &mut batch.kind {
            // SAFETY: Collected, not finalized; sources and destinations are locked.
            Kind::Vma(args) => unsafe { sys::migrate_vma_pages(args) },
            // SAFETY: As above.
            Kind::Frames => unsafe { sys::migrate_device_pages(src, dst, batch.pages) },
        }
        batch.is_committed = true;
        Committed(self.0)
    }
}

/// Pages of which the kernel has decided which ones moved; their mappings come back
/// when this is dropped.
pub(crate) struct Committed<'a>(Batch<'a>);

impl Committed<'_> {
    /// Whether the `index`th page moved; `None` if it got no destination.
    pub(crate) fn is_moved(&self, index: usize) -> Option<bool> {
        let is_migrated = self.0.arrays.src[index] as u64 & sys::CDM_MPFN_MIGRATE != 0;
        (self.0.arrays.dst[index] != 0).then_some(is_migrated)
    }

    /// Why the `index`th page did not move although it got a destination.
    pub(crate) fn reason(&self, index: usize) -> Option<Reason> {
        let entry = self.0.arrays.src[index] as u64;
        if entry & sys::CDM_MPFN_VALID == 0 {
            return None;
        }
        // SAFETY: The entry names a page that is locked and referenced until finalize.
        let page = unsafe { sys::cdm_pfn_to_page((entry >> sys::CDM_MPFN_SHIFT) as usize) };
        // SAFETY: As above.
        Reason::of_raw(unsafe { sys::cdm_page_late_reason(page) })
    }
}

/// A new folio of system memory, locked, for the pages of `area` from `index` on.
pub(crate) fn system_page(area: &Area<'_>, index: usize, order: u32) -> Option<*mut sys::page> {
    let address = area.range.start() + index as u64 * PAGE_BYTES;
    // SAFETY: The area is valid while the mmap lock is held, and covers its range.
    unsafe { system_page_at(area.as_ptr(), address, order) }
}

/// A new folio of system memory, locked, for pages of an area.
///
/// # Safety
///
/// The area covers the address, and its mmap lock is held.
pub(crate) unsafe fn system_page_at(
    vma: *mut sys::vm_area_struct,
    address: u64,
    order: u32,
) -> Option<*mut sys::page> {
    // SAFETY: By the function's contract.
    let page = unsafe { sys::cdm_page_alloc(vma, address as usize, order) };
    (!page.is_null()).then_some(page)
}
