// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device pages are charged to the group of their owner. A group at its limit
//! must be able to get rid of them: the driver brings them home, where they can
//! be swapped out.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::console::Quiet;
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::swap::Swap;
use nix::sys::mman::MmapAdvise;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::fixture::Fixture;
use crate::isolate::Child;
use cdm_guest_tools::cgroup::Cgroup;

crate::tests!("pressure":
    charge_stays_with_the_group_while_pages_are_in_the_device,
    group_whose_limit_falls_below_its_device_pages_survives,
    group_whose_limit_falls_dies_without_the_help_of_the_driver,
    group_that_grows_beyond_its_limit_survives,
    group_that_grows_beyond_its_limit_dies_without_the_help_of_the_driver,
    group_that_is_told_to_shrink_swaps_its_device_pages_out,
    group_of_huge_pages_survives,
    group_of_pages_of_a_shared_file_survives,
);

const MIB: u64 = 1 << 20;

/// Bytes that the processes of a group have besides the memory of the test: stacks, page tables.
const SLACK: u64 = 2 * MIB;

fn charge_stays_with_the_group_while_pages_are_in_the_device(t: &Fixture) -> Result<()> {
    let group = Cgroup::new()?;
    let memory = Mapping::anonymous(16 << 20)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let bytes = memory.bytes() as u64;
    let child = Child::spawn(|_| {
        group.enter()?;
        let before = group.current()?;
        memory.fill_pattern(1);
        let filled = group.current()?;
        ensure!(
            filled - before >= bytes,
            "{bytes} bytes were charged as {}",
            filled - before
        );
        for direction in [
            Direction::ToDevice,
            Direction::ToSystem,
            Direction::ToDevice,
        ] {
            t.move_all(memory.range(), direction)?;
            let moved = group.current()?;
            ensure!(
                moved.abs_diff(filled) <= SLACK,
                "{filled} bytes became {moved} on the way {direction:?}"
            );
            // The group's own account of what they are.
            let anonymous = group.figure("memory.stat", "anon")?;
            ensure!(anonymous >= bytes, "memory.stat counts {anonymous} bytes");
        }
        memory.check_pattern(1)?;
        memory.advise(MmapAdvise::MADV_DONTNEED)?;
        group.expect_at_most(before + SLACK)
    })?;
    child.finish()?;
    group.remove()
}

/// How a process in a limited group ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Alive,
    Killed,
}

/// Limit of the groups here.
const LIMIT: u64 = 48 * MIB;
/// What is in the device of a group that grows.
const AWAY: usize = 40 << 20;
/// What such a group then needs in system memory, and cannot be swapped out: no more than its limit
/// has room for, if what is in the device makes way.
const LOCKED: usize = 24 << 20;

/// Runs `body` in a group; it arrives once before the limit is set, and goes on below it. How it
/// ended, and how many pages the driver brought home meanwhile.
fn in_limited_group(
    t: &Fixture,
    body: impl FnOnce(&Cgroup, &mut crate::isolate::Parent) -> Result<()>,
) -> Result<(End, u64)> {
    let _swap = Swap::start()?;
    let group = Cgroup::new()?;
    let mut quiet = Quiet::start()?;
    let evicted = t.device.query()?.pages_evicted;
    let mut child = Child::spawn(|parent| {
        group.enter()?;
        body(&group, parent)
    })?;
    child.wait_for_arrival()?;
    group.write("memory.max", &LIMIT.to_string())?;
    // Gone if the limit alone was too much for it.
    let _ = child.release();
    let ended = child.end_message()?;
    let kills = group.figure("memory.events", "oom_kill")?;
    let end = match ended {
        (WaitStatus::Exited(_, 0), _) if kills == 0 => End::Alive,
        (WaitStatus::Signaled(_, Signal::SIGKILL, _), _) if kills > 0 => End::Killed,
        (status, message) => {
            bail!("the child ended with {status:?} after {kills} kills: {message}")
        }
    };
    quiet.look()?;
    group.remove()?;
    Ok((end, t.device.query()?.pages_evicted - evicted))
}

/// Expects that a group lives because the driver brought at least `bytes` home.
fn expect_helped((end, evicted): (End, u64), bytes: u64) -> Result<()> {
    ensure!(end == End::Alive, "the process was killed");
    ensure!(
        evicted * PAGE_BYTES as u64 >= bytes,
        "only {evicted} pages were brought home, so something else kept the group alive"
    );
    Ok(())
}

/// Expects that a group died, with the driver having brought nothing home.
fn expect_dead((end, evicted): (End, u64)) -> Result<()> {
    ensure!(
        end == End::Killed,
        "the process lives, so the tests of help prove nothing"
    );
    ensure!(
        evicted == 0,
        "{evicted} pages were brought home all the same"
    );
    Ok(())
}

/// A process with twice in the device what its group may have once the limit is set.
fn be_cut(t: &Fixture) -> Result<(End, u64)> {
    let memory = Mapping::anonymous(2 * LIMIT as usize)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    in_limited_group(t, |group, parent| {
        memory.fill_pattern(2);
        t.move_all(memory.range(), Direction::ToDevice)?;
        t.expect_in_device(memory.range())?;
        parent.meet()?;
        let current = group.current()?;
        ensure!(current <= LIMIT, "{current} bytes are charged");
        memory.check_pattern(2)?;
        Ok(())
    })
}

fn group_whose_limit_falls_below_its_device_pages_survives(t: &Fixture) -> Result<()> {
    expect_helped(be_cut(t)?, LIMIT)
}

fn group_whose_limit_falls_dies_without_the_help_of_the_driver(t: &Fixture) -> Result<()> {
    let _help = Help::refuse()?;
    expect_dead(be_cut(t)?)
}

/// A process that has most of its limit in the device, and then needs system memory that reclaim
/// cannot take: of what is charged to the group only the device's pages can make way.
fn grow(t: &Fixture) -> Result<(End, u64)> {
    let first = Mapping::anonymous(AWAY)?;
    first.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let second = Mapping::anonymous(LOCKED)?;
    second.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    in_limited_group(t, |group, parent| {
        first.fill_pattern(3);
        t.move_all(first.range(), Direction::ToDevice)?;
        parent.meet()?;
        second.lock()?;
        second.fill_pattern(4);
        let swapped = group.figure("memory.stat", "pswpout")?;
        ensure!(swapped > 0, "nothing was swapped out");
        first.check_pattern(3)?;
        second.check_pattern(4)?;
        // Once more, so that nobody lives on what is left of the swap space's first use.
        first.fill_pattern(5);
        second.check_pattern(4)?;
        first.check_pattern(5)?;
        Ok(())
    })
}

fn group_that_grows_beyond_its_limit_survives(t: &Fixture) -> Result<()> {
    expect_helped(grow(t)?, AWAY as u64 + LOCKED as u64 - LIMIT)
}

fn group_that_grows_beyond_its_limit_dies_without_the_help_of_the_driver(
    t: &Fixture,
) -> Result<()> {
    let _help = Help::refuse()?;
    expect_dead(grow(t)?)
}

fn group_that_is_told_to_shrink_swaps_its_device_pages_out(t: &Fixture) -> Result<()> {
    const ASKED: u64 = 8 * MIB;
    let _swap = Swap::start()?;
    let group = Cgroup::new()?;
    let memory = Mapping::anonymous(2 * ASKED as usize)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let child = Child::spawn(|_| {
        group.enter()?;
        memory.fill_pattern(9);
        t.move_all(memory.range(), Direction::ToDevice)?;
        let evicted = t.device.query()?.pages_evicted;
        group
            .write("memory.reclaim", &ASKED.to_string())
            .context("the group cannot shrink")?;
        let evicted = (t.device.query()?.pages_evicted - evicted) * PAGE_BYTES as u64;
        let swapped = group.figure("memory.stat", "pswpout")? * PAGE_BYTES as u64;
        ensure!(
            evicted >= ASKED - SLACK && swapped >= ASKED - SLACK,
            "{evicted} bytes were brought home, {swapped} swapped out"
        );
        memory.check_pattern(9)?;
        Ok(())
    })?;
    child.finish()?;
    group.remove()
}

fn group_of_huge_pages_survives(t: &Fixture) -> Result<()> {
    let memory = Mapping::huge_aligned(2 * LIMIT as usize)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    let ended = in_limited_group(t, |_, parent| {
        memory.fill_pattern(6);
        t.move_all(memory.range(), Direction::ToDevice)?;
        parent.meet()?;
        memory.check_pattern(6)?;
        Ok(())
    })?;
    expect_helped(ended, LIMIT)
}

fn group_of_pages_of_a_shared_file_survives(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let memory = Mapping::shared(2 * LIMIT as usize)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let ended = in_limited_group(t, |_, parent| {
        memory.fill_pattern(8);
        t.move_all(memory.range(), Direction::ToDevice)?;
        parent.meet()?;
        memory.check_pattern(8)?;
        // The file's pages would stay with it, and with them the charge, wherever they are.
        memory.advise(MmapAdvise::MADV_REMOVE)?;
        Ok(())
    })?;
    expect_helped(ended, LIMIT)
}

/// Whether the driver helps; as it was again on drop.
struct Help {
    was: String,
}

const HELP: &str = "/sys/module/cdm/parameters/pressure_help";

impl Help {
    fn refuse() -> Result<Self> {
        let was = fs::read_to_string(HELP).with_context(|| format!("no {HELP}"))?;
        fs::write(HELP, "0").with_context(|| format!("cannot write {HELP}"))?;
        Ok(Self { was })
    }
}

impl Drop for Help {
    fn drop(&mut self) {
        let _ = fs::write(HELP, self.was.trim());
    }
}
