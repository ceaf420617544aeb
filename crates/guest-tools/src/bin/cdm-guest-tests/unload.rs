// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Taking the driver away brings every page home first.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Bound, Device, Direction, Span};
use cdm_guest_tools::iomem;
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::userfault::Userfault;
use nix::errno::Errno;

use crate::fixture::{Fixture, device_memory, expect_errno, move_patiently, physical_addresses};
use crate::isolate::Child;
use crate::trace::Tracing;
use crate::{hot, module};

crate::tests!("unload":
    module_with_an_open_node_stays,
    unload_brings_pages_of_all_processes_home,
    unload_and_reload_again_and_again_works,
    unbind_brings_pages_home_and_an_open_node_is_dead,
    unbind_ends_commands_on_addresses_that_would_wait_for_ever,
    unbind_and_unload_end_moves_of_hot_memory,
);

const PAGES: usize = 2048;

fn module_with_an_open_node_stays(t: &Fixture) -> Result<()> {
    // The fixture has the node open.
    expect_errno(module::remove().map_err(Into::into), Errno::EWOULDBLOCK)?;
    t.device.nop()?.ok()?;
    Ok(())
}

/// Runs `body` without the open node of the fixture, which would keep the module.
pub fn without_node(t: &Fixture, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let null = fs::File::open("/dev/null")?;
    // SAFETY: the descriptor stays open and the fixture's; it only stands for another file, on
    // which every request of the fixture fails.
    let result = unsafe { libc::dup2(null.as_raw_fd(), t.device.as_raw_fd()) };
    ensure!(result >= 0, "dup2: {}", std::io::Error::last_os_error());
    body()
}

fn resident(pages: usize, seed: u64) -> Result<Mapping> {
    let device = Device::open(0)?;
    let memory = Mapping::anonymous(pages * 4096)?;
    memory.fill_pattern(seed);
    let (migration, _) = move_patiently(&device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(migration.moved == pages as u64, "{migration:?}");
    Ok(memory)
}

pub fn expect_outside(memory: &Mapping, device: &std::ops::Range<u64>) -> Result<()> {
    let page = physical_addresses(memory.range())?
        .into_iter()
        .find(|page| device.contains(page));
    ensure!(
        page.is_none(),
        "a page is still at {page:x?}, in the device"
    );
    Ok(())
}

fn unload_brings_pages_of_all_processes_home(t: &Fixture) -> Result<()> {
    let inside = t.device_memory();
    without_node(t, || {
        let memory = resident(PAGES, 1)?;
        let untouched = resident(PAGES, 2)?;
        // A child that shares pages, has copies of some, and has pages of its own.
        let mut child = Child::spawn(|parent| {
            let own = resident(PAGES / 2, 3)?;
            memory
                .word(0)
                .store(77, std::sync::atomic::Ordering::Relaxed);
            parent.meet()?;
            ensure!(
                memory.word(0).load(std::sync::atomic::Ordering::Relaxed) == 77,
                "copy lost"
            );
            memory.check_pattern_pages(1, 1..PAGES)?;
            own.check_pattern(3)?;
            expect_outside(&own, &inside)?;
            expect_outside(&memory, &inside)
        })?;
        child.wait_for_arrival()?;
        let unloaded = module::unload()?;
        ensure!(!fs::exists("/dev/cdm0")?, "/dev/cdm0 is still there");
        let named = iomem::resources()?
            .into_iter()
            .find(|r| r.name == "Device Public Memory");
        ensure!(
            named.is_none(),
            "the region is still in /proc/iomem: {named:?}"
        );
        expect_outside(&memory, &inside)?;
        memory.check_pattern(1)?;
        untouched.check_pattern(2)?;
        child.release()?;
        child.finish()?;
        let tracing = unloaded
            .reload()
            .map(|()| Tracing::start(&["cdm/cdm_migrate_batch"]))??;
        // The device that comes back works.
        let again = resident(PAGES, 4)?;
        again.check_pattern(4)?;
        ensure!(
            !tracing.lines()?.is_empty(),
            "no trace of the migration after the reload"
        );
        let query = Device::open(0)?.query()?;
        ensure!(
            device_memory(&query) == inside,
            "the device came back elsewhere: {query:?}"
        );
        Ok(())
    })
}

fn unload_and_reload_again_and_again_works(t: &Fixture) -> Result<()> {
    without_node(t, || {
        let memory = Mapping::anonymous(64 * 4096)?;
        memory.fill_pattern(5);
        for round in 0..4 {
            let device = Device::open(0)?;
            move_patiently(&device, 0, memory.range(), Direction::ToDevice)?;
            drop(device);
            module::unload()?
                .reload()
                .with_context(|| format!("round {round}"))?;
            memory.check_pattern(5)?;
        }
        Ok(())
    })
}

fn unbind_and_unload_end_moves_of_hot_memory(t: &Fixture) -> Result<()> {
    let inside = t.device_memory();
    let (name, driver) = virtio()?;
    let memory = hot::granules(16, 8)?;
    let bound = Bound::open(0)?;
    bound.move_hot(hot::UNLIMITED)?;
    // Fails on a kernel that does not tell what the CPUs use, which takes nothing from the rest.
    let _ = fs::write("/sys/class/misc/cdm0/cpu_scan_ms", "1");
    let checked = thread::scope(|scope| {
        let user = scope.spawn(|| while bound.checksum(&memory, Span::all(&memory), 0).is_ok() {});
        thread::sleep(Duration::from_millis(30));
        let unbound = fs::write(driver.join("unbind"), &name).context("cannot unbind the driver");
        user.join().expect("the thread panics nowhere");
        unbound
    });
    let checked = checked.and_then(|()| {
        expect_outside(&memory, &inside)?;
        memory.check_pattern(8)?;
        Ok(())
    });
    drop(bound);
    without_node(t, || {
        fs::write(driver.join("bind"), &name).context("cannot bind the driver again")?;
        checked?;
        // Its last reports may still be queued when the module goes.
        let _ = fs::write("/sys/class/misc/cdm0/cpu_scan_ms", "1");
        let child = Child::spawn(|_| hot::use_for_ever())?;
        thread::sleep(Duration::from_millis(300));
        child.kill()?;
        module::unload()?.reload()?;
        let again = Bound::open(0)?;
        let all = Span::all(&memory);
        let crc = again.checksum(&memory, all, 0)?;
        ensure!(crc == memory.crc32c(memory.bytes()), "CRC {crc:#x}");
        Ok(())
    })
}

/// Name of device 0 on the virtio bus, and the folder of its driver.
pub fn virtio() -> Result<(String, PathBuf)> {
    let device = fs::canonicalize("/sys/class/misc/cdm0/device")
        .context("/sys/class/misc/cdm0 names no device")?;
    let name = device
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let driver = fs::canonicalize(device.join("driver")).context("device 0 has no driver")?;
    Ok((name, driver))
}

fn unbind_brings_pages_home_and_an_open_node_is_dead(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 6)?;
    let inside = t.device_memory();
    let (name, driver) = virtio()?;
    fs::write(driver.join("unbind"), &name).context("cannot unbind the driver")?;
    let checked = (|| {
        expect_outside(&memory, &inside)?;
        memory.check_pattern(6)?;
        ensure!(!fs::exists("/dev/cdm0")?, "/dev/cdm0 is still there");
        expect_errno(t.device.query(), Errno::ENODEV)?;
        expect_errno(
            t.device.migrate(0, memory.range(), Direction::ToDevice),
            Errno::ENODEV,
        )?;
        expect_errno(t.device.nop(), Errno::ENODEV)
    })();
    // The number belongs to the device that is gone as long as its node is open.
    without_node(t, || {
        // Bound again whatever was found, for the tests behind this one.
        fs::write(driver.join("bind"), &name).context("cannot bind the driver again")
    })?;
    checked?;
    let again = Device::open(0).context("no node after the driver was bound again")?;
    let (migration, _) = move_patiently(&again, 0, memory.range(), Direction::ToDevice)?;
    ensure!(migration.moved == PAGES as u64, "{migration:?}");
    memory.check_pattern(6)?;
    Ok(())
}

/// Longest that an unbind may take with nothing to wait for, on a busy machine.
const UNBIND_LIMIT: Duration = Duration::from_secs(20);

fn unbind_ends_commands_on_addresses_that_would_wait_for_ever(t: &Fixture) -> Result<()> {
    let (name, driver) = virtio()?;
    let bound = Bound::open(0)?;
    let memory = Mapping::anonymous(64 * 4096)?;
    let all = Span::all(&memory);
    bound.fill(&memory, all, 8, 5)?.ok()?;
    let served = Mapping::anonymous(4096)?;
    let userfault = Userfault::watch_missing(&served)?;
    let first = Span {
        offset: 0,
        bytes: 4096,
    };
    let taken = thread::scope(|scope| {
        let command = scope.spawn(|| bound.copy((&served, first), (&memory, first)));
        let steps = || -> Result<Duration> {
            let fault = userfault.wait_for_missing(UNBIND_LIMIT)?;
            ensure!(fault == Some(served.address()), "{fault:x?}");
            let start = Instant::now();
            fs::write(driver.join("unbind"), &name).context("cannot unbind the driver")?;
            Ok(start.elapsed())
        };
        let taken = steps();
        userfault.leave(&served)?;
        let result = command.join().expect("the thread only waits");
        let is_done = result.and_then(|answer| answer.ok());
        ensure!(is_done.is_err(), "the command ended well: {is_done:?}");
        taken
    });
    let checked = (|| {
        let taken = taken?;
        ensure!(taken < UNBIND_LIMIT, "it took {taken:?}");
        // The device has nothing of the process any more, so nobody is asked about this.
        memory.check_fill(5)?;
        memory.fill(6);
        expect_errno(bound.nop(), Errno::ENODEV)?;
        expect_errno(bound.unbind(), Errno::ENODEV)
    })();
    drop(bound);
    without_node(t, || {
        fs::write(driver.join("bind"), &name).context("cannot bind the driver again")
    })?;
    checked?;
    let again = Bound::open(0).context("no node after the driver was bound again")?;
    again.fill(&memory, all, 8, 7)?.ok()?;
    memory.check_fill(7)?;
    Ok(())
}
