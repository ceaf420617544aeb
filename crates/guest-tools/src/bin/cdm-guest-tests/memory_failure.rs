// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A page of the device whose memory has failed: who maps it is told where, the
//! page leaves service, its neighbours stay.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::bus_error::{self, FAULTED};
use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use nix::sys::mman::MmapAdvise;
use nix::sys::wait::WaitStatus;

use crate::fixture::{Fixture, move_patiently};
use crate::isolate::Child;
use crate::module;
use crate::stores::memory_file;
use crate::unload::without_node;

crate::tests!("memory_failure":
    failed_page_raises_sigbus_at_its_address_and_its_neighbours_stay,
    failed_page_of_a_block_costs_that_page_alone,
    failed_page_that_two_processes_share_raises_sigbus_in_both,
    failed_page_of_a_file_is_an_error_for_its_readers,
    failed_page_never_serves_again_until_the_module_is_loaded_anew,
);

const PAGES: usize = 16;
const BAD: usize = 5;
const HUGE_PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;

/// As [`bus_error::expect`].
fn expect_bus_error(address: u64) -> Result<()> {
    bus_error::expect(address).context("cannot handle SIGBUS")
}

/// Expects that a child ended by the error it was to see.
fn expect_faulted(mut child: Child) -> Result<()> {
    match child.wait()? {
        WaitStatus::Exited(_, FAULTED) => Ok(()),
        other => bail!("a load from the failed page ended with {other:?}"),
    }
}

/// Loads from a page in a child, which must be told that it failed.
pub fn expect_failed(memory: &Mapping, page: usize) -> Result<()> {
    let child = Child::spawn(|_| {
        expect_bus_error(memory.page_range(page, 1).start())?;
        memory.word(page * PAGE_BYTES).load(Relaxed);
        Ok(())
    })?;
    expect_faulted(child)
}

/// Loads the module anew: with it come new struct pages, and the failed ones serve again.
pub fn renew(t: &Fixture) -> Result<()> {
    without_node(t, || module::unload()?.reload())
}

/// Lets a page fail. The caller itself is told with SIGBUS if it has it mapped, so this is done in
/// a child, by the address.
pub fn fail_page(memory: &Mapping, page: usize) -> Result<()> {
    let child = Child::spawn(|_| {
        expect_bus_error(memory.page_range(page, 1).start())?;
        memory
            .advise_pages(page, 1, MmapAdvise::MADV_HWPOISON)
            .context("MADV_HWPOISON")?;
        // Told at the call, or at the next load.
        memory.word(page * PAGE_BYTES).load(Relaxed);
        Ok(())
    })?;
    expect_faulted(child)
}

fn failed_page_raises_sigbus_at_its_address_and_its_neighbours_stay(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_memory(PAGES, 1)?;
    fail_page(&memory, BAD)?;
    expect_failed(&memory, BAD)?;
    for page in (0..PAGES).filter(|page| *page != BAD) {
        memory.check_pattern_pages(1, page..page + 1)?;
        t.expect_in_device(memory.page_range(page, 1))?;
    }
    // The others move as ever; the failed one does not, and says so.
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToSystem)?;
    ensure!(
        migration.moved == PAGES as u64 - 1,
        "all but one page move: {migration:?}"
    );
    for page in (0..PAGES).filter(|page| *page != BAD) {
        memory.check_pattern_pages(1, page..page + 1)?;
    }
    drop(memory);
    t.expect_free_pages(free - 1)?;
    renew(t)
}

fn failed_page_of_a_block_costs_that_page_alone(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.resident_huge_memory(1, 2)?;
    fail_page(&memory, BAD)?;
    expect_failed(&memory, BAD)?;
    memory.check_pattern_pages(2, 0..BAD)?;
    memory.check_pattern_pages(2, BAD + 1..HUGE_PAGES)?;
    let rest = memory.page_range(BAD + 1, HUGE_PAGES - BAD - 1);
    t.move_all(rest, Direction::ToSystem)?;
    memory.check_pattern_pages(2, BAD + 1..HUGE_PAGES)?;
    drop(memory);
    t.expect_free_pages(free - 1)?;
    renew(t)
}

fn failed_page_that_two_processes_share_raises_sigbus_in_both(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 3)?;
    let mut other = Child::spawn(|parent| {
        memory.check_pattern(3)?;
        expect_bus_error(memory.page_range(BAD, 1).start())?;
        parent.meet()?;
        memory.check_pattern_pages(3, 0..BAD)?;
        memory.word(BAD * PAGE_BYTES).load(Relaxed);
        Ok(())
    })?;
    other.wait_for_arrival()?;
    fail_page(&memory, BAD)?;
    other.release()?;
    expect_faulted(other)?;
    expect_failed(&memory, BAD)?;
    memory.check_pattern_pages(3, 0..BAD)?;
    drop(memory);
    renew(t)
}

fn failed_page_of_a_file_is_an_error_for_its_readers(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let bytes = PAGES * PAGE_BYTES;
    let file = memory_file(bytes)?;
    let memory = Mapping::shared_file(&file, bytes)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(4);
    t.move_all(memory.range(), Direction::ToDevice)?;
    let mut user = Child::spawn(|parent| {
        memory.check_pattern(4)?;
        expect_bus_error(memory.page_range(BAD, 1).start())?;
        parent.meet()?;
        memory.word(BAD * PAGE_BYTES).load(Relaxed);
        Ok(())
    })?;
    user.wait_for_arrival()?;
    fail_page(&memory, BAD)?;
    // Who had it mapped is told, and who comes later.
    user.release()?;
    expect_faulted(user)?;
    expect_failed(&memory, BAD)?;
    let mut found = [0; PAGE_BYTES];
    match file.read_exact_at(&mut found, (BAD * PAGE_BYTES) as u64) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        other => bail!("a read of the failed page gives {other:?}"),
    }
    let expected = t.system_memory(PAGES, 4)?.read_bytes(bytes);
    for page in (0..PAGES).filter(|page| *page != BAD) {
        file.read_exact_at(&mut found, (page * PAGE_BYTES) as u64)?;
        let start = page * PAGE_BYTES;
        ensure!(
            found == expected[start..start + PAGE_BYTES],
            "page {page} holds something else"
        );
    }
    drop(memory);
    drop(file);
    renew(t)
}

fn failed_page_never_serves_again_until_the_module_is_loaded_anew(t: &Fixture) -> Result<()> {
    let inside = t.device_memory();
    let free = t.free_pages()?;
    let memory = t.resident_memory(PAGES, 5)?;
    let bad = crate::fixture::physical_addresses(memory.page_range(BAD, 1))?[0];
    fail_page(&memory, BAD)?;
    drop(memory);
    t.expect_free_pages(free - 1)?;
    // All the rest of the device in use: the bad page is not among it.
    let all = t.system_memory(free as usize, 6)?;
    let (migration, _) = move_patiently(&t.device, 0, all.range(), Direction::ToDevice)?;
    ensure!(migration.moved == free - 1, "{migration:?}");
    let found = crate::fixture::physical_addresses(all.range())?;
    ensure!(
        !found.contains(&bad) && inside.contains(&bad),
        "the failed page at {bad:#x} serves again"
    );
    all.check_pattern(6)?;
    drop(all);
    renew(t)?;
    let query = Device::open(0)?.query()?;
    ensure!(
        query.bytes_free == query.bytes_total,
        "after the reload pages are still missing: {query:?}"
    );
    ensure!(fs::exists("/dev/cdm0")?, "the device did not come back");
    Ok(())
}
