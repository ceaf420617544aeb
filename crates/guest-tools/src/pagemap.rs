// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which physical page stands behind an address, from /proc/PID/pagemap
//! (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::memory::PAGE_BYTES;
use crate::range::AddressRange;

/// What the kernel says about one page of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    /// Bits of a frame's place that are the kind of the entry where the page is swapped out.
    const SWAP_KIND_BITS: u32 = 5;
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

    /// Address that the struct page of a page in private memory stands for: such a page is shown as
    /// one that is swapped out. `None` if there is none, as above; of a page that is swapped out
    /// indeed it is the place in the swap.
    pub fn private_address(self) -> Option<u64> {
        let frame = (self.0 & Self::FRAME) >> Self::SWAP_KIND_BITS;
        (self.0 & Self::SWAPPED != 0 && frame != 0).then_some(frame * PAGE_BYTES as u64)
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

/// Bytes of `range` in this process that entries for huge pages map, one each 2 MiB, whatever
/// memory the page is in.
///
/// /proc/kpageflags knows nothing about device memory: it asks for frames that are online.
pub fn huge_mapped_bytes(range: AddressRange) -> io::Result<u64> {
    let file = File::open("/proc/self/pagemap")?;
    let mut found = [scan::Region::default(); 64];
    let mut sum = 0;
    let mut start = range.start();
    while start < range.end() {
        let mut request = scan::Request {
            size: size_of::<scan::Request>() as u64,
            start,
            end: range.end(),
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            category_mask: scan::PAGE_IS_HUGE,
            return_mask: scan::PAGE_IS_HUGE,
            ..Default::default()
        };
        // SAFETY: the kernel reads and writes the request, and writes at most `vec_len` regions to
        // `found`, which nobody else uses meanwhile.
        let regions = unsafe { scan::pagemap_scan(file.as_raw_fd(), &raw mut request) }?;
        let regions = &found[..usize::try_from(regions).map_err(io::Error::other)?];
        sum += regions
            .iter()
            .map(|region| region.end - region.start)
            .sum::<u64>();
        if request.walk_end <= start {
            return Err(io::Error::other(format!(
                "PAGEMAP_SCAN of {range} stops at {start:#x}"
            )));
        }
        start = request.walk_end;
    }
    Ok(sum)
}

/// PAGEMAP_SCAN, from linux/fs.h (Documentation/admin-guide/mm/pagemap.rst).
mod scan {
    /// `struct pm_scan_arg`
    #[repr(C)]
    #[derive(Default)]
    pub struct Request {
        pub size: u64,
        pub flags: u64,
        pub start: u64,
        pub end: u64,
        pub walk_end: u64,
        pub vec: u64,
        pub vec_len: u64,
        pub max_pages: u64,
        pub category_inverted: u64,
        pub category_mask: u64,
        pub category_anyof_mask: u64,
        pub return_mask: u64,
    }

    /// `struct page_region`
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub struct Region {
        pub start: u64,
        pub end: u64,
        pub categories: u64,
    }

    /// An entry for a huge page maps it.
    pub const PAGE_IS_HUGE: u64 = 1 << 6;

    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, Request);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn small_pages_are_not_mapped_by_huge_entries() {
        let mapping = Mapping::anonymous(4 * PAGE_BYTES).unwrap();
        mapping
            .advise(nix::sys::mman::MmapAdvise::MADV_NOHUGEPAGE)
            .unwrap();
        mapping.fill(1);
        match huge_mapped_bytes(mapping.range()) {
            Ok(bytes) => assert_eq!(bytes, 0),
            // Kernels before 6.7 have no PAGEMAP_SCAN.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}"),
        }
    }

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
