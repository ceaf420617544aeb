// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Accesses to memory, counted.

use std::ops::AddAssign;

/// Bytes of a line, which is what an access of a stream moves at most.
pub const LINE_BYTES: u64 = 64;

/// Where the memory is, seen from the device. What is further away is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The device's own.
    Own,
    /// The guest's, across the link.
    Link,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data come to the device.
    Read,
    /// Data go away from it.
    Write,
    /// Both, in one: an operand goes, what was there comes.
    Atomic,
}

/// Accesses of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// How many.
    pub accesses: u64,
    /// Bytes that they name, all together.
    pub bytes: u64,
}

/// Accesses to one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accesses {
    /// Those that read.
    pub reads: Flow,
    /// Those that write.
    pub writes: Flow,
    /// Those that do both.
    pub atomics: Flow,
}

/// What a command, or a piece of one, did to memory.
///
/// A *stream* needs no access to know the next one, so its accesses overlap and it waits for
/// memory once. A *single* access is waited for before anything else happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To the device's own memory.
    pub own: Accesses,
    /// Across the link.
    pub link: Accesses,
    /// How many of them are single ones.
    own_singles: u64,
    link_singles: u64,
    /// The furthest side that a stream reads from.
    read_stream: Option<Side>,
    /// The furthest side that a stream writes to.
    write_stream: Option<Side>,
}

impl Flow {
    /// Lines that `bytes` bytes from `address` on lie in.
    pub fn lines(address: u64, bytes: u64) -> Self {
        let accesses = match bytes {
            0 => 0,
            _ => (address % LINE_BYTES + bytes).div_ceil(LINE_BYTES),
        };
        Self { accesses, bytes }
    }

    /// So many words.
    pub fn words(count: u64, width: u64) -> Self {
        Self {
            accesses: count,
            bytes: count * width,
        }
    }
}

impl AddAssign for Flow {
    fn add_assign(&mut self, other: Self) {
        self.accesses += other.accesses;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Accesses {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.atomics += other.atomics;
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.own += other.own;
        self.link += other.link;
        self.own_singles += other.own_singles;
        self.link_singles += other.link_singles;
        self.read_stream = self.read_stream.max(other.read_stream);
        self.write_stream = self.write_stream.max(other.write_stream);
    }
}

impl Traffic {
    /// Accesses to one side.
    pub fn of(&self, side: Side) -> &Accesses {
        match side {
            Side::Own => &self.own,
            Side::Link => &self.link,
        }
    }

    /// Single accesses to one side.
    pub fn singles(&self, side: Side) -> u64 {
        match side {
            Side::Own => self.own_singles,
            Side::Link => self.link_singles,
        }
    }

    /// What a stream waits for at its beginning and at its end, if it reads or writes at all.
    pub fn stream_waits(&self) -> impl Iterator<Item = Side> {
        self.read_stream.into_iter().chain(self.write_stream)
    }

    /// Adds accesses of a stream.
    pub fn add_stream(&mut self, side: Side, access: Access, flow: Flow) {
        if flow.accesses == 0 {
            return;
        }
        let stream = match access {
            Access::Read => &mut self.read_stream,
            Access::Write | Access::Atomic => &mut self.write_stream,
        };
        *stream = (*stream).max(Some(side));
        self.add(side, access, flow);
    }

    /// Adds so many single accesses.
    pub fn add_singles(&mut self, side: Side, access: Access, flow: Flow) {
        match side {
            Side::Own => self.own_singles += flow.accesses,
            Side::Link => self.link_singles += flow.accesses,
        }
        self.add(side, access, flow);
    }

    /// The same accesses, if they were those of a stream that writes.
    pub fn as_stream(mut self) -> Self {
        let sides = [
            (Side::Own, self.own_singles),
            (Side::Link, self.link_singles),
        ];
        let furthest = sides.iter().rev().find(|(_, singles)| *singles > 0);
        self.write_stream = self.write_stream.max(furthest.map(|&(side, _)| side));
        (self.own_singles, self.link_singles) = (0, 0);
        self
    }

    fn add(&mut self, side: Side, access: Access, flow: Flow) {
        let accesses = match side {
            Side::Own => &mut self.own,
            Side::Link => &mut self.link,
        };
        match access {
            Access::Read => accesses.reads += flow,
            Access::Write => accesses.writes += flow,
            Access::Atomic => accesses.atomics += flow,
        }
    }
}
