// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One descriptor chain: request in, completion out.
//!
//! The descriptors are read from guest memory once and kept, since the guest may
//! rewrite them at any time (virtio-queue's Reader and Writer each walk the table
//! for themselves). Virtio leaves the framing to the driver: request and completion
//! may be cut into descriptors anywhere.

use super::guest_view::GuestView;
use crate::model::{GuestMemory, MAX_REQUEST_BYTES};
use std::sync::Arc;
use virtio_queue::DescriptorChain;
use vm_memory::{Address, GuestMemoryMmap};
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    address: u64,
    bytes: u32,
}

/// A chain that was taken off a ring.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
    is_whole: bool,
}

/// The chain, or the memory it points at, is not as virtio wants it.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Device-readable bytes of a chain.
#[derive(Debug)]
pub struct RequestBytes {
    /// The first of them; all, unless there are more than any request has.
    pub bytes: Vec<u8>,
    /// How many the chain has.
    pub total: u64,
}

impl Chain {
    /// Reads the descriptors of a chain.
    pub fn collect(mut descriptors: DescriptorChain<Arc<GuestMemoryMmap>>) -> Self {
        let head = descriptors.head_index();
        let mut chain = Self {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
            is_whole: true,
        };
        // An iteration that stops at a descriptor with a successor has met a loop, an index out
        // of range or a table outside memory; one that yields nothing has not even begun.
        let mut has_next = true;
        for descriptor in descriptors.by_ref() {
            has_next = descriptor.has_next();
            let buffer = Buffer {
                address: descriptor.addr().raw_value(),
                bytes: descriptor.len(),
            };
            if descriptor.is_write_only() {
                chain.writable.push(buffer);
            } else {
                // Device-readable descriptors come first (virtio 1.2, 2.7.4.2).
                chain.is_whole &= chain.writable.is_empty();
                chain.readable.push(buffer);
            }
        }
        chain.is_whole &= !has_next;
        chain
    }

    /// Index by which the ring knows the chain.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Copies the request out.
    pub fn request(&self, guest: &GuestView) -> Result<RequestBytes, Malformed> {
        if !self.is_whole {
            return Err(Malformed);
        }
        let total = self.readable.iter().map(|b| u64::from(b.bytes)).sum();
        let length = usize::try_from(total).map_or(MAX_REQUEST_BYTES, |n| n.min(MAX_REQUEST_BYTES));
        let mut bytes = vec![0; length];
        let mut rest = bytes.as_mut_slice();
        for piece in Pieces::new(&self.readable, guest) {
            if rest.is_empty() {
                break;
            }
            let piece = piece?;
            let count = piece.copy_to(rest);
            rest = &mut rest[count..];
        }
        Ok(RequestBytes { bytes, total })
    }

    /// The number of the operation that the request begins with, if it has one.
    pub fn opcode(&self, guest: &GuestView) -> Option<u16> {
        let request = self.request(guest).ok()?;
        opcode(&request.bytes).map(U16::get)
    }

    /// Whether the chain has room for `bytes` of answer, all of it in guest memory.
    pub fn has_room(&self, bytes: usize, guest: &GuestView) -> bool {
        let mut found = 0;
        for piece in Pieces::new(&self.writable, guest) {
            match piece {
                Ok(piece) => found += piece.len(),
                Err(Malformed) => return false,
            }
            if found >= bytes {
                return true;
            }
        }
        found >= bytes
    }

    /// Writes an answer where [`Self::has_room`] found room for it.
    pub fn answer(&self, mut bytes: &[u8], guest: &GuestView) {
        for piece in Pieces::new(&self.writable, guest).map_while(Result::ok) {
            let count = piece.len().min(bytes.len());
            piece.copy_from(&bytes[..count]);
            bytes = &bytes[count..];
            if bytes.is_empty() {
                return;
            }
        }
    }
}

/// The operation of a request, which every request begins with.
pub fn opcode(request: &[u8]) -> Option<U16> {
    U16::read_from_prefix(request)
        .ok()
        .map(|(number, _)| number)
}

/// Walks buffers in stretches of guest memory; ends at the first place that is none.
struct Pieces<'a> {
    buffers: std::slice::Iter<'a, Buffer>,
    current: Buffer,
    guest: &'a GuestView,
}

impl<'a> Pieces<'a> {
    fn new(buffers: &'a [Buffer], guest: &'a GuestView) -> Self {
        Self {
            buffers: buffers.iter(),
            current: Buffer {
                address: 0,
                bytes: 0,
            },
            guest,
        }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<vm_memory::VolatileSlice<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.current.bytes == 0 {
            self.current = *self.buffers.next()?;
        }
        let Buffer { address, bytes } = self.current;
        let Some(piece) = self.guest.stretch(address, bytes.into()) else {
            self.buffers = [].iter();
            self.current.bytes = 0;
            return Some(Err(Malformed));
        };
        // A stretch is at most as long as asked for, so it fits in 32 bits.
        self.current.bytes -= piece.len() as u32;
        self.current.address = address.wrapping_add(piece.len() as u64);
        Some(Ok(piece))
    }
}
