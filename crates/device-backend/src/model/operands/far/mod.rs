// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Operands that are memory of processes, at least in part.
//!
//! Everything goes through [`Far::with_memory`]: translate, hold a lease, do something short,
//! let go. What is not known is asked for in between, with no lease held.

mod stream;
mod words;

use super::traffic::elements;
use super::walk::{Flows, Trail};
use super::{Ahead, Operands, Part, Way};
use crate::model::access::{ByteStream, WordAccess};
use crate::model::asking::{Asking, PageAsker};
use crate::model::atomics::AtomicUnit;
use crate::model::exec::{self, Progress};
use crate::model::link::{self, Side, Singles, Traffic};
use crate::model::memory::Memory;
use crate::model::operand::Operand;
use crate::model::request::{AtomicWidth, Elements, Operation, Place, Refusal};
use crate::model::translation::{
    Access, AddressSpaces, Asked, Frame, Hot, Lease, Pasid, Piece, Space,
};
use cdm_protocol::{
    AccessReport, EventKind, PAGE_REQUEST_ATOMIC, PAGE_REQUEST_WRITE, PageRequest, Status,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use stream::FarStream;
use vm_memory::VolatileSlice;
use words::FarWords;

/// Most bytes of a lease: some 10 us of copying.
const LEASE_BYTES: u64 = 64 << 10;

/// The memory of a piece of work, and the means to find it.
pub struct Far<'a> {
    /// Memory that has a place.
    pub memory: Memory<'a>,
    /// Address spaces as they are.
    pub spaces: &'a AddressSpaces,
    /// What the PASIDs were the names of when the command began.
    pub bound: &'a BTreeMap<Pasid, Space>,
    /// What carries out atomics on guest memory, if the link does not.
    pub unit: Option<&'a AtomicUnit>,
    /// The way to the driver.
    pub asker: &'a dyn PageAsker,
    /// Whether nobody needs the outcome any more.
    pub given_up: &'a dyn Fn() -> bool,
    /// The source.
    pub source: Part<'a>,
    /// The destination.
    pub destination: Part<'a>,
    /// What was done to them.
    pub walked: Walked,
    /// Room for where a word is, which is taken again for each.
    pub pieces: Cell<Vec<Piece>>,
}

/// What was done to operands, by where they lay when it was done.
#[derive(Debug)]
pub struct Walked {
    source: RefCell<Trail>,
    old: RefCell<Trail>,
    new: RefCell<Trail>,
    words: Singles,
}

impl Walked {
    /// Nothing yet.
    pub fn new(operation: &Operation) -> Self {
        let trail = || RefCell::new(Trail::new(elements(operation)));
        Self {
            source: trail(),
            old: trail(),
            new: trail(),
            words: Singles::default(),
        }
    }

    fn trail(&self, way: Way) -> &RefCell<Trail> {
        match way {
            Way::Source => &self.source,
            Way::Old => &self.old,
            Way::New => &self.new,
        }
    }
}

/// A stretch of an operand that is to be worked on.
#[derive(Clone, Copy)]
struct Stretch {
    place: Place,
    /// Bytes that are needed at once.
    bytes: u64,
    /// Bytes that will be needed, those included.
    ahead: u64,
    access: Access,
}

impl<'a> Far<'a> {
    /// Does something to as much of the beginning of a stretch as can be had at once; how many
    /// bytes that is.
    fn with_memory(
        &self,
        stretch: Stretch,
        action: &mut dyn FnMut(&Operand<'_>),
    ) -> Result<u64, Status> {
        let (bytes, mut operand) = (stretch.bytes.min(LEASE_BYTES), Operand::default());
        let frame = match stretch.place {
            Place::Device(address) => Frame::Device(address),
            Place::Guest(address) => Frame::Guest(address),
            Place::Process(..) => {
                let mut pieces = Vec::new();
                let lease = self.lease(stretch, bytes, &mut pieces)?;
                let bytes = self.resolve(&pieces, &mut operand)?;
                action(&operand);
                drop(lease);
                self.note_stretch(stretch.place, &pieces, bytes);
                return Ok(bytes);
            }
        };
        self.memory.resolve(frame, bytes, &mut operand)?;
        action(&operand);
        Ok(bytes)
    }

    /// Finds the memory of a process behind the pieces of a lease, up to what has failed; how many
    /// bytes that is, at least one.
    fn resolve(&self, pieces: &[Piece], operand: &mut Operand<'a>) -> Result<u64, Status> {
        let mut found = 0;
        for piece in pieces {
            let good = self.memory.good_bytes(piece.frame, piece.bytes);
            if good > 0 {
                let resolved = self.memory.resolve(piece.frame, good, operand);
                resolved.map_err(|_| Status::PAGE_ERROR)?;
            }
            found += good;
            if good < piece.bytes {
                return if found == 0 {
                    Err(Status::POISONED)
                } else {
                    Ok(found)
                };
            }
        }
        Ok(found)
    }

    /// Does something to an aligned word, told where it is.
    fn with_word(
        &self,
        stretch: Stretch,
        action: impl FnOnce(VolatileSlice<'_>, Side),
    ) -> Result<(), Status> {
        let bytes = stretch.bytes;
        let frame = match stretch.place {
            Place::Device(address) => Frame::Device(address),
            // Nobody keeps the CPUs away from it.
            Place::Guest(_) if stretch.access == Access::Atomic => return Err(Status::BAD_SPACE),
            Place::Guest(address) => Frame::Guest(address),
            Place::Process(..) => {
                let mut pieces = self.pieces.take();
                pieces.clear();
                let lease = self.lease(stretch, bytes, &mut pieces);
                // A word is in one page, and a page is in one region.
                let found = <[Piece; 1]>::try_from(&pieces[..]);
                self.pieces.set(pieces);
                let _lease = lease?;
                let [piece] = found.map_err(|_| Status::PAGE_ERROR)?;
                let slice = self.memory.slice(piece.frame, bytes);
                let slice = slice.ok().filter(|_| piece.bytes == bytes);
                let slice = slice.ok_or(Status::PAGE_ERROR)?;
                if self.memory.good_bytes(piece.frame, bytes) < bytes {
                    return Err(Status::POISONED);
                }
                action(slice, piece.frame.side());
                return Ok(());
            }
        };
        action(self.memory.slice(frame, bytes)?, frame.side());
        Ok(())
    }

    /// What somebody needs to be allowed for an access to a word.
    fn needed_for(&self, access: link::Access) -> Access {
        match access {
            link::Access::Read => Access::Read,
            link::Access::Atomic if self.unit.is_some() => Access::Atomic,
            link::Access::Write | link::Access::Atomic => Access::Write,
        }
    }

    /// Counts a use of the first `bytes` bytes of pieces in order, of which the first begins at
    /// `place`, as far as they are across the link. Nobody holds a lease for it.
    fn note_stretch(&self, place: Place, pieces: &[Piece], mut bytes: u64) {
        let Some((space, pasid, mut address)) = self.counted(place) else {
            return;
        };
        for piece in pieces {
            let used = piece.bytes.min(bytes);
            if used > 0 && piece.frame.side() == Side::Link {
                let counts = self.spaces.counts();
                for hot in counts.note_bytes(space, address, used) {
                    self.report(pasid, hot);
                }
            }
            bytes -= used;
            // The last address there is may be among them.
            address = address.wrapping_add(used);
        }
    }

    /// Counts so many uses of a word across the link.
    fn note_word(&self, place: Place, times: u64) {
        if let Some((space, pasid, address)) = self.counted(place)
            && let Some(hot) = self.spaces.counts().note_word(space, address, times)
        {
            self.report(pasid, hot);
        }
    }

    /// What a use of a place counts for, if anything is counted.
    fn counted(&self, place: Place) -> Option<(Space, Pasid, u64)> {
        match place {
            Place::Process(pasid, address) if self.spaces.counts().is_on() => {
                Some((*self.bound.get(&pasid)?, pasid, address))
            }
            _ => None,
        }
    }

    fn report(&self, pasid: Pasid, hot: Hot) {
        self.asker.report(AccessReport {
            kind: EventKind::ACCESS_REPORT,
            queue: 0.into(),
            pasid: pasid.0.into(),
            address: hot.address.into(),
            accesses: hot.accesses.into(),
            lost: 0.into(),
        });
    }

    /// A lease of the beginning of a stretch of a process, of at most `bytes`.
    fn lease(
        &self,
        stretch: Stretch,
        bytes: u64,
        pieces: &mut Vec<Piece>,
    ) -> Result<Lease<'a>, Status> {
        let Place::Process(pasid, address) = stretch.place else {
            return Err(Status::BAD_SPACE);
        };
        let space = *self.bound.get(&pasid).ok_or(Status::BAD_PASID)?;
        let mut asked: Option<Asked<'a>> = None;
        loop {
            let lease = self
                .spaces
                .lease(space, address, bytes, stretch.access, pieces);
            if let Some(lease) = lease {
                self.asker.before_access(self.given_up);
                return Ok(lease);
            }
            // What came is taken back already.
            drop(asked.take());
            if (self.given_up)() {
                return Err(Status::CANCELLED);
            }
            asked = Some(self.ask(space, pasid, address, stretch)?);
        }
    }

    /// Asks the driver for a page and those behind it, and waits for the answer.
    fn ask(
        &self,
        space: Space,
        pasid: Pasid,
        address: u64,
        stretch: Stretch,
    ) -> Result<Asked<'a>, Status> {
        let (asked, want) = self
            .spaces
            .ask(space, address, stretch.ahead, stretch.access)?;
        let flags = match want.access {
            Access::Read => 0,
            Access::Write => PAGE_REQUEST_WRITE,
            Access::Atomic => PAGE_REQUEST_WRITE | PAGE_REQUEST_ATOMIC,
        };
        let request = PageRequest {
            kind: EventKind::PAGE_REQUEST,
            queue: 0.into(),
            pasid: pasid.0.into(),
            address: want.page.into(),
            id: asked.id().into(),
            pages: want.pages.into(),
            flags: flags.into(),
            reserved: 0.into(),
        };
        let tally = self.spaces.tally();
        match self.asker.ask(request) {
            Asking::Sent => {
                tally.requests.add(1);
                if want.access == Access::Atomic {
                    tally.exclusive_requests.add(1);
                }
            }
            Asking::NoBuffer => return Err(Status::PAGE_QUEUE_FULL),
            Asking::Refused(status) => {
                tally.refusals.add(1);
                return Err(status);
            }
            Asking::Stopped => return Err(Status::CANCELLED),
        }
        asked.wait(self.given_up)?;
        Ok(asked)
    }
}

impl Operands for Far<'_> {
    fn source(&self, ahead: Ahead) -> impl ByteStream {
        FarStream::new(self, self.source, Access::Read, ahead, [Way::Source; 2])
    }

    fn destination(&self, access: Access, ahead: Ahead) -> impl ByteStream {
        FarStream::new(self, self.destination, access, ahead, [Way::Old, Way::New])
    }

    fn source_words(&self) -> Result<impl WordAccess, Refusal> {
        Ok(FarWords::new(self, self.source))
    }

    fn destination_words(&self) -> Result<impl WordAccess, Refusal> {
        Ok(FarWords::new(self, self.destination))
    }

    fn word(&self, _: AtomicWidth) -> Result<impl WordAccess, Refusal> {
        Ok(FarWords::new(self, self.destination))
    }

    fn copy(&self) -> Progress {
        let mut destination = self.destination(Access::Write, Ahead::All);
        exec::copy_through_buffer(&mut self.source(Ahead::All), &mut destination)
    }

    fn flows(&self, way: Way, _: Option<Elements>, bytes: u64) -> Flows {
        self.walked.trail(way).borrow().flows(bytes)
    }

    fn words_traffic(&self) -> Traffic {
        self.walked.words.traffic()
    }
}
