// SPDX-License-Identifier: GPL-2.0-only

//! Brings back to system memory what the CPUs use in the device, where the administrator asks
//! for that in sysfs.
//!
//! Facility: none of its own; policy over [`crate::pagemap`] and [`crate::evict`]. Contexts: a
//! work item of the device, which runs for as long as it is switched on; sysfs in process
//! context. Lock order: `Scan::state`, then nothing; `Scan::recent`, innermost, also under the locks
//! of the folios of a batch. Invariant: there is at most one such work item, it is in the device's
//! gate while it looks at pages, and ends at the next period once the gate is shut or it is switched
//! off. Nobody waits for it but who switches it off, for nothing.
//!
//! A device cannot see what the CPUs do to its memory, but the kernel can: the page tables have
//! accessed bits, which the series lets a driver read and clear. So once a period so many folios
//! are looked at, round the memory; one that was used at several looks in a row comes back,
//! unless it came to the device a short time ago. Where it came to is remembered for a while, so
//! that it does not go to the device again for being hot there.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{
    new_condvar, new_mutex, new_spinlock, Arc, CondVar, CondVarTimeoutResult, Mutex, SpinLock,
};
use kernel::workqueue::{impl_has_work, WorkItem};

use crate::ages::Candidate;
use crate::batch::BATCH_PAGES;
use crate::device::Device;
use crate::evict::{self, Evictor};
use crate::heat::{visit, Bucket, Grace, Recent, Streaks};
use crate::{sys, work};

/// Looks in a row at which a folio must have been used.
const LOOKS: u16 = 3;
/// How long what came to the device stays there at least.
const GRACE_NS: u64 = 2_000_000_000;
/// How long what came back is not taken to the device for being hot there.
const RECENT_NS: u64 = 10_000_000_000;
/// Frames of system memory that are remembered for that: those of 64 MiB in a row.
const RECENT_FRAMES: usize = 16_384;

/// Folios that are looked at in a period, if nobody asks for another number.
const FOLIOS_DEFAULT: u32 = 4096;
/// Pages that come back in a second, likewise.
const PAGES_PER_SECOND_DEFAULT: u32 = 4096;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Milliseconds of a period; zero for none.
    pub(crate) period_ms: u32,
    /// Folios that are looked at in a period, at most.
    pub(crate) folios: u32,
    /// Pages that come back in a second, at most; as many may be saved up.
    pub(crate) pages_per_second: u32,
}

/// Room for frames, and when pages came to them.
type Places = KVVec<(usize, u64)>;

struct State {
    wish: Wish,
    /// There is a work item, or one is queued.
    is_running: bool,
}

/// Looks for what the CPUs use in a device.
#[pin_data]
pub(crate) struct Scan {
    #[pin]
    state: Mutex<State>,
    /// The wish has changed, or the device goes.
    #[pin]
    changed: CondVar,
    /// Where what came back is; nothing until something was looked for.
    #[pin]
    recent: SpinLock<Option<Recent<Places>>>,
    looks: Atomic<u64>,
    used: Atomic<u64>,
    busy: Atomic<u64>,
    spared: Atomic<u64>,
    over_rate: Atomic<u64>,
    returned: Atomic<u64>,
}

impl Scan {
    pub(crate) fn new() -> impl PinInit<Self> {
        let state = State {
            wish: Wish {
                period_ms: 0,
                folios: FOLIOS_DEFAULT,
                pages_per_second: PAGES_PER_SECOND_DEFAULT,
            },
            is_running: false,
        };
        pin_init!(Self {
            state <- new_mutex!(state, "cdm::Scan::state"),
            changed <- new_condvar!("cdm::Scan::changed"),
            recent <- new_spinlock!(None, "cdm::Scan::recent"),
            looks: Atomic::new(0),
            used: Atomic::new(0),
            busy: Atomic::new(0),
            spared: Atomic::new(0),
            over_rate: Atomic::new(0),
            returned: Atomic::new(0),
        })
    }

    /// What is asked for.
    pub(crate) fn wish(&self) -> Wish {
        self.state.lock().wish
    }

    /// Folios that were looked at.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Relaxed)
    }

    /// Of these, folios that a CPU had used since the look before.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Folios that were locked.
    pub(crate) fn busy(&self) -> u64 {
        self.busy.load(Relaxed)
    }

    /// Times that a folio stayed because it had just come.
    pub(crate) fn spared(&self) -> u64 {
        self.spared.load(Relaxed)
    }

    /// Pages that stayed because of the rate, each time that they did.
    pub(crate) fn over_rate(&self) -> u64 {
        self.over_rate.load(Relaxed)
    }

    /// Pages that came back.
    pub(crate) fn returned(&self) -> u64 {
        self.returned.load(Relaxed)
    }

    /// Whether the page in a frame of system memory came back a short time ago.
    pub(crate) fn is_recent(&self, frame: usize, now_ns: u64) -> bool {
        let recent = self.recent.lock();
        recent
            .as_ref()
            .is_some_and(|recent| recent.has(frame, now_ns))
    }

    /// Wakes the work item, which sees that the device goes.
    pub(crate) fn stop(&self) {
        let _state = self.state.lock();
        self.changed.notify_all();
    }

    /// Waits for the next period; what to do in it, or `None` if the work item is to end.
    fn wait(&self, device: &Device) -> Option<Wish> {
        let mut state = self.state.lock();
        let begun = state.wish;
        if begun.period_ms != 0 && !device.gate().is_shut() {
            // SAFETY: Plain arithmetic.
            let jiffies = unsafe { sys::cdm_jiffies_of_ms(begun.period_ms) };
            let mut left = jiffies.max(1);
            // A kernel worker gets no signals.
            while state.wish == begun && !device.gate().is_shut() {
                match self.changed.wait_interruptible_timeout(&mut state, left) {
                    CondVarTimeoutResult::Woken { jiffies } => left = jiffies.max(1),
                    _ => break,
                }
            }
        }
        let is_over = state.wish.period_ms == 0 || device.gate().is_shut();
        state.is_running = !is_over;
        (!is_over).then_some(state.wish)
    }
}

/// Whether the kernel says what the CPUs use of this device.
pub(crate) fn is_possible(device: &Device) -> bool {
    sys::CDM_HAS_YOUNG && device.region().is_cpu_addressable()
}

/// Changes what is asked for.
///
/// EOPNOTSUPP if the kernel does not say what the CPUs use.
pub(crate) fn change(device: &Arc<Device>, with: impl FnOnce(&mut Wish)) -> Result {
    if !is_possible(device) {
        return Err(EOPNOTSUPP);
    }
    let scan = device.scan();
    let mut state = scan.state.lock();
    with(&mut state.wish);
    scan.changed.notify_all();
    if state.wish.period_ms != 0 && !state.is_running {
        // One that is about to end has said so under the lock.
        state.is_running = true;
        let _ = work::background().enqueue::<_, 2>(device.clone());
    }
    Ok(())
}

impl_has_work! {
    impl HasWork<Self, 2> for Device { self.scan_work }
}

impl WorkItem<2> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let Ok(mut scanner) = Scanner::new(&this) else {
            dev_warn!(
                this.dev(),
                "cdm{}: no memory to look for what the CPUs use; switched off\n",
                this.number()
            );
            let mut state = this.scan().state.lock();
            state.wish.period_ms = 0;
            state.is_running = false;
            return;
        };
        while let Some(wish) = this.scan().wait(&this) {
            let Ok(inside) = this.gate().enter() else {
                // The wait that follows ends it.
                continue;
            };
            scanner.look(&this, wish);
            drop(inside);
        }
    }
}

/// What is known of the pages of a device.
struct Scanner {
    streaks: Streaks<KVVec<u16>>,
    grace: Grace,
    bucket: Bucket,
    pages_per_second: u32,
    /// The page to go on from.
    cursor: u32,
    /// What is to come back.
    hot: KVec<Candidate>,
    evictor: Evictor,
}

impl Scanner {
    fn new(device: &Device) -> Result<Self> {
        let region = device.region();
        // SAFETY: Reads a clock.
        let now = unsafe { sys::cdm_now_ns() };
        let mut evictor = Evictor::new()?;
        evictor.remember_frames()?;
        let scan = device.scan();
        if scan.recent.lock().is_none() {
            let room = KVVec::from_elem((0, 0), RECENT_FRAMES, GFP_KERNEL)?;
            *scan.recent.lock() = Some(Recent::new(room, RECENT_NS));
        }
        let pages = region.pages() as usize;
        Ok(Self {
            streaks: Streaks::new(KVVec::from_elem(0, pages, GFP_KERNEL)?),
            grace: Grace::new(GRACE_NS, now, region.stamp()),
            bucket: Bucket::new(0, 0, now),
            pages_per_second: 0,
            cursor: 0,
            hot: KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?,
            evictor,
        })
    }

    /// Looks at as many folios as a period has, and brings back what the CPUs use.
    fn look(&mut self, device: &Device, wish: Wish) {
        let (region, scan) = (device.region(), device.scan());
        // SAFETY: Reads a clock.
        let now = unsafe { sys::cdm_now_ns() };
        if wish.pages_per_second != self.pages_per_second {
            self.pages_per_second = wish.pages_per_second;
            let rate = wish.pages_per_second;
            // A large folio comes back as a whole, if ever.
            let burst = if rate == 0 {
                0
            } else {
                rate.max(BATCH_PAGES as u32)
            };
            self.bucket = Bucket::new(burst, rate, now);
        }
        let spared_after = self.grace.at(now, region.stamp());
        let Self {
            streaks,
            hot,
            cursor,
            ..
        } = self;
        hot.clear();
        *cursor = visit(
            *cursor,
            region.pages(),
            wish.folios,
            |from, end| region.next_folio(from, end),
            |folio| {
                // SAFETY: The frame is in the mapped region; process context, no lock held.
                let found = unsafe { sys::cdm_frame_young(region.frame(folio.page)) };
                scan.looks.add(1, Relaxed);
                if found < 0 {
                    scan.busy.add(1, Relaxed);
                    return;
                }
                if found > 0 {
                    scan.used.add(1, Relaxed);
                }
                if streaks.note(folio, found > 0) < LOOKS {
                    return;
                }
                if folio.stamp > spared_after {
                    scan.spared.add(1, Relaxed);
                } else {
                    // What there is no room for has its turn at the next round.
                    let _ = hot.push_within_capacity(folio);
                }
            },
        );
        self.bring_back(device, now);
    }

    fn bring_back(&mut self, device: &Device, now: u64) {
        let scan = device.scan();
        let mut over_rate = 0;
        let bucket = &mut self.bucket;
        self.hot.retain(|folio| {
            let pages = 1 << folio.order;
            let granted = bucket.take(pages, now);
            if granted < pages {
                bucket.put_back(granted);
                over_rate += pages;
            }
            granted == pages
        });
        scan.over_rate.add(over_rate, Relaxed);
        let mut rest = &self.hot[..];
        while !rest.is_empty() && !device.gate().is_shut() {
            // As many as a batch has room for.
            let mut pages = 0;
            let fits = rest.iter().take_while(|folio| {
                pages += 1 << folio.order;
                pages <= BATCH_PAGES
            });
            let due = fits.count().max(1);
            let (now_due, later) = rest.split_at(due);
            rest = later;
            let wanted: u64 = now_due.iter().map(|folio| 1 << folio.order).sum();
            // Before the device can hear of them again and find them hot.
            let note = |frames: &[usize]| {
                let mut recent = scan.recent.lock();
                if let Some(recent) = &mut *recent {
                    for frame in frames {
                        recent.note(*frame, now);
                    }
                }
            };
            let tally = evict::for_cpus(device, &mut self.evictor, now_due, note);
            self.bucket.put_back(wanted - tally.moved().min(wanted));
            scan.returned.add(tally.moved(), Relaxed);
        }
        let left: u64 = rest.iter().map(|folio| 1 << folio.order).sum();
        self.bucket.put_back(left);
    }
}
