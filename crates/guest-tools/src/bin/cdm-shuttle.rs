// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm-shuttle [--seed N] [--totals FILE] -- PROGRAM ARGS…` runs a program that knows nothing of
//! devices, and moves the memory of it and of all that it starts to the devices and back until it
//! ends, so that whatever it does to its memory it may do to resident pages.
//!
//! The program's output and exit status pass through. FILE gets lines `total NAME NUMBER`. Exit
//! status 125: the program could not be run, a move ended with an error that is none of those
//! that a process which ends meanwhile leads to, or pages stayed in a device when all that had
//! pages was gone.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Evicted, Migration, Options};
use cdm_guest_tools::invariants::{expect_free_pages, free_pages};
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::process::{self, Vma};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::range::AddressRange;
use clap::Parser;

/// All processes of the program are in a group of this name, however they come to be.
const GROUP: &str = "/sys/fs/cgroup/cdm-shuttle";

/// Most pages of one move: the longer it takes, the longer the program waits for its own memory.
const PAGES_MAX: u64 = 1024;

/// Moves without a pause, after which the program gets one: a machine with few CPUs must come to
/// run it, too.
const MOVES_IN_A_ROW: usize = 8;
const PAUSE: Duration = Duration::from_micros(500);

/// When the program could not be run, or not moved.
const FAILED: u8 = 125;

/// Moves the memory of a program to the devices and back while it runs
#[derive(Debug, Parser)]
struct Args {
    /// Draw what moves where by this seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Write down how much moved
    #[arg(long, value_name = "FILE")]
    totals: Option<PathBuf>,

    /// What to run
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// What moved.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    /// Moves that were asked for.
    moves: u64,
    /// Those that moved something.
    moves_with_pages: u64,
    pages_to_device: u64,
    pages_to_system: u64,
    large_pages: u64,
}

impl Totals {
    fn count(&mut self, direction: Direction, migration: &Migration) {
        self.moves += 1;
        self.moves_with_pages += u64::from(migration.moved > 0);
        self.large_pages += migration.large;
        *match direction {
            Direction::ToDevice => &mut self.pages_to_device,
            Direction::ToSystem => &mut self.pages_to_system,
        } += migration.moved;
    }

    fn text(&self) -> String {
        [
            ("moves", self.moves),
            ("moves_with_pages", self.moves_with_pages),
            ("pages_to_device", self.pages_to_device),
            ("pages_to_system", self.pages_to_system),
            ("large_pages", self.large_pages),
        ]
        .iter()
        .map(|(name, number)| format!("total {name} {number}\n"))
        .collect()
    }
}

/// The group of the program and of what it starts; removed on drop.
struct Group(PathBuf);

impl Group {
    fn new(path: &Path) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    fn members(&self) -> Result<Vec<i32>> {
        let path = self.0.join("cgroup.procs");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What the program left behind has no business to go on.
        let killed = fs::write(self.0.join("cgroup.kill"), "1");
        let removed = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(5));
            fs::remove_dir(&self.0).is_ok()
        });
        if killed.is_err() || !removed {
            eprintln!("cdm-shuttle: {} stays behind", self.0.display());
        }
    }
}

/// Starts the program as a member of the group from its first instruction on.
fn start(group: &Group, program: &[String]) -> Result<Child> {
    let (name, arguments) = program.split_first().context("no program")?;
    let members = group.0.join("cgroup.procs");
    let mut command = Command::new(name);
    command.args(arguments);
    // SAFETY: between fork and exec one file is written; the process has one thread, so no lock of
    // the allocator can be held by another one.
    unsafe { command.pre_exec(move || fs::write(&members, "0")) };
    command
        .spawn()
        .with_context(|| format!("cannot run {name}"))
}

/// A part of some mapping, in whole pages: large ones would hold the program up.
fn piece(random: &mut Random, whole: AddressRange) -> Option<AddressRange> {
    let pages = whole.pages().min(PAGES_MAX) as usize;
    let slack = (whole.pages() - pages as u64) as usize;
    let first = random.below(slack + 1) as u64;
    let piece = match random.one_in(2) {
        true => 0..pages,
        false => random.piece(pages),
    };
    let page = PAGE_BYTES as u64;
    let start = whole.start() + (first + piece.start as u64) * page;
    AddressRange::new(start, start + piece.len() as u64 * page)
}

/// Whether a mapping can have pages that move: not what the kernel itself shows to a process.
fn can_move(vma: &Vma) -> bool {
    !["[vdso]", "[vvar", "[vsyscall]", "[uprobes]"]
        .iter()
        .any(|name| vma.name.starts_with(name))
}

/// Moves something of one process, if it is still there.
fn step(
    random: &mut Random,
    devices: &[Device],
    members: &[i32],
    totals: &mut Totals,
) -> Result<()> {
    if members.is_empty() {
        return Ok(());
    }
    let pid = members[random.below(members.len())];
    // A process may end at any time, and then has no mappings.
    let vmas: Vec<Vma> = process::maps(pid).unwrap_or_default();
    let vmas: Vec<&Vma> = vmas.iter().filter(|vma| can_move(vma)).collect();
    if vmas.is_empty() {
        return Ok(());
    }
    let vma = vmas[random.below(vmas.len())];
    let Some(range) = piece(random, vma.range) else {
        return Ok(());
    };
    // More often in than out: where everything is at home there is nothing to test.
    let direction = match random.one_in(3) {
        true => Direction::ToSystem,
        false => Direction::ToDevice,
    };
    let options = Options {
        small: direction == Direction::ToDevice && random.one_in(4),
        ..Options::default()
    };
    let device = &devices[random.below(devices.len())];
    match device.migrate_with(pid, range, direction, options) {
        Ok(migration) => totals.count(direction, &migration),
        Err(error) if is_expected(&error) => {}
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot move {range} of {pid} {direction:?}"));
        }
    }
    Ok(())
}

/// The process is at its end.
fn is_expected(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINTR))
}

fn shuttle(args: &Args) -> Result<ExitStatus> {
    let devices = Device::numbers()?
        .into_iter()
        .map(|number| Device::open(number).with_context(|| format!("device {number}")))
        .collect::<Result<Vec<_>>>()?;
    ensure!(!devices.is_empty(), "there is no device");
    let free: Vec<u64> = devices.iter().map(free_pages).collect::<Result<_>>()?;
    let group = Group::new(Path::new(GROUP))?;
    let mut random = Random::new(args.seed);
    let mut totals = Totals::default();
    let mut child = start(&group, &args.program)?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let members = group.members()?;
        for _ in 0..MOVES_IN_A_ROW {
            step(&mut random, &devices, &members, &mut totals)?;
        }
        thread::sleep(PAUSE);
    };
    if let Some(path) = &args.totals {
        fs::write(path, totals.text())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    drop(group);
    for (device, free) in devices.iter().zip(free) {
        // Files may outlive the program, and their pages with them.
        device.evict(Evicted::All, 0)?;
        expect_free_pages(device, free)?;
    }
    Ok(status)
}

fn main() -> ExitCode {
    match shuttle(&Args::parse()) {
        Ok(status) => {
            // As a shell tells it.
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            ExitCode::from(
                code.and_then(|code| u8::try_from(code).ok())
                    .unwrap_or(FAILED),
            )
        }
        Err(error) => {
            eprintln!("cdm-shuttle: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_lies_inside_and_is_not_too_long() {
        let mut random = Random::new(3);
        for pages in [1, 7, PAGES_MAX, 1 << 30] {
            let page = PAGE_BYTES as u64;
            let whole = AddressRange::new(page, page + pages * page).expect("a range");
            for _ in 0..200 {
                let piece = piece(&mut random, whole).expect("a piece");
                assert!(piece.start() >= whole.start() && piece.end() <= whole.end());
                assert!(piece.pages() <= PAGES_MAX && piece.bytes().is_multiple_of(page));
            }
        }
    }

    #[test]
    fn what_the_kernel_shows_to_a_process_is_left_alone() {
        let vma = |name: &str| Vma {
            range: AddressRange::new(0x1000, 0x2000).expect("a range"),
            permissions: "r-xp".into(),
            name: name.into(),
        };
        for name in ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"] {
            assert!(!can_move(&vma(name)), "{name}");
        }
        assert!(can_move(&vma("")) && can_move(&vma("[stack]")) && can_move(&vma("/a")));
    }

    #[test]
    fn totals_count_by_direction() {
        let mut totals = Totals::default();
        let moved = |moved, large| Migration {
            moved,
            large,
            ..Migration::default()
        };
        totals.count(Direction::ToDevice, &moved(512, 512));
        totals.count(Direction::ToDevice, &moved(0, 0));
        totals.count(Direction::ToSystem, &moved(3, 0));
        let text = "total moves 3\ntotal moves_with_pages 2\ntotal pages_to_device 512\n\
                    total pages_to_system 3\ntotal large_pages 512\n";
        assert_eq!(totals.text(), text);
    }
}
