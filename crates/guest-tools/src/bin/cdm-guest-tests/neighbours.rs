// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whatever else of the kernel works on pages of a process meets device pages
//! too: it must leave them alone or do what it does to any page.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::process;
use cdm_guest_tools::userfault::Userfault;
use cdm_guest_tools::vmstat;
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use crate::fixture::{Fixture, expect_errno, move_patiently, physical_addresses};
use cdm_guest_tools::wait::{wait_until, wait_until_nothing};

crate::tests!("neighbours":
    mlock_of_device_pages_counts_them_as_of_system_pages,
    locked_huge_page_goes_in_and_out_and_is_unlocked_in_the_end,
    ksm_merges_nothing_in_the_device,
    merged_pages_stay_and_move_when_they_are_ones_own,
    advice_cold_pageout_and_free_leaves_device_pages_where_they_are,
    move_pages_tells_and_moves_nothing_of_the_device,
    mbind_leaves_device_pages_where_they_are,
    userfaultfd_moves_a_device_page_to_another_address,
    userfaultfd_write_protection_lives_through_migration,
    soft_offline_of_a_device_page_is_refused,
    smaps_counts_device_pages_as_the_processes_own,
    contents_are_read_and_written_through_another_process,
    core_counters_do_not_drift_over_many_rounds,
);

const PAGES: usize = 64;

/// Waits until the kernel counts `expected` locked pages: it counts them in batches.
fn expect_locked(expected: i64) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    wait_until_nothing(PATIENCE, || {
        let locked = vmstat::Snapshot::take()?.get("nr_mlock");
        if locked == expected {
            return Ok(None);
        }
        // Makes every CPU hand in its batch.
        fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")?;
        Ok(Some(format!(
            "{locked} pages are counted as locked, not {expected}"
        )))
    })
}

fn mlock_of_device_pages_counts_them_as_of_system_pages(t: &Fixture) -> Result<()> {
    let before = vmstat::Snapshot::take()?.get("nr_mlock");
    let memory = t.resident_memory(PAGES, 1)?;
    memory.lock()?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(1)?;
    let locked = process::status_bytes(0, "VmLck")?;
    ensure!(
        locked >= memory.bytes() as u64,
        "VmLck counts {locked} bytes"
    );
    t.move_all(memory.range(), Direction::ToSystem)?;
    t.expect_in_system(memory.range())?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    memory.check_pattern(1)?;
    memory.unlock()?;
    drop(memory);
    expect_locked(before)
}

fn locked_huge_page_goes_in_and_out_and_is_unlocked_in_the_end(t: &Fixture) -> Result<()> {
    let before = vmstat::Snapshot::take()?.get("nr_mlock");
    let memory = t.huge_memory(2, 2)?;
    memory.lock()?;
    for _ in 0..2 {
        t.move_all(memory.range(), Direction::ToDevice)?;
        t.expect_in_device(memory.range())?;
        memory.check_pattern(2)?;
        t.move_all(memory.range(), Direction::ToSystem)?;
        t.expect_in_system(memory.range())?;
        memory.check_pattern(2)?;
    }
    memory.unlock()?;
    drop(memory);
    expect_locked(before)
}

/// The switch of KSM; off again on drop.
struct Merging;

const KSM: &str = "/sys/kernel/mm/ksm";

impl Merging {
    fn start() -> Result<Self> {
        fs::write(format!("{KSM}/sleep_millisecs"), "1")?;
        fs::write(format!("{KSM}/pages_to_scan"), "4096")?;
        fs::write(format!("{KSM}/run"), "1").context("no KSM")?;
        Ok(Self)
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        // 2: unmerges all, too.
        let _ = fs::write(format!("{KSM}/run"), "2");
        let _ = fs::write(format!("{KSM}/run"), "0");
    }
}

fn ksm_figure(name: &str) -> Result<u64> {
    let path = format!("{KSM}/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{path}: {text}"))
}

fn ksm_merges_nothing_in_the_device(t: &Fixture) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    // Equal pages, some here and some there.
    let memory = Mapping::anonymous(2 * PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill(0x5a5e);
    let resident = memory.page_range(0, PAGES);
    t.move_all(resident, Direction::ToDevice)?;
    let physical = physical_addresses(resident)?;
    memory.advise(MmapAdvise::MADV_MERGEABLE)?;
    let merging = Merging::start()?;
    // The other half merges, which shows that KSM was here; two more rounds after that.
    wait_until(PATIENCE, "KSM merges nothing at all", || {
        Ok(ksm_figure("pages_sharing")? >= PAGES as u64 / 2)
    })?;
    let round = ksm_figure("full_scans")?;
    wait_until(PATIENCE, "KSM does not go on", || {
        Ok(ksm_figure("full_scans")? >= round + 2)
    })?;
    let sharing = ksm_figure("pages_sharing")? + ksm_figure("pages_shared")?;
    ensure!(
        sharing <= PAGES as u64,
        "{sharing} pages are merged, of {PAGES} in system memory"
    );
    ensure!(
        physical_addresses(resident)? == physical,
        "KSM changed device pages"
    );
    t.expect_in_device(resident)?;
    memory.check_fill(0x5a5e)?;
    drop(merging);
    memory.check_fill(0x5a5e)?;
    Ok(())
}

/// The kernel would not find the mappings of a merged page again that comes back from the device
/// after KSM has looked for it: whoever touches it would fault for ever.
fn merged_pages_stay_and_move_when_they_are_ones_own(t: &Fixture) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    const OWN: &str = "/proc/self/ksm_merging_pages";
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill(0x3e5e);
    memory.advise(MmapAdvise::MADV_MERGEABLE)?;
    let _merging = Merging::start()?;
    let merged = || -> Result<u64> { Ok(fs::read_to_string(OWN)?.trim().parse()?) };
    wait_until(PATIENCE, "KSM merges nothing", || {
        Ok(merged()? >= PAGES as u64 / 2)
    })?;
    // It stops, and what is merged stays so.
    fs::write(format!("{KSM}/run"), "0")?;
    let merged = merged()?;
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.unsupported == merged && migration.moved == PAGES as u64 - merged,
        "{merged} pages are merged: {migration:?}"
    );
    memory.check_fill(0x3e5e)?;
    memory.fill(0x3e5f);
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_fill(0x3e5f)?;
    Ok(())
}

fn advice_cold_pageout_and_free_leaves_device_pages_where_they_are(t: &Fixture) -> Result<()> {
    let small = t.resident_memory(PAGES, 3)?;
    let huge = t.huge_memory(1, 4)?;
    t.move_all(huge.range(), Direction::ToDevice)?;
    for (memory, seed) in [(&small, 3), (&huge, 4)] {
        let physical = physical_addresses(memory.range())?;
        for advice in [
            MmapAdvise::MADV_COLD,
            MmapAdvise::MADV_PAGEOUT,
            MmapAdvise::MADV_FREE,
        ] {
            memory
                .advise(advice)
                .with_context(|| format!("{advice:?}"))?;
            ensure!(
                physical_addresses(memory.range())? == physical,
                "{advice:?} changed device pages"
            );
            memory.check_pattern(seed)?;
        }
        t.expect_in_device(memory.range())?;
    }
    Ok(())
}

/// move_pages(2) on this process; the status of each page.
pub fn move_pages(memory: &Mapping, to_node: Option<i32>) -> Result<Vec<i32>> {
    const MOVE: libc::c_int = 1 << 1;
    let mut pages: Vec<*mut libc::c_void> = (0..memory.pages())
        .map(|page| memory.page_range(page, 1).start() as *mut libc::c_void)
        .collect();
    let nodes = vec![to_node.unwrap_or(0); pages.len()];
    let mut status = vec![i32::MIN; pages.len()];
    // SAFETY: the three arrays have one entry for each page; the pages are this mapping's, and
    // moving them changes nothing that a program can see.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_mut_ptr(),
            to_node.map_or(std::ptr::null(), |_| nodes.as_ptr()),
            status.as_mut_ptr(),
            MOVE,
        )
    };
    ensure!(
        result >= 0,
        "move_pages: {}",
        std::io::Error::last_os_error()
    );
    Ok(status)
}

fn move_pages_tells_and_moves_nothing_of_the_device(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 5)?;
    let resident = memory.page_range(0, PAGES / 2);
    t.move_all(resident, Direction::ToDevice)?;
    let physical = physical_addresses(resident)?;
    let node = t.start.numa_node.max(0);
    let told = move_pages(&memory, None).context("query")?;
    t.note(format!("query: device pages are {}", told[0]));
    // A device page is on the device's node, or the kernel says that it does not know it.
    for (page, status) in told.iter().enumerate() {
        let is_fine = match page < PAGES / 2 {
            true => *status == node || *status == -libc::ENOENT,
            false => *status == 0,
        };
        ensure!(is_fine, "page {page} is said to be at {status}");
    }
    let moved = move_pages(&memory, Some(0)).context("move")?;
    t.note(format!("move: device pages are {}", moved[0]));
    ensure!(
        physical_addresses(resident)? == physical,
        "move_pages moved device pages"
    );
    t.expect_in_device(resident)?;
    memory.check_pattern(5)?;
    Ok(())
}

fn mbind_leaves_device_pages_where_they_are(t: &Fixture) -> Result<()> {
    const BIND: libc::c_int = 2;
    const MOVE: libc::c_uint = 1 << 1;
    let memory = t.resident_memory(PAGES, 6)?;
    let physical = physical_addresses(memory.range())?;
    let nodes: u64 = 1;
    // SAFETY: the range is this mapping, and the mask is one word, of which 63 bits count.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.address(),
            memory.bytes(),
            BIND,
            &raw const nodes,
            u64::BITS,
            MOVE,
        )
    };
    ensure!(result == 0, "mbind: {}", std::io::Error::last_os_error());
    ensure!(
        physical_addresses(memory.range())? == physical,
        "mbind moved device pages"
    );
    t.expect_in_device(memory.range())?;
    memory.check_pattern(6)?;
    Ok(())
}

fn userfaultfd_moves_a_device_page_to_another_address(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 7)?;
    let physical = physical_addresses(memory.range())?;
    let free = t.free_pages()?;
    let target = Mapping::anonymous(memory.bytes())?;
    target.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    let userfault = Userfault::watch_missing(&target)?;
    userfault.move_memory(&memory, &target)?;
    userfault.leave(&target)?;
    ensure!(
        physical_addresses(target.range())? == physical,
        "UFFDIO_MOVE changed the pages"
    );
    t.expect_in_device(target.range())?;
    target.check_pattern(7)?;
    t.expect_free_pages(free)?;
    let residency = t.device.residency(0, memory.range())?;
    ensure!(
        residency.absent == PAGES as u64,
        "the source still has pages: {residency:?}"
    );
    t.move_all(target.range(), Direction::ToSystem)?;
    target.check_pattern(7)?;
    Ok(())
}

fn userfaultfd_write_protection_lives_through_migration(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 8)?;
    let userfault = Userfault::watch_writes(&memory)?;
    userfault.protect(&memory, true)?;
    for direction in [
        Direction::ToDevice,
        Direction::ToSystem,
        Direction::ToDevice,
    ] {
        t.move_all(memory.range(), direction)?;
        // A store would wait for this thread, so one that does not shows a lost protection.
        let written = thread::scope(|scope| -> Result<bool> {
            let writer = scope.spawn(|| memory.fill_pattern_pages(9, 0..1));
            let was_told = userfault.wait_for_write(Duration::from_secs(10))?;
            userfault.protect(&memory, false)?;
            if writer.join().is_err() {
                bail!("the writer panicked");
            }
            userfault.protect(&memory, true)?;
            Ok(was_told)
        })?;
        ensure!(
            written,
            "a store to protected memory was not reported after a migration {direction:?}"
        );
        memory.check_pattern_pages(9, 0..1)?;
        memory.check_pattern_pages(8, 1..PAGES)?;
    }
    userfault.leave(&memory)
}

fn soft_offline_of_a_device_page_is_refused(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 10)?;
    let physical = physical_addresses(memory.range())?;
    let refused = memory.advise_pages(3, 1, MmapAdvise::MADV_SOFT_OFFLINE);
    expect_errno(refused, Errno::EIO)?;
    ensure!(
        physical_addresses(memory.range())? == physical,
        "the page went elsewhere"
    );
    t.expect_in_device(memory.range())?;
    memory.check_pattern(10)?;
    Ok(())
}

fn smaps_counts_device_pages_as_the_processes_own(t: &Fixture) -> Result<()> {
    let memory = Mapping::huge_aligned(HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(11);
    let fields = [
        "Rss",
        "Pss",
        "Private_Dirty",
        "Anonymous",
        "Shared_Dirty",
        "Swap",
    ];
    let read = || -> Result<Vec<u64>> {
        fields
            .iter()
            .map(|field| Ok(process::smaps_bytes(0, memory.range(), field)?))
            .collect()
    };
    let at_home = read()?;
    let bytes = memory.bytes() as u64;
    ensure!(at_home == [bytes, bytes, bytes, bytes, 0, 0], "{at_home:?}");
    t.move_all(memory.range(), Direction::ToDevice)?;
    let away = read()?;
    ensure!(
        away == at_home,
        "{fields:?} went from {at_home:?} to {away:?}"
    );
    memory.check_pattern(11)?;
    Ok(())
}

fn contents_are_read_and_written_through_another_process(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 12)?;
    // /proc/PID/mem and process_vm_readv take short references to the pages.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?;
    let mut bytes = vec![0; memory.bytes()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, memory.address())?;
    ensure!(bytes == memory.read_bytes(bytes.len()), "/proc/self/mem");
    let other = t.system_memory(PAGES, 13)?;
    let bytes = other.read_bytes(other.bytes());
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, memory.address())?;
    memory.check_pattern(13)?;
    let local = libc::iovec {
        iov_base: other.address() as *mut libc::c_void,
        iov_len: other.bytes(),
    };
    let remote = libc::iovec {
        iov_base: memory.address() as *mut libc::c_void,
        iov_len: memory.bytes(),
    };
    other.fill_pattern(14);
    let process = std::process::id() as i32;
    // SAFETY: both vectors name mappings of this process, which only atomics access.
    let written =
        unsafe { libc::process_vm_writev(process, &raw const local, 1, &raw const remote, 1, 0) };
    ensure!(
        written == memory.bytes() as isize,
        "process_vm_writev wrote {written}"
    );
    memory.check_pattern(14)?;
    t.expect_in_device(memory.range())
}

/// Many rounds of going in, being cut and coming back: a page miscounted in each shows up.
fn core_counters_do_not_drift_over_many_rounds(t: &Fixture) -> Result<()> {
    const ROUNDS: u64 = 24;
    let before = vmstat::Snapshot::take()?;
    for round in 0..ROUNDS {
        let mut memory = Mapping::huge_aligned(2 * HUGE_PAGE_BYTES)?;
        memory.advise(match round % 2 {
            0 => MmapAdvise::MADV_HUGEPAGE,
            _ => MmapAdvise::MADV_NOHUGEPAGE,
        })?;
        memory.fill_pattern(round);
        t.move_all(memory.range(), Direction::ToDevice)?;
        memory.unmap_head((round as usize % 7 + 1) * PAGE_BYTES)?;
        if round % 3 != 0 {
            t.move_all(memory.range(), Direction::ToSystem)?;
        }
    }
    before.compare()
}
