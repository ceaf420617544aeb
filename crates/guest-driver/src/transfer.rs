// SPDX-License-Identifier: GPL-2.0-only

//! Fills the destinations of a batch with the contents of their sources.
//!
//! Facility: none of its own; the CPU's copy, and the device's COPY and FILL: for memory
//! that the CPU cannot reach, and for what the device copies faster. Contexts: process context; the folios of the batch are
//! locked, and it sleeps until the device is done, which needs none of these locks to get
//! on. Lock order: as for a command. Invariant: a destination that [`Transfer::deliver`]
//! gives to its source is filled as a whole.
//!
//! All copies of a batch are known before the first one is made, so that they can be
//! made together: the device gets one command for all of them. It refuses the whole of a command
//! that touches memory that has failed, so it is not asked for such a source, which stays.
//!
//! What the CPU can reach, the device copies only on behalf of who says so ([`Helper`]), and only
//! anonymous memory that nobody may execute: an emulator that translates code (QEMU's TCG) sees the
//! CPU's stores to code that it has translated, and not the device's. What the device does not
//! bring about, the CPU does, as long as the device is known to be done with the memory.

use kernel::prelude::*;

use crate::alloc::ORDER_MAX;
use crate::batch::{BATCH_PAGES, PAGE_BYTES};
use crate::choice::{Copier, Way};
use crate::command;
use crate::copies::{End, UnderWay};
use crate::migrate::Collected;
use crate::pagemap::{region_of, Region};
use crate::plan::{Operands, Request, Segment};
use crate::sys;
use crate::tally::Reason;
use crate::wire::{Opcode, RANGES_MAX};

/// Bytes of an element that zeroes are written with.
const FILL_WIDTH: u32 = 8;

/// What to do about a source that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadMemory {
    /// Its contents stay where they are.
    Stays,
    /// They are lost, zeroes in their place: the memory goes away, and whoever had it
    /// mapped was told.
    IsGivenUp,
}

/// A device that may copy what the CPU could copy as well.
#[derive(Clone, Copy)]
pub(crate) struct Helper<'a> {
    /// Its memory, which contents come from or go to.
    pub(crate) region: &'a Region,
    /// Which of that.
    pub(crate) way: Way,
}

/// One destination.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    /// Place in the batch.
    pub(crate) index: usize,
    /// First page of the destination.
    pub(crate) to: *mut sys::page,
    /// First page of the source; null for zeroes.
    from: *mut sys::page,
    /// `1 << order` pages.
    pub(crate) order: u32,
    pub(crate) is_filled: bool,
    /// The device has to fill it.
    is_beyond_cpu: bool,
    /// The device was asked to fill it, though the CPU could.
    is_handed_over: bool,
}

/// The copies of a batch; reusable.
pub(crate) struct Transfer {
    items: KVec<Item>,
    /// Ranges of a device command, made when there is one.
    source: KVec<Segment>,
    destination: KVec<Segment>,
    /// Why there are items that are not filled.
    failure: Reason,
}

impl Transfer {
    pub(crate) fn new() -> Result<Self> {
        Self::with_room(BATCH_PAGES)
    }

    /// Room for so many destinations.
    pub(crate) fn with_room(items: usize) -> Result<Self> {
        Ok(Self {
            items: KVec::with_capacity(items, GFP_KERNEL)?,
            source: KVec::new(),
            destination: KVec::new(),
            failure: Reason::Unsupported,
        })
    }

    /// Starts a batch.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.failure = Reason::Unsupported;
    }

    /// Adds a destination, of at most a batch in all; `from` is null for zeroes.
    ///
    /// # Safety
    ///
    /// Both are `1 << order` pages that are locked, and the source is unmapped, until
    /// [`deliver`](Self::deliver) or [`discard`](Self::discard). Nobody else knows the
    /// destination, and the caller passes on its reference to it.
    pub(crate) unsafe fn add(
        &mut self,
        index: usize,
        to: *mut sys::page,
        from: *mut sys::page,
        order: u32,
    ) {
        let item = Item {
            index,
            to,
            from,
            order,
            is_filled: false,
            is_beyond_cpu: false,
            is_handed_over: false,
        };
        // There is room for a batch.
        let _ = self.items.push_within_capacity(item);
    }

    /// Fills the destinations by the CPU where it can, and gives them to the sources of
    /// `collected`; frees those that could not be filled.
    pub(crate) fn deliver(&mut self, collected: &mut Collected<'_>, bad: BadMemory) {
        self.fill(bad, None);
        self.hand_on(collected);
    }

    /// The same, with a device that copies where it is faster. What cannot be read stays.
    pub(crate) fn deliver_with(&mut self, collected: &mut Collected<'_>, helper: Helper<'_>) {
        self.fill(BadMemory::Stays, Some(helper));
        self.hand_on(collected);
    }

    fn hand_on(&mut self, collected: &mut Collected<'_>) {
        for item in &self.items {
            // SAFETY: By the contract of `add` the folio is locked, with a reference that
            // goes along or is dropped here.
            unsafe {
                if item.is_filled {
                    collected.give(item.index, item.to, item.order);
                } else {
                    sys::cdm_page_unlock_put(item.to);
                }
            }
        }
    }

    /// Frees the destinations.
    pub(crate) fn discard(&mut self) {
        for item in self.items.drain_all() {
            // SAFETY: By the contract of `add` the folio is locked, with a reference.
            unsafe { sys::cdm_page_unlock_put(item.to) };
        }
    }

    fn fill(&mut self, bad: BadMemory, helper: Option<Helper<'_>>) {
        let turn = helper.and_then(|helper| self.turn(helper));
        let began_ns = now_ns();
        let under_way = turn.as_ref().and_then(|turn| self.hand_over(turn));
        // Meanwhile the CPU does the others.
        let worker = self.fill_by_cpu(bad);
        if let Some(turn) = turn {
            let by = under_way.as_ref().map_or(Copier::Cpu, |_| Copier::Engine);
            let region = turn.helper.region;
            let is_done = under_way.is_none_or(|copy| self.take_over(copy, region));
            if turn.is_measured {
                region.note_copy(turn.helper.way, by, is_done, now_ns() - began_ns);
            }
        }
        if let Some(region) = worker {
            self.fill_by_device(region);
        }
    }

    /// Whose turn it is to copy what both can, the CPU and the helper; `None` if it is the CPU's in
    /// any case.
    fn turn<'a>(&self, helper: Helper<'a>) -> Option<Turn<'a>> {
        // SAFETY: Returns a module parameter.
        match unsafe { sys::cdm_param_copy() } {
            sys::CDM_COPY_CPU => return None,
            sys::CDM_COPY_ENGINE => {
                return Some(Turn {
                    helper,
                    by: Copier::Engine,
                    is_measured: false,
                })
            }
            _ => {}
        }
        // What is smaller is not worth the way to the device and back.
        let [item] = self.items.as_slice() else {
            return None;
        };
        // SAFETY: The pages are held, by the contract of `add`.
        let is_for_either = item.order == ORDER_MAX && unsafe { item.is_for_either() };
        is_for_either.then(|| Turn {
            helper,
            by: helper.region.next_copier(helper.way),
            is_measured: true,
        })
    }

    /// Gives the device what goes into one command, if it is its turn; the rest is the CPU's.
    fn hand_over<'a>(&mut self, turn: &Turn<'a>) -> Option<UnderWay<'a>> {
        if turn.by == Copier::Cpu {
            return None;
        }
        let region = turn.helper.region;
        let under_way = match self.list(region) {
            Ok(()) if !self.source.is_empty() => {
                let operands = Operands {
                    source: &self.source,
                    destination: &self.destination,
                };
                UnderWay::begin(region.engine(), operands)
            }
            _ => None,
        };
        if under_way.is_none() {
            for item in &mut self.items {
                item.is_handed_over = false;
            }
        }
        under_way
    }

    /// Lists, and marks, what the device can have in one command.
    fn list(&mut self, region: &Region) -> Result {
        self.source.clear();
        self.destination.clear();
        for item in &mut self.items {
            if self.source.len() + self.destination.len() + 2 > RANGES_MAX {
                break;
            }
            // SAFETY: The pages are held, by the contract of `add`.
            unsafe {
                if !item.is_for_either() {
                    continue;
                }
                let bytes = PAGE_BYTES << item.order;
                append(&mut self.source, region.segment_of(item.from, 0, bytes))?;
                append(&mut self.destination, region.segment_of(item.to, 0, bytes))?;
            }
            item.is_handed_over = true;
        }
        Ok(())
    }

    /// Waits for what the device was given, and has the CPU do what it did not do. Whether it did.
    fn take_over(&mut self, under_way: UnderWay<'_>, region: &Region) -> bool {
        let engine = region.engine();
        let end = under_way.end();
        let (mut by_engine, mut by_cpu) = (0, 0);
        for item in self.items.iter_mut().filter(|item| item.is_handed_over) {
            let bytes = PAGE_BYTES << item.order;
            match end {
                End::Whole => {
                    item.is_filled = true;
                    by_engine += bytes;
                }
                End::Undone => {
                    // SAFETY: The pages are held, by the contract of `add`, and the device is done
                    // with them.
                    item.is_filled = unsafe { item.fill_by_cpu(BadMemory::Stays) };
                    by_cpu += if item.is_filled { bytes } else { 0 };
                }
                // SAFETY: The pages are held, by the contract of `add`.
                End::Lost => unsafe {
                    if let Some(region) = region_of(item.to) {
                        region.forsake(item.to, item.order);
                    }
                },
            }
        }
        engine.counters().copied_by_engine(by_engine);
        engine.counters().copied_by_cpu(by_cpu);
        if end == End::Lost {
            engine.forsake(&self.destination);
            // The CPU does it at the next try, to other pages.
            self.failure = Reason::Busy;
        }
        if end != End::Whole {
            engine.counters().engine_copy_failed();
        }
        end == End::Whole
    }

    /// Fills by the CPU what it can reach and the device was not given. The region whose device has
    /// to fill the others.
    fn fill_by_cpu<'a>(&mut self, bad: BadMemory) -> Option<&'a Region> {
        let mut worker = None;
        let mut bytes = 0;
        for item in self.items.iter_mut().filter(|item| !item.is_handed_over) {
            // SAFETY: The pages are held, by the contract of `add`.
            if let Some(region) = unsafe { item.region_beyond_cpu() } {
                // SAFETY: As above.
                item.is_beyond_cpu = unsafe { !is_unreadable(item.from, item.order) };
                worker = Some(region);
                continue;
            }
            // SAFETY: As above.
            item.is_filled = unsafe { item.fill_by_cpu(bad) };
            if item.is_filled && !item.from.is_null() {
                bytes += PAGE_BYTES << item.order;
            }
        }
        // All pages of a batch go to one device, or come from one.
        if let Some(item) = self.items.first().filter(|_| bytes != 0) {
            // SAFETY: As above; what was copied has a source, and so has the first.
            if let Some(region) = unsafe { item.region() } {
                region.engine().counters().copied_by_cpu(bytes);
            }
        }
        worker
    }

    /// Has the device fill what the CPU cannot. All such pages of a batch are in one device, or they
    /// go from one to another one; that of the destination does it then.
    fn fill_by_device(&mut self, region: &Region) {
        for is_copy in [true, false] {
            let done = self.run_on_device(region, is_copy);
            if done == Err(ENOMEM) {
                // For the request, not for the pages.
                self.failure = Reason::NoMemory;
            }
            let is_done = done.is_ok();
            for item in self.items.iter_mut().filter(|item| item.is_beyond_cpu) {
                if item.from.is_null() != is_copy {
                    item.is_filled = is_done;
                }
            }
        }
    }

    /// Why what is not filled is not: the memory has an error, or the device did not do it,
    /// or there was no memory to ask it.
    pub(crate) fn failure(&self) -> Reason {
        self.failure
    }

    /// The destinations, in the order in which they were added.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Has the device fill what the CPU cannot: the copies, or the zeroes.
    fn run_on_device(&mut self, region: &Region, is_copy: bool) -> Result {
        self.source.clear();
        self.destination.clear();
        for item in &self.items {
            if !item.is_beyond_cpu || item.from.is_null() == is_copy {
                continue;
            }
            let bytes = PAGE_BYTES << item.order;
            // SAFETY: The pages are held, by the contract of `add`.
            unsafe {
                append(&mut self.destination, region.segment_of(item.to, 0, bytes))?;
                if is_copy {
                    append(&mut self.source, region.segment_of(item.from, 0, bytes))?;
                }
            }
        }
        if self.destination.is_empty() {
            return Ok(());
        }
        let request = Request {
            opcode: if is_copy { Opcode::COPY } else { Opcode::FILL }
                .get()
                .into(),
            width: if is_copy { 0 } else { FILL_WIDTH },
            ..Request::default()
        };
        let operands = Operands {
            source: &self.source,
            destination: &self.destination,
        };
        let done = command::run_for_driver(region.engine(), &request, operands);
        if done == Err(ETIMEDOUT) {
            // The device may write yet to what it was given.
            region.engine().forsake(&self.destination);
        }
        done
    }
}

/// Whose turn it is to copy.
struct Turn<'a> {
    helper: Helper<'a>,
    by: Copier,
    /// What it takes decides about later turns.
    is_measured: bool,
}

impl Item {
    /// Fills it by the CPU, with what is at its source, or with zeroes; false if the source cannot
    /// be read, and is not to be given up.
    ///
    /// # Safety
    ///
    /// Both pages are held, and nobody else writes to the destination.
    unsafe fn fill_by_cpu(&self, bad: BadMemory) -> bool {
        let pages = 1 << self.order;
        // SAFETY: By the function's contract.
        unsafe {
            if self.from.is_null() {
                sys::cdm_pages_clear(self.to, pages);
                return true;
            }
            let give_up = bad == BadMemory::IsGivenUp;
            sys::cdm_pages_copy(self.to, self.from, pages, give_up) == 0
        }
    }

    /// Whether a device may copy it as well as the CPU: anonymous memory that both can reach, and
    /// of which the kernel knows no error.
    ///
    /// # Safety
    ///
    /// Both pages are held.
    unsafe fn is_for_either(&self) -> bool {
        // SAFETY: By the function's contract; there are so many pages.
        !self.from.is_null()
            && unsafe {
                self.region_beyond_cpu().is_none()
                    && sys::cdm_page_traits(self.from) & sys::CDM_TRAIT_ANON != 0
                    && !sys::cdm_pages_poisoned(self.from, 1 << self.order)
            }
    }

    /// The region that it goes to, or else comes from.
    ///
    /// # Safety
    ///
    /// Both pages are held.
    unsafe fn region<'a>(&self) -> Option<&'a Region> {
        // SAFETY: By the function's contract.
        unsafe {
            let to = region_of(self.to);
            to.or_else(|| {
                if self.from.is_null() {
                    None
                } else {
                    region_of(self.from)
                }
            })
        }
    }

    /// The region whose device has to fill this, if the CPU cannot.
    ///
    /// # Safety
    ///
    /// Both pages are held.
    unsafe fn region_beyond_cpu<'a>(&self) -> Option<&'a Region> {
        let beyond_cpu = |page: *mut sys::page| {
            if page.is_null() {
                return None;
            }
            // SAFETY: By the function's contract.
            unsafe { region_of(page) }.filter(|region| !region.is_cpu_addressable())
        };
        beyond_cpu(self.to).or_else(|| beyond_cpu(self.from))
    }
}

fn now_ns() -> u64 {
    // SAFETY: Returns a number.
    unsafe { sys::cdm_now_ns() }
}

/// Whether some of these pages have failed in memory that only a device can read, and will not.
///
/// # Safety
///
/// The pages are held, or the pointer is null.
pub(crate) unsafe fn is_unreadable(page: *mut sys::page, order: u32) -> bool {
    if page.is_null() {
        return false;
    }
    // SAFETY: By the function's contract.
    let region = unsafe { region_of(page) };
    region.is_some_and(|region| {
        // SAFETY: As above, and the pages are in that region.
        !region.is_cpu_addressable() && unsafe { region.failed_in(page, order) } != 0
    })
}

/// Appends a segment to a list.
fn append(list: &mut KVec<Segment>, next: Segment) -> Result {
    if list.last_mut().is_some_and(|last| last.absorb(&next)) {
        return Ok(());
    }
    Ok(list.push(next, GFP_KERNEL)?)
}
