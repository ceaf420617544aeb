// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Keeps a device busy for tests of its end: has memory in it, has it copy and add up without a
//! pause, and moves other memory to and fro. Says "busy" when it has begun. When the device is
//! taken away it says how the last command and the last move ended, and whether each of its
//! pages has the bytes that it should have.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

/// Pages of each piece of memory that is not a folio of 2 MiB.
const PAGES: usize = 256;

/// Between two looks whether work has begun.
const LOOK: Duration = Duration::from_millis(10);

fn filled(seed: u64) -> io::Result<Mapping> {
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(seed);
    Ok(memory)
}

fn to_device(device: &Device, memory: &Mapping) -> Result<()> {
    let migration = device.migrate(0, memory.range(), Direction::ToDevice)?;
    let moved = migration.moved + migration.there;
    ensure!(
        moved == memory.pages() as u64,
        "not all moved: {migration:?}"
    );
    Ok(())
}

/// Has the device copy, and add up what it copied, until it does not; the error then.
fn compute(
    device: &Device,
    from: &Mapping,
    to: &Mapping,
    expected: u32,
    rounds: &AtomicU64,
) -> Result<io::Error> {
    loop {
        let copied = device.copy((from, Span::all(from)), (to, Span::all(to)));
        let sum = match copied.and_then(|answer| {
            answer.ok()?;
            device.checksum(to, Span::all(to), 0)
        }) {
            Ok(sum) => sum,
            Err(error) => return Ok(error),
        };
        let round = rounds.fetch_add(1, Relaxed);
        ensure!(
            sum == expected,
            "round {round}: the device sums up {sum:#x}"
        );
    }
}

/// Moves memory to the device and back, until the device takes none; the error then.
fn shuttle(device: &Device, memory: &Mapping, rounds: &AtomicU64) -> io::Error {
    loop {
        for direction in [Direction::ToDevice, Direction::ToSystem] {
            if let Err(error) = device.migrate(0, memory.range(), direction) {
                return error;
            }
        }
        rounds.fetch_add(1, Relaxed);
    }
}

fn name(rounds: &AtomicU64, error: &io::Error) -> String {
    let rounds = rounds.load(Relaxed);
    let errno = error.raw_os_error().map(Errno::from_raw);
    let name = errno.map_or_else(|| error.to_string(), |errno| format!("{errno:?}"));
    format!("{rounds} rounds, then {name}")
}

fn busy() -> Result<()> {
    let device = Device::open(0)?;
    let still = filled(1)?;
    let folio = Mapping::huge_aligned(HUGE_PAGE_BYTES)?;
    folio.advise(MmapAdvise::MADV_HUGEPAGE)?;
    folio.fill_pattern(2);
    let (from, to, moving) = (filled(3)?, filled(4)?, filled(5)?);
    // The CPU's own look at private memory would bring it back.
    let expected = from.crc32c(from.bytes());
    for memory in [&still, &folio, &from, &to] {
        to_device(&device, memory)?;
    }
    // What is copied over and over again is the same before and after each time.
    device
        .copy((&from, Span::all(&from)), (&to, Span::all(&to)))?
        .ok()?;

    let (computed, moved) = (AtomicU64::new(0), AtomicU64::new(0));
    let (last_command, last_move) = thread::scope(|scope| -> Result<_> {
        let commands = scope.spawn(|| compute(&device, &from, &to, expected, &computed));
        let moves = scope.spawn(|| shuttle(&device, &moving, &moved));
        let has_begun = || computed.load(Relaxed) != 0 && moved.load(Relaxed) != 0;
        while !has_begun() && !commands.is_finished() && !moves.is_finished() {
            thread::sleep(LOOK);
        }
        println!("busy");
        io::stdout().flush()?;
        let last_command = commands.join().expect("the thread does not panic")?;
        let last_move = moves.join().expect("the thread does not panic");
        Ok((last_command, last_move))
    })?;
    println!("commands: {}", name(&computed, &last_command));
    println!("moves: {}", name(&moved, &last_move));
    for (memory, seed, what) in [
        (&still, 1, "memory that nobody touched"),
        (&folio, 2, "a folio that nobody touched"),
        (&from, 3, "memory that was read"),
        (&to, 3, "memory that was written to"),
        (&moving, 5, "memory that was moved"),
    ] {
        memory
            .check_pattern(seed)
            .map_err(anyhow::Error::from)
            .context(what)?;
    }
    println!("unchanged");
    Ok(())
}

fn main() -> ExitCode {
    match busy() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cdm-busy: {error:#}");
            ExitCode::from(2)
        }
    }
}
