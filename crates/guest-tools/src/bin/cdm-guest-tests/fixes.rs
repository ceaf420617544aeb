// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The failing cases of fixes in the series that no other test comes upon.

use std::fs;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::registered::Registered;
use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::fixture::{Fixture, expect_huge_mapped};
use crate::huge::fragmented_device;
use crate::huge_files::{self, HugeFiles};
use crate::isolate::Child;
use crate::memory_failure::{expect_failed, fail_page, renew};

crate::tests!("fixes":
    huge_page_that_a_child_shares_takes_small_pages_for_both,
    pinned_folio_of_16_kib_keeps_no_other_page,
    failed_page_of_a_huge_page_of_a_file_is_told_from_the_end_of_the_file,
    memory_that_is_unlocked_in_the_device_counts_as_locked_no_more,
    what_is_stored_by_small_entries_survives_their_collapse,
);

const HUGE_PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;

/// "split the migration entries of all processes": the child's entry stood for 512 pages, of which
/// 511 were somebody else's by then.
fn huge_page_that_a_child_shares_takes_small_pages_for_both(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let filler = fragmented_device(t)?;
    t.allow_huge()?;
    let memory = t.huge_memory(1, 1)?;
    let mut child = Child::spawn(|parent| {
        parent.meet()?;
        memory.check_pattern(1)?;
        memory.fill_pattern(2);
        parent.meet()?;
        memory.check_pattern(2)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    expect_huge_mapped(memory.range(), HUGE_PAGE_BYTES as u64)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    expect_huge_mapped(memory.range(), 0)?;
    child.release()?;
    child.wait_for_arrival()?;
    memory.check_pattern(1)?;
    memory.fill_pattern(3);
    child.release()?;
    child.finish()?;
    memory.check_pattern(3)?;
    drop(filler);
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(3)?;
    t.expect_free_pages(free)
}

/// Lets anonymous memory have folios of 16 KiB; as it was again on drop.
struct SmallLargeFolios {
    was: String,
}

const SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-16kB";
const FOLIO_PAGES: usize = 4;

impl SmallLargeFolios {
    fn allow() -> Result<Self> {
        let path = format!("{SIZE}/enabled");
        let was = huge_files::chosen(&path)?;
        fs::write(&path, "always").with_context(|| format!("cannot write to {path}"))?;
        Ok(Self { was })
    }

    /// How many the kernel has given so far.
    fn given() -> Result<u64> {
        let path = format!("{SIZE}/stats/anon_fault_alloc");
        let text = fs::read_to_string(&path).with_context(|| format!("no {path}"))?;
        text.trim().parse().context("not a number")
    }
}

impl Drop for SmallLargeFolios {
    fn drop(&mut self) {
        let _ = fs::write(format!("{SIZE}/enabled"), &self.was);
    }
}

/// "let one unsplittable folio not end the collection": what came behind it in the same 2 MiB stayed
/// where it was.
fn pinned_folio_of_16_kib_keeps_no_other_page(t: &Fixture) -> Result<()> {
    const PAGES: usize = 64;
    const PINNED: usize = FOLIO_PAGES + 1;
    let free = t.free_pages()?;
    let mut memory = Mapping::huge_aligned(HUGE_PAGE_BYTES)?;
    // Too little for a huge page.
    memory.unmap_tail((HUGE_PAGES - PAGES) * PAGE_BYTES)?;
    {
        let _allowed = SmallLargeFolios::allow()?;
        let before = SmallLargeFolios::given()?;
        memory.fill_pattern(4);
        let given = SmallLargeFolios::given()? - before;
        ensure!(
            given >= (PAGES / FOLIO_PAGES) as u64,
            "the kernel gave {given} folios of 16 KiB only"
        );
    }
    let pinned = Registered::new(&memory, PINNED..PINNED + 1)?;
    let migration = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.moved == (PAGES - FOLIO_PAGES) as u64,
        "one folio of {FOLIO_PAGES} pages has to stay: {migration:?}"
    );
    t.expect_in_device(memory.page_range(0, FOLIO_PAGES))?;
    t.expect_in_system(memory.page_range(FOLIO_PAGES, FOLIO_PAGES))?;
    let behind = 2 * FOLIO_PAGES;
    t.expect_in_device(memory.page_range(behind, PAGES - behind))?;
    memory.check_pattern(4)?;
    pinned.unregister()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.check_pattern(4)?;
    drop(memory);
    t.expect_free_pages(free)
}

/// "tell lost contents from an access behind the end of a file": the split that memory failure
/// begins with unmaps a huge page of a file, so all who use it meet the marker in the page cache.
fn failed_page_of_a_huge_page_of_a_file_is_told_from_the_end_of_the_file(
    t: &Fixture,
) -> Result<()> {
    const BAD: usize = HUGE_PAGES + 7;
    let free = t.free_pages()?;
    let (file, memory) = huge_files::mapped(t, 5)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_blocks_in_device(memory.range())?;
    fail_page(&memory, BAD)?;
    expect_failed(&memory, BAD)?;
    // Also for whoever comes now.
    let later = Mapping::shared_file(&file, memory.bytes())?;
    expect_failed(&later, BAD)?;
    for memory in [&memory, &later] {
        memory.check_pattern_pages(5, 0..BAD)?;
        memory.check_pattern_pages(5, BAD + 1..memory.pages())?;
    }
    t.expect_in_device(memory.page_range(0, BAD))?;
    t.expect_in_device(memory.page_range(BAD + 1, memory.pages() - BAD - 1))?;
    drop((memory, later, file));
    t.expect_free_pages(free - 1)?;
    renew(t)
}

/// "clear stale folio flags when device memory is freed": munlock() passes by what is in a device,
/// so its pages are still locked when they are freed, and the count of locked pages, which is
/// looked at after each test, never came down.
fn memory_that_is_unlocked_in_the_device_counts_as_locked_no_more(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(64, 7)?;
    memory.lock()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.unlock()?;
    memory.check_pattern(7)?;
    Ok(())
}

/// "do not lose the dirty bit of PTEs that a PMD replaces": without a device.
fn what_is_stored_by_small_entries_survives_their_collapse(_: &Fixture) -> Result<()> {
    let _allowed = HugeFiles::allow()?;
    let (_file, memory) = huge_files::empty(HUGE_PAGE_BYTES)?;
    let load = |page: usize| memory.word(page * PAGE_BYTES).load(Ordering::Relaxed);
    // A load makes the folio, so the kernel has seen no store to it.
    ensure!(load(0) == 0, "a new file holds something");
    expect_huge_mapped(memory.range(), HUGE_PAGE_BYTES as u64)?;
    // Two areas share the 2 MiB for a while, so small entries map it.
    memory.protect_pages(0, 1, ProtFlags::PROT_READ)?;
    ensure!((0..HUGE_PAGES).all(|page| load(page) == 0));
    memory.protect_pages(0, 1, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    expect_huge_mapped(memory.range(), 0)?;
    memory.fill_pattern(6);
    memory.collapse()?;
    expect_huge_mapped(memory.range(), HUGE_PAGE_BYTES as u64)?;
    memory.advise(MmapAdvise::MADV_DONTNEED)?;
    fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop caches")?;
    memory.check_pattern(6)?;
    Ok(())
}
