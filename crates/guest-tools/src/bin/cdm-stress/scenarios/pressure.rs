// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel wants memory, or wants it elsewhere, while pages are in devices and on their way.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::cgroup::Cgroup;
use cdm_guest_tools::console::Quiet;
use cdm_guest_tools::device::{Bound, Device, Direction, Options, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES, WORD_BYTES};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::swap::Swap;
use cdm_guest_tools::uapi::{CDM_CAN_BIND, CDM_CAN_RELIEVE};
use cdm_guest_tools::vmstat;
use nix::sys::mman::MmapAdvise;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::contents::{Contents, Region};
use crate::counts::Count;
use crate::director::{DIRECTOR, await_more, direct};
use crate::patience::HANGS;
use crate::scenario::{Least, Needs, Scenario};
use crate::setting::Setting;
use crate::stage::{Stage, any_options};
use crate::survivor::Allowed;

/// Scenarios of this family.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "pressure::groups_at_their_limit",
        property: "Processes whose memory is twice what their group may have live on and find it as \
                   it was, because their pages leave the device and are swapped out.",
        needs: Needs {
            capabilities: CDM_CAN_RELIEVE,
            files: &["/proc/swaps", "/sys/fs/cgroup/cgroup.subtree_control"],
            ..Needs::DEVICE
        },
        alone: true,
        operations: 150,
        least: &[
            Least::PerThousand(Count::PagesToDevice, 2000),
            Least::PerThousand(Count::PagesRelieved, 1000),
            Least::PerThousand(Count::PagesSwapped, 1000),
            Least::PerThousand(Count::Reclaim, 20),
            Least::PerThousand(Count::Verified, 10_000),
        ],
        body: groups_at_their_limit,
    },
    Scenario {
        name: "pressure::oom_kill_with_resident_pages",
        property: "A process that the kernel kills for want of memory leaves nothing in devices, in \
                   its group or with anybody else.",
        needs: Needs {
            files: &["/sys/fs/cgroup/cgroup.subtree_control"],
            ..Needs::DEVICE
        },
        alone: true,
        operations: 8,
        least: &[
            Least::PerThousand(Count::OomKill, 1000),
            Least::PerThousand(Count::CommandsDone, 5000),
            Least::PerThousand(Count::Verified, 20_000),
            Least::InAll(Count::PagesToDevice, 500),
        ],
        body: oom_kill_with_resident_pages,
    },
    Scenario {
        name: "pressure::merged_pages",
        property: "Processes whose pages KSM merges find what they stored, wherever pages move, and \
                   whoever writes to a merged page writes to his own.",
        needs: Needs {
            files: &[KSM_RUN],
            ..Needs::DEVICE
        },
        alone: true,
        operations: 60,
        least: &[
            Least::PerThousand(Count::PagesMerged, 5000),
            Least::PerThousand(Count::PagesToDevice, 5000),
            Least::PerThousand(Count::Verified, 50_000),
        ],
        body: merged_pages,
    },
    Scenario {
        name: "pressure::compaction",
        property: "Compaction and the shrinkers change no byte and leave no page behind while pages \
                   move to devices and back.",
        needs: Needs {
            files: &[COMPACT],
            ..Needs::DEVICE
        },
        alone: false,
        operations: 20,
        least: &[
            Least::PerThousand(Count::Shrink, 1000),
            Least::PerThousand(Count::CommandsDone, 10_000),
            Least::PerThousand(Count::Verified, 50_000),
            Least::InAll(Count::PagesToDevice, 500),
        ],
        body: compaction,
    },
    Scenario {
        name: "pressure::numa_balancing",
        property: "Pages whose entries NUMA balancing takes away move to devices all the same, and \
                   every byte is as it was.",
        needs: Needs {
            files: &[BALANCING, SECOND_NODE],
            ..Needs::DEVICE
        },
        alone: false,
        operations: 10,
        least: &[
            Least::PerThousand(Count::HintFaults, 10_000),
            Least::PerThousand(Count::PagesToDevice, 1000),
            Least::PerThousand(Count::Verified, 10_000),
        ],
        body: numa_balancing,
    },
    Scenario {
        name: "pressure::pages_sent_to_nodes",
        property: "Move_pages and mbind move what is in the system and leave alone what is in a \
                   device, and every byte is as it was.",
        needs: Needs {
            files: &[SECOND_NODE],
            ..Needs::DEVICE
        },
        alone: false,
        operations: 200,
        least: &[
            Least::PerThousand(Count::PagesBetweenNodes, 5000),
            Least::PerThousand(Count::PagesToDevice, 2000),
            Least::PerThousand(Count::Verified, 10_000),
        ],
        body: pages_sent_to_nodes,
    },
    Scenario {
        name: "pressure::memory_removed_beside_the_device",
        property: "System memory that goes offline takes no byte of anybody along while pages move \
                   to devices and back.",
        needs: Needs {
            files: &["/sys/devices/system/memory/block_size_bytes"],
            ..Needs::DEVICE
        },
        alone: true,
        operations: 6,
        least: &[
            Least::PerThousand(Count::BlockOffline, 1000),
            Least::PerThousand(Count::CommandsDone, 10_000),
            Least::PerThousand(Count::Verified, 50_000),
            Least::InAll(Count::PagesToDevice, 200),
        ],
        body: memory_removed_beside_the_device,
    },
];

const MIB: usize = 1 << 20;
const WORDS: usize = PAGE_BYTES / WORD_BYTES;
/// Processes that work while the kernel does something.
const WORKERS: usize = 2;
/// Commands that they carry out between two events.
const COMMANDS: u64 = 15;

// --- groups ---

/// What a group may have, and what each process has: half of it fits.
const LIMIT: usize = 16 * MIB;
const WANTED: usize = 2 * LIMIT;
/// What a group is asked to give back at a time.
const ASKED: usize = MIB;

fn groups_at_their_limit(stage: &Stage) -> Result<()> {
    let _swap = Swap::start()?;
    let groups = (0..WORKERS)
        .map(|_| Cgroup::new())
        .collect::<Result<Vec<_>>>()?;
    let relieved = relieved_pages(stage)?;
    let result = stage.processes(WORKERS, |index| {
        let group = &groups[index];
        group.enter()?;
        group.write("memory.max", &LIMIT.to_string())?;
        let done = in_too_small_a_group(stage, index, group);
        stage.add(Count::PagesSwapped, group.figure("memory.stat", "pswpout")?);
        done
    });
    stage.add(Count::PagesRelieved, relieved_pages(stage)? - relieved);
    result?;
    groups.into_iter().try_for_each(Cgroup::remove)
}

/// Pages that left devices without anybody asking for them by address.
fn relieved_pages(stage: &Stage) -> Result<u64> {
    let devices = stage.devices()?;
    devices
        .iter()
        .try_fold(0, |sum, device| Ok(sum + device.query()?.pages_evicted))
}

fn in_too_small_a_group(stage: &Stage, index: usize, group: &Cgroup) -> Result<()> {
    let devices = stage.devices()?;
    let mut random = stage.random(index);
    let mut region = Region::small(WANTED / PAGE_BYTES)?;
    // A piece at a time, as the group has no room for all of it.
    const PIECE: usize = 256;
    let pieces = region.own.len() / PIECE;
    for piece in 0..pieces {
        region.rewrite(piece * PIECE..(piece + 1) * PIECE, random.number());
    }
    while stage.round() {
        let start = random.below(pieces) * PIECE;
        let pages = start..start + PIECE;
        let device = &devices[random.below(devices.len())];
        match random.below(6) {
            0..=2 => {
                let options = any_options(&mut random, Direction::ToDevice);
                let options = Options {
                    populate: true,
                    ..options
                };
                let range = region.memory.page_range(pages.start, pages.len());
                stage.migrate(device, 0, range, Direction::ToDevice, options)?;
            }
            3 => {
                let range = region.memory.page_range(pages.start, pages.len());
                let direction = Direction::ToSystem;
                let options = any_options(&mut random, direction);
                stage.migrate(device, 0, range, direction, options)?;
            }
            4 => {
                let seed = random.number();
                stage.add(Count::Rewrite, pages.len() as u64);
                region.rewrite(pages.clone(), seed);
            }
            _ => {
                shrink(group)?;
                stage.add(Count::Reclaim, 1);
            }
        }
        verify(stage, &region, pages.start..pages.start + 32)?;
    }
    verify(stage, &region, region.own.clone())
}

/// Asks a group to give memory back; that it has less is no error.
fn shrink(group: &Cgroup) -> Result<()> {
    let Err(error) = group.write("memory.reclaim", &ASKED.to_string()) else {
        return Ok(());
    };
    let cause = error.downcast_ref::<std::io::Error>();
    match cause.and_then(std::io::Error::raw_os_error) {
        Some(libc::EAGAIN) => Ok(()),
        _ => Err(error),
    }
}

fn verify(stage: &Stage, region: &Region, pages: Range<usize>) -> Result<()> {
    stage.add(Count::Verified, pages.len() as u64);
    for page in pages {
        region
            .verify(page)
            .with_context(|| format!("page {page}: wrong contents"))?;
    }
    Ok(())
}

// --- the kernel kills ---

/// What a victim may have, has in a device, and locks at a time until it is killed.
const VICTIM_LIMIT: usize = 24 * MIB;
const VICTIM_AWAY: usize = 8 * MIB;
const VICTIM_STEP: usize = MIB;

fn oom_kill_with_resident_pages(stage: &Stage) -> Result<()> {
    let mut quiet = Quiet::start()?;
    let mut random = stage.random(DIRECTOR);
    let result = direct(stage, WORKERS, COMMANDS, Allowed::NOTHING, || {
        let group = Cgroup::new()?;
        group.write("memory.max", &VICTIM_LIMIT.to_string())?;
        group.write("memory.oom.group", "1")?;
        let seed = random.number();
        let ended = victim(stage, &group, seed)?;
        let kills = group.figure("memory.events", "oom_kill")?;
        ensure!(
            matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)) && kills > 0,
            "the process ended with {ended:?} after {kills} kills"
        );
        quiet.look()?;
        // Nothing is charged to it any more.
        group.remove()?;
        stage.add(Count::OomKill, 1);
        Ok(())
    });
    let said = quiet.look();
    result.and(said.map(drop))
}

/// A process that has pages in devices, which work on them, and takes memory until it is killed.
fn victim(stage: &Stage, group: &Cgroup, seed: u64) -> Result<WaitStatus> {
    // SAFETY: this process has one thread, so no lock of another one can be held in the child.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            if let Err(error) = be_killed(stage, group, seed) {
                eprintln!("victim: {error:#}");
            }
            // SAFETY: `_exit` takes any status and does not return.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => Ok(waitpid(child, None)?),
    }
}

fn be_killed(stage: &Stage, group: &Cgroup, seed: u64) -> Result<()> {
    group.enter()?;
    let number = Device::numbers()?[0];
    let away = Mapping::anonymous(VICTIM_AWAY)?;
    away.fill_pattern(seed);
    let device = Device::open(number)?;
    let (direction, options) = (Direction::ToDevice, Options::default());
    let moved = stage.migrate(&device, 0, away.range(), direction, options)?;
    ensure!(moved.moved > 0, "nothing moved: {moved:?}");
    thread::scope(|scope| {
        // Each ends with the process.
        scope.spawn(|| -> Result<()> {
            loop {
                for direction in [Direction::ToSystem, Direction::ToDevice] {
                    stage.migrate(&device, 0, away.range(), direction, options)?;
                }
            }
        });
        if stage.capabilities() & CDM_CAN_BIND != 0 {
            scope.spawn(|| -> Result<()> {
                let bound = Bound::open(number)?;
                loop {
                    bound.checksum(&away, Span::all(&away), 0)?;
                }
            });
        }
        let mut taken = Vec::new();
        while taken.len() * VICTIM_STEP <= VICTIM_LIMIT {
            let memory = Mapping::anonymous(VICTIM_STEP)?;
            memory.lock()?;
            taken.push(memory);
        }
        bail!("it has more than its group may have");
    })
}

// --- KSM ---

const KSM_RUN: &str = "/sys/kernel/mm/ksm/run";
const KSM_SCAN: &str = "/sys/kernel/mm/ksm/pages_to_scan";
const KSM_SLEEP: &str = "/sys/kernel/mm/ksm/sleep_millisecs";
const KSM_OWN: &str = "/proc/self/ksm_merging_pages";
/// Pages of each process, and how many of them are merged before they are moved.
const KSM_PAGES: usize = 256;
const KSM_LEAST: u64 = 64;

fn merged_pages(stage: &Stage) -> Result<()> {
    let _scan = Setting::set(KSM_SCAN, "2000")?;
    let _sleep = Setting::set(KSM_SLEEP, "5")?;
    let _run = Setting::set_and_leave_with(KSM_RUN, "1", "2")?;
    stage.processes(WORKERS, |index| {
        let devices = stage.devices()?;
        let mut random = stage.random(index);
        let mut region = Region::small(KSM_PAGES)?;
        region.memory.advise(MmapAdvise::MADV_MERGEABLE)?;
        // Few values, so that there is much to merge; never zero, which is merged in another way.
        let value = |number: u64| Contents::Fill(1 + number % 4);
        let store = |region: &mut Region, page: usize, contents: Contents| {
            let words = &region.memory.words()[page * WORDS..(page + 1) * WORDS];
            words
                .iter()
                .for_each(|word| word.store(contents.word(0), Relaxed));
            region.set(page..page + 1, |_| contents);
        };
        for page in 0..KSM_PAGES {
            store(&mut region, page, value(page as u64));
        }
        while stage.round() {
            let merged = await_merged()?;
            stage.add(Count::PagesMerged, merged);
            let device = &devices[random.below(devices.len())];
            let pages = random.piece(KSM_PAGES);
            let range = region.memory.page_range(pages.start, pages.len());
            let direction = Direction::ToDevice;
            let options = any_options(&mut random, direction);
            stage.migrate(device, 0, range, direction, options)?;
            verify(stage, &region, 0..KSM_PAGES)?;
            let own = random.piece(KSM_PAGES);
            for page in own.clone() {
                store(&mut region, page, value(random.number()));
            }
            // These are not merged, or no more.
            let range = region.memory.page_range(own.start, own.len());
            stage.migrate(device, 0, range, direction, Options::default())?;
            verify(stage, &region, 0..KSM_PAGES)?;
            // What is in a device is not merged.
            for device in &devices {
                let direction = Direction::ToSystem;
                let options = any_options(&mut random, direction);
                stage.migrate(device, 0, region.memory.range(), direction, options)?;
            }
            verify(stage, &region, 0..KSM_PAGES)?;
        }
        Ok(())
    })
}

/// Waits until enough pages of this process are merged; how many.
fn await_merged() -> Result<u64> {
    let deadline = Instant::now() + HANGS;
    loop {
        let text =
            fs::read_to_string(KSM_OWN).context("the kernel does not tell what it merged")?;
        let merged = text.trim().parse()?;
        if merged >= KSM_LEAST {
            return Ok(merged);
        }
        ensure!(
            Instant::now() < deadline,
            "{merged} pages are merged after {HANGS:?}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

// --- compaction ---

const COMPACT: &str = "/proc/sys/vm/compact_memory";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

fn compaction(stage: &Stage) -> Result<()> {
    let mut random = stage.random(DIRECTOR);
    direct(stage, WORKERS, COMMANDS, Allowed::NOTHING, || {
        match random.one_in(4) {
            true => fs::write(DROP_CACHES, "2").context("cannot call the shrinkers")?,
            false => fs::write(COMPACT, "1").context("cannot compact memory")?,
        }
        stage.add(Count::Shrink, 1);
        Ok(())
    })
}

// --- nodes ---

const BALANCING: &str = "/proc/sys/kernel/numa_balancing";
const SECOND_NODE: &str = "/sys/devices/system/node/node1";
const SCAN_DELAY: &str = "/sys/kernel/debug/sched/numa_balancing/scan_delay_ms";
const SCAN_PERIOD_LEAST: &str = "/sys/kernel/debug/sched/numa_balancing/scan_period_min_ms";
const SCAN_PERIOD_MOST: &str = "/sys/kernel/debug/sched/numa_balancing/scan_period_max_ms";
/// Hint faults that there must be between two looks.
const HINTS: u64 = 16;

fn numa_balancing(stage: &Stage) -> Result<()> {
    let _delay = Setting::set(SCAN_DELAY, "10")?;
    let _least = Setting::set(SCAN_PERIOD_LEAST, "10")?;
    let _most = Setting::set(SCAN_PERIOD_MOST, "20")?;
    let _balancing = Setting::set(BALANCING, "1")?;
    let hints = || -> Result<u64> {
        let number = vmstat::Snapshot::take()?.get("numa_hint_faults");
        Ok(u64::try_from(number)?)
    };
    stage.processes(WORKERS, |index| {
        let devices = stage.devices()?;
        let mut random = stage.random(index);
        let mut region = Region::small(NODE_PAGES)?;
        region.rewrite(0..NODE_PAGES, random.number());
        while stage.round() {
            let before = hints()?;
            let deadline = Instant::now() + HANGS;
            let mut found = before;
            while found < before + HINTS {
                ensure!(
                    Instant::now() < deadline,
                    "{} hint faults in {HANGS:?}",
                    found - before
                );
                move_some(stage, &devices, &mut random, &region)?;
                // The kernel leaves a page alone that is where its only user is.
                let node = random.below(2);
                send_to_node(&region, random.piece(NODE_PAGES), node)?;
                verify(stage, &region, 0..NODE_PAGES)?;
                found = hints()?;
            }
            stage.add(Count::HintFaults, found - before);
            region.rewrite(random.piece(NODE_PAGES), random.number());
        }
        verify(stage, &region, 0..NODE_PAGES)
    })
}

/// Pages of each process.
const NODE_PAGES: usize = 512;

fn move_some(
    stage: &Stage,
    devices: &[Device],
    random: &mut Random,
    region: &Region,
) -> Result<()> {
    let pages = random.piece(region.own.len());
    let range = region.memory.page_range(pages.start, pages.len());
    let direction = match random.one_in(2) {
        true => Direction::ToDevice,
        false => Direction::ToSystem,
    };
    let options = any_options(random, direction);
    let device = &devices[random.below(devices.len())];
    stage.migrate(device, 0, range, direction, options)?;
    Ok(())
}

fn pages_sent_to_nodes(stage: &Stage) -> Result<()> {
    stage.processes(WORKERS, |index| {
        let devices = stage.devices()?;
        let mut random = stage.random(index);
        let mut region = Region::small(NODE_PAGES)?;
        region.rewrite(0..NODE_PAGES, random.number());
        while stage.round() {
            move_some(stage, &devices, &mut random, &region)?;
            let pages = random.piece(NODE_PAGES);
            let node = random.below(2);
            let moved = match random.one_in(3) {
                true => bind_to_node(&region, pages.clone(), node)?,
                false => send_to_node(&region, pages.clone(), node)?,
            };
            stage.add(Count::PagesBetweenNodes, moved);
            verify(stage, &region, pages)?;
            if random.one_in(8) {
                region.rewrite(random.piece(NODE_PAGES), random.number());
            }
        }
        verify(stage, &region, 0..NODE_PAGES)
    })
}

/// Has the kernel move pages to a node one by one; how many are there. Each page is said to be
/// there, to be in the way of somebody, or to be none that moves.
fn send_to_node(region: &Region, pages: Range<usize>, node: usize) -> Result<u64> {
    let addresses: Vec<u64> = pages
        .map(|page| region.memory.page_range(page, 1).start())
        .collect();
    let nodes = vec![node as i32; addresses.len()];
    let mut status = vec![i32::MIN; addresses.len()];
    // SAFETY: all three lists have as many entries as is said, and only the last is written to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            addresses.len(),
            addresses.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    ensure!(
        result >= 0,
        "move_pages: {}",
        std::io::Error::last_os_error()
    );
    for found in &status {
        let is_known = (0..2).contains(found)
            || [-libc::ENOENT, -libc::EBUSY, -libc::EFAULT, -libc::EAGAIN, -libc::ENOMEM]
                .contains(found)
            // Pages behind one that could not move are not looked at.
            || (*found == i32::MIN && result > 0);
        ensure!(is_known, "move_pages says {found} of a page");
    }
    Ok(status.iter().filter(|found| **found == node as i32).count() as u64)
}

const MPOL_MF_MOVE: libc::c_int = 1 << 1;
const MPOL_BIND: libc::c_int = 2;
const MPOL_DEFAULT: libc::c_int = 0;

/// Has the kernel keep pages on a node, and move them there; then lets it do as it likes again.
/// None is known to have moved.
fn bind_to_node(region: &Region, pages: Range<usize>, node: usize) -> Result<u64> {
    let range = region.memory.page_range(pages.start, pages.len());
    let mask: libc::c_ulong = 1 << node;
    let mbind = |mode: libc::c_int, mask: Option<&libc::c_ulong>, flags: libc::c_int| {
        let (mask, bits) = match mask {
            Some(mask) => (std::ptr::from_ref(mask), libc::c_ulong::BITS as usize),
            None => (std::ptr::null(), 0),
        };
        // SAFETY: the range is mapped and the mask, if there is one, has so many bits; where pages
        // are changes nothing that a program can see.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                range.start(),
                range.bytes(),
                mode,
                mask,
                bits,
                flags,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    match mbind(MPOL_BIND, Some(&mask), MPOL_MF_MOVE) {
        Ok(()) => {}
        // Without STRICT pages that stay are no error; a node without room is one.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
        Err(error) => return Err(error).context("mbind"),
    }
    mbind(MPOL_DEFAULT, None, 0).context("mbind to what it was")?;
    Ok(0)
}

// --- memory that goes offline ---

const BLOCKS: &str = "/sys/devices/system/memory";
/// Blocks that are tried for each that goes.
const TRIES: usize = 64;

/// Blocks of memory whose pages may all be movable, highest first.
fn blocks() -> Result<Vec<PathBuf>> {
    let mut blocks: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir(BLOCKS)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("memory").and_then(|n| n.parse().ok());
        if let Some(number) = number
            && state(&path)? == "online"
        {
            blocks.push((number, path));
        }
    }
    blocks.sort_unstable_by(|a, b| b.cmp(a));
    Ok(blocks.into_iter().map(|(_, path)| path).collect())
}

fn state(block: &Path) -> Result<String> {
    let text = fs::read_to_string(block.join("state"))
        .with_context(|| format!("cannot read {}", block.display()))?;
    Ok(text.trim().to_owned())
}

fn memory_removed_beside_the_device(stage: &Stage) -> Result<()> {
    let mut random = stage.random(DIRECTOR);
    // Of what does not move the kernel tells all that it knows, as if something were wrong.
    let mut quiet = Quiet::start()?;
    let result = direct(stage, WORKERS, COMMANDS, Allowed::NOTHING, || {
        let blocks = blocks()?;
        ensure!(!blocks.is_empty(), "no memory is online");
        for _ in 0..TRIES {
            let block = &blocks[random.below(blocks.len())];
            // What belongs to the kernel does not move.
            if fs::write(block.join("state"), "offline").is_err() {
                continue;
            }
            let before = stage.counts().get(Count::CommandsDone);
            let worked = await_more(stage, Count::CommandsDone, before, COMMANDS);
            fs::write(block.join("state"), "online")
                .with_context(|| format!("{} does not come back", block.display()))?;
            stage.add(Count::BlockOffline, 1);
            return worked;
        }
        bail!("no block of {TRIES} could be taken offline");
    });
    let said = quiet.look();
    result.and(said.map(drop))
}
