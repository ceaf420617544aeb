// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Address spaces: which are bound, what is known of them, who uses it and who asks for more.
//!
//! One lock, held for a look or a change and never while anybody works or waits. The driver's
//! requests come in order, one at a time, and each is carried out before the next is looked
//! at; so what a PAGE_RESPONSE says holds until an INVALIDATE that comes after it.

use super::granules::AccessCounts;
use super::leases::Leases;
use super::page::{Access, Answer, Frame, PageSize, Pasid, Translation, VirtualRange};
use super::pages::{Capacity, Pages};
use super::requests::{Requests, Want};
use super::tally::Tally;
use crate::model::alarm::Alarm;
use cdm_protocol::{
    ADDRESS_SPACES_MAX, PAGE_BYTES_SMALL, PAGE_REQUEST_PAGES_MAX, PASID_MAX, Status,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One binding of a PASID. A later binding of the same PASID is another one, so who began with
/// this one never gets at what is known of that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space(u64);

#[cfg(test)]
impl Space {
    /// One of a test's own.
    pub fn numbered(number: u64) -> Self {
        Self(number)
    }
}

/// All address spaces.
#[derive(Debug)]
pub struct AddressSpaces {
    state: Mutex<State>,
    /// A lease has ended that somebody waits for, or who had an answer has looked at it.
    ended: Condvar,
    alarm: Arc<Alarm>,
    tally: Tally,
    /// How often what is used.
    counts: AccessCounts,
    /// Pages that one request asks for at most.
    request_pages_max: u16,
}

#[derive(Debug)]
struct State {
    bound: BTreeMap<Pasid, Space>,
    next_space: u64,
    small: Pages,
    large: Pages,
    leases: Leases,
    requests: Requests,
    /// Threads that wait for leases to end, or for others to look at their answers.
    waiting: usize,
}

/// Contiguous memory on the other side of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub frame: Frame,
    /// Its length; not zero.
    pub bytes: u64,
}

/// Memory that is being worked on. Its places are good until this is dropped, and who holds it
/// waits for nothing.
#[derive(Debug)]
#[must_use = "without it the memory may be somebody else's"]
pub struct Lease<'a> {
    spaces: &'a AddressSpaces,
    number: u64,
}

/// A question to the driver. Until it is dropped, the page that it was for is not forgotten for
/// want of room.
#[derive(Debug)]
#[must_use = "it is withdrawn when it is dropped"]
pub struct Asked<'a> {
    spaces: &'a AddressSpaces,
    id: u32,
}

impl AddressSpaces {
    /// None yet. `alarm` is rung when a question has an answer.
    pub fn new(capacity: Capacity, alarm: Arc<Alarm>) -> Self {
        // What an answer brings must not push out what it brought before.
        let request_pages_max = capacity.small / 2;
        Self {
            state: Mutex::new(State {
                bound: BTreeMap::new(),
                next_space: 0,
                small: Pages::new(PageSize::Small, capacity.small),
                large: Pages::new(PageSize::Large, capacity.large),
                leases: Leases::default(),
                requests: Requests::default(),
                waiting: 0,
            }),
            ended: Condvar::new(),
            alarm,
            tally: Tally::default(),
            counts: AccessCounts::default(),
            request_pages_max: u16::try_from(request_pages_max)
                .map_or(PAGE_REQUEST_PAGES_MAX, |pages| {
                    pages.clamp(1, PAGE_REQUEST_PAGES_MAX)
                }),
        }
    }

    /// What was done so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How often the device uses what.
    pub fn counts(&self) -> &AccessCounts {
        &self.counts
    }

    /// Counts uses of an address space from zero on, to tell of granules whose count reaches the
    /// threshold; not any more, if that is zero.
    pub fn count_accesses(&self, pasid: Pasid, threshold: u64) -> Result<(), Status> {
        let state = self.state();
        let space = *state.bound.get(&pasid).ok_or(Status::BAD_PASID)?;
        self.counts.switch(space, threshold);
        Ok(())
    }

    /// Makes a PASID the name of a new address space.
    pub fn bind(&self, pasid: Pasid) -> Result<(), Status> {
        let mut state = self.state();
        if !(1..=PASID_MAX).contains(&pasid.0) || state.bound.contains_key(&pasid) {
            return Err(Status::BAD_PASID);
        }
        if state.bound.len() >= ADDRESS_SPACES_MAX {
            return Err(Status::TOO_MANY_SPACES);
        }
        let space = Space(state.next_space);
        state.next_space += 1;
        state.bound.insert(pasid, space);
        Ok(())
    }

    /// The address space of that name.
    pub fn space(&self, pasid: Pasid) -> Option<Space> {
        self.state().bound.get(&pasid).copied()
    }

    /// Forgets an address space, and returns when nobody uses it any more.
    pub fn unbind(&self, pasid: Pasid) -> Result<(), Status> {
        let mut state = self.state();
        let space = state.bound.remove(&pasid).ok_or(Status::BAD_PASID)?;
        self.counts.switch(space, 0);
        state.requests.end(Status::UNBOUND, |whose| whose == space);
        self.alarm.ring();
        self.forget(state, space, VirtualRange::ALL);
        Ok(())
    }

    /// Forgets all address spaces, and returns when nobody uses one any more.
    pub fn unbind_all(&self) {
        let mut state = self.state();
        state.bound.clear();
        self.counts.switch_all_off();
        state.requests.end(Status::UNBOUND, |_| true);
        self.alarm.ring();
        self.forget_all(state);
    }

    /// Forgets all translations and counts, and returns when nobody uses a translation any more.
    pub fn drop_translations(&self) {
        self.counts.start_anew();
        self.forget_all(self.state());
    }

    /// Forgets what is known of `range`, and returns when nobody uses it any more.
    ///
    /// Who was answered before uses the page once. Else a CPU that wants it back all the time
    /// could have each answer taken back before it is looked at, and a command would ask for ever.
    pub fn invalidate(&self, pasid: Pasid, range: VirtualRange) -> Result<(), Status> {
        let mut state = self.state();
        let space = *state.bound.get(&pasid).ok_or(Status::BAD_PASID)?;
        state.waiting += 1;
        // They have nothing to wait for but a CPU, and what comes for others meanwhile comes by
        // the queue that this request is of.
        while state.requests.is_any_unseen(space, range) {
            state = self.wait_for_ends(state);
        }
        state.waiting -= 1;
        self.forget(state, space, range);
        self.tally.invalidations.add(1);
        Ok(())
    }

    /// The longest stretch from `address` on, of at most `bytes`, that is known and allows the
    /// access; `None` if the first byte has to be asked for. Appends where it is to `pieces`.
    /// `bytes` is not zero and leads to no address behind the last.
    pub fn lease(
        &self,
        space: Space,
        address: u64,
        bytes: u64,
        access: Access,
        pieces: &mut Vec<Piece>,
    ) -> Option<Lease<'_>> {
        let mut state = self.state();
        let (mut hits, mut reached) = (0, 0);
        while reached < bytes {
            let place = address + reached;
            let Some((page, translation)) = state.find(space, place, access) else {
                break;
            };
            let piece = Piece {
                frame: translation.frame.plus(place - page.first),
                bytes: (page.last - place).min(bytes - reached - 1) + 1,
            };
            reached += piece.bytes;
            hits += 1;
            match pieces.last_mut() {
                // One of the caller's own is never continued: it asked for this apart.
                Some(last) if hits > 1 && last.frame.plus(last.bytes) == piece.frame => {
                    last.bytes += piece.bytes;
                }
                _ => pieces.push(piece),
            }
        }
        self.tally.hits.add(hits);
        if reached == 0 {
            self.tally.misses.add(1);
            return None;
        }
        let range = VirtualRange {
            first: address,
            last: address + (reached - 1),
        };
        Some(Lease {
            spaces: self,
            number: state.leases.begin(space, range),
        })
    }

    /// Notes that the driver is about to be asked for the pages from that of `address` on, as far
    /// as `bytes` reach. It may answer from now on.
    pub fn ask(
        &self,
        space: Space,
        address: u64,
        bytes: u64,
        access: Access,
    ) -> Result<(Asked<'_>, Want), Status> {
        let page = PageSize::Small.page_of(address).first;
        let pages = (address - page + bytes).div_ceil(PAGE_BYTES_SMALL);
        let pages = pages.clamp(1, self.request_pages_max.into()) as u16;
        let want = Want {
            space,
            page,
            pages,
            access,
        };
        let mut state = self.state();
        if !state.bound.values().any(|&bound| bound == space) {
            return Err(Status::UNBOUND);
        }
        let id = state.requests.begin(want);
        Ok((Asked { spaces: self, id }, want))
    }

    /// Takes the driver's answer to request `id`; how many answers counted. `None` stands for one
    /// that made no sense.
    pub fn answer(&self, pasid: Pasid, id: u64, answers: Option<&[Answer]>) -> Result<u64, Status> {
        let mut state = self.state();
        let state = &mut *state;
        let bound = state.bound.get(&pasid).copied();
        let Some(request) = state.requests.unanswered(id) else {
            return Ok(0);
        };
        let want = request.want;
        let outcome = match answers.map(|answers| places(want.page, answers)) {
            _ if bound != Some(want.space) => Err(Status::BAD_PASID),
            Some(Some(places)) => Ok(places),
            None | Some(None) => Err(Status::BAD_ARGUMENT),
        };
        match outcome {
            Err(status) => {
                request.end = Some(Err(Status::PAGE_ERROR));
                self.alarm.ring();
                Err(status)
            }
            Ok(places) => {
                request.end = Some(match places.first() {
                    Some((_, Answer::Refused(status))) => Err(*status),
                    // It was told that stores are to come.
                    Some((_, Answer::Page(_, found))) if !found.allows(want.access) => {
                        Err(Status::NO_ACCESS)
                    }
                    Some(_) => Ok(()),
                    None => Err(Status::PAGE_ERROR),
                });
                for (place, answer) in &places {
                    if let Answer::Page(size, translation) = answer {
                        let spared = state.remember(want, *place, *size, *translation);
                        if *place == want.page
                            && let Some(request) = state.requests.unseen(id)
                        {
                            request.spared = spared;
                        }
                    }
                }
                self.alarm.ring();
                Ok(places.len() as u64)
            }
        }
    }

    /// Pages that are known, of both sizes.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize) {
        let state = self.state();
        (state.small.len(), state.large.len())
    }

    fn forget(&self, mut state: MutexGuard<'_, State>, space: Space, range: VirtualRange) {
        state.small.forget(space, range);
        state.large.forget(space, range);
        self.wait_for_leases(state, |whose, what| whose == space && what.overlaps(range));
    }

    fn forget_all(&self, mut state: MutexGuard<'_, State>) {
        state.small.clear();
        state.large.clear();
        self.wait_for_leases(state, |_, _| true);
    }

    /// Waits until the leases have ended that are meant. Those that begin meanwhile are of what
    /// was learnt since, and not waited for.
    fn wait_for_leases(
        &self,
        mut state: MutexGuard<'_, State>,
        is_meant: impl Fn(Space, VirtualRange) -> bool,
    ) {
        let line = state.leases.next();
        state.waiting += 1;
        while state.leases.is_any_left(line, &is_meant) {
            state = self.wait_for_ends(state);
        }
        state.waiting -= 1;
    }

    fn wait_for_ends<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let woken = self.ended.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the state is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address that each answer is for; `None` if they lead behind the last address.
fn places(first: u64, answers: &[Answer]) -> Option<Vec<(u64, Answer)>> {
    let mut next = Some(first);
    let place = |answer: &Answer| {
        let place = next?;
        next = match answer {
            Answer::Page(size, _) => size.page_of(place).last.checked_add(1),
            Answer::Refused(_) => None,
        };
        Some((place, *answer))
    };
    answers.iter().map(place).collect()
}

impl State {
    fn find(
        &self,
        space: Space,
        address: u64,
        access: Access,
    ) -> Option<(VirtualRange, Translation)> {
        let large = self.large.find(space, address, access);
        large.or_else(|| self.small.find(space, address, access))
    }

    /// Takes in what the driver says of `place`, instead of all that was known of the page; the
    /// page that there is for it now.
    fn remember(
        &mut self,
        want: Want,
        place: u64,
        size: PageSize,
        translation: Translation,
    ) -> Option<(PageSize, (Space, u64))> {
        let space = want.space;
        let page = size.page_of(place);
        self.small.forget(space, page);
        let requests = &self.requests;
        if size == PageSize::Large {
            let spared = |key| requests.spares(PageSize::Large, key);
            let key = (space, page.first);
            if self.large.remember(key, translation, spared) {
                return Some((PageSize::Large, key));
            }
        }
        self.large.forget(space, page);
        let spared = |key| requests.spares(PageSize::Small, key);
        // As much of a large page without a place of its own as was asked for.
        let end = want
            .page
            .saturating_add(u64::from(want.pages) * PAGE_BYTES_SMALL - 1);
        let last = page.last.min(end.max(PageSize::Small.page_of(place).last));
        let mut first = None;
        for address in (place..=last).step_by(PAGE_BYTES_SMALL as usize) {
            let key = (space, address);
            let translation = translation.plus(address - page.first);
            if self.small.remember(key, translation, spared) {
                first = first.or(Some((PageSize::Small, key)));
            }
        }
        first.filter(|(_, key)| key.1 == place)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.spaces.state();
        state.leases.end(self.number);
        if state.waiting > 0 {
            self.spaces.ended.notify_all();
        }
    }
}

impl Asked<'_> {
    /// Name of the request.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Waits for its end; `given_up` is asked whenever the alarm is rung.
    pub fn wait(&self, given_up: &dyn Fn() -> bool) -> Result<(), Status> {
        loop {
            let heard = self.spaces.alarm.heard();
            let end = self.spaces.state().requests.end_of(self.id);
            if let Some(end) = end {
                if end.is_err() {
                    self.spaces.tally.refusals.add(1);
                }
                return end;
            }
            if given_up() {
                return Err(Status::CANCELLED);
            }
            self.spaces.alarm.wait_after(heard);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.spaces.state();
        state.requests.withdraw(self.id);
        if state.waiting > 0 {
            self.spaces.ended.notify_all();
        }
    }
}
