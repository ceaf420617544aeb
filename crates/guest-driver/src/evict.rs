// SPDX-License-Identifier: GPL-2.0-only

//! Brings pages of a device back to system memory without asking whose they are.
//!
//! Facility: none of its own; policy over [`crate::migrate`]. Contexts: process context,
//! inside the device's gate or after its end; [`Relief`] in the middle of reclaim. Lock
//! order: as for [`crate::migrate`]; no mmap lock, since pages are found by their frame.
//! Invariant: each page that is counted was in use when it was tried, and has one outcome.

use core::ops::Range;

use kernel::prelude::*;

use crate::ages::{self, Candidate, Stamp, NEVER};
use crate::batch::BATCH_PAGES;
use crate::device::Device;
use crate::migrate::{Arrays, Collected, Source};
use crate::pagemap::Region;
use crate::sys;
use crate::tally::{Outcome, Reason, Tally};
use crate::transfer::{is_unreadable, BadMemory, Transfer};

/// Tries for folios that are busy; pauses of 1, 2, 4 and 8 milliseconds lie between.
const TRIES: u32 = 5;

/// What an eviction needs, for reuse.
pub(crate) struct Evictor {
    /// Memory is being reclaimed: no waiting for more of it, nor for anybody.
    in_reclaim: bool,
    arrays: Arrays,
    transfer: Transfer,
    /// Frames to try; those of a folio follow each other.
    frames: KVec<usize>,
    /// Large folios for which there was no memory, by their first frame.
    homeless: KVec<usize>,
    /// Frames of system memory that pages came to at the last try; without room if nobody cares.
    filled: KVec<usize>,
}

impl Evictor {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            in_reclaim: false,
            arrays: Arrays::new()?,
            transfer: Transfer::new()?,
            frames: KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?,
            homeless: KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?,
            filled: KVec::new(),
        })
    }

    /// From here on, remembers where pages came to.
    pub(crate) fn remember_frames(&mut self) -> Result {
        self.filled = KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?;
        Ok(())
    }

    /// Tries the folios in use among `pages` once, as far as a batch goes; the page to go
    /// on from, or `None` at the end.
    pub(crate) fn try_pages(
        &mut self,
        region: &Region,
        pages: Range<u32>,
        bad: BadMemory,
    ) -> (Tally, Option<u32>) {
        self.frames.clear();
        let next = region.used_frames(pages.start, pages.end, NEVER, &mut self.frames);
        (self.try_frames(bad, |_| ()), next)
    }

    /// Takes the folios in use among `pages` from those who map them, with their contents, as
    /// far as a batch goes; how many pages, and the page to go on from, or `None` at the end.
    /// Private memory only.
    pub(crate) fn lose_pages(&mut self, region: &Region, pages: Range<u32>) -> (u64, Option<u32>) {
        self.frames.clear();
        let next = region.used_frames(pages.start, pages.end, NEVER, &mut self.frames);
        let collected = Collected::of_frames(&self.frames, &mut self.arrays);
        let lost = (0..collected.pages())
            .map(|index| match collected.source(index) {
                // SAFETY: The kernel locked the page for us, so it is valid.
                Source::Page(page) => 1 << unsafe { sys::cdm_page_order(page) },
                _ => 0,
            })
            .sum();
        collected.give_up();
        (lost, next)
    }

    /// Tries the folios in use in `parts` that were migrated before `before`, together a
    /// batch at most, once; `filled` as for [`try_frames`](Self::try_frames).
    fn try_parts(
        &mut self,
        region: &Region,
        parts: &[Candidate],
        before: Stamp,
        bad: BadMemory,
        filled: impl FnOnce(&[usize]),
    ) -> Tally {
        self.frames.clear();
        for part in parts {
            let end = part.page + (1 << part.order);
            region.used_frames(part.page, end, before, &mut self.frames);
        }
        self.try_frames(bad, filled)
    }

    /// Tries `frames` once. `filled` hears which frames of system memory have the contents now,
    /// before anybody can touch them there; it may not sleep on a folio of the batch.
    fn try_frames(&mut self, bad: BadMemory, filled: impl FnOnce(&[usize])) -> Tally {
        let mut tally = Tally::default();
        self.filled.clear();
        if self.frames.is_empty() {
            return tally;
        }
        self.homeless.clear();
        self.transfer.clear();
        let mut collected = Collected::of_frames(&self.frames, &mut self.arrays);
        for index in 0..collected.pages() {
            let Source::Page(from) = collected.source(index) else {
                let reason = collected.reason(index);
                count_failed(self.frames[index], reason, &mut tally);
                continue;
            };
            // SAFETY: The kernel locked the page for us, so it is valid.
            let order = unsafe { sys::cdm_page_order(from) };
            // What has failed of a large folio stays, and the rest goes, once it is in parts.
            // SAFETY: As above.
            let is_torn = order != 0 && unsafe { is_unreadable(from, order) };
            let to = match is_torn {
                true => core::ptr::null_mut(),
                // SAFETY: Process context.
                false => unsafe { sys::cdm_page_alloc_evicted(order, self.in_reclaim) },
            };
            if to.is_null() {
                tally.add_pages(Outcome::Failed(Reason::NoMemory), 1 << order);
                if order != 0 {
                    let _ = self.homeless.push_within_capacity(self.frames[index]);
                }
                continue;
            }
            // SAFETY: Both folios are locked; the source is unmapped.
            unsafe { self.transfer.add(index, to, from, order) };
        }
        self.transfer.deliver(&mut collected, bad);
        let committed = collected.commit();
        for item in self.transfer.items() {
            let pages = 1 << item.order;
            let outcome = if !item.is_filled {
                Outcome::Failed(self.transfer.failure())
            } else if committed.is_moved(item.index) == Some(true) {
                if pages == BATCH_PAGES as u64 {
                    tally.add_large(pages);
                }
                // SAFETY: The page is valid: it was allocated for this.
                let first = unsafe { sys::cdm_page_to_pfn(item.to) };
                for frame in first..first + pages as usize {
                    let _ = self.filled.push_within_capacity(frame);
                }
                Outcome::Moved
            } else {
                Outcome::Failed(committed.reason(item.index).unwrap_or(Reason::Busy))
            };
            tally.add_pages(outcome, pages);
        }
        filled(&self.filled);
        // Until here whoever touches a page waits.
        drop(committed);
        for frame in &self.homeless {
            // The next try finds single pages, for which there may be memory.
            // SAFETY: The frame is in the mapped region.
            unsafe { sys::cdm_frame_split(*frame) };
        }
        tally
    }

    /// As [`try_parts`](Self::try_parts), until none is left that may leave, or time is up.
    fn settle(&mut self, region: &Region, parts: &[Candidate], before: Stamp) -> Tally {
        let mut sum = Tally::default();
        for attempt in 0..TRIES {
            pause(attempt);
            sum.try_again(&self.try_parts(region, parts, before, BadMemory::Stays, |_| ()));
            // Time may help, or a split did.
            if !sum.is_transient() && self.homeless.is_empty() {
                break;
            }
        }
        sum
    }
}

/// What is at hand when the kernel asks for help: nothing can be allocated then.
pub(crate) struct Relief {
    evictor: Evictor,
    folios: KVec<Candidate>,
    /// Blocks with pages in use, the least recently migrated ones first.
    blocks: KVVec<(Stamp, u32)>,
}

impl Relief {
    /// For a device of so many pages.
    pub(crate) fn new(pages: u32) -> Result<Self> {
        let mut evictor = Evictor::new()?;
        evictor.in_reclaim = true;
        let blocks = pages.div_ceil(BATCH_PAGES as u32) as usize;
        Ok(Self {
            evictor,
            folios: KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?,
            blocks: KVVec::with_capacity(blocks, GFP_KERNEL)?,
        })
    }

    /// Evicts pages of a memory cgroup that is at its limit, block by block, oldest first,
    /// until `limit` have left; how many did. In the middle of reclaim.
    pub(crate) fn run(&mut self, region: &Region, memcg: *mut c_void, limit: u64) -> Tally {
        let mut sum = Tally::default();
        region.blocks_by_age(&mut self.blocks);
        for (_, block) in &self.blocks {
            // SAFETY: Process context, no spinlock held.
            if sum.moved() >= limit || unsafe { sys::cdm_dying() } {
                break;
            }
            region.used_folios(region.block(*block), &mut self.folios);
            self.folios.retain(|folio| {
                // SAFETY: The frame is in the mapped region; no spinlock is held.
                unsafe { sys::cdm_frame_reclaimable(region.frame(folio.page), memcg) }
            });
            ages::sort_by_key(&mut self.folios, |folio| folio.stamp);
            let due = ages::count_due(&self.folios, limit - sum.moved());
            let parts = &self.folios[..due];
            let evictor = &mut self.evictor;
            let mut tally = evictor.try_parts(region, parts, NEVER, BadMemory::Stays, |_| ());
            if !evictor.homeless.is_empty() {
                tally.try_again(&evictor.try_parts(region, parts, NEVER, BadMemory::Stays, |_| ()));
            }
            sum.merge(&tally);
        }
        sum
    }
}

/// Why a folio was left alone, if it is still in use; a tail is counted with its head.
fn count_failed(frame: usize, reason: Option<Reason>, tally: &mut Tally) {
    let (mut head, mut order, mut stamp) = (0, 0, 0);
    // SAFETY: The frame is in the mapped region, as all that are tried.
    let is_used = unsafe { sys::cdm_frame_look(frame, &mut head, &mut order, &mut stamp) };
    if !is_used || head != frame {
        return;
    }
    // SAFETY: As above.
    let seen = Reason::of_raw(unsafe { sys::cdm_frame_reason(frame) });
    if let Some(reason) = reason.or(seen) {
        tally.add_pages(Outcome::Failed(reason), 1 << order);
    }
}

/// Lets others finish what they hold pages for.
fn pause(attempt: u32) {
    if attempt > 0 {
        // SAFETY: Process context, no lock held.
        unsafe { sys::cdm_drain() };
        // SAFETY: As above.
        unsafe { sys::msleep(1 << (attempt - 1)) };
    }
}

/// Splits the large folios of which processes unmapped a part, so that the part is free.
///
/// The kernel leaves such a folio in one piece: it splits those of system memory when that
/// is short, which says nothing about this device. How many folios were split.
pub(crate) fn split_partly_mapped(device: &Device) -> Result<u32> {
    let region = device.region();
    let mut folios = KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?;
    let mut count = 0;
    for block in 0..region.blocks() {
        if is_over(device) {
            break;
        }
        region.used_folios(region.block(block), &mut folios);
        for folio in folios.iter().filter(|folio| folio.order != 0) {
            let frame = region.frame(folio.page);
            // SAFETY: The frame is in the mapped region; no lock is held.
            count += u32::from(unsafe {
                sys::cdm_frame_partly_mapped(frame) && sys::cdm_frame_split(frame)
            });
        }
    }
    Ok(count)
}

/// Evicts the pages of a range of the device, lowest first, until `limit` have left.
pub(crate) fn pages(device: &Device, pages: Range<u32>, limit: u64) -> Result<Tally> {
    let region = device.region();
    let mut evictor = Evictor::new()?;
    let mut folios = KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?;
    let mut sum = Tally::default();
    let mut next = pages.start;
    while next < pages.end && sum.moved() < limit && !is_over(device) {
        let block_end = (next / BATCH_PAGES as u32 + 1) * BATCH_PAGES as u32;
        let end = block_end.min(pages.end);
        region.used_folios(next..end, &mut folios);
        let left = limit - sum.moved();
        let due = ages::count_due(&folios, left);
        sum.merge(&evictor.settle(region, &folios[..due], NEVER));
        if due == folios.len() {
            next = end;
        } else {
            next = folios[due].page;
        }
    }
    finish(device, sys::cdm_evict_why_CDM_EVICT_ON_REQUEST, sum)
}

/// Evicts the least recently migrated pages until `limit` have left.
pub(crate) fn oldest(device: &Device, limit: u64) -> Result<Tally> {
    let before = device.region().stamp();
    let sum = oldest_before(device, limit, before)?;
    finish(device, sys::cdm_evict_why_CDM_EVICT_ON_REQUEST, sum)
}

/// Evicts the least recently migrated pages to make room for `limit` others; how many left.
pub(crate) fn make_room(device: &Device, limit: u64, before: Stamp) -> Result<u64> {
    let sum = oldest_before(device, limit, before)?;
    if sum.asked() == 0 {
        return Ok(0);
    }
    Ok(finish(device, sys::cdm_evict_why_CDM_EVICT_FOR_ROOM, sum)?.moved())
}

/// Brings folios back that the CPUs use, as many as a batch has room for. Each is tried once:
/// what is busy is tried again when it was used again.
///
/// `filled` hears which frames of system memory have them now, before anybody can use them there.
pub(crate) fn for_cpus(
    device: &Device,
    evictor: &mut Evictor,
    folios: &[Candidate],
    filled: impl FnOnce(&[usize]),
) -> Tally {
    let tally = evictor.try_parts(device.region(), folios, NEVER, BadMemory::Stays, filled);
    count(device, sys::cdm_evict_why_CDM_EVICT_FOR_CPUS, &tally);
    tally
}

/// Evicts pages that were migrated before `before`, oldest first, until `limit` have left.
fn oldest_before(device: &Device, limit: u64, before: Stamp) -> Result<Tally> {
    let region = device.region();
    let mut evictor = Evictor::new()?;
    let mut folios = KVec::with_capacity(BATCH_PAGES, GFP_KERNEL)?;
    let mut sum = Tally::default();
    while sum.moved() < limit && !is_over(device) {
        let Some(turn) = region.oldest_block(before, &mut folios) else {
            break;
        };
        let due = ages::choose(&mut folios, turn, before, limit - sum.moved());
        for folio in &folios[due..] {
            region.note_age(folio.page, folio.stamp);
        }
        sum.merge(&evictor.settle(region, &folios[..due], before));
        for folio in &folios[..due] {
            // What is still there does not come up again in this call, and in the next one
            // after all others.
            region.note_age_if_used(folio.page, before);
        }
    }
    Ok(sum)
}

/// Whether to stop where we are.
fn is_over(device: &Device) -> bool {
    device.gate().is_shut() || kernel::current!().signal_pending()
}

/// Counts an eviction that was asked for; EINTR or ENODEV if it was stopped before it began.
fn finish(device: &Device, why: sys::cdm_evict_why, sum: Tally) -> Result<Tally> {
    if sum.asked() == 0 && is_over(device) {
        return Err(if device.gate().is_shut() {
            ENODEV
        } else {
            EINTR
        });
    }
    count(device, why, &sum);
    Ok(sum)
}

/// Counts an eviction.
fn count(device: &Device, why: sys::cdm_evict_why, sum: &Tally) {
    device.counters().evicted(sum);
    let failed = sum.failed().iter().sum();
    // SAFETY: Takes values only.
    unsafe { sys::cdm_trace_evict(device.number(), why, sum.asked(), sum.moved(), failed) };
}
