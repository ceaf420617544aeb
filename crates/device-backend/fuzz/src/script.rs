// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a driver does, read from bytes; any bytes are a script.
//!
//! A step begins with a byte: its low bits say which step it is, and without bit 7 it is the last
//! answer to a page request that it answers.

use crate::PASID;
use crate::pages::PAGE_BYTES;
use cdm_protocol::{ControlOpcode, ControlRequest, PageEntry, PageRequest};
use zerocopy::{FromBytes, IntoBytes};

/// Most steps of a script, and most commands among them.
const STEPS_MAX: u32 = 256;
const COMMANDS_MAX: u32 = 8;
/// Bit of a step's first byte.
const GOES_ON: u8 = 1 << 7;
/// Where the driver's shorthand for addresses begins.
pub const VIRTUAL: u64 = 0x5555_0000_0000;

/// One step.
pub enum Step<'a> {
    /// Something is in guest memory, from a page on.
    Memory(usize, &'a [u8]),
    /// A command is sent.
    Command(&'a [u8]),
    /// The page request is answered with pages: number and flags of each.
    Pages(&'a [u8]),
    /// It is answered with any entries: change of the PASID, their claimed number, and they.
    Entries(u8, u8, &'a [u8]),
    /// It is refused with this status.
    Refuse(u8),
    /// Pages from [`VIRTUAL`] on are invalidated: the first, and how many.
    Invalidate(u8, u8),
    /// An address space is bound, or unbound.
    Space(bool, u32),
    /// Any control request.
    Control(&'a [u8]),
    /// There is no buffer for the page request.
    NoBuffer,
}

/// Steps that are left.
pub struct Script<'a> {
    bytes: &'a [u8],
    steps: u32,
    commands: u32,
}

impl<'a> Script<'a> {
    /// The script that bytes are.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            steps: STEPS_MAX,
            commands: COMMANDS_MAX,
        }
    }

    /// The next step.
    #[allow(clippy::should_implement_trait, reason = "there are two kinds of next")]
    pub fn next(&mut self) -> Option<Step<'a>> {
        self.steps = self.steps.checked_sub(1)?;
        let step = match self.byte()? & !GOES_ON {
            0 => Step::Memory(self.byte()?.into(), self.piece()?),
            1 => {
                self.commands = self.commands.checked_sub(1)?;
                Step::Command(self.piece()?)
            }
            2 => {
                let count = self.byte()?;
                Step::Pages(self.take(2 * usize::from(count)))
            }
            3 => {
                let (change, claimed, count) = (self.byte()?, self.byte()?, self.byte()?);
                Step::Entries(change, claimed, self.take(8 * usize::from(count)))
            }
            4 => Step::Refuse(self.byte()?),
            5 => Step::Invalidate(self.byte()?, self.byte()?),
            6 => Step::Space(self.byte()? % 2 == 0, self.byte()?.into()),
            7 => Step::Control(self.piece()?),
            _ => Step::NoBuffer,
        };
        Some(step)
    }

    /// The next step if it can be part of an answer to a page request, and whether it ends it.
    pub fn next_answer(&mut self) -> Option<(Step<'a>, bool)> {
        let first = *self.bytes.first()?;
        if first & !GOES_ON < 2 {
            return None;
        }
        Some((self.next()?, first & GOES_ON == 0))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    /// So many bytes, or what is left.
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (piece, rest) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = rest;
        piece
    }

    /// Bytes behind their number.
    fn piece(&mut self) -> Option<&'a [u8]> {
        let count = u16::from_le_bytes([self.byte()?, self.byte()?]);
        Some(self.take(count.into()))
    }
}

impl Step<'_> {
    /// Whether it has translations forgotten.
    pub fn is_invalidation(&self) -> bool {
        let bytes = self.request(None);
        let opcode = ControlOpcode::read_from_prefix(&bytes);
        opcode.is_ok_and(|(opcode, _)| opcode == ControlOpcode::INVALIDATE)
    }

    /// The control request that it stands for, while `asked` is to be answered; nothing if it
    /// stands for none.
    pub fn request(&self, asked: Option<&PageRequest>) -> Vec<u8> {
        let pasid = asked.map_or(PASID, |asked| asked.pasid.get());
        let id = asked.map_or(0, |asked| asked.id.get());
        let respond = |pasid, claimed, entries: &[u8]| {
            let header = request(ControlOpcode::PAGE_RESPONSE, pasid, id.into(), claimed);
            [&header, entries].concat()
        };
        match *self {
            Self::Pages(pages) => {
                let (pages, _) = pages.as_chunks::<2>();
                let entries: Vec<u8> = pages
                    .iter()
                    .flat_map(|&[number, flags]| {
                        let flags = u64::from(flags & 7);
                        let frame = match flags & PageEntry::LARGE {
                            0 => u64::from(number) * PAGE_BYTES as u64,
                            _ => u64::from(number) << 21,
                        };
                        (frame | flags).to_le_bytes()
                    })
                    .collect();
                respond(pasid, pages.len() as u64, &entries)
            }
            Self::Entries(change, claimed, entries) => {
                respond(pasid ^ u32::from(change), claimed.into(), entries)
            }
            Self::Refuse(status) => {
                let entry = u64::from(status) << PageEntry::STATUS_SHIFT | PageEntry::REFUSED;
                respond(pasid, 1, &entry.to_le_bytes())
            }
            Self::Invalidate(first, count) => {
                let first = VIRTUAL + u64::from(first) * PAGE_BYTES as u64;
                let last = first + (u64::from(count) + 1) * PAGE_BYTES as u64 - 1;
                request(ControlOpcode::INVALIDATE, pasid, first, last)
            }
            Self::Space(is_bound, pasid) => {
                let opcode = match is_bound {
                    true => ControlOpcode::BIND,
                    false => ControlOpcode::UNBIND,
                };
                request(opcode, pasid, 0, 0)
            }
            Self::Control(bytes) => bytes.to_vec(),
            Self::Memory(..) | Self::Command(_) | Self::NoBuffer => Vec::new(),
        }
    }
}

fn request(opcode: ControlOpcode, pasid: u32, arg0: u64, arg1: u64) -> Vec<u8> {
    let request = ControlRequest {
        opcode,
        flags: 0.into(),
        pasid: pasid.into(),
        arg0: arg0.into(),
        arg1: arg1.into(),
    };
    request.as_bytes().to_vec()
}
