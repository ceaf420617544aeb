// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ceiling: a plain memcpy of the same bytes into memory that is there already.

use anyhow::{Result, ensure};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::range::AddressRange;

use super::{Mover, Task};
use crate::memory;

/// The C library's memcpy.
pub struct Copy {
    parts: Vec<AddressRange>,
    start: u64,
    other: Mapping,
}

impl Copy {
    /// Has the other memory in the same pages.
    pub fn new(task: &Task<'_>) -> Result<Self> {
        Ok(Self {
            parts: memory::parts(task.memory, task.threads),
            start: task.memory.address(),
            other: memory::anonymous(task.memory.bytes(), task.pages)?,
        })
    }

    /// The part of a thread, in the memory and in the other one.
    fn both(&self, part: usize) -> (*mut u8, *mut u8, usize) {
        let range = self.parts[part];
        let other = self.other.address() + (range.start() - self.start);
        (
            range.start() as *mut u8,
            other as *mut u8,
            range.bytes() as usize,
        )
    }
}

impl Mover for Copy {
    fn there(&self, part: usize) -> Result<()> {
        let (memory, other, bytes) = self.both(part);
        // SAFETY: both are mapped and as long; no other thread has this part, and nobody a
        // reference to plain bytes of either.
        unsafe { std::ptr::copy_nonoverlapping(memory, other, bytes) };
        Ok(())
    }

    fn back(&self, part: usize) -> Result<()> {
        let (memory, other, bytes) = self.both(part);
        // SAFETY: as in `there`.
        unsafe { std::ptr::copy_nonoverlapping(other, memory, bytes) };
        Ok(())
    }

    fn expect_there(&self) -> Result<()> {
        let (memory, _, _) = self.both(0);
        // SAFETY: the first byte of the memory is mapped, and nobody writes to it now.
        let first = unsafe { memory.read() };
        ensure!(
            self.other.read_bytes(1)[0] == first,
            "memcpy copied something else"
        );
        Ok(())
    }
}
