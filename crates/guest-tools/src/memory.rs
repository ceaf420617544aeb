// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of this process that a device may change at any time.
//!
//! No Rust reference to plain bytes is ever handed out: the device, a second
//! thread or another process may write meanwhile. All access is by relaxed
//! atomic words, which the compiler turns into the plain loads and stores that
//! the tests are about.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use nix::fcntl::SpliceFFlags;
use nix::sys::mman::{self, MRemapFlags, MapFlags, MmapAdvise, ProtFlags};

use crate::range::AddressRange;

/// Bytes of a page on x86-64.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a huge page on x86-64.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Bytes of a word, the unit of all access here.
pub const WORD_BYTES: usize = size_of::<u64>();

/// A mapping, unmapped on drop.
///
/// # Invariants
/// `base..base + bytes` is mapped by this value alone, page-aligned, not empty.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only accessed by atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access is by atomic words.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps private zeroed memory, `bytes` rounded up to whole pages.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, MapFlags::MAP_PRIVATE)
    }

    /// Maps zeroed memory that a forked child shares.
    pub fn shared(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, MapFlags::MAP_SHARED)
    }

    /// Maps the first `bytes` of a file, shared with everybody who maps it.
    pub fn shared_file(file: &File, bytes: usize) -> io::Result<Self> {
        Self::of_file(None, file, bytes, MapFlags::MAP_SHARED)
    }

    /// `address` is given with MAP_FIXED alone, and then names a mapping that the caller owns and
    /// gives up.
    fn of_file(
        address: Option<NonZeroUsize>,
        file: &File,
        bytes: usize,
        flags: MapFlags,
    ) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes.next_multiple_of(PAGE_BYTES))
            .ok_or_else(|| io::Error::other("a mapping of no bytes"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without an address no existing mapping is replaced, with one it is the caller's
        // own; whoever else maps the file, all access here is atomic.
        let base = unsafe { mman::mmap(address, length, protection, flags, file, 0) }?;
        Ok(Self {
            base,
            bytes: length.get(),
        })
    }

    /// Maps the first `bytes` of a file; what is written stays with this process.
    pub fn private_file(file: &File, bytes: usize) -> io::Result<Self> {
        Self::of_file(None, file, bytes, MapFlags::MAP_PRIVATE)
    }

    /// Maps the first `bytes` of a file from a huge page boundary on, shared with everybody who
    /// maps it.
    pub fn huge_aligned_file(file: &File, bytes: usize) -> io::Result<Self> {
        let place = Self::huge_aligned(bytes)?;
        let address = NonZeroUsize::new(place.base.as_ptr() as usize);
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let mapping = Self::of_file(address, file, place.bytes, flags)?;
        // The file took the place of what was there.
        std::mem::forget(place);
        Ok(mapping)
    }

    /// Maps private memory that starts on a huge page boundary.
    pub fn huge_aligned(bytes: usize) -> io::Result<Self> {
        let mut whole = Self::anonymous(bytes + HUGE_PAGE_BYTES)?;
        let lead = whole.address().next_multiple_of(HUGE_PAGE_BYTES as u64) - whole.address();
        whole.unmap_head(lead as usize)?;
        let tail = whole.bytes - bytes;
        whole.unmap_tail(tail)?;
        Ok(whole)
    }

    fn map(bytes: usize, flags: MapFlags) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes.next_multiple_of(PAGE_BYTES))
            .ok_or_else(|| io::Error::other("a mapping of no bytes"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is given, so no existing mapping is replaced.
        let base = unsafe {
            mman::mmap_anonymous(None, length, protection, flags | MapFlags::MAP_NORESERVE)
        }?;
        Ok(Self {
            base,
            bytes: length.get(),
        })
    }

    /// First address.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Length in pages.
    pub fn pages(&self) -> usize {
        self.bytes / PAGE_BYTES
    }

    /// Addresses of the mapping.
    pub fn range(&self) -> AddressRange {
        AddressRange::new(self.address(), self.address() + self.bytes as u64)
            .expect("a mapping is not empty")
    }

    /// Addresses of `count` pages from page `first` on.
    pub fn page_range(&self, first: usize, count: usize) -> AddressRange {
        assert!(count > 0 && first + count <= self.pages());
        let start = self.address() + (first * PAGE_BYTES) as u64;
        AddressRange::new(start, start + (count * PAGE_BYTES) as u64).expect("count is not zero")
    }

    /// The memory as words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: by the invariant the memory is mapped as long as `self` lives and aligned; zero
        // bytes are valid words; everybody's access is atomic. A word on a page that the tests
        // made inaccessible raises a signal, which is what they look for.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.bytes / WORD_BYTES) }
    }

    /// One word by its byte offset.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(WORD_BYTES));
        &self.words()[offset / WORD_BYTES]
    }

    /// Four bytes by their offset.
    pub fn half_word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < self.bytes);
        let base = self.base.as_ptr() as usize;
        // SAFETY: the assertion keeps the pointer aligned and inside the mapping, which lives as
        // long as `self`.
        unsafe { AtomicU32::from_ptr((base + offset) as *mut u32) }
    }

    /// Stores the pattern of `seed` into every word.
    pub fn fill_pattern(&self, seed: u64) {
        self.fill_pattern_pages(seed, 0..self.pages());
    }

    /// Stores the pattern of `seed` into every word of some pages.
    pub fn fill_pattern_pages(&self, seed: u64, pages: Range<usize>) {
        const WORDS: usize = PAGE_BYTES / WORD_BYTES;
        for index in pages.start * WORDS..pages.end * WORDS {
            self.words()[index].store(pattern(seed, index), Relaxed);
        }
    }

    /// Stores `value` into every word.
    pub fn fill(&self, value: u64) {
        self.words()
            .iter()
            .for_each(|word| word.store(value, Relaxed));
    }

    /// Checks that every word holds the pattern of `seed`.
    pub fn check_pattern(&self, seed: u64) -> Result<(), Mismatch> {
        self.check_pattern_pages(seed, 0..self.pages())
    }

    /// Checks that every word of some pages holds the pattern of `seed`.
    pub fn check_pattern_pages(&self, seed: u64, pages: Range<usize>) -> Result<(), Mismatch> {
        let words_per_page = PAGE_BYTES / WORD_BYTES;
        for index in pages.start * words_per_page..pages.end * words_per_page {
            let (found, expected) = (self.words()[index].load(Relaxed), pattern(seed, index));
            if found != expected {
                return Err(Mismatch {
                    offset: index * WORD_BYTES,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Checks that every word holds `expected`.
    pub fn check_fill(&self, expected: u64) -> Result<(), Mismatch> {
        for (index, word) in self.words().iter().enumerate() {
            let found = word.load(Relaxed);
            if found != expected {
                return Err(Mismatch {
                    offset: index * WORD_BYTES,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Copies `bytes` into the mapping, from its start.
    pub fn write_bytes(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes);
        for (word, chunk) in self.words().iter().zip(bytes.chunks(WORD_BYTES)) {
            let mut value = [0; WORD_BYTES];
            value[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(value), Relaxed);
        }
    }

    /// Copies the first `bytes` of the mapping out.
    pub fn read_bytes(&self, bytes: usize) -> Vec<u8> {
        assert!(bytes <= self.bytes);
        let words = &self.words()[..bytes.div_ceil(WORD_BYTES)];
        let mut copy: Vec<u8> = words
            .iter()
            .flat_map(|word| word.load(Relaxed).to_le_bytes())
            .collect();
        copy.truncate(bytes);
        copy
    }

    /// CRC-32C of the first `bytes`, as the CPU computes it.
    pub fn crc32c(&self, bytes: usize) -> u32 {
        const CHUNK_WORDS: usize = 8192;
        let mut crc = 0;
        let mut left = bytes;
        for chunk in self.words().chunks(CHUNK_WORDS) {
            let mut buffer = Vec::with_capacity(CHUNK_WORDS * WORD_BYTES);
            chunk
                .iter()
                .for_each(|word| buffer.extend(word.load(Relaxed).to_le_bytes()));
            buffer.truncate(left);
            crc = crc32c::crc32c_append(crc, &buffer);
            left -= buffer.len();
        }
        crc
    }

    /// Gives the kernel advice about the whole mapping.
    pub fn advise(&self, advice: MmapAdvise) -> io::Result<()> {
        // SAFETY: the range is this mapping; advice that drops contents leaves zeroes, which are
        // valid words.
        unsafe { mman::madvise(self.base, self.bytes, advice) }?;
        Ok(())
    }

    /// Gives the kernel advice about some pages.
    pub fn advise_pages(&self, first: usize, count: usize, advice: MmapAdvise) -> io::Result<()> {
        let range = self.page_range(first, count);
        let start = NonNull::new(range.start() as *mut libc::c_void).expect("mapped above zero");
        // SAFETY: `page_range` keeps the range inside this mapping; contents as in `advise`.
        unsafe { mman::madvise(start, range.bytes() as usize, advice) }?;
        Ok(())
    }

    /// Faults every page in, and keeps them all from being swapped out.
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping; locking changes nothing that a program can see.
        unsafe { mman::mlock(self.base, self.bytes) }?;
        Ok(())
    }

    /// Does so with some pages.
    pub fn lock_pages(&self, first: usize, count: usize) -> io::Result<()> {
        let range = self.page_range(first, count);
        let start = NonNull::new(range.start() as *mut libc::c_void).expect("mapped above zero");
        // SAFETY: `page_range` keeps the range inside this mapping; locking changes nothing that a
        // program can see.
        unsafe { mman::mlock(start, range.bytes() as usize) }?;
        Ok(())
    }

    /// Undoes [`Self::lock`].
    pub fn unlock(&self) -> io::Result<()> {
        // SAFETY: as in `lock`.
        unsafe { mman::munlock(self.base, self.bytes) }?;
        Ok(())
    }

    /// Asks the kernel to put the pages of the mapping into huge ones now (MADV_COLLAPSE).
    pub fn collapse(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping; collapsing changes nothing that a program can see.
        match unsafe { libc::madvise(self.base.as_ptr(), self.bytes, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes some pages to a file, from byte `offset` of it on; how many bytes it took. Nothing is
    /// copied on the way, so that direct I/O uses the pages themselves.
    pub fn write_pages_to(
        &self,
        pages: Range<usize>,
        file: &File,
        offset: u64,
    ) -> io::Result<usize> {
        let range = self.page_range(pages.start, pages.len());
        let (start, bytes) = (range.start() as *const _, range.bytes() as usize);
        // SAFETY: `page_range` keeps the range inside this mapping, which only atomics access.
        let done = unsafe { libc::pwrite(file.as_raw_fd(), start, bytes, offset as i64) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Reads some pages from a file, likewise.
    pub fn read_pages_from(
        &self,
        pages: Range<usize>,
        file: &File,
        offset: u64,
    ) -> io::Result<usize> {
        let range = self.page_range(pages.start, pages.len());
        let (start, bytes) = (range.start() as *mut _, range.bytes() as usize);
        // SAFETY: `page_range` keeps the range inside this mapping, which only atomics access.
        let done = unsafe { libc::pread(file.as_raw_fd(), start, bytes, offset as i64) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Lends some pages to a pipe (vmsplice); how many bytes it took.
    pub fn lend_pages(
        &self,
        pages: Range<usize>,
        pipe: BorrowedFd<'_>,
        flags: SpliceFFlags,
    ) -> io::Result<usize> {
        let range = self.page_range(pages.start, pages.len());
        let lent = libc::iovec {
            iov_base: range.start() as *mut libc::c_void,
            iov_len: range.bytes() as usize,
        };
        // SAFETY: `page_range` keeps the range inside this mapping, which only atomics access; the
        // pipe holds pages of its own right, and may outlive the mapping.
        let done = unsafe { libc::vmsplice(pipe.as_raw_fd(), &raw const lent, 1, flags.bits()) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Sets what may be done with some pages.
    pub fn protect_pages(
        &self,
        first: usize,
        count: usize,
        protection: ProtFlags,
    ) -> io::Result<()> {
        let range = self.page_range(first, count);
        let start = NonNull::new(range.start() as *mut libc::c_void).expect("mapped above zero");
        // SAFETY: `page_range` keeps the range inside this mapping; an access that the protection
        // forbids raises a signal.
        unsafe { mman::mprotect(start, range.bytes() as usize, protection) }?;
        Ok(())
    }

    /// Unmaps the first `bytes`, whole pages.
    pub fn unmap_head(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        assert!(bytes.is_multiple_of(PAGE_BYTES) && bytes < self.bytes);
        // SAFETY: the range is the start of this mapping, and `&mut self` means that no word of it
        // is borrowed.
        unsafe { mman::munmap(self.base, bytes) }?;
        let address = self.base.as_ptr() as usize + bytes;
        self.base = NonNull::new(address as *mut libc::c_void).expect("mapped above zero");
        self.bytes -= bytes;
        Ok(())
    }

    /// Unmaps the last `bytes`, whole pages.
    pub fn unmap_tail(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        assert!(bytes.is_multiple_of(PAGE_BYTES) && bytes < self.bytes);
        let address = self.base.as_ptr() as usize + self.bytes - bytes;
        let start = NonNull::new(address as *mut libc::c_void).expect("mapped above zero");
        // SAFETY: the range is the end of this mapping, and `&mut self` means that no word of it is
        // borrowed.
        unsafe { mman::munmap(start, bytes) }?;
        self.bytes -= bytes;
        Ok(())
    }

    /// Makes the mapping `bytes` long, at another address.
    pub fn move_and_resize(&mut self, bytes: usize) -> io::Result<()> {
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE_BYTES));
        // A reservation of the new length tells an address that is free for certain.
        self.move_over(Self::anonymous(bytes)?)
    }

    /// Cuts the mapping in two, whole pages. The kernel is not asked: it knows nothing of the cut
    /// until the pieces are treated in different ways.
    pub fn split_at(self, bytes: usize) -> (Self, Self) {
        assert!(bytes > 0 && bytes < self.bytes && bytes.is_multiple_of(PAGE_BYTES));
        // INVARIANT: the whole gives up its range, which the two parts share without overlap.
        let whole = ManuallyDrop::new(self);
        let address = whole.base.as_ptr() as usize + bytes;
        let tail = Self {
            base: NonNull::new(address as *mut libc::c_void).expect("mapped above zero"),
            bytes: whole.bytes - bytes,
        };
        let head = Self {
            base: whole.base,
            bytes,
        };
        (head, tail)
    }

    /// Moves the pages to where `target` is, which is as long and no more. What is given back is the
    /// old place, still mapped and without a page (MREMAP_DONTUNMAP).
    pub fn move_pages_over(&mut self, target: Self) -> io::Result<Self> {
        assert_eq!(self.bytes, target.bytes);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        let (from, to) = (self.base.as_ptr(), target.base.as_ptr());
        // SAFETY: the source is this whole mapping, of which `&mut self` says that no word is
        // borrowed; the target is a mapping that nobody else owns.
        let moved = unsafe { libc::mremap(from, self.bytes, self.bytes, flags, to) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(target);
        let old = Self {
            base: self.base,
            bytes: self.bytes,
        };
        self.base = NonNull::new(moved).expect("mapped above zero");
        Ok(old)
    }

    /// Moves the mapping to where `target` is, and makes it as long; `target` is no more.
    pub fn move_over(&mut self, target: Self) -> io::Result<()> {
        let bytes = target.bytes;
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: the source is this whole mapping, of which `&mut self` says that no word is
        // borrowed; the target is a mapping that nobody else owns.
        let moved =
            unsafe { mman::mremap(self.base, self.bytes, bytes, flags, Some(target.base)) }?;
        std::mem::forget(target);
        self.base = moved;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by the invariant the range is this value's own, and nobody borrows it any more.
        // Failure would leave the memory mapped, which harms nobody.
        let _ = unsafe { mman::munmap(self.base, self.bytes) };
    }
}

/// The first word that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where, in bytes from the start of the mapping.
    pub offset: usize,
    /// What should be there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            offset,
            expected,
            found,
        } = self;
        let page = offset / PAGE_BYTES;
        write!(
            f,
            "offset {offset:#x} (page {page}): expected {expected:#018x}, found {found:#018x}"
        )
    }
}

impl std::error::Error for Mismatch {}

/// Word `index` of the pattern of `seed`: SplitMix64, so that neither a shifted
/// nor a stale page looks right.
pub fn pattern(seed: u64, index: usize) -> u64 {
    let mut z = seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_of_another_seed_is_found_at_the_first_word() {
        let mapping = Mapping::anonymous(3 * PAGE_BYTES).unwrap();
        mapping.fill_pattern(1);
        assert_eq!(mapping.check_pattern(1), Ok(()));
        assert_eq!(mapping.check_pattern(2).unwrap_err().offset, 0);
    }

    #[test]
    fn one_wrong_word_is_found_where_it_is() {
        let mapping = Mapping::anonymous(3 * PAGE_BYTES).unwrap();
        mapping.fill_pattern(7);
        mapping.word(PAGE_BYTES + 8).store(0, Relaxed);
        let mismatch = mapping.check_pattern(7).unwrap_err();
        assert_eq!(mismatch.offset, PAGE_BYTES + 8);
        assert_eq!(mapping.check_pattern_pages(7, 2..3), Ok(()));
    }

    #[test]
    fn moved_mapping_keeps_contents_and_grows_zeroed() {
        let mut mapping = Mapping::anonymous(2 * PAGE_BYTES).unwrap();
        mapping.fill_pattern(3);
        let old = mapping.address();
        mapping.move_and_resize(4 * PAGE_BYTES).unwrap();
        assert_ne!(mapping.address(), old);
        assert_eq!(mapping.check_pattern_pages(3, 0..2), Ok(()));
        assert_eq!(mapping.word(3 * PAGE_BYTES).load(Relaxed), 0);
    }

    #[test]
    fn parts_of_a_mapping_are_unmapped_by_themselves() {
        let mapping = Mapping::anonymous(3 * PAGE_BYTES).unwrap();
        mapping.fill_pattern(4);
        let (head, rest) = mapping.split_at(PAGE_BYTES);
        let (middle, tail) = rest.split_at(PAGE_BYTES);
        let word = tail.word(0).load(Relaxed);
        drop(middle);
        assert_eq!(head.check_pattern(4), Ok(()));
        assert_eq!((word, tail.pages()), (pattern(4, 2 * 512), 1));
        assert_eq!(tail.word(0).load(Relaxed), word);
    }

    #[test]
    fn pages_that_moved_leave_an_empty_mapping() {
        let mut mapping = Mapping::anonymous(2 * PAGE_BYTES).unwrap();
        mapping.fill_pattern(5);
        let old = mapping.address();
        let target = Mapping::anonymous(2 * PAGE_BYTES).unwrap();
        let left = mapping.move_pages_over(target).unwrap();
        assert_eq!(left.address(), old);
        assert_eq!(left.check_fill(0), Ok(()));
        assert_eq!(mapping.check_pattern(5), Ok(()));
    }

    #[test]
    fn huge_aligned_mapping_starts_on_a_huge_page() {
        let mapping = Mapping::huge_aligned(HUGE_PAGE_BYTES).unwrap();
        assert_eq!(mapping.address() % HUGE_PAGE_BYTES as u64, 0);
        assert_eq!(mapping.bytes(), HUGE_PAGE_BYTES);
    }

    #[test]
    fn crc_of_part_of_a_word_is_that_of_the_bytes() {
        let mapping = Mapping::anonymous(PAGE_BYTES).unwrap();
        // The check value of CRC-32C (RFC 3720, appendix B.4, and every catalogue of CRCs).
        mapping.write_bytes(b"123456789");
        assert_eq!(mapping.crc32c(9), 0xe306_9283);
        assert_eq!(mapping.read_bytes(9), b"123456789");
    }
}
