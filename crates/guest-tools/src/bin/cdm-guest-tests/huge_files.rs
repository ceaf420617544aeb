// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shared memory in pieces of 2 MiB: files in memory whose page cache is made of
//! huge pages.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Direction, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::vmstat;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::fixture::{Fixture, expect_huge_mapped, move_patiently, physical_addresses};
use crate::huge::fragmented_device;
use crate::isolate::Child;
use crate::module;
use crate::stores::memory_file;
use crate::unload::without_node;
use cdm_guest_tools::wait::wait_until_nothing;

crate::tests!("huge_files":
    huge_pages_of_a_file_go_in_and_come_back_whole,
    huge_pages_of_a_file_are_shared_by_all_who_map_them,
    huge_page_that_nobody_maps_comes_home_at_unload,
    hole_in_a_huge_page_gives_its_pages_back,
    truncation_inside_a_huge_page_gives_its_pages_back,
    huge_page_that_is_mapped_by_small_entries_comes_back,
    read_and_write_calls_reach_a_block_in_the_device,
    private_copy_of_a_huge_page_leaves_the_block_alone,
    collapse_of_cut_device_pages_changes_nothing,
    huge_page_of_a_file_loses_nothing_where_no_block_is_free,
);

const HUGE_PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;
const COUNT: usize = 2;
const BYTES: usize = COUNT * HUGE_PAGE_BYTES;

/// The word in brackets, which is the one in force, of a switch of the kernel's.
pub fn chosen(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("no {path}"))?;
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(word, _)| word.to_owned())
        .with_context(|| format!("{path} holds '{text}'"))
}

/// Lets shared memory have huge pages where it is asked for; as it was again on drop.
pub struct HugeFiles {
    was: String,
}

const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

impl HugeFiles {
    pub fn allow() -> Result<Self> {
        let was = chosen(SWITCH)?;
        fs::write(SWITCH, "advise")?;
        fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")?;
        Ok(Self { was })
    }
}

impl Drop for HugeFiles {
    fn drop(&mut self) {
        let _ = fs::write(SWITCH, &self.was);
    }
}

/// A new file, which gets huge pages while they are allowed, and all of it mapped.
pub fn empty(bytes: usize) -> Result<(File, Mapping)> {
    let file = memory_file(bytes)?;
    let memory = Mapping::huge_aligned_file(&file, bytes)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    Ok((file, memory))
}

/// A file of huge pages with the pattern of `seed`, all of it mapped.
pub fn mapped(t: &Fixture, seed: u64) -> Result<(File, Mapping)> {
    t.need_files()?;
    let _allowed = HugeFiles::allow()?;
    let (file, memory) = empty(BYTES)?;
    memory.fill_pattern(seed);
    expect_huge_mapped(memory.range(), BYTES as u64)
        .context("the kernel gave no huge pages to begin with")?;
    Ok((file, memory))
}

/// The same, in blocks of the device.
pub fn resident(t: &Fixture, seed: u64) -> Result<(File, Mapping)> {
    t.allow_huge()?;
    let (file, memory) = mapped(t, seed)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_blocks_in_device(memory.range())?;
    memory.check_pattern(seed)?;
    Ok((file, memory))
}

/// The bytes that the pattern of `seed` has in a file of this size.
fn pattern_bytes(seed: u64) -> Result<Vec<u8>> {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill_pattern(seed);
    Ok(memory.read_bytes(BYTES))
}

fn huge_pages_of_a_file_go_in_and_come_back_whole(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let (_file, memory) = mapped(t, 1)?;
    for round in 0..2 {
        let migration = t.move_all(memory.range(), Direction::ToDevice)?;
        ensure!(migration.moved == memory.pages() as u64, "{migration:?}");
        t.expect_blocks_in_device(memory.range())?;
        expect_huge_mapped(memory.range(), BYTES as u64).context("in the device")?;
        memory.check_pattern(1 + round)?;
        let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
        ensure!(crc == memory.crc32c(BYTES), "the device reads {crc:#010x}");
        memory.fill_pattern(2 + round);
        t.move_all(memory.range(), Direction::ToSystem)?;
        t.expect_in_system(memory.range())?;
        memory.check_pattern(2 + round)?;
        t.expect_free_pages(free)?;
        // The folio is whole; a loaded word is enough to map it so again.
        expect_huge_mapped(memory.range(), BYTES as u64).context("back in system memory")?;
    }
    Ok(())
}

fn huge_pages_of_a_file_are_shared_by_all_who_map_them(t: &Fixture) -> Result<()> {
    let (file, memory) = mapped(t, 3)?;
    let mut child = Child::spawn(|parent| {
        // One mapping that it has from its parent, and one that huge entries cannot map.
        let mine = Mapping::shared_file(&file, BYTES)?;
        memory.check_pattern(3)?;
        mine.check_pattern(3)?;
        parent.meet()?;
        memory.check_pattern(3)?;
        mine.check_pattern(3)?;
        t.expect_in_device(memory.range())?;
        t.expect_in_device(mine.range())?;
        mine.fill_pattern(4);
        parent.meet()?;
        t.expect_in_system(mine.range())?;
        mine.check_pattern(4)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_blocks_in_device(memory.range())?;
    child.release()?;
    child.wait_for_arrival()?;
    memory.check_pattern(4)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(4)?;
    child.release()?;
    child.finish()
}

fn huge_page_that_nobody_maps_comes_home_at_unload(t: &Fixture) -> Result<()> {
    let (file, memory) = resident(t, 5)?;
    drop(memory);
    without_node(t, || {
        let unloaded = module::unload()?;
        let mut found = vec![0; BYTES];
        file.read_exact_at(&mut found, 0)?;
        ensure!(found == pattern_bytes(5)?, "the file holds something else");
        unloaded.reload()
    })
}

fn punch(file: &File, first: usize, pages: usize) -> Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (first * PAGE_BYTES, pages * PAGE_BYTES);
    fallocate(file, flags, offset as i64, length as i64).context("cannot punch a hole")
}

fn hole_in_a_huge_page_gives_its_pages_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let (file, memory) = resident(t, 6)?;
    // Of odd sizes at odd places: what is left is cut into folios of every order.
    let holes = [(3, 1), (77, 130), (HUGE_PAGES - 5, 11)];
    let mut expected = pattern_bytes(6)?;
    let mut left = memory.pages() as u64;
    for (first, pages) in holes {
        punch(&file, first, pages)?;
        expected[first * PAGE_BYTES..(first + pages) * PAGE_BYTES].fill(0);
        left -= pages as u64;
        t.expect_free_pages(free - left)?;
        let mut found = vec![0; BYTES];
        file.read_exact_at(&mut found, 0)?;
        ensure!(
            found == expected,
            "wrong contents after hole {first}+{pages}"
        );
    }
    ensure!(
        memory.read_bytes(BYTES) == expected,
        "the mapping shows something else"
    );
    t.move_all(memory.range(), Direction::ToSystem)?;
    ensure!(memory.read_bytes(BYTES) == expected, "lost on the way back");
    t.expect_free_pages(free)
}

fn truncation_inside_a_huge_page_gives_its_pages_back(t: &Fixture) -> Result<()> {
    const KEPT: usize = HUGE_PAGES + 131;
    let free = t.free_pages()?;
    let (file, memory) = resident(t, 7)?;
    file.set_len((KEPT * PAGE_BYTES) as u64)?;
    t.expect_free_pages(free - KEPT as u64)?;
    memory.check_pattern_pages(7, 0..KEPT)?;
    file.set_len(BYTES as u64)?;
    let mut expected = pattern_bytes(7)?;
    expected[KEPT * PAGE_BYTES..].fill(0);
    ensure!(memory.read_bytes(BYTES) == expected, "wrong contents");
    drop(memory);
    drop(file);
    t.expect_free_pages(free)
}

fn huge_page_that_is_mapped_by_small_entries_comes_back(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let (_file, memory) = resident(t, 8)?;
    memory.protect_pages(0, HUGE_PAGES / 2, ProtFlags::PROT_READ)?;
    memory.check_pattern(8)?;
    expect_huge_mapped(memory.page_range(0, HUGE_PAGES), 0)?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(8)?;
    t.expect_in_system(memory.range())?;
    t.expect_free_pages(free)
}

fn read_and_write_calls_reach_a_block_in_the_device(t: &Fixture) -> Result<()> {
    let (file, memory) = resident(t, 9)?;
    let mut found = vec![0; BYTES];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found == pattern_bytes(9)?, "pread gives wrong contents");
    file.write_all_at(&pattern_bytes(10)?, 0)?;
    memory.check_pattern(10)?;
    let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(crc == memory.crc32c(BYTES), "the device reads {crc:#010x}");
    t.expect_blocks_in_device(memory.range())
}

fn private_copy_of_a_huge_page_leaves_the_block_alone(t: &Fixture) -> Result<()> {
    let (file, memory) = resident(t, 11)?;
    let private = Mapping::private_file(&file, BYTES)?;
    private.check_pattern(11)?;
    private.fill_pattern_pages(12, 5..HUGE_PAGES + 5);
    private.check_pattern_pages(11, 0..5)?;
    private.check_pattern_pages(12, 5..HUGE_PAGES + 5)?;
    private.check_pattern_pages(11, HUGE_PAGES + 5..memory.pages())?;
    memory.check_pattern(11)?;
    t.expect_blocks_in_device(memory.range())
}

fn collapse_of_cut_device_pages_changes_nothing(t: &Fixture) -> Result<()> {
    let (_file, memory) = resident(t, 13)?;
    memory.protect_pages(0, HUGE_PAGES / 2, ProtFlags::PROT_READ)?;
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    memory.protect_pages(0, HUGE_PAGES / 2, all)?;
    memory.check_pattern(13)?;
    let physical = physical_addresses(memory.range())?;
    // The block is whole, so mapping it by one entry again is all that the kernel may do.
    let collapsed = memory.collapse();
    t.note(format!("MADV_COLLAPSE: {collapsed:?}"));
    memory.check_pattern(13)?;
    ensure!(
        physical_addresses(memory.range())? == physical,
        "the pages moved all the same"
    );
    t.expect_blocks_in_device(memory.range())
}

fn huge_page_of_a_file_loses_nothing_where_no_block_is_free(t: &Fixture) -> Result<()> {
    const ROUNDS: u64 = 8;
    /// How long a machine with much else to do may take to free what nobody uses.
    const LATE: Duration = Duration::from_secs(30);
    let filler = fragmented_device(t)?;
    let left = t.free_pages()?;
    let round = |seed| -> Result<()> {
        let (file, memory) = mapped(t, seed)?;
        let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
        ensure!(migration.large == 0, "no block is free: {migration:?}");
        memory.check_pattern(seed)?;
        move_patiently(&t.device, 0, memory.range(), Direction::ToSystem)?;
        memory.check_pattern(seed)?;
        let mut found = vec![0; BYTES];
        file.read_exact_at(&mut found, 0)?;
        ensure!(
            found == pattern_bytes(seed)?,
            "the file holds something else"
        );
        drop(memory);
        drop(file);
        t.expect_free_pages(left)
    };
    // The first round leaves what the kernel keeps for the next ones.
    round(100)?;
    let before = vmstat::free_pages()?;
    for seed in 101..101 + ROUNDS {
        round(seed)?;
    }
    // What is only freed late comes back; what is lost does not.
    wait_until_nothing(LATE, || {
        let lost = before.saturating_sub(vmstat::free_pages()?);
        let is_lost = lost >= HUGE_PAGES as u64 * ROUNDS / 4;
        Ok(is_lost.then(|| format!("{lost} pages less are free after {ROUNDS} rounds")))
    })?;
    drop(filler);
    Ok(())
}
