// SPDX-License-Identifier: GPL-2.0-only

//! An address space as a device sees it: its page table, kept true by the kernel.
//!
//! Facility: none of its own; policy over [`crate::notifier`], [`crate::fault`] and
//! [`crate::table`]. Contexts: process context. Lock order: as for [`crate::notifier`];
//! nothing is allocated under the mirror's lock. Invariant: the device touches a page of the
//! address space only under that lock, for which every change of the page's mapping waits.

use core::ops::Range;

use kernel::mm::{Mm, MmWithUser};
use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNodeReservation};
use kernel::sync::aref::ARef;

use crate::batch::{PageRange, PAGE_BYTES};
use crate::fault::{Entry, Snapshot, Want};
use crate::notifier::{Follower, Mirror};
use crate::pagemap::Region;
use crate::plan::Segment;
use crate::sys;
use crate::table::{pages_of, Access, Leaf, LEAF_BYTES};

/// The whole of an address space: what `mmu_interval_notifier` can watch.
const EVERYTHING: (u64, u64) = (0, !0xfff);

/// The page table of a device for one address space: leaves by their number.
pub(crate) struct PageTable {
    leaves: RBTree<u64, KBox<Leaf>>,
}

/// Room for a leaf, made before the lock is taken.
pub(crate) struct Room {
    node: RBTreeNodeReservation<u64, KBox<Leaf>>,
    leaf: KBox<Leaf>,
}

impl Room {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
            leaf: KBox::new(Leaf::new(), GFP_KERNEL)?,
        })
    }
}

impl PageTable {
    /// A page table without pages.
    pub(crate) fn new() -> Self {
        Self {
            leaves: RBTree::new(),
        }
    }

    /// Number of the first leaf from `number` on.
    fn next_leaf(&self, number: u64) -> Option<u64> {
        let found = self.leaves.cursor_lower_bound(&number)?;
        Some(*found.current().0)
    }

    /// The addresses from the first to the last page that the device may access, of those that
    /// lie in `addresses`; `None` if it may access none of them.
    pub(crate) fn hull(&self, addresses: &Range<u64>) -> Option<Range<u64>> {
        let mut hull: Option<Range<u64>> = None;
        self.each_leaf(addresses, |number, leaf| {
            if let Some(pages) = leaf.hull(pages_of(number, addresses)) {
                let address = |page| number * LEAF_BYTES + page as u64 * PAGE_BYTES;
                let start = address(pages.start);
                let start = hull.as_ref().map_or(start, |hull| hull.start);
                hull = Some(start..address(pages.end));
            }
        });
        hull
    }

    /// Calls `with` for where the device finds each page that it may access in `addresses`.
    pub(crate) fn each_page(&self, addresses: &Range<u64>, mut with: impl FnMut(Segment)) {
        self.each_leaf(addresses, |number, leaf| {
            pages_of(number, addresses)
                .filter_map(|index| leaf.get(index, Access::Read))
                .for_each(&mut with);
        });
    }

    fn each_leaf(&self, addresses: &Range<u64>, mut with: impl FnMut(u64, &Leaf)) {
        if addresses.is_empty() {
            return;
        }
        let last = Leaf::number_of(addresses.end - 1);
        let mut next = self.next_leaf(Leaf::number_of(addresses.start));
        while let Some(number) = next {
            if number > last {
                return;
            }
            if let Some(leaf) = self.leaves.get(&number) {
                with(number, leaf);
            }
            next = self.next_leaf(number + 1);
        }
    }

    /// Where the device finds the page at `address`, if it may access it in that way.
    pub(crate) fn get(&self, address: u64, access: Access) -> Option<Segment> {
        let leaf = self.leaves.get(&Leaf::number_of(address))?;
        leaf.get(Leaf::index_of(address), access)
    }

    /// Appends where the device finds `bytes` bytes from `address` on, if it may access them
    /// in that way; false if not, or if `segments` has no room. An address of zero is no
    /// memory at all.
    pub(crate) fn resolve(
        &self,
        address: u64,
        bytes: u64,
        access: Access,
        segments: &mut KVec<Segment>,
    ) -> bool {
        let mut left = if address == 0 { 0 } else { bytes };
        let mut at = address;
        while left > 0 {
            let offset = at % PAGE_BYTES;
            let Some(mut segment) = self.get(at - offset, access) else {
                return false;
            };
            segment.address += offset;
            segment.bytes = (PAGE_BYTES - offset).min(left);
            at += segment.bytes;
            left -= segment.bytes;
            let follows = segments
                .last_mut()
                .is_some_and(|last| last.absorb(&segment));
            if !follows && segments.push_within_capacity(segment).is_err() {
                return false;
            }
        }
        true
    }

    /// The leaf for `address`, made from `room` if there is none.
    pub(crate) fn leaf(&mut self, address: u64, room: &mut Option<Room>) -> Option<&mut Leaf> {
        let number = Leaf::number_of(address);
        if self.leaves.get(&number).is_none() {
            let Room { node, leaf } = room.take()?;
            self.leaves.insert(node.into_node(number, leaf));
        }
        Some(self.leaves.get_mut(&number)?)
    }
}

impl Follower for PageTable {
    fn forget(&mut self, addresses: Range<u64>) {
        if addresses.is_empty() {
            return;
        }
        let last = Leaf::number_of(addresses.end - 1);
        let mut next = Leaf::number_of(addresses.start);
        loop {
            let found = self.leaves.cursor_lower_bound(&next);
            let Some(number) = found.map(|cursor| *cursor.current().0) else {
                return;
            };
            if number > last {
                return;
            }
            if let Some(leaf) = self.leaves.get_mut(&number) {
                leaf.forget(pages_of(number, &addresses));
                if leaf.is_empty() {
                    self.leaves.remove(&number);
                }
            }
            next = number + 1;
        }
    }
}

/// Keeps `follower` true about all of `mm`. Not under the mmap lock.
pub(crate) fn follow_all<T: Follower>(
    mm: &MmWithUser,
    follower: T,
) -> Result<Pin<KBox<Mirror<T>>>> {
    let everything = PageRange::new(EVERYTHING.0, EVERYTHING.1).ok_or(EINVAL)?;
    Mirror::follow(mm, everything, follower)
}

/// An address space with the page table of a device for it.
pub(crate) struct AddressSpace {
    mirror: Pin<KBox<Mirror<PageTable>>>,
    mm: ARef<Mm>,
}

impl AddressSpace {
    /// Mirrors all of `mm`, with nothing accessible yet.
    pub(crate) fn new(mm: &MmWithUser) -> Result<Self> {
        let table = PageTable::new();
        let mm_of: &Mm = mm;
        Ok(Self {
            mirror: follow_all(mm, table)?,
            mm: mm_of.into(),
        })
    }

    /// The address space as long as it has users; EFAULT if its process is gone.
    pub(crate) fn mm(&self) -> Result<ARef<MmWithUser>> {
        self.mm.mmget_not_zero().ok_or(EFAULT)
    }

    pub(crate) fn mirror(&self) -> &Mirror<PageTable> {
        &self.mirror
    }

    /// Lets the device access what is mapped in `range`, after faulting in what `want` asks
    /// for. With `may_unlock`, faults may wait for a userfaultfd.
    ///
    /// EFAULT, EPERM, ENOMEM as [`Snapshot::see`]; EINTR after a signal.
    pub(crate) fn map(
        &self,
        region: &Region,
        range: PageRange,
        want: Want,
        may_unlock: bool,
    ) -> Result {
        let mm = self.mm()?;
        let mut snapshot = Snapshot::new(region)?;
        let mut room = None;
        for batch in range.batches() {
            loop {
                if kernel::current!().signal_pending() {
                    return Err(EINTR);
                }
                if room.is_none() {
                    room = Some(Room::new()?);
                }
                let store = |table: &mut PageTable, entries: &mut dyn Iterator<Item = Entry>| {
                    store(region, table, batch, &mut room, entries)
                };
                let seen = if may_unlock {
                    snapshot.see_unlocked(&self.mirror, batch, want, store)?
                } else {
                    let ticket = self.mirror.read_begin();
                    let locked = mm.mmap_read_lock();
                    snapshot.see(&self.mirror, ticket, batch, want, &locked, store)?
                };
                if seen.is_some() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Enters what was seen in a batch into the page table. The ticket for it is good.
fn store(
    region: &Region,
    table: &mut PageTable,
    batch: PageRange,
    room: &mut Option<Room>,
    entries: &mut dyn Iterator<Item = Entry>,
) {
    // A batch never crosses a leaf, and the caller made room for one.
    let Some(leaf) = table.leaf(batch.start(), room) else {
        return;
    };
    let first = Leaf::index_of(batch.start());
    for (index, entry) in entries.enumerate() {
        // SAFETY: The ticket holds, so what was seen is true until the lock is dropped.
        if let Some((segment, access)) = unsafe { page_of(region, entry) } {
            leaf.set(first + index, &segment, access);
        }
    }
}

/// Where the device finds the page of an entry, if there is one, and what it may do with it.
///
/// # Safety
///
/// The ticket for the entry holds, and does so until the device is kept away from the page.
pub(crate) unsafe fn page_of(region: &Region, entry: Entry) -> Option<(Segment, Access)> {
    let page = entry.page()?;
    let access = if entry.is_writable() {
        // SAFETY: By the function's contract the page is mapped.
        unsafe { sys::cdm_page_mark_dirty(page) };
        Access::Write
    } else {
        Access::Read
    };
    // SAFETY: As above.
    let segment = unsafe { region.segment_of(page, 0, PAGE_BYTES) };
    Some((segment, access))
}
