// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which physical page stands behind an address, from /proc/PID/pagemap
//! (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::memory::PAGE_BYTES;
use crate::range::AddressRange;

/// What the kernel says about one page of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    const PRESENT: u64 = 1 << 63;
    const EXCLUSIVELY_MAPPED: u64 = 1 << 56;
    const FRAME: u64 = (1 << 55) - 1;

    /// Whether the page table maps a page, so that an access takes no fault.
    pub fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether no other process maps the page.
    pub fn is_exclusive(self) -> bool {
        self.0 & Self::EXCLUSIVELY_MAPPED != 0
    }

    /// Physical address of the page; `None` if there is none, or if the reader
    /// lacks CAP_SYS_ADMIN and so is shown none.
    pub fn physical_address(self) -> Option<u64> {
        let frame = self.0 & Self::FRAME;
        (self.is_present() && frame != 0).then_some(frame * PAGE_BYTES as u64)
    }
}

/// The entries of `range` in this process.
pub fn own(range: AddressRange) -> io::Result<Vec<Entry>> {
    entries("/proc/self/pagemap", range)
}

/// The entries of `range` in process `pid`.
pub fn of(pid: i32, range: AddressRange) -> io::Result<Vec<Entry>> {
    entries(&format!("/proc/{pid}/pagemap"), range)
}

fn entries(path: &str, range: AddressRange) -> io::Result<Vec<Entry>> {
    let mut bytes = vec![0; range.pages() as usize * size_of::<u64>()];
    let offset = range.start() / PAGE_BYTES as u64 * size_of::<u64>() as u64;
    File::open(path)?.read_exact_at(&mut bytes, offset)?;
    let words = bytes.as_chunks::<8>().0;
    Ok(words
        .iter()
        .map(|word| Entry(u64::from_ne_bytes(*word)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn touched_page_is_present_and_untouched_page_is_not() {
        let mapping = Mapping::anonymous(2 * PAGE_BYTES).unwrap();
        mapping
            .advise(nix::sys::mman::MmapAdvise::MADV_NOHUGEPAGE)
            .unwrap();
        mapping.word(0).store(1, Relaxed);
        let entries = own(mapping.range()).unwrap();
        assert!(entries[0].is_present() && entries[0].is_exclusive());
        assert!(!entries[1].is_present());
        assert_eq!(entries[1].physical_address(), None);
    }
}
