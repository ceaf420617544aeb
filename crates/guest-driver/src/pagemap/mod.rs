// SPDX-License-Identifier: GPL-2.0-only

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
//! Lock order: a CPU's stash, then `alloc`, which with `ages` and that of the failed pages is
//! innermost of all driver locks; all are taken with interrupts off.
//!
//! Invariant: every folio is home before the region is unmapped. `unmap` asks for it,
//! and the kernel would wait for ever for a folio that is not.

mod addresses;
mod bad;
mod home;
mod memory_type;
mod segment;
mod slots;
mod used;

use core::cell::UnsafeCell;
use core::marker::PhantomPinned;
use core::ops::Range;

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed, Release};
use kernel::sync::{new_mutex, new_spinlock, new_spinlock_irq, Arc, Mutex, SpinLock, SpinLockIrq};
use kernel::types::Opaque;

use crate::ages::{Ages, Stamp, NEVER};
use crate::alloc::{words_needed, PageAlloc};
use crate::batch::{BATCH_PAGES, PAGE_BYTES};
use crate::choice::{Choice, Copier, Way};
use crate::engine::Engine;
use crate::evict::Relief;
use crate::stash::Stash;
use crate::{ram, sys};

use addresses::Addresses;
use bad::BadPages;
pub(crate) use bad::{Failure, Remedy};
use home::PRIVATE_OWNERS;
pub(crate) use home::{home_of, private_owners, region_of, Home, Owner};
pub(crate) use memory_type::MemoryType;

/// How often pages that are given up are looked for, at most; a tenth of a second lies between.
const ABANDON_ROUNDS: u32 = 20;

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
/// - `bad` has every page that the device says has failed.
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
    #[pin]
    bad: BadPages,
    /// Stamp of the latest migration to the device.
    clock: Atomic<u64>,
    #[pin]
    ages: SpinLockIrq<Ages<KVVec<Stamp>>>,
    #[pin]
    relief: Mutex<Option<Relief>>,
    /// Pages that left because a memory cgroup was at its limit.
    relieved: Atomic<u64>,
    /// Who copies large folios, for each way.
    #[pin]
    copies: SpinLock<[Choice; Way::COUNT]>,
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
        let bad = BadPages::new(pages)?;
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
                bad <- bad,
                clock: Atomic::new(0),
                ages <- new_spinlock_irq!(ages),
                relief <- new_mutex!(relief),
                copies <- new_spinlock!([Choice::new(); Way::COUNT]),
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

    /// Who is to copy the next large folio on that way.
    pub(crate) fn next_copier(&self, way: Way) -> Copier {
        self.copies.lock()[way.index()].pick()
    }

    /// A large folio was copied, which took so long; or was not, by the device.
    pub(crate) fn note_copy(&self, way: Way, by: Copier, is_done: bool, took_ns: u64) {
        let choice = &mut self.copies.lock()[way.index()];
        if is_done {
            choice.note(by, took_ns);
        } else {
            choice.failed(took_ns);
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

    /// The pages of a range of addresses in the device's BAR; `None` if not all of it is
    /// usable.
    pub(crate) fn pages_of(&self, address: u64, length: u64) -> Option<Range<u32>> {
        let usable = self.layout.base + self.layout.metadata_bytes;
        let first = address.checked_sub(usable)? / PAGE_BYTES;
        let end = first.checked_add(length / PAGE_BYTES)?;
        (end <= u64::from(self.pages)).then_some(first as u32..end as u32)
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

/// Tries for a lock that whoever is in reclaim may not wait for without an end, since he may hold
/// what its holder waits for. Not to wait at all would not do: the holder works for another
/// cgroup, and one that gets no help in some dozen tries has a process killed for want of memory.
fn wait_a_while<T>(attempt: impl Fn() -> Option<T>) -> Option<T> {
    /// In milliseconds, and many times what bringing back a batch takes.
    const LIMIT: usize = 100;
    (0..LIMIT).find_map(|_| {
        let got = attempt();
        // SAFETY: Takes no argument that could be wrong.
        if got.is_none() && !unsafe { sys::cdm_dying() } {
            // SAFETY: The caller is in process context and holds no spinlock.
            unsafe { sys::msleep(1) };
        }
        got
    })
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
    let Some(mut relief) = wait_a_while(|| region.relief.try_lock()) else {
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
