// SPDX-License-Identifier: GPL-2.0-only

//! What the free pages of each CPU bring: threads take and free pages through one allocator
//! behind a lock, as the driver does, once with a stash for each and once without.
//!
//!     cargo run --release -p cdm-guest-driver --example stash_contention
//!
//! Prints, for requests of some sizes and numbers of threads, the time of a page from taken to
//! free again, how often the shared lock was taken for a thousand pages, and how often somebody
//! else had it then. The second is the same on every machine.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Instant;

use cdm_guest_driver::alloc::{PageAlloc, words_needed};
use cdm_guest_driver::stash::{STASH_PAGES, Stash};

/// A device of 1 GiB: enough that no request fails.
const PAGES: u32 = 1 << 18;
/// Pages that each thread takes and frees in a run.
const PAGES_PER_THREAD: usize = 1 << 20;

/// The allocator, with what is counted about its lock.
struct Shared {
    alloc: Mutex<PageAlloc<Vec<u64>>>,
    taken: AtomicU64,
    contended: AtomicU64,
}

impl Shared {
    fn new() -> Self {
        let words = vec![0; words_needed(PAGES)];
        Self {
            alloc: Mutex::new(PageAlloc::new(PAGES, words).expect("fresh storage")),
            taken: AtomicU64::new(0),
            contended: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, PageAlloc<Vec<u64>>> {
        self.taken.fetch_add(1, Relaxed);
        match self.alloc.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => {
                self.contended.fetch_add(1, Relaxed);
                self.alloc.lock().unwrap_or_else(PoisonError::into_inner)
            }
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        }
    }
}

/// Where a thread gets its pages from.
trait Source {
    fn take(&mut self, shared: &Shared, pages: &mut [u32]);
    fn free(&mut self, shared: &Shared, page: u32);
}

/// The allocator alone.
struct Bare;

impl Source for Bare {
    fn take(&mut self, shared: &Shared, pages: &mut [u32]) {
        assert_eq!(shared.lock().alloc_bulk(pages), pages.len());
    }

    fn free(&mut self, shared: &Shared, page: u32) {
        shared.lock().free(page, 0).expect("it was taken");
    }
}

/// A stash in front of it, used as `Region::reserve` and `Region::free` use it.
struct Stashed(Stash);

impl Source for Stashed {
    fn take(&mut self, shared: &Shared, pages: &mut [u32]) {
        if self.0.is_empty() && pages.len() < STASH_PAGES / 2 {
            self.0.refill(&mut *shared.lock());
        }
        let mut got = self.0.take(pages);
        if got < pages.len() {
            got += shared.lock().alloc_bulk(&mut pages[got..]);
        }
        assert_eq!(got, pages.len());
    }

    fn free(&mut self, shared: &Shared, page: u32) {
        if !self.0.put(page) {
            let spilled = self.0.spill(STASH_PAGES / 2, &mut *shared.lock());
            spilled.expect("each page was taken");
            assert!(self.0.put(page), "there is room now");
        }
    }
}

/// What a run found.
struct Found {
    ns_per_page: f64,
    taken: f64,
    contended: f64,
}

/// Has `threads` threads take `request` pages at a time and free them one by one.
fn run<S: Source>(threads: usize, request: usize, source: impl Fn() -> S + Sync) -> Found {
    let shared = Shared::new();
    let start = Barrier::new(threads);
    let nanoseconds = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut source = source();
                let mut pages = vec![0; request];
                start.wait();
                let begin = Instant::now();
                for _ in 0..PAGES_PER_THREAD / request {
                    source.take(&shared, &mut pages);
                    for page in &pages {
                        source.free(&shared, *page);
                    }
                }
                nanoseconds.fetch_add(begin.elapsed().as_nanos() as u64, Relaxed);
            });
        }
    });
    let pages = (threads * PAGES_PER_THREAD) as f64;
    let thousand = |count: &AtomicU64| count.load(Relaxed) as f64 * 1000.0 / pages;
    Found {
        ns_per_page: nanoseconds.load(Relaxed) as f64 / pages,
        taken: thousand(&shared.taken),
        contended: thousand(&shared.contended),
    }
}

fn main() {
    println!("                      without stashes                 with stashes");
    println!("request  threads    ns    taken  contended       ns    taken  contended");
    for request in [1, 16, 512] {
        for threads in [1, 2, 4, 8] {
            let bare = run(threads, request, || Bare);
            let stashed = run(threads, request, || Stashed(Stash::new()));
            println!(
                "{request:>7} {threads:>8} {:>5.0} {:>8.1} {:>10.1} {:>8.0} {:>8.1} {:>10.1}",
                bare.ns_per_page,
                bare.taken,
                bare.contended,
                stashed.ns_per_page,
                stashed.taken,
                stashed.contended
            );
        }
    }
}
