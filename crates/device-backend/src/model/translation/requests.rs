// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages that the driver is being asked for.

use super::page::{Access, PageSize, VirtualRange};
use super::pages::Key;
use super::spaces::Space;
use cdm_protocol::Status;
use std::collections::BTreeMap;

/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// In which address space.
    pub space: Space,
    /// First byte of the first small page.
    pub page: u64,
    /// Small pages from there on, at least one.
    pub pages: u16,
    /// What it will do to them.
    pub access: Access,
}

/// A page request, until who made it has seen the answer.
#[derive(Debug)]
pub struct Outstanding {
    /// What is asked for.
    pub want: Want,
    /// How it ended, if it has.
    pub end: Option<Result<(), Status>>,
    /// The page that came for it: it is not forgotten for want of room before it was looked at.
    pub spared: Option<(PageSize, Key)>,
}

/// All page requests.
#[derive(Debug, Default)]
pub struct Requests {
    outstanding: BTreeMap<u32, Outstanding>,
    next: u32,
}

impl Requests {
    /// Notes a question; its name.
    pub fn begin(&mut self, want: Want) -> u32 {
        // There are not as many as there are numbers, so one is free.
        while self.outstanding.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let outstanding = Outstanding {
            want,
            end: None,
            spared: None,
        };
        self.outstanding.insert(id, outstanding);
        id
    }

    /// The request of that name that has no answer yet.
    pub fn unanswered(&mut self, id: u64) -> Option<&mut Outstanding> {
        let request = self.unseen(id);
        request.filter(|request| request.end.is_none())
    }

    /// The request of that name, if who made it has not seen its end.
    pub fn unseen(&mut self, id: u64) -> Option<&mut Outstanding> {
        self.outstanding.get_mut(&u32::try_from(id).ok()?)
    }

    /// How a request has ended, if it has.
    pub fn end_of(&self, id: u32) -> Option<Result<(), Status>> {
        self.outstanding.get(&id)?.end
    }

    /// Forgets a request.
    pub fn withdraw(&mut self, id: u32) {
        self.outstanding.remove(&id);
    }

    /// Ends those without an answer that are meant.
    pub fn end(&mut self, status: Status, is_meant: impl Fn(Space) -> bool) {
        for request in self.outstanding.values_mut() {
            if request.end.is_none() && is_meant(request.want.space) {
                request.end = Some(Err(status));
            }
        }
    }

    /// Whether somebody who asked for a page in `range` got it and has not looked yet.
    pub fn is_any_unseen(&self, space: Space, range: VirtualRange) -> bool {
        let mut outstanding = self.outstanding.values();
        outstanding.any(|Outstanding { want, end, .. }| {
            let page = PageSize::Small.page_of(want.page);
            *end == Some(Ok(())) && want.space == space && page.overlaps(range)
        })
    }

    /// Whether somebody is about to look at a page that came for him.
    pub fn spares(&self, size: PageSize, key: Key) -> bool {
        let mut outstanding = self.outstanding.values();
        outstanding.any(|request| request.spared == Some((size, key)))
    }
}
