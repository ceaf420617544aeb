// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Uses memory of a device that is about to fail, for tests that let it.
//!
//! `cdm-failing small` and `cdm-failing huge` move some pages, or one of 2 MiB, into the device, say
//! "page N", the number of one of them in the device's memory, and wait for the end of the
//! input, until when that page shall have failed. Then they say, a line each, what a load
//! from it does ("load: ..."), a command ("command: ..."), and what the others hold.
//!
//! `cdm-failing bound` does the same as `small`, and has the device use the pages by their addresses
//! before and after ("addresses: ..."). `cdm-failing loads` leaves the device alone afterwards, which
//! may be gone by then.
//!
//! `cdm-failing churn` moves pages into the device and out of it all the time, and has the device read
//! them by their addresses, until the end of the input. It says in which pages of the device it began
//! ("page N N N..."), and in the end how many are lost ("lost N"); the others must hold what they held.
//!
//! `cdm-failing fill N` puts as much memory into the device as has room there, and says whether
//! it came to the page N.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::bus_error::{self, FAULTED, OTHERWISE_FAULTED};
use cdm_guest_tools::device::{Bound, Comparison, Device, Direction, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::{iomem, pagemap};
use nix::sys::mman::MmapAdvise;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

const PAGES: usize = 16;
/// Pages that are moved about.
const CHURNED_PAGES: usize = 64;
/// The page that fails, of those.
const BAD: usize = 5;
const SEED: u64 = 1;
/// Memory that goes into the device at a time.
const PIECE_BYTES: usize = 4 << 20;
/// How often busy pages are tried again, and after what time.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// What loads lead to.
const TOLD: &str = "BUS_MCEERR_AR at its address";
const UNCHANGED: &str = "what was there";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["small"] => small(PAGES).and_then(|memory| fail(&memory)),
        ["huge"] => huge().and_then(|memory| fail(&memory)),
        ["bound"] => small(PAGES).and_then(|memory| fail_bound(&memory)),
        ["loads"] => small(PAGES).and_then(|memory| fail_beside(&memory)),
        ["churn"] => small(CHURNED_PAGES).and_then(|memory| churn(&memory)),
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
    bail!("say small, huge, bound, loads, churn, or fill and the number of a page")
}

fn small(pages: usize) -> Result<Mapping> {
    let memory = Mapping::anonymous(pages * PAGE_BYTES)?;
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

/// Waits for the end of the input: what was to fail has failed.
fn wait() -> Result<()> {
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn fail(memory: &Mapping) -> Result<()> {
    let device = Device::open(0)?;
    move_in(&device, memory)?;
    wait()?;
    report(&device, memory)
}

/// Moves memory into the device, and says which page of it is to fail.
fn move_in(device: &Device, memory: &Mapping) -> Result<()> {
    move_all(device, memory.range(), Direction::ToDevice)?;
    let pages = device_pages(device, memory.range())?;
    if memory.bytes() == HUGE_PAGE_BYTES {
        let large = device.residency(0, memory.range())?.large;
        ensure!(large == memory.range().pages(), "{large} pages are large");
    }
    println!("page {}", pages[BAD]);
    Ok(())
}

/// Says what became of the page, and uses the others.
fn report(device: &Device, memory: &Mapping) -> Result<()> {
    println!("load: {}", load(memory, BAD)?);
    let span = Span {
        offset: BAD * PAGE_BYTES,
        bytes: PAGE_BYTES,
    };
    match device.checksum(memory, span, 0) {
        Ok(_) => println!("command: done"),
        Err(error) => println!("command: {error}"),
    }
    neighbours_are_unchanged(memory)?;
    // They go on as before, on their way out too.
    let rest = memory.page_range(BAD + 1, memory.pages() - BAD - 1);
    move_all(device, rest, Direction::ToSystem)?;
    memory.check_pattern_pages(SEED, BAD + 1..memory.pages())?;
    println!("neighbours: moved");
    Ok(())
}

fn neighbours_are_unchanged(memory: &Mapping) -> Result<()> {
    memory.check_pattern_pages(SEED, 0..BAD)?;
    memory.check_pattern_pages(SEED, BAD + 1..memory.pages())?;
    println!("neighbours: unchanged");
    Ok(())
}

/// The device may be another one when the page has failed.
fn fail_beside(memory: &Mapping) -> Result<()> {
    let device = Device::open(0)?;
    move_in(&device, memory)?;
    drop(device);
    wait()?;
    println!("load: {}", load(memory, BAD)?);
    neighbours_are_unchanged(memory)
}

/// The device knows where the pages are, from reading and writing them.
fn fail_bound(memory: &Mapping) -> Result<()> {
    let bound = Bound::open(0)?;
    let equal = small(memory.pages())?;
    move_in(&bound, memory)?;
    let all = Span::all(memory);
    bound.copy((&equal, all), (memory, all))?.ok()?;
    wait()?;
    let bad = Span {
        offset: BAD * PAGE_BYTES,
        bytes: PAGE_BYTES,
    };
    match bound.checksum(memory, bad, 0) {
        Ok(_) => println!("addresses: done"),
        Err(error) => println!("addresses: {error}"),
    }
    let before = Span {
        offset: 0,
        bytes: bad.offset,
    };
    let behind = Span {
        offset: bad.offset + bad.bytes,
        bytes: memory.bytes() - bad.offset - bad.bytes,
    };
    for span in [before, behind] {
        let compared = bound.compare((memory, span), (&equal, span))?;
        ensure!(compared == Comparison::Equal, "{span:?}: {compared:?}");
        bound.copy((&equal, span), (memory, span))?.ok()?;
    }
    println!("addresses beside it: done");
    report(&Device::open(0)?, memory)
}

/// Pages fail while they move, and while the device reads them.
fn churn(memory: &Mapping) -> Result<()> {
    let bound = Bound::open(0)?;
    move_all(&bound, memory.range(), Direction::ToDevice)?;
    let pages = device_pages(&bound, memory.range())?;
    let pages: Vec<_> = pages.iter().map(u64::to_string).collect();
    println!("page {}", pages.join(" "));
    io::stdout().flush()?;
    let is_over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        scope.spawn(|| {
            let ended = wait();
            is_over.store(true, Release);
            ended
        });
        let mut rounds = 0;
        while !is_over.load(Acquire) {
            let read = bound.checksum(memory, Span::all(memory), 0);
            if let Err(error) = read {
                let said = error.to_string();
                let is_told = said.contains("POISONED") || said.contains("PAGE_ERROR");
                ensure!(is_told, "the device reads {memory:?}: {said}");
            }
            bound.migrate(0, memory.range(), Direction::ToSystem)?;
            bound.migrate(0, memory.range(), Direction::ToDevice)?;
            rounds += 1;
        }
        Ok(rounds)
    })?;
    ensure!(rounds > 1, "nothing moved");
    let mut lost = 0;
    for page in 0..memory.pages() {
        match load(memory, page)?.as_str() {
            TOLD => lost += 1,
            UNCHANGED => {}
            other => bail!("page {page}: {other}"),
        }
    }
    println!("{rounds} rounds, lost {lost}");
    Ok(())
}

/// Loads from a page in a process of its own.
fn load(memory: &Mapping, page: usize) -> Result<String> {
    // SAFETY: this process has one thread, so no lock of another one can be held in the child.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let address = memory.page_range(page, 1).start();
            let is_told = bus_error::expect(address).is_ok();
            memory.word(page * PAGE_BYTES).load(Relaxed);
            let is_unchanged = memory.check_pattern_pages(SEED, page..page + 1).is_ok();
            let status = i32::from(!(is_told && is_unchanged));
            // SAFETY: `_exit` takes any status and does not return.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => Ok(match waitpid(child, None)? {
            WaitStatus::Exited(_, FAULTED) => TOLD.to_owned(),
            WaitStatus::Exited(_, OTHERWISE_FAULTED) => "SIGBUS of another kind".to_owned(),
            WaitStatus::Exited(_, 0) => UNCHANGED.to_owned(),
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
