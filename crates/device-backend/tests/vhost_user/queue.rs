// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's side of a split virtqueue, with event index.

use super::process::TIMEOUT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of each ring.
pub const SIZE: u16 = 256;
/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub bytes: u32,
    pub is_writable: bool,
}

/// A buffer that the device reads.
pub fn readable(address: u64, bytes: usize) -> Buffer {
    Buffer {
        address,
        bytes: bytes as u32,
        is_writable: false,
    }
}

/// A buffer that the device writes.
pub fn writable(address: u64, bytes: usize) -> Buffer {
    Buffer {
        is_writable: true,
        ..readable(address, bytes)
    }
}

/// One virtqueue in guest memory.
pub struct DriverQueue {
    memory: Arc<GuestMemoryMmap>,
    base: u64,
    next_descriptor: u16,
    next_avail: u16,
    last_used: u16,
    pub kick: EventFd,
    pub call: EventFd,
}

impl DriverQueue {
    /// An empty queue whose rings begin at `base`.
    pub fn new(memory: Arc<GuestMemoryMmap>, base: u64) -> Self {
        memory
            .write_slice(&[0; 0x3000], GuestAddress(base))
            .unwrap();
        Self {
            memory,
            base,
            next_descriptor: 0,
            next_avail: 0,
            last_used: 0,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    pub fn descriptors(&self) -> u64 {
        self.base
    }

    pub fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used(&self) -> u64 {
        self.base + 0x2000
    }

    fn store(&self, address: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(address), Ordering::Release)
            .unwrap();
    }

    fn load(&self, address: u64) -> u16 {
        self.memory
            .load(GuestAddress(address), Ordering::Acquire)
            .unwrap()
    }

    /// Writes one descriptor of a table.
    pub fn write_descriptor(&self, table: u64, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let flags = if buffer.is_writable {
            flags | WRITE
        } else {
            flags
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let address = GuestAddress(table + 16 * u64::from(index));
        self.memory.write_slice(&bytes, address).unwrap();
    }

    /// Puts a chain into the descriptor table and returns its head.
    pub fn chain(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, &buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % SIZE;
            let flags = if position + 1 < buffers.len() {
                NEXT
            } else {
                0
            };
            self.write_descriptor(self.base, index, buffer, flags, self.next_descriptor);
        }
        head
    }

    /// Makes a head available without telling the device.
    pub fn publish(&mut self, head: u16) {
        self.store(
            self.avail() + 4 + 2 * u64::from(self.next_avail % SIZE),
            head,
        );
        self.next_avail = self.next_avail.wrapping_add(1);
        self.store(self.avail() + 2, self.next_avail);
    }

    /// Sets the available index to any value.
    pub fn set_avail_index(&mut self, index: u16) {
        self.store(self.avail() + 2, index);
    }

    /// Chains made available so far, as the ring counts them.
    pub fn avail_index(&self) -> u16 {
        self.next_avail
    }

    /// Tells the device, if by the event index it wants to be told of the last `added` chains.
    pub fn kick_if_wanted(&self, added: u16) {
        fence(Ordering::SeqCst);
        let avail_event = self.load(self.used() + 4 + 8 * u64::from(SIZE));
        let passed = self.next_avail.wrapping_sub(avail_event).wrapping_sub(1);
        if passed < added {
            self.kick.write(1).unwrap();
        }
    }

    /// Makes a chain available and tells the device.
    pub fn submit(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.chain(buffers);
        self.publish(head);
        self.kick_if_wanted(1);
        head
    }

    /// The next used chain, as (head, bytes written), if there is one.
    pub fn poll_used(&mut self) -> Option<(u32, u32)> {
        if self.load(self.used() + 2) == self.last_used {
            return None;
        }
        let address = self.used() + 4 + 8 * u64::from(self.last_used % SIZE);
        self.last_used = self.last_used.wrapping_add(1);
        let head = self.memory.read_obj(GuestAddress(address)).unwrap();
        let bytes = self.memory.read_obj(GuestAddress(address + 4)).unwrap();
        Some((head, bytes))
    }

    /// Waits for the next used chain by interrupt alone, as a sleeping driver does.
    pub fn wait_used(&mut self) -> (u32, u32) {
        let start = Instant::now();
        loop {
            // Asks for an interrupt at the next chain, then looks again.
            self.store(self.avail() + 4 + 2 * u64::from(SIZE), self.last_used);
            fence(Ordering::SeqCst);
            if let Some(used) = self.poll_used() {
                return used;
            }
            // SAFETY: the eventfd lives as long as self.
            let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let mut fds = [PollFd::new(call, PollFlags::POLLIN)];
            let left = TIMEOUT.saturating_sub(start.elapsed());
            let timeout = PollTimeout::try_from(left).unwrap();
            let ready = poll(&mut fds, timeout).unwrap();
            assert!(
                ready > 0,
                "no interrupt: available {}, device asks for a kick at {}; used {}, driver asks for an interrupt at {}",
                self.load(self.avail() + 2),
                self.load(self.used() + 4 + 8 * u64::from(SIZE)),
                self.load(self.used() + 2),
                self.load(self.avail() + 4 + 2 * u64::from(SIZE)),
            );
            let _ = self.call.read();
        }
    }
}
