// SPDX-License-Identifier: GPL-2.0-only

//! What an address space maps, and mapping what is missing.
//!
//! Facility: `hmm_range_fault()`, asked to look only or to fault in what is missing, and
//! `fixup_user_fault()`. C headers: `linux/hmm.h`, `linux/mm.h`.
//! Contexts: process context under the mmap lock for reading. Lock order: as for
//! [`crate::notifier`]. Invariant: no pfn is used before its ticket is judged.

use kernel::mm::{MmWithUser, MmapReadGuard};
use kernel::prelude::*;

use crate::alloc::ORDER_MAX;
use crate::batch::{PageRange, BATCH_PAGES, PAGE_BYTES};
use crate::notifier::{Follower, Mirror, ReadTicket};
use crate::pagemap::{home_of, private_owners, Home, Region};
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
        /// Its page frame.
        frame: usize,
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

    /// KSM has merged it with others.
    pub(crate) fn is_merged(self) -> bool {
        self.0 & sys::CDM_TRAIT_MERGED != 0
    }

    /// Somebody pinned its folio for DMA.
    pub(crate) fn is_pinned(self) -> bool {
        self.0 & sys::CDM_TRAIT_PINNED != 0
    }
}

/// What a look at mappings shall bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Nothing.
    Look,
    /// Every page can be read.
    Read,
    /// Every page can be written to.
    Write,
}

impl Want {
    fn flags(self) -> usize {
        match self {
            Self::Look => 0,
            // SAFETY: Returns a constant.
            Self::Read => unsafe { sys::cdm_hmm_request(false) },
            // SAFETY: As above.
            Self::Write => unsafe { sys::cdm_hmm_request(true) },
        }
    }
}

/// A mapping, as `hmm_range_fault()` reports it.
#[derive(Clone, Copy)]
pub(crate) struct Entry(usize);

impl Entry {
    /// What was reported for the page at `address`.
    fn new(raw: usize, address: u64) -> Self {
        // SAFETY: Takes any number.
        if unsafe { sys::cdm_hmm_order(raw) } != ORDER_MAX {
            return Self(raw);
        }
        // Linux 7.3 reports the folio's first frame for whatever page of a large private
        // folio the range starts at (`hmm_vma_handle_absent_pmd()`). What an entry for 2 MiB
        // maps is aligned to that, so the address tells which frame it is.
        let within = BATCH_PAGES - 1;
        let page = (address / PAGE_BYTES) as usize & within;
        Self(raw & !within | page)
    }

    /// The page, which is valid as long as the mapping is.
    pub(crate) fn page(self) -> Option<*mut sys::page> {
        // SAFETY: Takes any number.
        if !unsafe { sys::cdm_hmm_valid(self.0) } {
            return None;
        }
        // SAFETY: The entry is valid, so it names a page frame with a struct page.
        Some(unsafe { sys::cdm_hmm_page(self.0) })
    }

    /// No device could access the address at all.
    pub(crate) fn is_error(self) -> bool {
        // SAFETY: Takes any number.
        unsafe { sys::cdm_hmm_error(self.0) }
    }

    /// The mapping can be written through.
    pub(crate) fn is_writable(self) -> bool {
        // SAFETY: Takes any number.
        unsafe { sys::cdm_hmm_writable(self.0) }
    }

    /// Order of the page table entry that maps it: 0, 9 or 18.
    pub(crate) fn order(self) -> u32 {
        // SAFETY: Takes any number.
        unsafe { sys::cdm_hmm_order(self.0) }
    }
}

/// What is mapped in a batch.
pub(crate) struct Snapshot {
    /// Whose private memory is shown where a device looks; only compared.
    private_owner: *mut c_void,
    pfns: KVec<usize>,
    mapped: KVec<Mapped>,
}

impl Snapshot {
    pub(crate) fn new(region: &Region) -> Result<Self> {
        Ok(Self {
            private_owner: region.owner().owner,
            pfns: KVec::from_elem(0, BATCH_PAGES, GFP_KERNEL)?,
            mapped: KVec::from_elem(Mapped::Nothing, BATCH_PAGES, GFP_KERNEL)?,
        })
    }

    /// Looks at `batch`, also at the private memory of other devices; false if it changed
    /// meanwhile, and a new ticket is needed.
    ///
    /// The kernel shows private memory to its owner alone, so this asks once for each.
    pub(crate) fn take(
        &mut self,
        mirror: &Mirror,
        ticket: ReadTicket,
        mm: &MmWithUser,
        batch: PageRange,
        locked: &MmapReadGuard<'_>,
    ) -> Result<bool> {
        // Filled under the lock, so it is taken out of `self` for that long.
        let mut mapped = core::mem::take(&mut self.mapped);
        mapped[..batch.pages()].fill(Mapped::Nothing);
        let own = self.private_owner;
        let others = private_owners().filter(|owner| *owner != own);
        let mut judged = Ok(Some(()));
        for owner in Iterator::chain(core::iter::once(own), others) {
            judged = self.see_as(owner, mirror, ticket, batch, Want::Look, |(), entries| {
                for (entry, mapped) in entries.zip(mapped.iter_mut()) {
                    if let Some(page) = entry.page() {
                        // SAFETY: The ticket holds, so the page is mapped there until the
                        // lock is dropped, and mapped pages are valid.
                        *mapped = unsafe { describe(page) };
                    }
                }
            });
            if !matches!(judged, Ok(Some(()))) {
                break;
            }
        }
        self.mapped = mapped;
        if judged?.is_none() {
            return Ok(false);
        }
        self.look_into_unreadable(mm, batch, locked);
        Ok(true)
    }

    /// Asks for the mappings of `batch`, and passes them to `with` with what the mirror's
    /// follower knows. `None` if something changed meanwhile, and a new ticket is needed.
    ///
    /// EFAULT if a page that is wanted is not there, EPERM if it must not be written to,
    /// ENOMEM.
    pub(crate) fn see<T: Follower, R>(
        &mut self,
        mirror: &Mirror<T>,
        ticket: ReadTicket,
        batch: PageRange,
        want: Want,
        _locked: &MmapReadGuard<'_>,
        with: impl FnOnce(&mut T, &mut dyn Iterator<Item = Entry>) -> R,
    ) -> Result<Option<R>> {
        self.see_as(self.private_owner, mirror, ticket, batch, want, with)
    }

    /// As [`Snapshot::see`], under the mmap lock, with the eyes of the owner of some private
    /// memory.
    fn see_as<T: Follower, R>(
        &mut self,
        owner: *mut c_void,
        mirror: &Mirror<T>,
        ticket: ReadTicket,
        batch: PageRange,
        want: Want,
        with: impl FnOnce(&mut T, &mut dyn Iterator<Item = Entry>) -> R,
    ) -> Result<Option<R>> {
        let mut range = self.request(mirror, batch, want);
        range.dev_private_owner = owner;
        range.notifier_seq = ticket.sequence;
        // SAFETY: The notifier is inserted, the array has room for the batch, and the
        // mmap lock is held.
        let err = unsafe { sys::hmm_range_fault(&mut range) };
        if err == EBUSY.to_errno() {
            return Ok(None);
        }
        kernel::error::to_result(err)?;
        Ok(self.judge(mirror, ticket, batch, with))
    }

    /// As [`Snapshot::see`], for areas whose faults need the mmap lock dropped, such as
    /// those that a userfaultfd serves. Not under the mmap lock; takes its own ticket. EINTR
    /// if the process is to die.
    pub(crate) fn see_unlocked<T: Follower, R>(
        &mut self,
        mirror: &Mirror<T>,
        batch: PageRange,
        want: Want,
        with: impl FnOnce(&mut T, &mut dyn Iterator<Item = Entry>) -> R,
    ) -> Result<Option<R>> {
        let mut range = self.request(mirror, batch, want);
        // SAFETY: The notifier is inserted, the array has room for the batch, and the
        // address space has users. Zero is no limit of time.
        let err = unsafe { sys::hmm_range_fault_unlocked_timeout(&mut range, 0) };
        kernel::error::to_result(err)?;
        let ticket = ReadTicket {
            sequence: range.notifier_seq,
        };
        Ok(self.judge(mirror, ticket, batch, with))
    }

    fn request<T: Follower>(
        &mut self,
        mirror: &Mirror<T>,
        batch: PageRange,
        want: Want,
    ) -> sys::hmm_range {
        self.pfns[..batch.pages()].fill(0);
        sys::hmm_range {
            notifier: mirror.as_ptr(),
            notifier_seq: 0,
            start: batch.start() as usize,
            end: batch.end() as usize,
            hmm_pfns: self.pfns.as_mut_ptr(),
            default_flags: want.flags(),
            pfn_flags_mask: 0,
            dev_private_owner: self.private_owner,
        }
    }

    fn judge<T: Follower, R>(
        &self,
        mirror: &Mirror<T>,
        ticket: ReadTicket,
        batch: PageRange,
        with: impl FnOnce(&mut T, &mut dyn Iterator<Item = Entry>) -> R,
    ) -> Option<R> {
        let pfns = self.pfns[..batch.pages()].iter().enumerate();
        let mut entries = pfns.map(|(index, raw)| {
            let address = batch.start() + index as u64 * PAGE_BYTES;
            Entry::new(*raw, address)
        });
        mirror.judge(ticket, |follower| with(follower, &mut entries))
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
            frame: sys::cdm_page_to_pfn(page),
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

    /// Whether it may be read.
    pub(crate) fn is_readable(&self) -> bool {
        // SAFETY: The area is valid while the mmap lock is held.
        unsafe { sys::cdm_vma_readable(self.vma) }
    }

    /// Whether it is anonymous memory as a whole.
    pub(crate) fn is_anonymous(&self) -> bool {
        // SAFETY: The area is valid while the mmap lock is held.
        unsafe { sys::cdm_vma_is_anonymous(self.vma) }
    }

    /// Whether what is in it may be executed.
    pub(crate) fn is_executable(&self) -> bool {
        // SAFETY: The area is valid while the mmap lock is held.
        unsafe { sys::cdm_vma_executable(self.vma) }
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
