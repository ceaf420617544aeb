// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Looks at pages of this process, also at those that have failed, which a load would not outlive.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES, WORD_BYTES};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

const WORDS: usize = PAGE_BYTES / WORD_BYTES;

/// The words of a page, each loaded.
pub fn load_page(memory: &Mapping, page: usize) -> Vec<u64> {
    let words = &memory.words()[page * WORDS..(page + 1) * WORDS];
    words.iter().map(|word| word.load(Relaxed)).collect()
}

fn at(memory: &Mapping, page: usize) -> RemoteIoVec {
    RemoteIoVec {
        base: memory.page_range(page, 1).start() as usize,
        len: PAGE_BYTES,
    }
}

/// Whether a whole page was transferred; not if there is none that could be.
fn is_whole(done: nix::Result<usize>) -> Result<bool> {
    match done {
        Ok(PAGE_BYTES) => Ok(true),
        Err(Errno::EFAULT) => Ok(false),
        Ok(bytes) => Err(io::Error::other(format!("{bytes} bytes of a page")).into()),
        Err(error) => Err(error).context("the kernel does not show this process its memory"),
    }
}

/// The words of a page as the kernel reads them; nothing if it has failed.
pub fn read_page(memory: &Mapping, page: usize) -> Result<Option<Vec<u64>>> {
    let mut bytes = vec![0; PAGE_BYTES];
    let read = process_vm_readv(
        Pid::this(),
        &mut [IoSliceMut::new(&mut bytes)],
        &[at(memory, page)],
    );
    if !is_whole(read)? {
        return Ok(None);
    }
    let words = bytes.as_chunks::<WORD_BYTES>().0.iter();
    Ok(Some(words.map(|word| u64::from_le_bytes(*word)).collect()))
}

/// Has the kernel store to a page; false if it has failed.
pub fn write_page(memory: &Mapping, page: usize, bytes: &[u8]) -> Result<bool> {
    ensure!(bytes.len() == PAGE_BYTES, "{} bytes", bytes.len());
    is_whole(process_vm_writev(
        Pid::this(),
        &[IoSlice::new(bytes)],
        &[at(memory, page)],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::ProtFlags;

    #[test]
    fn what_the_kernel_reads_is_what_a_load_finds() {
        let memory = Mapping::anonymous(2 * PAGE_BYTES).unwrap();
        memory.fill_pattern(3);
        let read = read_page(&memory, 1).unwrap();
        assert_eq!(read, Some(load_page(&memory, 1)));
        assert!(write_page(&memory, 0, &memory.read_bytes(PAGE_BYTES)).unwrap());
        memory.check_pattern(3).unwrap();
    }

    #[test]
    fn page_that_cannot_be_read_is_lost() {
        let memory = Mapping::anonymous(2 * PAGE_BYTES).unwrap();
        memory.protect_pages(1, 1, ProtFlags::PROT_NONE).unwrap();
        assert_eq!(read_page(&memory, 1).unwrap(), None);
        assert!(!write_page(&memory, 1, &[0; PAGE_BYTES]).unwrap());
        assert!(read_page(&memory, 0).unwrap().is_some());
    }
}
