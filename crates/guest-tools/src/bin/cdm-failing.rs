// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Uses memory of a device that is about to fail, for tests that let it.
//!
//! `cdm-failing small` and `cdm-failing huge` move some pages, or one of 2 MiB, into the device, say
//! "page N", the number of one of them in the device's memory, and wait for the end of the
//! input, until when that page shall have failed. Then they say, a line each, what a load
//! from it does ("load: ..."), a command ("command: ..."), and what the others hold.
//!
//! `cdm-failing fill N` puts as much memory into the device as has room there, and says whether
//! it came to the page N.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::bus_error::{self, FAULTED, OTHERWISE_FAULTED};
use cdm_guest_tools::device::{Device, Direction, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::{iomem, pagemap};
use nix::sys::mman::MmapAdvise;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

const PAGES: usize = 16;
/// The page that fails, of those.
const BAD: usize = 5;
const SEED: u64 = 1;
/// Memory that goes into the device at a time.
const PIECE_BYTES: usize = 4 << 20;
/// How often busy pages are tried again, and after what time.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["small"] => small().and_then(|memory| fail(&memory)),
        ["huge"] => huge().and_then(|memory| fail(&memory)),
        ["fill", page] => page
            .parse()
            .context("the number of a page")
            .and_then(fill_without),
        _ => bail_usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cdm-failing: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn bail_usage() -> Result<()> {
    bail!("say small, huge, or fill and the number of a page")
}

fn small() -> Result<Mapping> {
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(SEED);
    Ok(memory)
}

fn huge() -> Result<Mapping> {
    let memory = Mapping::huge_aligned(HUGE_PAGE_BYTES)?;
    // Free memory may be in small pieces.
    fs::write("/proc/sys/vm/compact_memory", "1")?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    memory.fill_pattern(SEED);
    let bytes = pagemap::huge_mapped_bytes(memory.range())?;
    ensure!(bytes == memory.bytes() as u64, "no huge page to begin with");
    Ok(memory)
}

/// Numbers of the pages of a range in the memory of the device.
fn device_pages(device: &Device, range: AddressRange) -> Result<Vec<u64>> {
    let resources = iomem::resources()?;
    // Pages of private memory stand for addresses of their own, those of others for the BAR's.
    let private = resources
        .iter()
        .find(|resource| resource.name == "Device Private Memory");
    let base = match private {
        Some(private) => private.start,
        None => device.query()?.base,
    };
    let entries = pagemap::own(range)?;
    let page = |entry: &pagemap::Entry| {
        let address = entry.physical_address().or(entry.private_address())?;
        Some(address.checked_sub(base)? / PAGE_BYTES as u64)
    };
    let pages = entries.iter().map(page).collect::<Option<Vec<_>>>();
    pages.context("a page is not in the device")
}

/// Moves all of a range, and tries again while pages are busy.
fn move_all(device: &Device, range: AddressRange, direction: Direction) -> Result<()> {
    for _ in 0..TRIES {
        let migration = device.migrate(0, range, direction)?;
        if migration.moved + migration.there == range.pages() {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    bail!("not all of {range} moves {direction:?}")
}

fn fail(memory: &Mapping) -> Result<()> {
    let device = Device::open(0)?;
    move_all(&device, memory.range(), Direction::ToDevice)?;
    let pages = device_pages(&device, memory.range())?;
    if memory.bytes() == HUGE_PAGE_BYTES {
        let large = device.residency(0, memory.range())?.large;
        ensure!(large == memory.range().pages(), "{large} pages are large");
    }
    println!("page {}", pages[BAD]);
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;

    println!("load: {}", load(memory)?);
    let span = Span {
        offset: BAD * PAGE_BYTES,
        bytes: PAGE_BYTES,
    };
    match device.checksum(memory, span, 0) {
        Ok(_) => println!("command: done"),
        Err(error) => println!("command: {error}"),
    }
    memory.check_pattern_pages(SEED, 0..BAD)?;
    memory.check_pattern_pages(SEED, BAD + 1..memory.pages())?;
    println!("neighbours: unchanged");
    // They go on as before, on their way out too.
    let rest = memory.page_range(BAD + 1, memory.pages() - BAD - 1);
    move_all(&device, rest, Direction::ToSystem)?;
    memory.check_pattern_pages(SEED, BAD + 1..memory.pages())?;
    println!("neighbours: moved");
    Ok(())
}

/// Loads from the page in a process of its own.
fn load(memory: &Mapping) -> Result<String> {
    // SAFETY: this process has one thread, so no lock of another one can be held in the child.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let address = memory.page_range(BAD, 1).start();
            let is_told = bus_error::expect(address).is_ok();
            memory.word(BAD * PAGE_BYTES).load(Relaxed);
            let is_unchanged = memory.check_pattern_pages(SEED, BAD..BAD + 1).is_ok();
            let status = i32::from(!(is_told && is_unchanged));
            // SAFETY: `_exit` takes any status and does not return.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => Ok(match waitpid(child, None)? {
            WaitStatus::Exited(_, FAULTED) => "BUS_MCEERR_AR at its address".to_owned(),
            WaitStatus::Exited(_, OTHERWISE_FAULTED) => "SIGBUS of another kind".to_owned(),
            WaitStatus::Exited(_, 0) => "what was there".to_owned(),
            other => format!("{other:?}"),
        }),
    }
}

fn fill_without(bad: u64) -> Result<()> {
    let device = Device::open(0)?;
    let free = usize::try_from(device.query()?.bytes_free)?;
    let memory = Mapping::anonymous(free)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let mut first = 0;
    // Piece by piece, so that it need not have room in the system as well.
    while first < memory.pages() {
        let pages = (PIECE_BYTES / PAGE_BYTES).min(memory.pages() - first);
        memory.fill_pattern_pages(SEED, first..first + pages);
        move_all(
            &device,
            memory.page_range(first, pages),
            Direction::ToDevice,
        )?;
        first += pages;
    }
    ensure!(device.query()?.bytes_free == 0, "there is room left");
    let pages = device_pages(&device, memory.range())?;
    ensure!(!pages.contains(&bad), "page {bad} is used again");
    memory.check_pattern(SEED)?;
    println!("filled without it");
    Ok(())
}
