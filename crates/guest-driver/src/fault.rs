// SPDX-License-Identifier: GPL-2.0

//! What an address space maps, and mapping what is missing.
//!
//! Facility: `hmm_range_fault()`, asked to fault nothing in, and `fixup_user_fault()`.
//! C headers: `linux/hmm.h`, `linux/mm.h`.
//! Contexts: process context under the mmap lock for reading. Lock order: as for
//! [`crate::notifier`]. Invariant: no pfn is used before its ticket is judged.

use kernel::mm::{MmWithUser, MmapReadGuard};
use kernel::prelude::*;

use crate::batch::{PageRange, BATCH_PAGES, PAGE_BYTES};
use crate::notifier::{Mirror, ReadTicket};
use crate::pagemap::{home_of, Home};
use crate::sys;

/// What is mapped at an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// No page.
    Nothing,
    /// A page.
    Page {
        /// Where it is.
        home: Home,
        /// What it is.
        traits: Traits,
    },
}

/// What can be seen of a page that is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traits(u32);

impl Traits {
    /// It is anonymous memory; else page cache, or nothing of a process's own.
    pub(crate) fn is_anon(self) -> bool {
        self.0 & sys::CDM_TRAIT_ANON != 0
    }

    /// It is part of a folio of 2 MiB.
    pub(crate) fn is_large(self) -> bool {
        self.0 & sys::CDM_TRAIT_LARGE != 0
    }

    /// It is part of a folio of more than one page.
    pub(crate) fn is_compound(self) -> bool {
        self.0 & sys::CDM_TRAIT_COMPOUND != 0
    }

    /// Somebody pinned its folio for DMA.
    pub(crate) fn is_pinned(self) -> bool {
        self.0 & sys::CDM_TRAIT_PINNED != 0
    }
}

/// What is mapped in a batch.
pub(crate) struct Snapshot {
    pfns: KVec<usize>,
    mapped: KVec<Mapped>,
}

impl Snapshot {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pfns: KVec::from_elem(0, BATCH_PAGES, GFP_KERNEL)?,
            mapped: KVec::from_elem(Mapped::Nothing, BATCH_PAGES, GFP_KERNEL)?,
        })
    }

    /// Looks at `batch`; false if it changed meanwhile, and a new ticket is needed.
    pub(crate) fn take(
        &mut self,
        mirror: &Mirror,
        ticket: ReadTicket,
        mm: &MmWithUser,
        batch: PageRange,
        _locked: &MmapReadGuard<'_>,
    ) -> Result<bool> {
        let pages = batch.pages();
        self.pfns[..pages].fill(0);
        let mut range = sys::hmm_range {
            notifier: mirror.as_ptr(),
            notifier_seq: ticket.sequence,
            start: batch.start() as usize,
            end: batch.end() as usize,
            hmm_pfns: self.pfns.as_mut_ptr(),
            default_flags: 0,
            pfn_flags_mask: 0,
            dev_private_owner: core::ptr::null_mut(),
        };
        // SAFETY: The notifier is inserted, the array has room for the batch, and the
        // mmap lock is held.
        let err = unsafe { sys::hmm_range_fault(&mut range) };
        if err == EBUSY.to_errno() {
            return Ok(false);
        }
        kernel::error::to_result(err)?;

        // SAFETY: Returns a constant.
        let valid = unsafe { sys::cdm_hmm_pfn_flag_valid() };
        let (pfns, mapped) = (&self.pfns[..pages], &mut self.mapped[..pages]);
        let is_current = mirror.judge(ticket, || {
            for (pfn, mapped) in pfns.iter().zip(mapped.iter_mut()) {
                *mapped = if pfn & valid == 0 {
                    Mapped::Nothing
                } else {
                    // SAFETY: The ticket holds, so the page is mapped there until the
                    // lock is dropped, and mapped pages are valid.
                    unsafe { describe(sys::cdm_hmm_page(*pfn)) }
                };
            }
        });
        if is_current.is_none() {
            return Ok(false);
        }
        self.look_into_unreadable(mm, batch, _locked);
        Ok(true)
    }

    /// `hmm_range_fault()` passes over areas without VM_READ, which still have pages.
    fn look_into_unreadable(
        &mut self,
        mm: &MmWithUser,
        batch: PageRange,
        locked: &MmapReadGuard<'_>,
    ) {
        for area in Areas::new(mm, batch, locked) {
            if area.is_readable() {
                continue;
            }
            for page in 0..area.range.pages() {
                let address = area.range.start() + page as u64 * PAGE_BYTES;
                // SAFETY: The address space is alive, and its mmap lock is held.
                let found = unsafe { sys::cdm_page_mapped_at(mm.as_raw(), address as usize) };
                let index = ((address - batch.start()) / PAGE_BYTES) as usize;
                self.mapped[index] = if found.is_null() {
                    Mapped::Nothing
                } else {
                    // SAFETY: The call took a reference to the page, which is dropped here.
                    unsafe {
                        let mapped = describe(found);
                        sys::cdm_page_put(found);
                        mapped
                    }
                };
            }
        }
    }

    /// What is mapped in a part of the batch.
    pub(crate) fn part(&self, first: usize, pages: usize) -> &[Mapped] {
        &self.mapped[first..first + pages]
    }

    /// What is mapped at the `index`th page of the batch.
    pub(crate) fn mapped(&self, index: usize) -> Mapped {
        self.mapped[index]
    }
}

/// # Safety
///
/// The page is mapped or referenced, and stays so during the call.
unsafe fn describe(page: *mut sys::page) -> Mapped {
    // SAFETY: By the function's contract.
    unsafe {
        Mapped::Page {
            home: home_of(page),
            traits: Traits(sys::cdm_page_traits(page)),
        }
    }
}

/// A part of a range that one memory area covers.
pub(crate) struct Area<'a> {
    vma: *mut sys::vm_area_struct,
    /// The common part of area and range.
    pub(crate) range: PageRange,
    _locked: core::marker::PhantomData<&'a ()>,
}

impl Area<'_> {
    pub(crate) fn as_ptr(&self) -> *mut sys::vm_area_struct {
        self.vma
    }

    fn is_readable(&self) -> bool {
        // SAFETY: The area is valid while the mmap lock is held.
        unsafe { sys::cdm_vma_readable(self.vma) }
    }

    /// Whether it is anonymous memory as a whole.
    pub(crate) fn is_anonymous(&self) -> bool {
        // SAFETY: The area is valid while the mmap lock is held.
        unsafe { sys::cdm_vma_is_anonymous(self.vma) }
    }

    /// Whether it may be faulted in.
    pub(crate) fn is_faultable(&self) -> bool {
        // SAFETY: The area is valid while the mmap lock is held.
        unsafe { sys::cdm_vma_faultable(self.vma) }
    }

    /// Faults the `index`th page of the range in, as a read does; whether that worked.
    pub(crate) fn fault_in(&self, index: usize) -> bool {
        let address = self.range.start() + index as u64 * PAGE_BYTES;
        // SAFETY: The area is valid while the mmap lock is held, which the call keeps.
        unsafe { sys::cdm_fault_in((*self.vma).vm_mm, address as usize) }
    }

    /// Whether the kernel migrates pages of such an area at all.
    pub(crate) fn is_migratable(&self) -> bool {
        // SAFETY: The area is valid while the mmap lock is held.
        unsafe { sys::cdm_vma_migratable(self.vma) }
    }
}

/// The memory areas in a range, lowest first.
pub(crate) struct Areas<'a> {
    mm: &'a MmWithUser,
    range: PageRange,
    next: u64,
    _locked: &'a MmapReadGuard<'a>,
}

impl<'a> Areas<'a> {
    pub(crate) fn new(mm: &'a MmWithUser, range: PageRange, locked: &'a MmapReadGuard<'a>) -> Self {
        Self {
            mm,
            range,
            next: range.start(),
            _locked: locked,
        }
    }
}

impl<'a> Iterator for Areas<'a> {
    type Item = Area<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.range.end() {
            return None;
        }
        // SAFETY: The address space is alive, and its mmap lock is held.
        let vma = unsafe { sys::find_vma(self.mm.as_raw(), self.next as usize) };
        if vma.is_null() {
            return None;
        }
        // SAFETY: The area is valid while the mmap lock is held.
        let area = unsafe { kernel::mm::virt::VmaRef::from_raw(vma) };
        let range = self
            .range
            .within(self.next.max(area.start() as u64), area.end() as u64)?;
        self.next = range.end();
        Some(Area {
            vma,
            range,
            _locked: core::marker::PhantomData,
        })
    }
}
