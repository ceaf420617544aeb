// SPDX-License-Identifier: GPL-2.0-only

//! Moves to the device what it uses much, when a process asks for that.
//!
//! Facility: none of its own; policy over [`crate::mover`]. Contexts: reports come in hard
//! interrupt context, and go on a backlog; a work item of the device takes them from there, one
//! after another. Lock order: `Hot::backlog` and `Binding::hot`, innermost, the first with
//! interrupts off; pages move under none of the driver's locks. Invariant: a page moves only
//! while its process has asked for that, and only if the bucket had it; and nobody waits for the
//! work item: a process ends, and a device goes, while it is under way or queued.
//!
//! A report names a granule by PASID and address. The work item looks at the pages there, takes
//! from the bucket as many as are somewhere else, and has them moved as CDM_IOC_MIGRATE would,
//! without faulting anything in. What the bucket does not have stays: if it is used on, the
//! device reports it again.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_spinlock_irq, Arc, SpinLockIrq};
use kernel::workqueue::{impl_has_work, WorkItem};

use super::Binding;
use crate::batch::{PageRange, PAGE_BYTES};
use crate::device::Device;
use crate::fault::{Mapped, Snapshot};
use crate::heat::{Backlog, Bucket, Report};
use crate::mover::{self, Direction, Options};
use crate::notifier::Mirror;
use crate::pagemap::Home;
use crate::tally::{Outcome, Reason, Tally};
use crate::wire::{AccessReport, Status, GRANULE_BYTES};
use crate::{sys, work};

/// Pages of a granule.
const GRANULE_PAGES: usize = (GRANULE_BYTES / PAGE_BYTES) as usize;
/// Reports that wait for the work item. More are lost, and what they were about is reported
/// again if it is used on.
const BACKLOG_REPORTS: usize = 128;
/// How often a granule is looked at whose mappings change meanwhile.
const LOOKS: u32 = 8;

/// What a process asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Accesses to a granule that make it hot; not zero.
    pub(crate) threshold: u32,
    /// Evict what was migrated longest ago where there is no room.
    pub(crate) make_room: bool,
    pub(crate) pages_per_second: u32,
    pub(crate) pages_burst: u32,
}

/// What a process asked for, and how much of it may be done now.
pub(super) struct Granted {
    wish: Wish,
    bucket: Bucket,
}

/// What became of the reports about an address space.
#[derive(Clone, Copy, Default)]
pub(crate) struct Account {
    pub(crate) reports: u64,
    pub(crate) accesses: u64,
    pub(crate) tally: Tally,
    /// Pages that the bucket did not have.
    pub(crate) over_rate: u64,
    /// Pages that the CPUs had just had back.
    pub(crate) recent: u64,
    pub(crate) evicted: u64,
}

/// What became of one report.
#[derive(Clone, Copy, Default)]
struct Done {
    tally: Tally,
    over_rate: u64,
    recent: u64,
    evicted: u64,
}

/// Reports that a device made and nobody has looked at.
#[pin_data]
pub(crate) struct Hot {
    #[pin]
    backlog: SpinLockIrq<Backlog<KVec<Report>>>,
    /// Reports that were lost, on the way here or for want of room.
    lost: Atomic<u64>,
}

impl Hot {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let ring = KVec::from_elem(Report::default(), BACKLOG_REPORTS, GFP_KERNEL)?;
            Ok(try_pin_init!(Self {
                backlog <- new_spinlock_irq!(Backlog::new(ring), "cdm::Hot::backlog"),
                lost: Atomic::new(0),
            }? Error))
        })
    }

    /// Reports that were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn next(&self) -> Option<Report> {
        self.backlog.lock().pop()
    }
}

impl_has_work! {
    impl HasWork<Self, 1> for Device { self.hot_work }
}

impl WorkItem<1> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        while let Some(report) = this.hot().next() {
            let Ok(inside) = this.gate().enter() else {
                this.hot().backlog.lock().clear();
                return;
            };
            if let Some(binding) = this.spaces().find(report.pasid) {
                binding.take_up(&this, &report);
            }
            drop(inside);
        }
    }
}

/// Takes in what the device reports. Hard interrupt context.
pub(crate) fn note(device: Arc<Device>, report: &AccessReport) {
    let hot = device.hot();
    let is_taken = hot.backlog.lock().push(Report {
        pasid: report.pasid.get(),
        address: report.address.get(),
        accesses: report.accesses.get(),
    });
    let lost = report.lost.get().saturating_add(u64::from(!is_taken));
    if lost != 0 {
        hot.lost.add(lost, Relaxed);
    }
    device.counters().access_reported();
    // Fails if it is queued, and then it finds the report.
    let _ = work::background().enqueue::<_, 1>(device);
}

impl Binding {
    /// Moves what the device uses much to it from here on, or not any more.
    ///
    /// ENXIO if the address space is not bound any more, EOPNOTSUPP if the device does not count,
    /// EIO if it refuses or had to be reset, ENODEV, ENOMEM.
    pub(crate) fn wish(&self, device: &Device, wish: Option<Wish>) -> Result {
        if !device.engine().counts_accesses() {
            return Err(EOPNOTSUPP);
        }
        // It is neither unbound nor switched by somebody else meanwhile.
        let is_bound = self.is_bound.lock();
        if !*is_bound {
            return Err(ENXIO);
        }
        // Before the device reports anything.
        *self.hot.lock() = wish.map(|wish| Granted {
            wish,
            // SAFETY: Reads a clock.
            bucket: Bucket::new(wish.pages_burst, wish.pages_per_second, unsafe {
                sys::cdm_now_ns()
            }),
        });
        let threshold = wish.map_or(0, |wish| wish.threshold);
        let recovery = device.engine().recovery();
        let control = device.control();
        let result = match control.count_accesses(recovery, self.pasid, threshold.into()) {
            Ok(status) if status == Status::OK => Ok(()),
            Ok(_) => Err(EIO),
            // The device was reset instead of answering, and may count or not.
            Err(err) if err == ECANCELED => Err(EIO),
            Err(err) => {
                if err == ETIMEDOUT {
                    device.transport().declare_gone();
                }
                Err(if err == ENOMEM { err } else { ENODEV })
            }
        };
        if result.is_err() {
            *self.hot.lock() = None;
        }
        result
    }

    /// What was asked for, and what was done so far.
    pub(crate) fn hot(&self) -> (Option<Wish>, Account) {
        let wish = self.hot.lock().as_ref().map(|granted| granted.wish);
        (wish, *self.account.lock())
    }

    /// Moves the granule that a report is about, as far as that is asked for.
    fn take_up(&self, device: &Device, report: &Report) {
        let wish = self.hot.lock().as_ref().map(|granted| granted.wish);
        // One from before it was switched off.
        let Some(wish) = wish else { return };
        let mut done = Done::default();
        // What moved before a failure has moved.
        let _ = self.move_granule(device, wish, report.address, &mut done);
        {
            let mut account = self.account.lock();
            account.reports += 1;
            account.accesses = account.accesses.saturating_add(report.accesses);
            account.tally.merge(&done.tally);
            account.over_rate += done.over_rate;
            account.recent += done.recent;
            account.evicted += done.evicted;
        }
        device
            .counters()
            .hot(&done.tally, done.over_rate, done.recent);
        let failed = done.tally.failed().iter().sum();
        // SAFETY: Takes values only.
        unsafe {
            sys::cdm_trace_hot(
                device.number(),
                report.pasid,
                report.address,
                report.accesses,
                done.tally.moved(),
                done.over_rate,
                failed,
            )
        };
    }

    fn move_granule(&self, device: &Device, wish: Wish, address: u64, done: &mut Done) -> Result {
        if !address.is_multiple_of(GRANULE_BYTES) {
            return Err(EINVAL);
        }
        let granule = PageRange::new(address, GRANULE_BYTES).ok_or(EINVAL)?;
        // The process may be gone; and its memory stays until this is through, not the process.
        let mm = self.mm.mmget_not_zero().ok_or(ESRCH)?;
        // A split file is faulted in again, which its server may keep up: not beyond the binding.
        let _moving = self.movers.enter().ok_or(EINTR)?;
        let options = Options {
            populate: false,
            make_room: wish.make_room,
            small: false,
        };
        let wanted = wanted(device, &mm, granule, done)?;
        let mut next = 0;
        while let Some((first, pages)) = next_run(&wanted, next) {
            let granted = self.take(pages as u64);
            if granted == 0 {
                done.over_rate += wanted[first..].iter().filter(|is| **is).count() as u64;
                break;
            }
            let start = address + first as u64 * PAGE_BYTES;
            let part = PageRange::new(start, granted * PAGE_BYTES).ok_or(EINVAL)?;
            let moved = mover::run(device, &mm, part, Direction::ToDevice, options);
            let tally = moved.as_ref().map_or(Tally::default(), |moved| moved.tally);
            self.put_back(granted - tally.moved().min(granted));
            done.tally.merge(&tally);
            done.evicted += moved?.evicted;
            next = first + granted as usize;
        }
        Ok(())
    }

    /// Takes pages from the bucket; none if nobody asks for it any more.
    fn take(&self, pages: u64) -> u64 {
        // SAFETY: Reads a clock.
        let now = unsafe { sys::cdm_now_ns() };
        match &mut *self.hot.lock() {
            Some(granted) => granted.bucket.take(pages, now),
            None => 0,
        }
    }

    fn put_back(&self, pages: u64) {
        if let Some(granted) = &mut *self.hot.lock() {
            granted.bucket.put_back(pages);
        }
    }
}

/// Which pages of a granule are to move: those that are there, not in the device, and not just
/// brought back for the CPUs. Counts the others.
fn wanted(
    device: &Device,
    mm: &kernel::mm::MmWithUser,
    granule: PageRange,
    done: &mut Done,
) -> Result<[bool; GRANULE_PAGES]> {
    let region = device.region();
    let mut snapshot = Snapshot::new(region)?;
    let mirror = Mirror::watch(mm, granule)?;
    let mut looks = 0;
    loop {
        if looks == LOOKS {
            return Err(EBUSY);
        }
        looks += 1;
        let ticket = mirror.read_begin();
        let locked = mm.mmap_read_lock();
        if snapshot.take(&mirror, ticket, mm, granule, &locked)? {
            break;
        }
    }
    let here = Home::Cdm(region.owner());
    // SAFETY: Reads a clock.
    let now = unsafe { sys::cdm_now_ns() };
    let mut wanted = [false; GRANULE_PAGES];
    for (index, wanted) in wanted.iter_mut().enumerate() {
        match snapshot.mapped(index) {
            Mapped::Nothing => done.tally.add(Outcome::Failed(Reason::NotPresent)),
            Mapped::Page { home, .. } if home == here => done.tally.add(Outcome::There),
            Mapped::Page { frame, .. } if device.scan().is_recent(frame, now) => done.recent += 1,
            Mapped::Page { .. } => *wanted = true,
        }
    }
    Ok(wanted)
}

/// The next pages in a row that are wanted, from `from` on: the first and how many.
fn next_run(wanted: &[bool], from: usize) -> Option<(usize, usize)> {
    let first = from + wanted.get(from..)?.iter().position(|is| *is)?;
    let pages = wanted[first..].iter().take_while(|is| **is).count();
    Some((first, pages))
}
