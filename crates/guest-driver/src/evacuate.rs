// SPDX-License-Identifier: GPL-2.0-only

//! Brings every page of a device back to system memory.
//!
//! Facility: none of its own; policy over [`crate::evict`]. Contexts: process
//! context, when the device's gate is closed and no new page can arrive. Lock order:
//! as for [`crate::evict`].
//! Invariant: [`run`] returns true only when no page is in use.
//!
//! A pass tries every page in use once. Pages that are busy are left for the next
//! pass; between passes the per-CPU batches are drained and some time goes by.

use core::ops::Range;

use kernel::prelude::*;

use crate::device::Device;
use crate::evict::Evictor;
use crate::pagemap::Region;
use crate::sys;
use crate::transfer::BadMemory;

/// Longest pause between passes.
const PAUSE_MS_MAX: u32 = 100;
/// How long pages may stay before the log says which.
const SILENCE_MS: u32 = 5_000;

/// Evacuates a region; whether it is empty now. False if for `patience_ms` milliseconds no
/// page left: new ones do not come, so this ends. False also if pages are where only a
/// device can copy them from that does not answer.
pub(crate) fn run(device: &Device, patience_ms: u32) -> bool {
    let region = device.region();
    let mut evictor = wait_for_memory(Evictor::new);
    empty(device, patience_ms, |in_use| {
        if !region.is_cpu_addressable() && device.transport().is_gone() {
            return false;
        }
        let mut moved = 0;
        each_batch(region, |pages| {
            // What cannot be read is lost with the device, so that it does not stay for ever.
            let (tally, next) = evictor.try_pages(region, pages, BadMemory::IsGivenUp);
            moved += tally.moved();
            next
        });
        device.counters().evacuated(moved);
        // SAFETY: Takes values only.
        unsafe { sys::cdm_trace_evacuate(device.number(), in_use.into(), moved) };
        true
    })
}

/// Takes private memory from those who still have it, with its contents; how many pages. Ends
/// as [`run`] does. Needs a kernel that can.
pub(crate) fn lose(device: &Device, patience_ms: u32) -> u64 {
    let region = device.region();
    let mut evictor = wait_for_memory(Evictor::new);
    let mut sum = 0;
    empty(device, patience_ms, |_| {
        each_batch(region, |pages| {
            let (lost, next) = evictor.lose_pages(region, pages);
            sum += lost;
            next
        });
        true
    });
    sum
}

/// Makes passes until no page is in use; whether that came about. It does not if for
/// `patience_ms` milliseconds no page left, or if `pass`, which is told how many pages are in
/// use, says that there is no point in it.
fn empty(device: &Device, patience_ms: u32, mut pass: impl FnMut(u32) -> bool) -> bool {
    let region = device.region();
    let mut pause_ms = 1;
    let mut idle_ms = 0;
    let mut is_reported = false;
    loop {
        let in_use = region.used_pages();
        if in_use == 0 {
            return true;
        }
        if !pass(in_use) {
            return false;
        }
        // Processes free pages too; that is progress as well.
        if region.used_pages() < in_use {
            pause_ms = 1;
            idle_ms = 0;
            continue;
        }
        if idle_ms >= SILENCE_MS && !is_reported {
            is_reported = true;
            report(device);
        }
        if idle_ms >= patience_ms {
            return false;
        }
        // SAFETY: Process context, no lock held.
        unsafe { sys::cdm_drain() };
        // SAFETY: As above.
        unsafe { sys::msleep(pause_ms) };
        idle_ms += pause_ms;
        pause_ms = (pause_ms * 2).min(PAUSE_MS_MAX);
    }
}

/// Waits until nobody has a page of the device any more.
pub(crate) fn wait_for_users(device: &Device) {
    let region = device.region();
    report(device);
    while region.used_pages() != 0 {
        // SAFETY: Process context, no lock held.
        unsafe { sys::msleep(PAUSE_MS_MAX) };
    }
}

/// Goes through a region with `batch`, which is told what is left of it and says where to go
/// on.
fn each_batch(region: &Region, mut batch: impl FnMut(Range<u32>) -> Option<u32>) {
    let mut next = Some(0);
    while let Some(from) = next {
        next = batch(from..region.pages());
    }
}

/// Says, once, what keeps the device from going away.
fn report(device: &Device) {
    let Some(frame) = device.region().first_used() else {
        return;
    };
    // SAFETY: The frame is in the mapped region.
    let (refs, maps) = unsafe {
        let page = sys::cdm_pfn_to_page(frame);
        (sys::cdm_page_refs(page), sys::cdm_page_maps(page))
    };
    dev_warn!(
        device.dev(),
        "cdm{}: {} pages cannot leave the device, the first is pfn {:#x} with {} references \
         and {} mappings; waiting for whoever holds them\n",
        device.number(),
        device.region().used_pages(),
        frame,
        refs,
        maps
    );
}

/// A few kilobytes without which pages cannot leave: wait until there are.
fn wait_for_memory<T>(make: impl Fn() -> Result<T>) -> T {
    loop {
        if let Ok(made) = make() {
            return made;
        }
        // SAFETY: Process context, no lock held.
        unsafe { sys::msleep(PAUSE_MS_MAX) };
    }
}
