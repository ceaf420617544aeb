// SPDX-License-Identifier: GPL-2.0

//! Watching a range of an address space for changes.
//!
//! Facility: `mmu_interval_notifier`. C header: `linux/mmu_notifier.h`.
//!
//! Contexts: the callback runs wherever the kernel changes page tables, under the mmap
//! lock or under rmap locks; it takes a spinlock and does not sleep, so it can also
//! serve invalidations that may not block. Inserting and removing sleep.
//!
//! Lock order: mmap lock, folio and page table locks, then `Mirror::judgement`.
//!
//! Invariant: a ticket is judged only under the callback's lock.

use kernel::mm::MmWithUser;
use kernel::prelude::*;
use kernel::sync::{new_spinlock, SpinLock};
use kernel::types::Opaque;

use crate::batch::PageRange;
use crate::sys;

/// Methods of a [`Mirror`].
struct Ops(sys::mmu_interval_notifier_ops);

// SAFETY: The table is never written to.
unsafe impl Sync for Ops {}

static OPS: Ops = Ops(sys::mmu_interval_notifier_ops {
    invalidate: Some(invalidate),
    // SAFETY: All zero bytes are no methods.
    ..unsafe { core::mem::zeroed() }
});

/// A watched range.
///
/// # Invariants
///
/// `inner` is inserted into an address space until the value is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Mirror {
    #[pin]
    inner: Opaque<sys::mmu_interval_notifier>,
    #[pin]
    judgement: SpinLock<()>,
}

// SAFETY: The notifier locks its own state.
unsafe impl Send for Mirror {}
// SAFETY: As above.
unsafe impl Sync for Mirror {}

/// A moment from which on changes are noticed.
#[derive(Clone, Copy)]
pub(crate) struct ReadTicket {
    pub(super) sequence: usize,
}

impl Mirror {
    /// Watches `range` of `mm`. Not under the mmap lock.
    pub(crate) fn watch(mm: &MmWithUser, range: PageRange) -> Result<Pin<KBox<Self>>> {
        let mm = mm.as_raw();
        KBox::try_pin_init(
            try_pin_init!(Self {
                judgement <- new_spinlock!(()),
                // INVARIANT: Inserted here.
                inner <- Opaque::try_ffi_init(move |slot: *mut sys::mmu_interval_notifier| {
                    // SAFETY: The slot is pinned; the callback's lock, initialised
                    // before, is at its place; the address space is alive.
                    kernel::error::to_result(unsafe {
                        sys::mmu_interval_notifier_insert(
                            slot,
                            mm,
                            range.start() as usize,
                            range.end() as usize - range.start() as usize,
                            &OPS.0,
                        )
                    })
                }),
            }? Error),
            GFP_KERNEL,
        )
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::mmu_interval_notifier {
        self.inner.get()
    }

    /// Takes a ticket; waits for changes that are under way. Not under the mmap lock.
    pub(crate) fn read_begin(&self) -> ReadTicket {
        // SAFETY: Inserted by the type invariant.
        let sequence = unsafe { sys::mmu_interval_read_begin(self.inner.get()) };
        ReadTicket { sequence }
    }

    /// Runs `with` if nothing changed since the ticket; no change starts before it ends.
    pub(crate) fn judge<R>(&self, ticket: ReadTicket, with: impl FnOnce() -> R) -> Option<R> {
        let _judgement = self.judgement.lock();
        // SAFETY: Inserted by the type invariant; the callback's lock is held.
        let is_stale = unsafe { sys::cdm_notifier_retry(self.inner.get(), ticket.sequence) };
        (!is_stale).then(with)
    }
}

#[pinned_drop]
impl PinnedDrop for Mirror {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Inserted by the type invariant. No callback runs after this.
        unsafe { sys::mmu_interval_notifier_remove(self.inner.get()) };
    }
}

/// The range, or a part of it, is about to change. Must not sleep.
///
/// # Safety
///
/// The kernel calls it for the notifier of a [`Mirror`].
unsafe extern "C" fn invalidate(
    sub: *mut sys::mmu_interval_notifier,
    _range: *const sys::mmu_notifier_range,
    sequence: usize,
) -> bool {
    let inner = Opaque::cast_from(sub);
    // SAFETY: The kernel passes the notifier of a `Mirror`, which is alive until the
    // notifier is removed.
    let mirror = unsafe { &*kernel::container_of!(inner, Mirror, inner) };
    let _judgement = mirror.judgement.lock();
    // SAFETY: The notifier is valid, and the lock that guards the sequence is held.
    unsafe { sys::cdm_notifier_set_seq(sub, sequence) };
    true
}
