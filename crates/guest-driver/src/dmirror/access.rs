// SPDX-License-Identifier: GPL-2.0-only

//! The device reads and writes memory of a process through its page table.
//!
//! Facility: none of its own; policy over [`crate::mirror`] and [`crate::exclusive`].
//! Contexts: process context, inside the device's gate. Lock order: `Mirror::follower`,
//! then as for a command. Invariant: the device copies under the mirror's lock, so no page
//! changes hands while it does.

use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};

use super::bounce::Bounce;
use super::Client;
use crate::batch::{PageRange, PAGE_BYTES};
use crate::command;
use crate::exclusive::Exclusive;
use crate::fault::Want;
use crate::mirror::Room;
use crate::plan::{Operands, Request};
use crate::table::{Access, Leaf};
use crate::wire::{Opcode, RANGES_MAX};

/// Pages that are copied at a time: one command, each page a range on either side.
const WINDOW_PAGES: usize = RANGES_MAX / 2;

/// What to do about a page that the device may not access.
#[derive(Clone, Copy)]
pub(super) enum Missing {
    /// Fault it in and the rest of the range, and count that.
    Fault { want: Want, may_unlock: bool },
    /// ENOENT.
    Refuse,
}

/// How a window ended.
enum Window {
    Done,
    /// A page of it is not in the page table.
    Incomplete,
}

/// Has the device read `range`, and gives what it read to the process; how often it faulted.
pub(super) fn read(
    client: &Client,
    range: PageRange,
    user: UserPtr,
    missing: Missing,
) -> Result<u64> {
    let bytes = (range.end() - range.start()) as usize;
    let mut user = UserSlice::new(user, bytes).writer();
    each_window(client, range, missing, |bounce, window| {
        match copy(client, window, Access::Read, bounce)? {
            Window::Done => bounce
                .write_to(window.pages(), &mut user)
                .map(|()| Window::Done),
            incomplete => Ok(incomplete),
        }
    })
}

/// Has the device write what the process gives to `range`; how often it faulted.
pub(super) fn write(client: &Client, range: PageRange, user: UserPtr) -> Result<u64> {
    let bytes = (range.end() - range.start()) as usize;
    let mut user = UserSlice::new(user, bytes).reader();
    let mut filled = None;
    let missing = Missing::Fault {
        want: Want::Write,
        may_unlock: false,
    };
    each_window(client, range, missing, |bounce, window| {
        // Once, also if the device has to try again.
        if filled != Some(window.start()) {
            bounce.read_from(window.pages(), &mut user)?;
            filled = Some(window.start());
        }
        copy(client, window, Access::Write, bounce)
    })
}

/// Calls `with` for each window of `range` until it is done, and faults in what is missing.
fn each_window(
    client: &Client,
    range: PageRange,
    missing: Missing,
    mut with: impl FnMut(&mut Bounce, PageRange) -> Result<Window>,
) -> Result<u64> {
    let region = client.device.region();
    let mut bounce = Bounce::new(region, range.pages().min(WINDOW_PAGES))?;
    let mut faults = 0;
    let mut at = range.start();
    while at < range.end() {
        if kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        let end = at.saturating_add(WINDOW_PAGES as u64 * PAGE_BYTES);
        let window = range.within(at, end).ok_or(EINVAL)?;
        match with(&mut bounce, window) {
            Ok(Window::Done) => at = window.end(),
            // Somebody reset the device; the window is still to be done.
            Err(err) if err == ECANCELED => {}
            Err(err) => return Err(err),
            Ok(Window::Incomplete) => {
                let Missing::Fault { want, may_unlock } = missing else {
                    return Err(ENOENT);
                };
                let rest = range.within(at, range.end()).ok_or(EINVAL)?;
                client.space.map(region, rest, want, may_unlock)?;
                faults += 1;
            }
        }
    }
    Ok(faults)
}

/// Has the device copy a window: to the bounce pages, or from them if it is to write.
///
/// ECANCELED if the device was reset, EIO if it cannot do it, ENODEV if it does not answer;
/// then it may still come to write to the pages, which are therefore given up.
fn copy(client: &Client, window: PageRange, access: Access, bounce: &Bounce) -> Result<Window> {
    let pages = window.pages();
    let mut segments = KVec::with_capacity(pages, GFP_KERNEL)?;
    let mut draft = Some(command::draft(RANGES_MAX)?);
    let request = Request {
        opcode: Opcode::COPY.get().into(),
        ..Request::default()
    };
    let buffer = bounce.segments(pages);

    let table = client.space.mirror().lock();
    let bytes = pages as u64 * PAGE_BYTES;
    if !table.resolve(window.start(), bytes, access, &mut segments) {
        return Ok(Window::Incomplete);
    }
    let (source, destination) = match access {
        Access::Read => (&segments[..], buffer),
        _ => (buffer, &segments[..]),
    };
    let room = || draft.take().ok_or(EIO);
    let engine = client.device.engine();
    let operands = Operands {
        source,
        destination,
    };
    let done = command::run_once_for_driver(engine, &request, operands, room);
    if done == Err(ETIMEDOUT) {
        engine.forsake(destination);
        return Err(ENODEV);
    }
    done.map(|()| Window::Done)
}

/// Lets the device access `range` with no CPU in its way.
pub(super) fn take_exclusively(client: &Client, range: PageRange) -> Result {
    let mm = client.space.mm()?;
    let region = client.device.region();
    for batch in range.batches() {
        let mut room = None;
        let locked = mm.mmap_read_lock();
        for index in 0..batch.pages() {
            if room.is_none() {
                room = Some(Room::new()?);
            }
            let address = batch.start() + index as u64 * PAGE_BYTES;
            // No owner: the page table is filled after the notification.
            let page = Exclusive::take(&mm, address, core::ptr::null_mut(), &locked)?;
            // SAFETY: The page is referenced.
            let segment = unsafe { region.segment_of(page.page(), 0, PAGE_BYTES) };
            let mut table = client.space.mirror().lock();
            if let Some(leaf) = table.leaf(address, &mut room) {
                leaf.set(Leaf::index_of(address), &segment, Access::Exclusive);
            }
        }
    }
    Ok(())
}

/// EPERM if the device has exclusive access to a page of `range`.
pub(super) fn check_not_exclusive(client: &Client, range: PageRange) -> Result {
    let table = client.space.mirror().lock();
    let is_exclusive = (0..range.pages()).any(|index| {
        let address = range.start() + index as u64 * PAGE_BYTES;
        table.get(address, Access::Exclusive).is_some()
    });
    if is_exclusive {
        return Err(EPERM);
    }
    Ok(())
}
