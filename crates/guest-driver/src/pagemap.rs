// SPDX-License-Identifier: GPL-2.0

//! The device memory as memory of the kernel.
//!
//! Facility: `dev_pagemap`. C header: `linux/memremap.h`.
//!
//! Contexts: [`Region::map`] and [`Region::unmap`] in process context. `folio_free`
//! runs wherever the last reference is dropped: in interrupts, under page table locks.
//! It only returns the pages to the allocator. [`cdm_reclaim`] runs in the middle of reclaim,
//! under any lock of the kernel, so it only tries the one of its own. `migrate_to_ram` is in
//! [`crate::ram`].
//!
//! Pages of public and coherent memory have the addresses of the device's BAR. Those of
//! private memory have addresses that nothing answers to, taken from what the machine
//! leaves free, so that no CPU can reach them; the device knows them by their offset.
//!
//! Lock order: a CPU's stash, then `alloc`, which with `ages` is innermost of all driver
//! locks; all are taken with interrupts off.
//!
//! Invariant: every folio is home before the region is unmapped. `unmap` asks for it,
//! and the kernel would wait for ever for a folio that is not.

use core::cell::UnsafeCell;
use core::marker::PhantomPinned;
use core::ops::Range;

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed, Release};
use kernel::sync::{new_mutex, new_spinlock_irq, Arc, Mutex, SpinLockIrq};
use kernel::types::Opaque;

use crate::ages::{self, Ages, Candidate, Stamp, Turn, NEVER};
use crate::alloc::{words_needed, FreeError, PageAlloc, ORDER_MAX};
use crate::batch::{BATCH_PAGES, PAGE_BYTES};
use crate::engine::Engine;
use crate::evict::Relief;
use crate::number::NUMBERS;
use crate::plan::Segment;
use crate::stash::{Stash, STASH_PAGES};
use crate::wire::Space;
use crate::{ram, sys};

/// Type of the struct pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryType {
    /// MEMORY_DEVICE_PRIVATE, which the CPU cannot map.
    Private,
    /// MEMORY_DEVICE_COHERENT, which every 7.3 kernel has.
    Coherent,
    /// MEMORY_DEVICE_PUBLIC, which the patch series adds.
    Public,
}

impl MemoryType {
    /// Whether the kernel that the module was built for has it.
    pub(crate) fn is_available(self) -> bool {
        self.select() != 0
    }

    /// Whether the CPU can load from it and store to it.
    pub(crate) fn is_cpu_addressable(self) -> bool {
        self != Self::Private
    }

    /// Its number on the ioctl interface.
    pub(crate) fn uapi(self) -> u32 {
        match self {
            Self::Private => sys::cdm_memory_type_CDM_MEMORY_PRIVATE,
            Self::Coherent => sys::cdm_memory_type_CDM_MEMORY_COHERENT,
            Self::Public => sys::cdm_memory_type_CDM_MEMORY_PUBLIC,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Coherent => "coherent",
            Self::Public => "public",
        }
    }

    /// Its name in the kernel.
    pub(crate) fn kernel_name(self) -> &'static str {
        match self {
            Self::Private => "MEMORY_DEVICE_PRIVATE",
            Self::Coherent => "MEMORY_DEVICE_COHERENT",
            Self::Public => "MEMORY_DEVICE_PUBLIC",
        }
    }

    /// The kernel option that brings it.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Private => "CONFIG_DEVICE_PRIVATE",
            Self::Coherent => "CONFIG_ZONE_DEVICE",
            Self::Public => "CONFIG_DEVICE_PUBLIC",
        }
    }

    /// Whether folios of 2 MiB of it are sound in this kernel. The module parameter
    /// `max_order` overrules it.
    pub(crate) fn has_large_folios(self) -> bool {
        // SAFETY: Returns a module parameter.
        match unsafe { sys::cdm_param_max_order() } {
            // Upstream's own suite covers large folios of private memory.
            -1 => sys::CDM_LARGE_IS_SOUND || self == Self::Private,
            order => order != 0,
        }
    }

    /// Order of the largest folios that move whole.
    pub(crate) fn max_order(self) -> u32 {
        match self.has_large_folios() {
            true => ORDER_MAX,
            false => 0,
        }
    }

    /// Whether page cache and shared memory migrate to it.
    pub(crate) fn takes_files(self) -> bool {
        self == Self::Public && sys::CDM_FILES_MIGRATE
    }

    /// Whether the driver helps a memory cgroup that is at its limit. It cannot wait for a
    /// device then, so the CPU must be able to copy.
    fn can_relieve(self) -> bool {
        sys::CDM_HAS_RECLAIM && self.is_cpu_addressable()
    }

    /// What driver and kernel can do with it, by the bits of the ioctl interface.
    pub(crate) fn capabilities(self) -> u32 {
        let mut bits = 0;
        if self.is_cpu_addressable() {
            bits |= sys::CDM_CAN_CPU_ACCESS;
        }
        if self.has_large_folios() {
            bits |= sys::CDM_CAN_MOVE_LARGE;
        }
        if self.takes_files() {
            bits |= sys::CDM_CAN_MOVE_FILES;
        }
        if self.can_relieve() {
            bits |= sys::CDM_CAN_RELIEVE;
        }
        bits
    }

    /// Its number in `enum memory_type`.
    fn number(self) -> u32 {
        match self {
            Self::Private => sys::CDM_MEMORY_TYPE_PRIVATE,
            Self::Coherent => sys::CDM_MEMORY_TYPE_COHERENT,
            Self::Public => sys::CDM_MEMORY_TYPE_PUBLIC,
        }
    }

    /// Its flag of `struct migrate_vma`; zero if the kernel does not have the type.
    fn select(self) -> u64 {
        match self {
            Self::Private => sys::CDM_SELECT_PRIVATE,
            Self::Coherent => sys::CDM_SELECT_COHERENT,
            Self::Public => sys::CDM_SELECT_PUBLIC,
        }
    }
}

/// Owners of the private memory of each device, by its number; null where there is none.
///
/// The kernel shows private memory to its own owner only. They are compared, never followed.
static PRIVATE_OWNERS: [Atomic<*mut c_void>; NUMBERS] =
    [const { Atomic::new(core::ptr::null_mut()) }; NUMBERS];

/// The owners of all private memory of this driver.
pub(crate) fn private_owners() -> impl Iterator<Item = *mut c_void> {
    let owners = PRIVATE_OWNERS.iter().map(|owner| owner.load(Relaxed));
    owners.filter(|owner| !owner.is_null())
}

/// How often pages that are given up are looked for, at most; a tenth of a second lies between.
const ABANDON_ROUNDS: u32 = 20;

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
    /// N of `/dev/cdmN`.
    pub(crate) device: u32,
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

/// Methods of the struct pages. The kernel may know more of them than the driver was
/// built for, or fewer, so the C side adds what is not everywhere.
fn ops(memory_type: MemoryType) -> sys::dev_pagemap_ops {
    let mut ops = sys::dev_pagemap_ops {
        folio_free: Some(folio_free),
        // Of private memory only.
        migrate_to_ram: Some(ram::migrate_to_ram),
        // SAFETY: All zero bytes are no methods.
        ..unsafe { core::mem::zeroed() }
    };
    if memory_type.can_relieve() {
        // SAFETY: The table is valid.
        unsafe { sys::cdm_ops_set_reclaim(&mut ops) };
    }
    ops
}

/// The free pages of one CPU.
#[pin_data]
struct CpuStash {
    #[pin]
    pages: SpinLockIrq<Stash>,
}

/// Device memory that is hotplugged, and the allocator of its pages.
///
/// # Invariants
///
/// - While `is_mapped`, `pgmap` is live and its `owner` is the address of this value, and
///   if the memory is private, `start` is the start of a range of addresses that is ours.
/// - Allocator and stashes have as free exactly the pages that the kernel does not use and
///   that have no memory error; `poisoned` counts the latter.
/// - No page in use has an older stamp than `ages` has for its block.
/// - `start`, `first_pfn` and `layout` never change.
#[pin_data(PinnedDrop)]
pub(crate) struct Region {
    #[pin]
    pgmap: Opaque<sys::dev_pagemap>,
    /// Methods of `pgmap`; written to by `abandon` only.
    ops: UnsafeCell<sys::dev_pagemap_ops>,
    is_mapped: Atomic<bool>,
    layout: Layout,
    /// Copies what the CPU cannot.
    engine: Arc<Engine>,
    /// Address of the first struct page's page.
    start: u64,
    /// Page frame of the allocator's page 0.
    first_pfn: u64,
    /// Pages of the allocator.
    pages: u32,
    stashes: KVec<Pin<KBox<CpuStash>>>,
    #[pin]
    alloc: SpinLockIrq<PageAlloc<KVVec<u64>>>,
    poisoned: Atomic<u32>,
    /// Stamp of the latest migration to the device.
    clock: Atomic<u64>,
    #[pin]
    ages: SpinLockIrq<Ages<KVVec<Stamp>>>,
    #[pin]
    relief: Mutex<Option<Relief>>,
    /// Pages that left because a memory cgroup was at its limit.
    relieved: Atomic<u64>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: What is shared is behind `alloc`, atomic, or the kernel's to lock.
unsafe impl Send for Region {}
// SAFETY: As above.
unsafe impl Sync for Region {}

impl Region {
    /// Hotplugs the memory. The device has mapped it, and guards the metadata.
    pub(crate) fn map(layout: Layout, engine: Arc<Engine>) -> Result<Pin<KBox<Self>>> {
        let pages = u32::try_from((layout.bytes - layout.metadata_bytes) / PAGE_BYTES)
            .map_err(|_| EINVAL)?;
        let words = KVVec::zeroed(words_needed(pages), GFP_KERNEL)?;
        let alloc = PageAlloc::new(pages, words).ok_or(EINVAL)?;
        let blocks = pages.div_ceil(BATCH_PAGES as u32) as usize;
        let ages = Ages::new(KVVec::zeroed(blocks, GFP_KERNEL)?);
        let relief = Some(Relief::new(pages)?);
        let cpus = kernel::cpu::nr_cpu_ids() as usize;
        let mut stashes = KVec::with_capacity(cpus, GFP_KERNEL)?;
        for _ in 0..cpus {
            let stash = pin_init!(CpuStash {
                pages <- new_spinlock_irq!(Stash::new()),
            });
            stashes.push(KBox::pin_init(stash, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let addresses = Addresses::of(&layout)?;
        let this = KBox::pin_init(
            pin_init!(Self {
                pgmap: Opaque::zeroed(),
                ops: UnsafeCell::new(ops(layout.memory_type)),
                is_mapped: Atomic::new(false),
                layout,
                engine,
                start: addresses.start,
                first_pfn: (addresses.start + layout.metadata_bytes) / PAGE_BYTES,
                pages,
                stashes,
                alloc <- new_spinlock_irq!(alloc),
                poisoned: Atomic::new(0),
                clock: Atomic::new(0),
                ages <- new_spinlock_irq!(ages),
                relief <- new_mutex!(relief),
                relieved: Atomic::new(0),
                _pin: PhantomPinned,
            }),
            GFP_KERNEL,
        )?;

        let pgmap = this.pgmap.get();
        let owner = this.owner().owner;
        let base_pfn = (addresses.start / PAGE_BYTES) as usize;
        // SAFETY: The structure is ours alone until `memremap_pages()`, and zeroed.
        unsafe {
            (*pgmap).type_ = layout.memory_type.number();
            (*pgmap).ops = this.ops.get();
            (*pgmap).owner = owner;
            (*pgmap).nr_range = 1;
            *(*pgmap).__bindgen_anon_1.range.as_mut() = sys::range {
                start: addresses.start,
                end: addresses.start + layout.bytes - 1,
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
        // INVARIANT: Live from here on; the addresses are the region's.
        addresses.keep();
        this.is_mapped.store(true, Release);
        if !this.is_cpu_addressable() {
            this.publish(owner);
        }
        Ok(this)
    }

    /// Takes the memory out again. Every page is free; otherwise this waits for it.
    pub(crate) fn unmap(&self) {
        if self.is_mapped.xchg(false, Full) {
            // SAFETY: Live by the type invariant, and unmapped once, thanks to the flag.
            unsafe { sys::memunmap_pages(self.pgmap.get()) };
            if !self.is_cpu_addressable() {
                self.publish(core::ptr::null_mut());
                // SAFETY: By the type invariant; nothing has these addresses any more.
                unsafe { sys::cdm_private_range_put(self.start, self.layout.bytes) };
            }
        }
    }

    /// Says under what name the private memory of this device is found; null for no memory.
    fn publish(&self, owner: *mut c_void) {
        if let Some(place) = PRIVATE_OWNERS.get(self.layout.device as usize) {
            place.store(owner, Relaxed);
        }
    }

    /// Gives the memory up as it is: whoever has a page of it keeps it, and no page comes
    /// back from here on. The region and its value stay for good.
    ///
    /// How many pages that are.
    pub(crate) fn abandon(&self) -> u32 {
        // Nobody helps a memory cgroup any more, nor is at it.
        *self.relief.lock() = None;
        // A reference to each folio in use: then none is ever freed, and no method called. A
        // folio that is being moved by the kernel has none to give for a moment.
        let mut held = 0;
        for _ in 0..ABANDON_ROUNDS {
            held += self.hold_all();
            // SAFETY: Process context, no lock held.
            unsafe { sys::cdm_wait_for_callbacks() };
            if held >= self.used_pages() {
                break;
            }
        }
        // SAFETY: All zero bytes are no methods, and nobody calls one any more: every folio
        // in use has a reference that is never dropped, and the kernel asks whether there
        // is a method to reclaim with.
        unsafe { *self.ops.get() = core::mem::zeroed() };
        held
    }

    /// Takes a reference for good to each folio in use that has none yet; to how many pages.
    fn hold_all(&self) -> u32 {
        let mut held = 0;
        let mut next = 0;
        while let Some(folio) = self.next_folio(next, self.pages) {
            next = folio.page + (1 << folio.order);
            // SAFETY: The frame is in the mapped region.
            let is_held = folio.stamp != NEVER
                && unsafe { sys::cdm_frame_hold(self.frame(folio.page), NEVER) };
            if is_held {
                held += 1 << folio.order;
            }
        }
        held
    }

    /// Whether the CPU can load from its pages and store to them.
    pub(crate) fn is_cpu_addressable(&self) -> bool {
        self.layout.memory_type.is_cpu_addressable()
    }

    /// The device that the memory is in.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
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
        // In this order a page on its way from a stash to the allocator is missed rather
        // than counted twice, so what is said to be free is.
        let mut free = self.alloc.lock().free_pages();
        for stash in &self.stashes {
            free += stash.pages.lock().len() as u32;
        }
        free.min(self.pages)
    }

    /// Pages that have a memory error and are never used again.
    pub(crate) fn poisoned_pages(&self) -> u32 {
        self.poisoned.load(Relaxed)
    }

    /// Free blocks of an order.
    pub(crate) fn free_blocks(&self, order: u32) -> u32 {
        self.empty_stashes();
        self.alloc.lock().free_blocks(order)
    }

    /// Pages in use.
    pub(crate) fn used_pages(&self) -> u32 {
        self.pages
            .saturating_sub(self.free_pages())
            .saturating_sub(self.poisoned_pages())
    }

    /// Adds to `frames` those of the folios in use from page `from` up to `end` that were
    /// migrated before `before`; the page to go on from if there is no room for a batch
    /// and more, or `None` at the end.
    ///
    /// The frames of a folio follow each other and are all there, also if only its end is
    /// in the range; a folio that does not fit any more is left to the next call.
    pub(crate) fn used_frames(
        &self,
        from: u32,
        end: u32,
        before: Stamp,
        frames: &mut KVec<usize>,
    ) -> Option<u32> {
        let mut next = from;
        while let Some(folio) = self.next_folio(next, end) {
            let pages = 1 << folio.order;
            if folio.stamp < before {
                if frames.len() + pages > BATCH_PAGES {
                    return Some(folio.page.max(from));
                }
                for page in folio.page..folio.page + pages as u32 {
                    let _ = frames.push_within_capacity(self.frame(page));
                }
            }
            next = folio.page + pages as u32;
        }
        None
    }

    /// The folios in use in a range of at most a block.
    pub(crate) fn used_folios(&self, pages: Range<u32>, folios: &mut KVec<Candidate>) {
        folios.clear();
        let mut next = pages.start;
        while let Some(folio) = self.next_folio(next, pages.end) {
            next = folio.page + (1 << folio.order);
            let _ = folios.push_within_capacity(folio);
        }
    }

    /// The first folio in use that has a page in `from..end`.
    fn next_folio(&self, from: u32, end: u32) -> Option<Candidate> {
        let mut next = from;
        loop {
            // Most of a memory that is looked through is free.
            let used = self.alloc.lock().next_used(next);
            next = used.filter(|page| *page < end)?;
            if let Some(folio) = self.look(next) {
                return Some(folio);
            }
            next += 1;
        }
    }

    /// The folio in use that `page` is part of, if there is one at this moment.
    fn look(&self, page: u32) -> Option<Candidate> {
        let (mut head, mut order, mut stamp) = (0, 0, 0);
        // SAFETY: The frame is in the mapped region.
        let is_used =
            unsafe { sys::cdm_frame_look(self.frame(page), &mut head, &mut order, &mut stamp) };
        let page = (head as u64).checked_sub(self.first_pfn)? as u32;
        is_used.then_some(Candidate { stamp, page, order })
    }

    /// As [`note_age`](Self::note_age), if the page is in use at this moment.
    pub(crate) fn note_age_if_used(&self, page: u32, stamp: Stamp) {
        if self.look(page).is_some() {
            self.note_age(page, stamp);
        }
    }

    /// The lowest frame in use.
    pub(crate) fn first_used(&self) -> Option<usize> {
        self.empty_stashes();
        let mut next = 0;
        loop {
            let page = self.alloc.lock().next_used(next)?;
            if self.poisoned_in(page, 0) == 0 {
                return Some(self.frame(page));
            }
            next = page + 1;
        }
    }

    /// Page frame of a page of the allocator.
    pub(crate) fn frame(&self, page: u32) -> usize {
        (self.first_pfn + u64::from(page)) as usize
    }

    /// The pages of a range of addresses in the device's BAR; `None` if not all of it is
    /// usable.
    pub(crate) fn pages_of(&self, address: u64, length: u64) -> Option<Range<u32>> {
        let usable = self.layout.base + self.layout.metadata_bytes;
        let first = address.checked_sub(usable)? / PAGE_BYTES;
        let end = first.checked_add(length / PAGE_BYTES)?;
        (end <= u64::from(self.pages)).then_some(first as u32..end as u32)
    }

    /// A stamp for what migrates now.
    pub(crate) fn stamp(&self) -> Stamp {
        self.clock.fetch_add(1, Relaxed) + 1
    }

    /// Blocks of 2 MiB, the last of which may be shorter.
    pub(crate) fn blocks(&self) -> u32 {
        self.pages.div_ceil(BATCH_PAGES as u32)
    }

    /// Pages of a block.
    pub(crate) fn block(&self, block: u32) -> Range<u32> {
        let first = block * BATCH_PAGES as u32;
        first..(first + BATCH_PAGES as u32).min(self.pages)
    }

    /// The blocks with pages in use, oldest first; `blocks` has room for all there are.
    pub(crate) fn blocks_by_age(&self, blocks: &mut KVVec<(Stamp, u32)>) {
        blocks.clear();
        for block in self.ages.lock().blocks() {
            let _ = blocks.push_within_capacity(block);
        }
        ages::sort_by_key(blocks, |block| *block);
    }

    /// Pages that left because a memory cgroup was at its limit.
    pub(crate) fn relieved_pages(&self) -> u64 {
        self.relieved.load(Relaxed)
    }

    /// The block with the pages that were migrated longest ago, if that was before
    /// `before`: its folios in use. Those that stay are to be noted again.
    pub(crate) fn oldest_block(&self, before: Stamp, folios: &mut KVec<Candidate>) -> Option<Turn> {
        let turn = self.ages.lock().next(before)?;
        self.used_folios(self.block(turn.block as u32), folios);
        Some(turn)
    }

    /// A folio with that stamp stays in its block.
    pub(crate) fn note_age(&self, page: u32, stamp: Stamp) {
        self.ages.lock().note(page as usize / BATCH_PAGES, stamp);
    }

    /// Where this device finds `bytes` bytes at offset `offset` of a page.
    ///
    /// # Safety
    ///
    /// The page is mapped or referenced, and stays so during the call.
    pub(crate) unsafe fn segment_of(
        &self,
        page: *mut sys::page,
        offset: u64,
        bytes: u64,
    ) -> Segment {
        // SAFETY: By the function's contract.
        let physical = unsafe { sys::cdm_page_to_pfn(page) } as u64 * PAGE_BYTES + offset;
        if let Some(address) = self.offset_of(physical) {
            return Segment {
                space: Space::DEVICE,
                address,
                bytes,
            };
        }
        // Other devices' memory is ordinary guest memory for this one, at its place in the
        // other's BAR, also where the CPU is kept away from it.
        // SAFETY: By the function's contract.
        let address = match unsafe { region_of(page) } {
            Some(other) if !other.is_cpu_addressable() => {
                other.layout.base + (physical - other.start)
            }
            _ => physical,
        };
        Segment {
            space: Space::GUEST,
            address,
            bytes,
        }
    }

    /// Offset into the device memory of the address of a page; `None` if it is elsewhere.
    fn offset_of(&self, physical: u64) -> Option<u64> {
        let offset = physical.checked_sub(self.start)?;
        (offset < self.layout.bytes).then_some(offset)
    }

    /// Takes free pages for as many as `slots` has room for; fewer if there are not so
    /// many. They are nobody's until [`Region::hand_out`] or [`Region::give_back`].
    pub(crate) fn reserve(&self, slots: &mut [u32]) -> usize {
        let mut got = {
            let mut stash = self.stash().pages.lock();
            if stash.is_empty() && slots.len() < STASH_PAGES / 2 {
                stash.refill(&mut self.alloc.lock());
            }
            stash.take(slots)
        };
        if got < slots.len() {
            got += self.alloc.lock().alloc_bulk(&mut slots[got..]);
        }
        if got < slots.len() {
            // The rest may be with other CPUs.
            self.empty_stashes();
            got += self.alloc.lock().alloc_bulk(&mut slots[got..]);
        }
        got
    }

    /// Takes a free block of 2 MiB.
    pub(crate) fn reserve_large(&self) -> Option<u32> {
        let block = self.alloc.lock().alloc(ORDER_MAX);
        if block.is_some() {
            return block;
        }
        self.empty_stashes();
        self.alloc.lock().alloc(ORDER_MAX)
    }

    /// Returns a reserved page that was not handed out.
    pub(crate) fn give_back(&self, slot: u32) {
        self.free(slot, 0);
    }

    /// Makes reserved pages a folio: locked, with one reference, the caller's. `None` if
    /// one of them has a memory error; then they are not reserved any more.
    pub(crate) fn hand_out(&self, slot: u32, order: u32, stamp: Stamp) -> Option<*mut sys::page> {
        // SAFETY: The pages are in the mapped region, free, and reserved for the caller;
        // the pagemap is live because the caller is inside the device's gate.
        let page = unsafe {
            let page = sys::cdm_pfn_to_page(self.frame(slot));
            sys::cdm_page_init(page, self.pgmap.get(), order, stamp);
            page
        };
        // After it is in use: who looks for old pages now either sees it, or this note.
        self.note_age(slot, stamp);
        if self.poisoned_in(slot, order) == 0 {
            return Some(page);
        }
        // SAFETY: The page is locked, with a reference that is ours. `folio_free` sorts
        // out which parts of it can be used.
        unsafe { sys::cdm_page_unlock_put(page) };
        None
    }

    /// Pages with a memory error among those of a block.
    fn poisoned_in(&self, slot: u32, order: u32) -> u32 {
        (slot..slot + (1 << order))
            // SAFETY: The page is in the mapped region.
            .filter(|slot| unsafe {
                sys::cdm_page_poisoned(sys::cdm_pfn_to_page(self.frame(*slot)))
            })
            .count() as u32
    }

    /// The stash of this CPU. The caller may be on another one by the time it uses it.
    fn stash(&self) -> &CpuStash {
        // SAFETY: Returns a number below `nr_cpu_ids`.
        let cpu = unsafe { sys::cdm_cpu() } as usize;
        &self.stashes[cpu % self.stashes.len()]
    }

    /// Brings what is in the stashes back together with its buddies.
    fn empty_stashes(&self) {
        for stash in &self.stashes {
            let mut stash = stash.pages.lock();
            if !stash.is_empty() {
                self.check(stash.spill(0, &mut self.alloc.lock()));
            }
        }
    }

    /// A folio comes back from the kernel.
    fn take_back(&self, slot: u32, order: u32) {
        if self.poisoned_in(slot, order) == 0 {
            self.free(slot, order);
            return;
        }
        for slot in slot..slot + (1 << order) {
            if self.poisoned_in(slot, 0) == 0 {
                self.free(slot, 0);
            } else {
                self.poisoned.add(1, Relaxed);
            }
        }
    }

    fn free(&self, slot: u32, order: u32) {
        if order != 0 {
            let result = self.alloc.lock().free(slot, order);
            self.check(result.map_err(|err| (slot, err)));
            return;
        }
        let mut stash = self.stash().pages.lock();
        if !stash.put(slot) {
            self.check(stash.spill(STASH_PAGES / 2, &mut self.alloc.lock()));
            // There is room now.
            stash.put(slot);
        }
    }

    /// A page that comes back twice is a bug that must not spread: it stays in use.
    fn check(&self, result: core::result::Result<(), (u32, FreeError)>) {
        if let Err((slot, err)) = result {
            kernel::warn_on!(true);
            pr_err!("page {} came back: {:?}\n", slot, err);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Region {
    fn drop(self: Pin<&mut Self>) {
        self.unmap();
    }
}

/// The method by which the driver knows its own pagemaps.
const FOLIO_FREE: unsafe extern "C" fn(*mut sys::folio) = folio_free;

/// The last reference to a folio is gone. Any context.
///
/// # Safety
///
/// The kernel calls it for a folio of the pagemap of a [`Region`].
unsafe extern "C" fn folio_free(folio: *mut sys::folio) {
    // SAFETY: By the function's contract; the owner is the region, which is mapped,
    // because this folio was not home.
    let (region, pfn, order) = unsafe {
        let pgmap = sys::cdm_folio_pgmap(folio);
        let region = &*(*pgmap).owner.cast::<Region>();
        (
            region,
            sys::cdm_folio_pfn(folio),
            sys::cdm_folio_order(folio),
        )
    };
    region.take_back((pfn as u64 - region.first_pfn) as u32, order);
}

/// A memory cgroup is at its limit, and reclaim did not free enough: brings pages of it
/// back to system memory, where it can go on. How many.
///
/// # Safety
///
/// The kernel calls it for the pagemap of a [`Region`], which stays mapped meanwhile, in
/// process context; `memcg` is valid.
#[no_mangle]
unsafe extern "C" fn cdm_reclaim(
    pgmap: *mut sys::dev_pagemap,
    memcg: *mut c_void,
    pages: usize,
) -> usize {
    // SAFETY: By the function's contract; the owner is the region.
    let region = unsafe { &*(*pgmap).owner.cast::<Region>() };
    // SAFETY: Returns a module parameter.
    if !unsafe { sys::cdm_param_pressure_help() } {
        return 0;
    }
    // Somebody else is at it: that helps, too.
    let Some(mut relief) = region.relief.try_lock() else {
        return 0;
    };
    let Some(relief) = &mut *relief else {
        return 0;
    };
    let tally = relief.run(region, memcg, pages as u64);
    region.relieved.add(tally.moved(), Relaxed);
    let failed = tally.failed().iter().sum();
    // SAFETY: Takes values only.
    unsafe {
        sys::cdm_trace_evict(
            region.layout.device,
            sys::cdm_evict_why_CDM_EVICT_UNDER_PRESSURE,
            tally.asked(),
            tally.moved(),
            failed,
        )
    };
    tally.moved() as usize
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
    // SAFETY: By the function's contract.
    match unsafe { region_of(page) } {
        Some(region) => Home::Cdm(region.owner()),
        None => Home::System,
    }
}

/// The region that a page is in, whichever device of this driver it belongs to.
///
/// # Safety
///
/// The page is mapped or referenced, and stays so as long as the region is used.
pub(crate) unsafe fn region_of<'a>(page: *mut sys::page) -> Option<&'a Region> {
    // SAFETY: The page is valid, and so is its pagemap, which its reference holds. The
    // owner of a pagemap with these methods is a region, which is there as long as any of
    // its pages is in use.
    unsafe {
        let pgmap = sys::cdm_page_pgmap(page);
        if pgmap.is_null() || (*pgmap).ops.is_null() {
            return None;
        }
        let is_ours = (*(*pgmap).ops)
            .folio_free
            .is_some_and(|method| core::ptr::fn_addr_eq(method, FOLIO_FREE));
        is_ours.then(|| &*(*pgmap).owner.cast::<Region>())
    }
}

/// Addresses that struct pages can be made for, given back unless they are kept.
struct Addresses {
    start: u64,
    /// Length, if they were taken from what is free.
    taken: Option<u64>,
}

impl Addresses {
    /// Those of the BAR, or, for memory that no CPU can reach, some that nothing has.
    fn of(layout: &Layout) -> Result<Self> {
        if layout.memory_type.is_cpu_addressable() {
            return Ok(Self {
                start: layout.base,
                taken: None,
            });
        }
        let mut start = 0;
        // SAFETY: Process context; the pointer is valid for writing.
        kernel::error::to_result(unsafe { sys::cdm_private_range_get(layout.bytes, &mut start) })?;
        Ok(Self {
            start,
            taken: Some(layout.bytes),
        })
    }

    /// Somebody else gives them back.
    fn keep(mut self) {
        self.taken = None;
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        if let Some(bytes) = self.taken {
            // SAFETY: Taken in `of`, and nothing has them.
            unsafe { sys::cdm_private_range_put(self.start, bytes) };
        }
    }
}
