// SPDX-License-Identifier: GPL-2.0-only

//! Watching a range of an address space for changes.
//!
//! Facility: `mmu_interval_notifier`. C header: `linux/mmu_notifier.h`.
//!
//! Contexts: the callback runs wherever the kernel changes page tables, under the mmap
//! lock or under rmap and folio locks, and may sleep; where the kernel says that it may
//! not, it only tries the lock, and a follower that would have to wait is not asked. Inserting and removing sleep.
//!
//! Lock order: mmap lock, folio and page table locks, then `Mirror::follower`. Under that
//! one a device may be waited for, but no memory be allocated by waiting for reclaim,
//! which may itself wait for the callback.
//!
//! Invariant: a ticket is judged only under the callback's lock. What was learned with a
//! good ticket is true as long as the lock is held, and the follower is told before it
//! becomes untrue.

use core::ops::Range;

use kernel::mm::MmWithUser;
use kernel::prelude::*;
use kernel::sync::lock::{mutex::MutexBackend, Guard};
use kernel::sync::{new_mutex, Mutex};
use kernel::types::Opaque;

use crate::batch::PageRange;
use crate::sys;

/// What somebody knows about a watched range, kept true by the [`Mirror`] that it is in.
pub(crate) trait Follower: Send + Unpin + 'static {
    /// Whether it takes no wait to forget these addresses.
    fn forgets_at_once(&self, _addresses: &Range<u64>) -> bool {
        true
    }

    /// Mappings of these addresses are about to change: forget them. Must not wait for
    /// memory.
    fn forget(&mut self, addresses: Range<u64>);
}

/// Knows nothing: tickets alone tell it of changes.
impl Follower for () {
    fn forget(&mut self, _addresses: Range<u64>) {}
}

/// Methods of a [`Mirror`].
struct Ops(sys::mmu_interval_notifier_ops);

// SAFETY: The table is never written to.
unsafe impl Sync for Ops {}

/// A watched range, and what somebody knows about it.
///
/// # Invariants
///
/// `inner` is inserted into an address space until the value is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Mirror<T: Follower = ()> {
    #[pin]
    inner: Opaque<sys::mmu_interval_notifier>,
    #[pin]
    follower: Mutex<T>,
}

// SAFETY: The notifier locks its own state.
unsafe impl<T: Follower> Send for Mirror<T> {}
// SAFETY: As above.
unsafe impl<T: Follower> Sync for Mirror<T> {}

/// A moment from which on changes are noticed.
#[derive(Clone, Copy)]
pub(crate) struct ReadTicket {
    pub(super) sequence: usize,
}

impl Mirror {
    /// Watches `range` of `mm` for changes. Not under the mmap lock.
    pub(crate) fn watch(mm: &MmWithUser, range: PageRange) -> Result<Pin<KBox<Self>>> {
        Self::follow(mm, range, ())
    }
}

impl<T: Follower> Mirror<T> {
    const OPS: &'static Ops = &Ops(sys::mmu_interval_notifier_ops {
        invalidate: Some(Self::invalidate),
        // SAFETY: All zero bytes are no methods.
        ..unsafe { core::mem::zeroed() }
    });

    /// Keeps `follower` true about `range` of `mm`. Not under the mmap lock.
    pub(crate) fn follow(
        mm: &MmWithUser,
        range: PageRange,
        follower: T,
    ) -> Result<Pin<KBox<Self>>> {
        let mm = mm.as_raw();
        KBox::try_pin_init(
            try_pin_init!(Self {
                follower <- new_mutex!(follower, "cdm::Mirror::follower"),
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
                            &Self::OPS.0,
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

    /// Names this value in a notification that it caused itself by taking a page for the device
    /// alone. It is not told of that: what it knows of the page stays true, but for the CPUs.
    pub(crate) fn owner(&self) -> *mut c_void {
        self.inner.get().cast()
    }

    /// Takes a ticket; waits for changes that are under way. Not under the mmap lock.
    pub(crate) fn read_begin(&self) -> ReadTicket {
        // SAFETY: Inserted by the type invariant.
        let sequence = unsafe { sys::mmu_interval_read_begin(self.inner.get()) };
        ReadTicket { sequence }
    }

    /// Runs `with` if nothing changed since the ticket; no change starts before it ends.
    pub(crate) fn judge<R>(&self, ticket: ReadTicket, with: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut follower = self.follower.lock();
        // SAFETY: Inserted by the type invariant; the callback's lock is held.
        let is_stale = unsafe { sys::cdm_notifier_retry(self.inner.get(), ticket.sequence) };
        (!is_stale).then(|| with(&mut follower))
    }

    /// What is known; no change starts while the guard is held.
    pub(crate) fn lock(&self) -> Guard<'_, T, MutexBackend> {
        self.follower.lock()
    }

    /// The range, or a part of it, is about to change.
    ///
    /// # Safety
    ///
    /// The kernel calls it for the notifier of a [`Mirror`] of this type.
    unsafe extern "C" fn invalidate(
        sub: *mut sys::mmu_interval_notifier,
        range: *const sys::mmu_notifier_range,
        sequence: usize,
    ) -> bool {
        let inner = Opaque::cast_from(sub);
        // SAFETY: The kernel passes the notifier of a `Mirror`, which is alive until the
        // notifier is removed.
        let mirror = unsafe { &*kernel::container_of!(inner, Self, inner) };
        // The page is taken for the device that knows it. Others are told.
        // SAFETY: The kernel passes a valid range; the owner is only compared.
        if unsafe { sys::cdm_notifier_is_own(range, sub.cast()) } {
            return true;
        }
        // SAFETY: The kernel passes a valid range.
        let (may_wait, addresses) = unsafe {
            let addresses = (*range).start as u64..(*range).end as u64;
            (sys::cdm_notifier_blockable(range), addresses)
        };
        let follower = if may_wait {
            Some(mirror.follower.lock())
        } else {
            mirror.follower.try_lock()
        };
        let Some(mut follower) = follower else {
            return false;
        };
        // The kernel comes again where it must: this is a process that is being killed, and
        // its end forgets everything.
        if !may_wait && !follower.forgets_at_once(&addresses) {
            return false;
        }
        // SAFETY: The notifier is valid, and the lock that guards the sequence is held.
        unsafe { sys::cdm_notifier_set_seq(sub, sequence) };
        follower.forget(addresses);
        true
    }
}

#[pinned_drop]
impl<T: Follower> PinnedDrop for Mirror<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Inserted by the type invariant. No callback runs after this.
        unsafe { sys::mmu_interval_notifier_remove(self.inner.get()) };
    }
}
