// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Has memory in a device for tests of what becomes of it: moves single pages and a folio of
//! 2 MiB into the device, and says "ready". After a line of input it has a child load a word, and
//! says how the child ended. At the end of its input it reads every page itself, and says how
//! many have the bytes that they had, and how many cannot be read.

use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;

use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES, pattern};
use nix::sys::mman::MmapAdvise;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Single pages, besides those of the folio.
const SINGLE_PAGES: usize = 64;
/// The first word of all this memory.
const SEED: u64 = 1;

/// What became of a mapping's pages.
#[derive(Default)]
struct Found {
    unchanged: usize,
    lost: usize,
}

fn touch() -> io::Result<Found> {
    let single = Mapping::anonymous(SINGLE_PAGES * PAGE_BYTES)?;
    single.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let folio = Mapping::huge_aligned(HUGE_PAGE_BYTES)?;
    folio.advise(MmapAdvise::MADV_HUGEPAGE)?;
    for memory in [&single, &folio] {
        memory.fill_pattern(SEED);
        // The node is closed again, or the module could not be unloaded.
        let device = Device::open(0)?;
        let migration = device.migrate(0, memory.range(), Direction::ToDevice)?;
        if migration.moved != memory.pages() as u64 {
            return Err(io::Error::other(format!("not all moved: {migration:?}")));
        }
    }
    println!("ready");
    io::stdout().flush()?;
    let mut input = io::stdin().lock();
    input.read_line(&mut String::new())?;
    println!("child {}", child_loads_a_word(&single)?);
    io::stdout().flush()?;
    input.read_to_end(&mut Vec::new())?;
    let mut found = Found::default();
    for memory in [&single, &folio] {
        look(memory, &mut found)?;
    }
    Ok(found)
}

/// How a process ends that loads a word of the memory.
fn child_loads_a_word(memory: &Mapping) -> io::Result<String> {
    // SAFETY: this process has one thread, so no lock of another one can be held in the child.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let is_right = memory.word(0).load(Relaxed) == pattern(SEED, 0);
            // SAFETY: `_exit` takes any status and does not return.
            unsafe { libc::_exit(i32::from(!is_right)) }
        }
        ForkResult::Parent { child } => Ok(match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => "found it unchanged".to_owned(),
            WaitStatus::Exited(..) => "found it changed".to_owned(),
            WaitStatus::Signaled(_, signal, _) => format!("died of {signal}"),
            other => format!("did something else: {other:?}"),
        }),
    }
}

/// Has the kernel read each page, which fails where a load would be fatal.
fn look(memory: &Mapping, found: &mut Found) -> io::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    let mut bytes = [0; PAGE_BYTES];
    for page in 0..memory.pages() {
        let at = memory.address() as usize + page * PAGE_BYTES;
        // SAFETY: the page is mapped; the call only reads it, and fails if it cannot.
        let wrote = unsafe { libc::write(writer.as_raw_fd(), at as *const _, PAGE_BYTES) };
        if wrote < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EFAULT) {
                return Err(error);
            }
            found.lost += 1;
            continue;
        }
        reader.read_exact(&mut bytes)?;
        let first = page * PAGE_BYTES / 8;
        let is_right = bytes
            .chunks_exact(8)
            .zip(first..)
            .all(|(word, index)| word == pattern(SEED, index).to_ne_bytes());
        if !is_right {
            return Err(io::Error::other(format!("page {page} has other bytes")));
        }
        found.unchanged += 1;
    }
    Ok(())
}

fn main() -> ExitCode {
    match touch() {
        Ok(found) => {
            println!("{} unchanged, {} lost", found.unchanged, found.lost);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cdm-touch: {error}");
            ExitCode::from(2)
        }
    }
}
