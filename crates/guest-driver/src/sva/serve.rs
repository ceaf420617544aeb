// SPDX-License-Identifier: GPL-2.0-only

//! Answers to a device that asks for pages of a process.
//!
//! Facility: none of its own; policy over [`crate::fault`]. Contexts: a worker of the module, one
//! for each request, so that none waits for another. Lock order: as for [`super::told`]; pages
//! are faulted in under none of the driver's locks. Invariant: a request is answered once, as
//! long as the device knows the address space that it is for.

use core::ops::Range;

use kernel::prelude::*;

use super::told::{respond_with, Answering, Found};
use super::Binding;
use crate::answer::Asked;
use crate::batch::{PageRange, PAGE_BYTES};
use crate::device::Device;
use crate::exclusive::Exclusive;
use crate::fault::{Snapshot, Want};
use crate::sys;
use crate::virtio::FULL_MS;
use crate::wire::{PageRequest, Status, PAGE_REQUEST_ATOMIC, PAGE_REQUEST_WRITE};

/// How a request ended.
enum Outcome {
    /// So many entries were told.
    Told(u64),
    /// There is no page for the device.
    Refused(Status),
    /// The device is not told anything any more.
    Over,
}

/// What became of pages that are there.
enum Seen {
    /// So many entries were told.
    Told(u64),
    /// The device's atomics do not reach the first one where a CPU may access it, too.
    OutOfReach(Answering),
}

/// What a process has at an address.
struct Area {
    end: u64,
    /// Look at one page at a time: the others may be waited for.
    is_served: bool,
}

/// Answers a page request.
pub(crate) fn serve(device: &Device, request: &PageRequest) {
    let (pasid, id) = (request.pasid.get(), request.id.get());
    let flags = request.flags.get();
    let asked = Asked {
        address: request.address.get(),
        pages: request.pages.get().into(),
        is_written: flags & (PAGE_REQUEST_WRITE | PAGE_REQUEST_ATOMIC) != 0,
        is_atomic: flags & PAGE_REQUEST_ATOMIC != 0,
    };
    device.counters().page_requested();
    let outcome = match device.spaces().find(pasid) {
        Some(binding) => binding.serve(device, id, &asked),
        None => {
            device.counters().page_request_refused();
            refuse_stranger(device, pasid, id);
            Outcome::Refused(Status::UNBOUND)
        }
    };
    let (entries, status) = match outcome {
        Outcome::Told(entries) => (entries, Status::OK),
        Outcome::Refused(status) => (0, status),
        Outcome::Over => (0, Status::UNBOUND),
    };
    // SAFETY: Takes values only.
    unsafe {
        sys::cdm_trace_page_request(
            device.number(),
            pasid,
            id,
            asked.address,
            asked.pages,
            asked.is_written,
            asked.is_atomic,
            entries,
            status.get().into(),
        )
    };
}

/// Answers for an address space that nobody has bound.
fn refuse_stranger(device: &Device, pasid: u32, id: u32) {
    let respond = || {
        let answering = Answering::new(1)?;
        respond_with(device.control(), pasid, id, Status::UNBOUND, answering)
    };
    while matches!(respond(), Err(err) if err == EBUSY) {
        pause();
    }
}

/// Lets the device work on a full control queue.
fn pause() {
    // SAFETY: Process context, no lock held.
    unsafe { sys::msleep(FULL_MS) };
}

impl Binding {
    fn serve(&self, device: &Device, id: u32, asked: &Asked) -> Outcome {
        let outcome = self.look_and_tell(device, id, asked);
        if !matches!(outcome, Outcome::Told(_)) {
            // Before anybody can see that the command has failed.
            device.counters().page_request_refused();
        }
        if let Outcome::Refused(status) = outcome {
            self.refuse(id, status);
        }
        outcome
    }

    /// Refuses a page. Without memory for that the command ends when its process does.
    fn refuse(&self, id: u32, status: Status) {
        loop {
            let Ok(answering) = Answering::new(1) else {
                return;
            };
            let refused = self.mirror.lock().refuse(id, status, answering);
            match refused {
                Err(err) if err == EBUSY => pause(),
                _ => return,
            }
        }
    }

    /// Faults in what was asked for and tells the device where it is.
    fn look_and_tell(&self, device: &Device, id: u32, asked: &Asked) -> Outcome {
        let Some(mm) = self.mm.mmget_not_zero() else {
            return Outcome::Refused(Status::UNBOUND);
        };
        let (want, right) = if asked.is_written {
            (Want::Write, sys::CDM_AREA_READ | sys::CDM_AREA_WRITE)
        } else {
            (Want::Read, sys::CDM_AREA_READ)
        };
        let region = device.region();
        let Ok(mut snapshot) = Snapshot::new(region) else {
            return Outcome::Refused(Status::PAGE_ERROR);
        };
        let mut is_alone = false;
        let mut has_failed = false;
        let mut is_full = false;
        loop {
            let area = match area_at(&mm, asked.address, right) {
                Ok(area) => area,
                Err(status) => return Outcome::Refused(status),
            };
            let addresses = asked.within(area.end, is_alone || area.is_served);
            let Some(batch) = range_of(&addresses) else {
                return Outcome::Refused(Status::PAGE_ERROR);
            };
            if asked.is_atomic {
                match self.tell_again(id, asked) {
                    Ok(None) => {}
                    Ok(Some(entries)) => return Outcome::Told(entries),
                    Err(err) if err == EBUSY => {
                        is_full = true;
                        pause();
                        continue;
                    }
                    Err(err) if err == ENODEV => return Outcome::Over,
                    Err(_) => return Outcome::Refused(Status::PAGE_ERROR),
                }
            }
            let Ok(answering) = Answering::new(batch.pages()) else {
                return Outcome::Refused(Status::PAGE_ERROR);
            };
            let Some(faulting) = self.faulters.enter() else {
                // An UNBIND has stopped them, and comes to the device behind this answer.
                return Outcome::Refused(match self.faulters.are_stopped() {
                    true => Status::UNBOUND,
                    false => Status::PAGE_ERROR,
                });
            };
            // The device is not to blame for what the guest takes, but for a full queue.
            let serving = (!is_full).then(|| device.engine().recovery().serve_page());
            let mut seen = snapshot.see_unlocked(&self.mirror, batch, want, |told, entries| {
                // SAFETY: The ticket was judged under the lock that is held.
                let found = |entry| unsafe { Found::mapped(region, entry) };
                let mut pages = entries.map_while(found).peekable();
                let is_far = |page: &Found| !page.is_on_device();
                if asked.is_atomic && pages.peek().is_some_and(is_far) {
                    return Ok(Seen::OutOfReach(answering));
                }
                // SAFETY: As above, and a batch begins with the page that was asked for and
                // never leaves its leaf.
                unsafe { told.tell(id, asked, answering, &mut pages) }.map(Seen::Told)
            });
            if let Ok(Some(Ok(Seen::OutOfReach(answering)))) = seen {
                seen = self.take_and_tell(device, &mm, id, asked, answering);
            }
            let is_interrupted = faulting.is_interrupted();
            drop(faulting);
            drop(serving);
            match seen {
                // What is out of reach was taken, or it was said why not.
                Ok(Some(Ok(Seen::Told(0) | Seen::OutOfReach(_)))) => {
                    return Outcome::Refused(Status::PAGE_ERROR)
                }
                Ok(Some(Ok(Seen::Told(entries)))) => return Outcome::Told(entries),
                Ok(Some(Err(err))) if err == EBUSY => {
                    is_full = true;
                    pause();
                }
                Ok(Some(Err(_))) => return Outcome::Over,
                // It changed meanwhile. A CPU that wants a page back all the time has it.
                Ok(None) if asked.is_atomic && self.is_idle() => {
                    return Outcome::Refused(Status::PAGE_ERROR)
                }
                Ok(None) => {}
                // Maybe because of the interruption, which is for those that nobody needs.
                Err(_) if is_interrupted => {
                    if self.is_idle() {
                        return Outcome::Refused(Status::PAGE_ERROR);
                    }
                }
                // The first page may be there all the same.
                Err(_) if batch.pages() > 1 => is_alone = true,
                Err(err) if err == EPERM => return Outcome::Refused(Status::NO_ACCESS),
                // The area may have changed, which the next look at it shows.
                Err(err) if err == EFAULT && !has_failed => has_failed = true,
                Err(_) => return Outcome::Refused(Status::PAGE_ERROR),
            }
        }
    }

    /// Tells the device again where a page is that it has for itself: it has forgotten that, or
    /// two commands have asked at the same time. `None` if it has not got the page.
    ///
    /// Errors as for [`Told::tell`](super::told::Told::tell); ENOMEM.
    fn tell_again(&self, id: u32, asked: &Asked) -> Result<Option<u64>> {
        let answering = Answering::new(1)?;
        let mut told = self.mirror.lock();
        let Some(found) = told.exclusive_at(asked.address) else {
            return Ok(None);
        };
        // SAFETY: What the device was told is true as long as the lock is held.
        unsafe { told.tell(id, asked, answering, &mut core::iter::once(found)) }.map(Some)
    }

    /// Takes a page of the system away from the CPUs, which has just been faulted in, and tells
    /// the device where it is. `None` if something changed meanwhile, and the page has to be
    /// faulted in again: only from there on is a ticket good, because the kernel says that a
    /// page comes back from a device, and that a large one is mapped by pages, before it is taken.
    ///
    /// EOPNOTSUPP if it is not anonymous memory, EFAULT if it must not be written to or is not
    /// there any more, EINTR, ENOMEM.
    fn take_and_tell(
        &self,
        device: &Device,
        mm: &kernel::mm::MmWithUser,
        id: u32,
        asked: &Asked,
        answering: Answering,
    ) -> Result<Option<Result<Seen>>> {
        let ticket = self.mirror.read_begin();
        let locked = mm.mmap_read_lock();
        let taken = Exclusive::take(mm, asked.address, self.mirror.owner(), &locked)?;
        drop(locked);
        let told = self.mirror.judge(ticket, |told| {
            // Before anybody can see what the device does with it.
            device.counters().page_made_exclusive();
            let mut pages = core::iter::once(Found::exclusive(device.region(), &taken));
            // SAFETY: The ticket was judged under the lock that is held, and this is the page
            // at the address.
            unsafe { told.tell(id, asked, answering, &mut pages) }.map(Seen::Told)
        });
        // A CPU that waits for the page gets it from here on, after the device has forgotten it.
        drop(taken);
        Ok(told)
    }
}

/// The area of a process at an address; or why the device gets nothing of it.
fn area_at(
    mm: &kernel::mm::MmWithUser,
    address: u64,
    right: u32,
) -> core::result::Result<Area, Status> {
    let locked = mm.mmap_read_lock();
    let area = locked
        .vma_lookup(address as usize)
        .ok_or(Status::UNMAPPED)?;
    // SAFETY: The area is valid under the lock.
    let rights = unsafe { sys::cdm_vma_rights(area.as_ptr()) };
    if rights & right != right {
        return Err(Status::NO_ACCESS);
    }
    if rights & sys::CDM_AREA_SPECIAL != 0 {
        return Err(Status::PAGE_ERROR);
    }
    Ok(Area {
        end: area.end() as u64,
        is_served: rights & sys::CDM_AREA_SERVED != 0,
    })
}

/// Whole pages; `None` if these addresses are not.
fn range_of(addresses: &Range<u64>) -> Option<PageRange> {
    if !addresses.start.is_multiple_of(PAGE_BYTES) {
        return None;
    }
    PageRange::new(addresses.start, addresses.end - addresses.start)
}
