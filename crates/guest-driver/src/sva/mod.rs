// SPDX-License-Identifier: GPL-2.0-only

//! Commands on addresses of a process: address spaces that a device knows.
//!
//! Facility: none of its own; policy over [`crate::notifier`] and the control queue. Contexts:
//! process context; page requests are served by the module's workers. Lock order:
//! `Binding::is_bound`, then `Spaces::table` or `Mirror::follower`; memory may be allocated under
//! the first two. Under the last the device may be waited for, and memory may not.
//!
//! A process binds its address space to a device through an open file (CDM_IOC_BIND), and gets
//! a PASID for it. From then on the device asks for pages when a command needs them, and is
//! told where they are; [`told`] remembers that. Before a mapping changes the device is made
//! to forget, and the change waits until it has.
//!
//! Invariant: what the device may access of an address space is in its [`told::Told`], from
//! before the device is told until it has forgotten; if it does not say that it has, those
//! pages are never used for anything else again.

mod faulters;
mod hot;
mod serve;
mod told;

use kernel::mm::{Mm, MmWithUser};
use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNodeReservation};
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};

use crate::batch::{PageRange, PAGE_BYTES};
use crate::device::Device;
use crate::mirror;
use crate::notifier::Mirror;
use crate::wire::{Status, ADDRESS_SPACES_MAX, PASID_MAX};

use faulters::Faulters;
pub(crate) use hot::{note, Hot, Wish};
use hot::{Account, Granted};
pub(crate) use serve::serve;
use told::Told;

/// An address space that a device knows, or knew.
#[pin_data]
pub(crate) struct Binding {
    /// What the device was told. Dropped first: no callback runs after that.
    mirror: Pin<KBox<Mirror<Told>>>,
    mm: ARef<Mm>,
    pasid: u32,
    /// Whether the device knows it; held while that changes.
    #[pin]
    is_bound: Mutex<bool>,
    /// Workers that fault pages in for it.
    #[pin]
    faulters: Faulters,
    /// The worker that moves pages of it which are hot.
    #[pin]
    movers: Faulters,
    /// Commands that somebody waits for.
    commands: Atomic<u32>,
    /// What is to move to the device for being used much, if anything is.
    #[pin]
    hot: SpinLock<Option<Granted>>,
    /// What was done about that.
    #[pin]
    account: SpinLock<Account>,
}

impl Binding {
    fn new(device: &Device, mm: &MmWithUser, pasid: u32) -> Result<Arc<Self>> {
        let told = Told::new(device.engine().clone(), pasid)?;
        let mirror = mirror::follow_all(mm, told)?;
        let mm: &Mm = mm;
        Arc::pin_init(
            try_pin_init!(Self {
                mirror,
                mm: mm.into(),
                pasid,
                is_bound <- new_mutex!(false, "cdm::Binding::is_bound"),
                faulters <- Faulters::new(),
                movers <- Faulters::new(),
                commands: Atomic::new(0),
                hot <- new_spinlock!(None, "cdm::Binding::hot"),
                account <- new_spinlock!(Account::default(), "cdm::Binding::account"),
            }? Error),
            GFP_KERNEL,
        )
    }

    pub(crate) fn pasid(&self) -> u32 {
        self.pasid
    }

    /// Whether it is the address space of the current process.
    pub(crate) fn is_current(&self) -> bool {
        kernel::current!()
            .mm()
            .is_some_and(|mm| mm.as_raw() == self.mm.as_raw())
    }

    /// Somebody waits for a command on it, as long as the value lives.
    pub(crate) fn begin_command(&self) -> UnderWay<'_> {
        self.commands.fetch_add(1, Full);
        UnderWay(self)
    }

    /// Whether nobody waits for a command on it, so that no page is needed any more.
    fn is_idle(&self) -> bool {
        self.commands.load(Relaxed) == 0
    }

    /// Has the device forget the address space, if it knows it. Returns when that is done,
    /// whoever began it.
    fn unbind(&self) {
        let mut is_bound = self.is_bound.lock();
        if !core::mem::replace(&mut *is_bound, false) {
            return;
        }
        *self.hot.lock() = None;
        self.faulters.stop_all();
        self.movers.stop_all();
        self.mirror.lock().close();
    }
}

/// A command on an address space.
pub(crate) struct UnderWay<'a>(&'a Binding);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.0.commands.fetch_sub(1, Full) == 1 {
            // Whatever page is still being waited for, no command needs it.
            self.0.faulters.interrupt();
        }
    }
}

/// The address spaces that a device knows, by PASID; a place without one is being bound.
struct Table {
    by_pasid: RBTree<u32, Option<Arc<Binding>>>,
    /// How many there are.
    count: usize,
    /// Where to look for a free PASID first: one that was just given up comes last.
    next: u32,
    is_closed: bool,
}

/// The address spaces of a device.
#[pin_data]
pub(crate) struct Spaces {
    #[pin]
    table: Mutex<Table>,
}

impl Spaces {
    pub(crate) fn new() -> impl PinInit<Self> {
        let table = Table {
            by_pasid: RBTree::new(),
            count: 0,
            next: 1,
            is_closed: false,
        };
        pin_init!(Self {
            table <- new_mutex!(table, "cdm::Spaces::table"),
        })
    }

    /// How many are bound.
    pub(crate) fn count(&self) -> usize {
        self.table.lock().count
    }

    /// The address space with a PASID.
    fn find(&self, pasid: u32) -> Option<Arc<Binding>> {
        self.table.lock().by_pasid.get(&pasid)?.clone()
    }

    /// Marks the pages of a batch of `mm` that the device has for itself at this moment.
    pub(crate) fn mark_exclusive(&self, mm: &Mm, batch: PageRange, marks: &mut [bool]) {
        marks.fill(false);
        let mut next = 0;
        while let Some(binding) = self.first_from(next) {
            next = binding.pasid + 1;
            if binding.mm.as_raw() != mm.as_raw() {
                continue;
            }
            let told = binding.mirror.lock();
            for (index, mark) in marks[..batch.pages()].iter_mut().enumerate() {
                let address = batch.start() + index as u64 * PAGE_BYTES;
                *mark |= told.exclusive_at(address).is_some();
            }
        }
    }

    /// Takes a free PASID; ENOSPC if there are too many, ENODEV if the device goes away.
    fn take_pasid(&self) -> Result<u32> {
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut table = self.table.lock();
        if table.is_closed {
            return Err(ENODEV);
        }
        if table.count >= ADDRESS_SPACES_MAX {
            return Err(ENOSPC);
        }
        let mut pasid = table.next;
        // There are more than are in use.
        while table.by_pasid.get(&pasid).is_some() {
            pasid = after(pasid);
        }
        table.next = after(pasid);
        table.count += 1;
        table.by_pasid.insert(node.into_node(pasid, None));
        Ok(pasid)
    }

    /// Makes an address space known under its PASID; ENODEV if the device goes away.
    fn put(&self, binding: &Arc<Binding>) -> Result {
        let mut table = self.table.lock();
        if table.is_closed {
            return Err(ENODEV);
        }
        if let Some(place) = table.by_pasid.get_mut(&binding.pasid) {
            *place = Some(binding.clone());
        }
        Ok(())
    }

    /// Gives a PASID back that has this address space, or none. Whoever comes later finds it
    /// gone, or somebody else's.
    fn give_back(&self, pasid: u32, binding: Option<&Binding>) {
        let mut table = self.table.lock();
        let is_ours = match (table.by_pasid.get(&pasid), binding) {
            (Some(None), None) => true,
            (Some(Some(known)), Some(binding)) => core::ptr::eq(&**known, binding),
            _ => false,
        };
        let old = if is_ours {
            table.count -= 1;
            table.by_pasid.remove(&pasid)
        } else {
            None
        };
        drop(table);
        // Not under the lock: the last reference removes the notifier.
        drop(old);
    }

    /// Binds the address space `mm` to the device.
    ///
    /// EOPNOTSUPP if the device cannot do it, ENOSPC if it knows too many already, EIO if it
    /// refuses or had to be reset, ENODEV, ENOMEM.
    pub(crate) fn bind(&self, device: &Device, mm: &MmWithUser) -> Result<Arc<Binding>> {
        if device.engine().process_queue().is_none() {
            return Err(EOPNOTSUPP);
        }
        let pasid = self.take_pasid()?;
        let binding =
            Binding::new(device, mm, pasid).inspect_err(|_| self.give_back(pasid, None))?;
        // Whoever finds it waits until it is known how this ends.
        let mut is_bound = binding.is_bound.lock();
        if let Err(err) = self.put(&binding) {
            self.give_back(pasid, None);
            return Err(err);
        }
        let bound = device.control().bind(device.engine().recovery(), pasid);
        let result = match bound {
            Ok(status) if status == Status::OK => Ok(()),
            Ok(status) if status == Status::TOO_MANY_SPACES => Err(ENOSPC),
            Ok(_) => Err(EIO),
            // The device was reset instead of answering, and may know it.
            Err(err) if err == ECANCELED => {
                binding.mirror.lock().close();
                Err(EIO)
            }
            Err(err) => {
                if err == ETIMEDOUT {
                    device.transport().declare_gone();
                }
                Err(if err == ENOMEM { err } else { ENODEV })
            }
        };
        *is_bound = result.is_ok();
        if result.is_ok() {
            // Before a command can be made with it, so before the device asks for a page.
            binding.mirror.lock().open();
        }
        drop(is_bound);
        if let Err(err) = result {
            self.give_back(pasid, Some(&binding));
            return Err(err);
        }
        Ok(binding)
    }

    /// Has the device forget an address space, and gives its PASID back.
    pub(crate) fn unbind(&self, binding: &Binding) {
        binding.unbind();
        self.give_back(binding.pasid, Some(binding));
    }

    /// Binds nothing any more, and has the device forget every address space.
    pub(crate) fn close(&self) {
        self.table.lock().is_closed = true;
        let mut next = 0;
        while let Some(binding) = self.first_from(next) {
            next = binding.pasid + 1;
            self.unbind(&binding);
        }
    }

    fn first_from(&self, pasid: u32) -> Option<Arc<Binding>> {
        let table = self.table.lock();
        let mut from = pasid;
        loop {
            let found = table.by_pasid.cursor_lower_bound(&from)?;
            let (number, binding) = found.current();
            if let Some(binding) = binding {
                return Some(binding.clone());
            }
            from = *number + 1;
        }
    }
}

/// The PASID to try after this one.
fn after(pasid: u32) -> u32 {
    if pasid == PASID_MAX {
        1
    } else {
        pasid + 1
    }
}
