// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory that is moved: in pages of the size that the figure names, and in no
//! others.

use std::fmt;
use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::process;
use cdm_guest_tools::range::AddressRange;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, ProtFlags};

/// What memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous, private.
    Anonymous,
    /// Shared memory: a memfd.
    Shmem,
    /// Page cache of a file: one in a ramfs, which keeps it nowhere else.
    PageCache,
}

/// Where the ramfs is.
const RAMFS: &str = "/run/cdm-bench";

/// How large the pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// Folios of 2 MiB.
    Huge,
}

impl PageSize {
    /// In bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Small => PAGE_BYTES,
            Self::Huge => HUGE_PAGE_BYTES,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "4KiB",
            Self::Huge => "2MiB",
        })
    }
}

/// Maps memory and faults it all in.
pub fn map(backing: Backing, bytes: usize, pages: PageSize) -> Result<Mapping> {
    let file = match backing {
        Backing::Anonymous => return anonymous(bytes, pages),
        Backing::Shmem => File::from(memfd_create(c"cdm-bench", MFdFlags::MFD_CLOEXEC)?),
        Backing::PageCache => in_ramfs()?,
    };
    file.set_len(bytes as u64)?;
    let memory = Mapping::huge_aligned_file(&file, bytes)?;
    memory.fill(1);
    expect_pages(&memory, pages)?;
    Ok(memory)
}

/// A file that is gone with its process.
fn in_ramfs() -> Result<File> {
    fs::create_dir_all(RAMFS)?;
    // Only this process has it.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have mounts of its own")?;
    let flags = MsFlags::empty();
    mount(Some("ramfs"), RAMFS, Some("ramfs"), flags, None::<&str>)
        .context("cannot mount a ramfs")?;
    let path = format!("{RAMFS}/file");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Maps anonymous memory and faults it all in. It begins at a multiple of 2 MiB, so that
/// whoever works by tables of page table entries has the same number of them.
pub fn anonymous(bytes: usize, pages: PageSize) -> Result<Mapping> {
    let with_guard = Mapping::huge_aligned(bytes + PAGE_BYTES).context("cannot map the memory")?;
    with_guard.protect_pages(bytes / PAGE_BYTES, 1, ProtFlags::PROT_NONE)?;
    let (memory, guard) = with_guard.split_at(bytes);
    // It stays as long as the process: next to other memory, the kernel would count the two as one.
    std::mem::forget(guard);
    memory.advise(match pages {
        PageSize::Small => MmapAdvise::MADV_NOHUGEPAGE,
        PageSize::Huge => MmapAdvise::MADV_HUGEPAGE,
    })?;
    memory.fill(1);
    expect_pages(&memory, pages)?;
    Ok(memory)
}

/// Fails unless all of the memory is in ordinary pages of this size.
pub fn expect_pages(memory: &Mapping, pages: PageSize) -> Result<()> {
    let mut huge = 0;
    for kind in ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"] {
        huge += process::smaps_bytes(0, memory.range(), kind)?;
    }
    let wanted = match pages {
        PageSize::Small => 0,
        PageSize::Huge => memory.bytes() as u64,
    };
    ensure!(
        huge == wanted,
        "{huge} bytes of {} are in 2 MiB folios of the system, not {wanted}; is there enough \
         memory in one piece?",
        memory.bytes()
    );
    Ok(())
}

/// Cuts a mapping into a part for each thread.
pub fn parts(memory: &Mapping, threads: usize) -> Vec<AddressRange> {
    let pages = memory.pages() / threads;
    (0..threads)
        .map(|number| memory.page_range(number * pages, pages))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_pages_of_the_size_that_was_asked_for() {
        let memory = anonymous(HUGE_PAGE_BYTES, PageSize::Small).unwrap();
        assert!(expect_pages(&memory, PageSize::Huge).is_err());
        assert_eq!(memory.address() % HUGE_PAGE_BYTES as u64, 0);
    }

    #[test]
    fn parts_are_all_of_the_memory() {
        let memory = Mapping::anonymous(8 * PAGE_BYTES).unwrap();
        let parts = parts(&memory, 2);
        assert_eq!(parts[0].start(), memory.address());
        assert_eq!(parts[0].end(), parts[1].start());
        assert_eq!(parts[1].end(), memory.range().end());
    }
}
