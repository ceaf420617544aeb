// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who may move whose memory: one's own processes, and everybody's with
//! CAP_SYS_PTRACE.

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::Mapping;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::fixture::{Fixture, expect_errno, move_patiently};
use crate::isolate::{Child, Parent};

crate::tests!("processes":
    process_named_by_pid_is_moved,
    process_of_the_same_user_is_moved,
    process_of_another_user_is_refused,
    process_that_is_not_dumpable_is_refused,
    process_of_another_user_is_moved_by_root,
    process_that_is_gone_is_reported,
    process_that_ends_meanwhile_does_no_harm,
);

/// Users without any privilege.
const SOMEBODY: u32 = 1000;
const SOMEBODY_ELSE: u32 = 1001;
const PAGES: usize = 64;

/// Becomes `user` for good, and able to be looked at like any process of that user.
pub fn become_user(user: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[]).context("setgroups")?;
    setresgid(gid, gid, gid).context("setresgid")?;
    setresuid(uid, uid, uid).context("setresuid")?;
    // The change of user took this away.
    prctl::set_dumpable(true).context("PR_SET_DUMPABLE")
}

/// A process of `user` that owns a copy of `memory`, with pages of its own.
fn owner(memory: &Mapping, user: u32, dumpable: bool) -> Result<Child> {
    let mut child = Child::spawn(|parent| {
        memory.fill_pattern(2);
        become_user(user)?;
        prctl::set_dumpable(dumpable)?;
        parent.meet()?;
        memory.check_pattern(2)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    Ok(child)
}

/// Runs `body` in a process of `user` that has the device open already.
fn as_user(user: u32, body: impl FnOnce(&mut Parent) -> Result<()>) -> Result<()> {
    Child::spawn(|parent| {
        become_user(user)?;
        body(parent)
    })?
    .finish()
}

fn move_there_and_back(t: &Fixture, pid: i32, memory: &Mapping) -> Result<()> {
    let expect = |direction| -> Result<()> {
        let (migration, _) = move_patiently(&t.device, pid, memory.range(), direction)?;
        ensure!(
            migration.moved == PAGES as u64,
            "{direction:?}: {migration:?}"
        );
        Ok(())
    };
    expect(Direction::ToDevice)?;
    let residency = t.device.residency(pid, memory.range())?;
    ensure!(residency.this_device == PAGES as u64, "{residency:?}");
    expect(Direction::ToSystem)
}

fn refused(t: &Fixture, pid: i32, memory: &Mapping) -> Result<()> {
    let range = memory.range();
    expect_errno(
        t.device.migrate(pid, range, Direction::ToDevice),
        Errno::EPERM,
    )?;
    expect_errno(
        t.device.migrate(pid, range, Direction::ToSystem),
        Errno::EPERM,
    )?;
    expect_errno(t.device.residency(pid, range), Errno::EPERM)
}

fn process_named_by_pid_is_moved(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 1)?;
    let mut child = Child::spawn(|parent| {
        memory.fill_pattern(2);
        parent.meet()?;
        t.expect_in_device(memory.range())?;
        memory.check_pattern(2)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    let (migration, _) =
        move_patiently(&t.device, child.pid(), memory.range(), Direction::ToDevice)?;
    ensure!(migration.moved == PAGES as u64, "{migration:?}");
    // The caller's own memory at the same addresses stays.
    t.expect_in_system(memory.range())?;
    memory.check_pattern(1)?;
    child.release()?;
    child.finish()
}

fn process_of_the_same_user_is_moved(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 1)?;
    let mut child = owner(&memory, SOMEBODY, true)?;
    let pid = child.pid();
    as_user(SOMEBODY, |_| move_there_and_back(t, pid, &memory))?;
    child.release()?;
    child.finish()
}

fn process_of_another_user_is_refused(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 1)?;
    let mut child = owner(&memory, SOMEBODY, true)?;
    let pid = child.pid();
    as_user(SOMEBODY_ELSE, |_| refused(t, pid, &memory))?;
    // Nor may a user without privileges reach into the first process of the machine.
    as_user(SOMEBODY, |_| refused(t, 1, &memory))?;
    let residency = t.device.residency(pid, memory.range())?;
    ensure!(
        residency.this_device == 0,
        "pages moved all the same: {residency:?}"
    );
    child.release()?;
    child.finish()
}

fn process_that_is_not_dumpable_is_refused(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 1)?;
    let mut child = owner(&memory, SOMEBODY, false)?;
    let pid = child.pid();
    as_user(SOMEBODY, |_| refused(t, pid, &memory))?;
    child.release()?;
    child.finish()
}

fn process_of_another_user_is_moved_by_root(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 1)?;
    let mut child = owner(&memory, SOMEBODY, true)?;
    move_there_and_back(t, child.pid(), &memory)?;
    child.release()?;
    child.finish()
}

fn process_that_is_gone_is_reported(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(1, 1)?;
    let mut child = Child::spawn(|_| Ok(()))?;
    let pid = child.pid();
    child.wait()?;
    for pid in [pid, -1, i32::MIN, i32::MAX] {
        expect_errno(
            t.device.migrate(pid, memory.range(), Direction::ToDevice),
            Errno::ESRCH,
        )
        .with_context(|| format!("migrate, pid {pid}"))?;
        expect_errno(t.device.residency(pid, memory.range()), Errno::ESRCH)
            .with_context(|| format!("residency, pid {pid}"))?;
    }
    Ok(())
}

/// The process that is worked on ends at any time; the device gets every page back.
fn process_that_ends_meanwhile_does_no_harm(t: &Fixture) -> Result<()> {
    const ROUNDS: usize = 20;
    let memory = t.system_memory(512, 1)?;
    let free = t.free_pages()?;
    for _ in 0..ROUNDS {
        let mut child = Child::spawn(|parent| {
            memory.fill_pattern(2);
            parent.arrive()?;
            Ok(())
        })?;
        child.wait_for_arrival()?;
        // Whether the pages still move or the process is gone already is a matter of luck.
        for _ in 0..4 {
            match t
                .device
                .migrate(child.pid(), memory.range(), Direction::ToDevice)
            {
                Ok(migration) => ensure!(migration.adds_up(), "{migration:?}"),
                Err(error) => {
                    let gone = error.raw_os_error() == Some(libc::ESRCH);
                    ensure!(gone, "neither moved nor gone: {error}");
                }
            }
        }
        child.finish()?;
        t.expect_free_pages(free)?;
    }
    Ok(())
}
