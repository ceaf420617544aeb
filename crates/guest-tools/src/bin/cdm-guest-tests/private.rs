// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device memory that the CPU cannot map: a page comes back as soon as a CPU touches it, and the
//! device works on it as long as none does. These tests run with `memory_type=private`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::accelerator::{Elements, Number};
use cdm_guest_tools::batch::{Command, Fate};
use cdm_guest_tools::device::{Bound, Comparison, Device, Direction, Place, Span};
use cdm_guest_tools::iomem;
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::pagemap;
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::uapi::CDM_MEMORY_PRIVATE;
use cdm_protocol::Opcode;
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::fixture::{
    Fixture, expect_errno, expect_free_pages, figure, free_pages, move_patiently,
};
use crate::isolate::{Child, pipe_files};
use crate::{hot, module, unload};

crate::tests!("private":
    driver_and_tools_call_the_memory_private,
    cpu_reads_bring_pages_back_with_equal_bytes,
    cpu_write_brings_back_the_page_that_it_touches_and_no_other,
    cpu_write_brings_a_large_folio_back_as_a_whole,
    part_of_a_large_folio_is_unmapped_and_the_rest_keeps_its_bytes,
    device_works_on_any_part_of_a_large_folio,
    two_threads_that_fault_on_the_same_pages_see_the_same_bytes,
    system_call_reads_and_writes_device_pages,
    another_process_reads_device_pages_through_proc,
    untouched_and_zeroed_memory_moves_as_zeroes,
    contents_are_equal_after_many_round_trips,
    device_checksum_equals_the_cpus_and_pages_stay,
    device_writes_in_place_and_the_cpu_sees_it,
    device_copies_and_compares_between_device_and_system,
    device_counts_atomically_in_place,
    batch_works_on_ranges_of_pages_in_place,
    batch_that_meets_a_hole_tells_what_it_did_before,
    command_on_addresses_works_on_pages_in_place,
    memory_that_commands_use_moves_to_the_device_and_back_to_the_cpu,
    cpu_and_command_on_addresses_take_turns_on_pages,
    child_reads_device_pages_and_the_parent_keeps_its_bytes,
    writes_on_both_sides_of_a_fork_keep_both_right,
    protection_and_mremap_leave_device_pages_alone,
    unmapped_and_dropped_pages_are_free_again,
    shared_memory_does_not_move,
    full_device_takes_a_part_and_gives_all_of_it_back,
    killed_process_leaves_no_page_behind,
    faults_and_migrations_at_the_same_time_lose_no_byte,
    memory_moves_to_another_private_device_and_back,
    large_folio_moves_to_another_private_device_as_a_whole,
    places_tell_private_devices_apart_and_each_brings_home_its_own,
    unload_brings_resident_pages_home,
);

const PAGES: usize = 512;

/// Memory of `pages` single pages with the pattern of `seed`, in the device.
fn resident_pages(t: &Fixture, pages: usize, seed: u64) -> Result<Mapping> {
    let memory = Mapping::anonymous(pages * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(seed);
    t.move_all(memory.range(), Direction::ToDevice)?;
    Ok(memory)
}

/// Memory of one folio of 2 MiB with the pattern of `seed`, in the device as a whole.
fn resident_folio(t: &Fixture, seed: u64) -> Result<Mapping> {
    let memory = Mapping::huge_aligned(HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    memory.fill_pattern(seed);
    let migration = t.move_all(memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.large == PAGES as u64,
        "the folio did not move as a whole: {migration:?}"
    );
    Ok(memory)
}

/// Expects so many pages of a range in the device and all others in system memory.
fn expect_resident(t: &Fixture, range: AddressRange, in_device: u64) -> Result<()> {
    let found = t.device.residency(0, range)?;
    ensure!(
        (found.this_device, found.system) == (in_device, range.pages() - in_device),
        "{in_device} of {} pages should be in the device: {found:?}",
        range.pages()
    );
    Ok(())
}

fn driver_and_tools_call_the_memory_private(t: &Fixture) -> Result<()> {
    ensure!(
        t.start.memory_type == CDM_MEMORY_PRIVATE,
        "the memory type is {}; load the driver with memory_type=private",
        t.start.memory_type
    );
    let name = fs::read_to_string("/sys/class/misc/cdm0/memory_type")?;
    ensure!(name == "private\n", "sysfs calls it {name:?}");
    ensure!(
        t.start.bytes_metadata == 0,
        "struct pages lie in memory that the CPU does not use"
    );
    let named = iomem::resources()?
        .into_iter()
        .filter(|r| r.name == "Device Private Memory")
        .count();
    ensure!(named > 0, "no addresses are reserved in /proc/iomem");
    Ok(())
}

fn cpu_reads_bring_pages_back_with_equal_bytes(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 1)?;
    expect_resident(t, memory.range(), PAGES as u64)?;
    let entries = pagemap::own(memory.range())?;
    ensure!(
        entries.iter().all(|entry| !entry.is_present()),
        "the page table maps pages that the CPU cannot reach"
    );
    let faulted = figure("pages_faulted")?;
    memory.check_pattern(1)?;
    expect_resident(t, memory.range(), 0)?;
    let faulted = figure("pages_faulted")? - faulted;
    ensure!(
        faulted == PAGES as u64,
        "{faulted} pages were counted as faulted back"
    );
    Ok(())
}

fn cpu_write_brings_back_the_page_that_it_touches_and_no_other(t: &Fixture) -> Result<()> {
    let memory = resident_pages(t, PAGES, 2)?;
    let offset = 77 * PAGE_BYTES + 8;
    memory.word(offset).store(0xabcd, Relaxed);
    let places = t.device.places(0, memory.range())?;
    for (page, place) in places.iter().enumerate() {
        let expected = if page == 77 { "System" } else { "ThisDevice" };
        ensure!(
            format!("{place:?}") == expected,
            "page {page} is in {place:?}"
        );
    }
    ensure!(
        memory.word(offset).load(Relaxed) == 0xabcd,
        "the store is lost"
    );
    memory.check_pattern_pages(2, 0..77)?;
    memory.check_pattern_pages(2, 78..PAGES)?;
    Ok(())
}

fn cpu_write_brings_a_large_folio_back_as_a_whole(t: &Fixture) -> Result<()> {
    let memory = resident_folio(t, 22)?;
    expect_resident(t, memory.range(), PAGES as u64)?;
    let offset = 300 * PAGE_BYTES + 8;
    memory.word(offset).store(0xabcd, Relaxed);
    expect_resident(t, memory.range(), 0)?;
    ensure!(
        memory.word(offset).load(Relaxed) == 0xabcd,
        "the store is lost"
    );
    memory.check_pattern_pages(22, 0..300)?;
    memory.check_pattern_pages(22, 301..PAGES)?;
    Ok(())
}

fn part_of_a_large_folio_is_unmapped_and_the_rest_keeps_its_bytes(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = resident_folio(t, 23)?;
    memory.unmap_tail(128 * PAGE_BYTES)?;
    memory.advise_pages(0, 64, MmapAdvise::MADV_DONTNEED)?;
    memory.check_pattern_pages(23, 64..PAGES - 128)?;
    expect_resident(t, memory.page_range(64, PAGES - 192), 0)?;
    t.expect_free_pages(free)
}

fn device_works_on_any_part_of_a_large_folio(t: &Fixture) -> Result<()> {
    let memory = resident_folio(t, 24)?;
    let bytes = memory_bytes(PAGES, 24);
    for (first, pages) in [(0, 1), (1, 1), (16, 32), (255, 2), (511, 1), (100, 412)] {
        let span = Span {
            offset: first * PAGE_BYTES,
            bytes: pages * PAGE_BYTES,
        };
        let crc = t.device.checksum(&memory, span, 0)?;
        let expected = crc32c::crc32c(&bytes[span.offset..span.offset + span.bytes]);
        ensure!(
            crc == expected,
            "pages {first} to {}: the device has {crc:#010x}, the CPU {expected:#010x}",
            first + pages
        );
    }
    expect_resident(t, memory.range(), PAGES as u64)
}

fn two_threads_that_fault_on_the_same_pages_see_the_same_bytes(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 3)?;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| memory.check_pattern(3)))
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().expect("a reader panicked"))
    })?;
    expect_resident(t, memory.range(), 0)
}

fn system_call_reads_and_writes_device_pages(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(4, 4)?;
    let expected = memory_bytes(4, 4);
    let (mut from, to) = pipe_files()?;
    // The pipe takes a page at a time.
    for page in 0..4 {
        let at = memory.address() + (page * PAGE_BYTES) as u64;
        // SAFETY: The page is mapped, and only read.
        let wrote = unsafe {
            libc::write(
                std::os::fd::AsRawFd::as_raw_fd(&to),
                at as *const libc::c_void,
                PAGE_BYTES,
            )
        };
        ensure!(
            wrote == PAGE_BYTES as isize,
            "write from device pages: {wrote}"
        );
        let mut bytes = vec![0; PAGE_BYTES];
        from.read_exact(&mut bytes)?;
        ensure!(
            bytes == expected[page * PAGE_BYTES..][..PAGE_BYTES],
            "page {page} arrived with other bytes"
        );
    }
    // The other way: the kernel stores to a device page.
    t.move_all(memory.range(), Direction::ToDevice)?;
    (&to).write_all(&[0x5a; PAGE_BYTES])?;
    // SAFETY: The page is this mapping's, whose words are accessed by atomics alone.
    let got = unsafe {
        libc::read(
            std::os::fd::AsRawFd::as_raw_fd(&from),
            memory.address() as *mut libc::c_void,
            PAGE_BYTES,
        )
    };
    ensure!(got == PAGE_BYTES as isize, "read into device pages: {got}");
    ensure!(
        memory.read_bytes(PAGE_BYTES) == [0x5a; PAGE_BYTES],
        "the read did not arrive"
    );
    memory.check_pattern_pages(4, 1..4)?;
    Ok(())
}

/// The bytes of a mapping of `pages` pages with a pattern.
fn memory_bytes(pages: usize, seed: u64) -> Vec<u8> {
    (0..pages * PAGE_BYTES / 8)
        .flat_map(|index| cdm_guest_tools::memory::pattern(seed, index).to_ne_bytes())
        .collect()
}

fn another_process_reads_device_pages_through_proc(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(8, 5)?;
    let (address, parent) = (memory.address(), std::process::id());
    let child = Child::spawn(|_| {
        let file = File::open(format!("/proc/{parent}/mem"))?;
        let mut bytes = vec![0; 8 * PAGE_BYTES];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, address)?;
        ensure!(
            bytes == memory_bytes(8, 5),
            "other bytes came through /proc"
        );
        Ok(())
    })?;
    child.finish()?;
    memory.check_pattern(5)?;
    Ok(())
}

fn untouched_and_zeroed_memory_moves_as_zeroes(t: &Fixture) -> Result<()> {
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    // Read only: the zero page is mapped everywhere.
    memory.check_fill(0)?;
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(migration.moved == PAGES as u64, "{migration:?}");
    // What the device holds was something else before.
    let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        crc == crc32c::crc32c(&vec![0; memory.bytes()]),
        "the device has {crc:#010x} for zeroes"
    );
    memory.check_fill(0)?;
    Ok(())
}

fn contents_are_equal_after_many_round_trips(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 6)?;
    for round in 0..8 {
        t.move_all(memory.range(), Direction::ToDevice)?;
        expect_resident(t, memory.range(), PAGES as u64)?;
        if round % 2 == 0 {
            t.move_all(memory.range(), Direction::ToSystem)?;
            expect_resident(t, memory.range(), 0)?;
        }
        memory
            .check_pattern(6)
            .with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn device_checksum_equals_the_cpus_and_pages_stay(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(3 * PAGES, 7)?;
    let expected = memory.crc32c(memory.bytes());
    t.move_all(memory.range(), Direction::ToDevice)?;
    let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        crc == expected,
        "the device has {crc:#010x}, the CPU {expected:#010x}"
    );
    expect_resident(t, memory.range(), 3 * PAGES as u64)?;
    // A piece that starts and ends inside pages.
    let span = Span {
        offset: 1000,
        bytes: 777_777,
    };
    let crc = t.device.checksum(&memory, span, 0)?;
    expect_resident(t, memory.range(), 3 * PAGES as u64)?;
    let bytes = memory_bytes(3 * PAGES, 7);
    let expected = crc32c::crc32c(&bytes[span.offset..span.offset + span.bytes]);
    ensure!(
        crc == expected,
        "the device has {crc:#010x}, the CPU {expected:#010x}"
    );
    memory.check_pattern(7)?;
    Ok(())
}

fn device_writes_in_place_and_the_cpu_sees_it(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 8)?;
    let span = Span {
        offset: 16 * PAGE_BYTES,
        bytes: 32 * PAGE_BYTES,
    };
    t.device
        .fill(&memory, span, 8, 0x1122_3344_5566_7788)?
        .ok()?;
    expect_resident(t, memory.range(), PAGES as u64)?;
    let words = PAGE_BYTES / 8;
    for index in 16 * words..48 * words {
        let found = memory.words()[index].load(Relaxed);
        ensure!(found == 0x1122_3344_5566_7788, "word {index} is {found:#x}");
    }
    memory.check_pattern_pages(8, 0..16)?;
    memory.check_pattern_pages(8, 48..PAGES)?;
    expect_resident(t, memory.range(), 0)
}

fn device_copies_and_compares_between_device_and_system(t: &Fixture) -> Result<()> {
    let resident = t.resident_memory(PAGES, 9)?;
    let system = t.system_memory(PAGES, 10)?;
    let all = Span::all(&resident);
    t.device.copy((&resident, all), (&system, all))?.ok()?;
    expect_resident(t, resident.range(), PAGES as u64)?;
    let same = t.device.compare((&resident, all), (&system, all))?;
    ensure!(same == Comparison::Equal, "copy and original: {same:?}");
    system.check_pattern(9)?;
    system.word(4096 + 16).fetch_xor(1 << 40, Relaxed);
    let found = t.device.compare((&resident, all), (&system, all))?;
    ensure!(
        found == Comparison::DiffersAt(4096 + 16 + 5),
        "the difference is at {found:?}"
    );
    expect_resident(t, resident.range(), PAGES as u64)?;
    resident.check_pattern(9)?;
    Ok(())
}

fn device_counts_atomically_in_place(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(1, 11)?;
    let span = Span {
        offset: 64,
        bytes: 8,
    };
    let start = cdm_guest_tools::memory::pattern(11, 8);
    let before = t.device.fetch_add(&memory, span, 3, 1000)?.ok()?;
    ensure!(
        before == start.wrapping_add(3 * 999),
        "the device found {before:#x}"
    );
    expect_resident(t, memory.range(), 1)?;
    let found = t.device.compare_swap(&memory, span, before, 7)?.ok()?;
    ensure!(
        found == start.wrapping_add(3 * 1000),
        "compare and swap found {found:#x}"
    );
    ensure!(
        memory.word(64).load(Relaxed) == start.wrapping_add(3 * 1000),
        "the CPU finds another count"
    );
    Ok(())
}

fn batch_works_on_ranges_of_pages_in_place(t: &Fixture) -> Result<()> {
    const RANGES: usize = 400;
    const BYTES: usize = 72;
    let source = resident_pages(t, RANGES + 1, 31)?;
    let target = resident_pages(t, RANGES + 1, 32)?;
    let gathered = t.system_memory((RANGES * BYTES).div_ceil(PAGE_BYTES), 33)?;
    let whole = Span {
        offset: 0,
        bytes: RANGES * BYTES,
    };
    // Each lies across two pages, the last ones first.
    let spans = (0..RANGES).rev().map(|index| Span {
        offset: (index + 1) * PAGE_BYTES - 24,
        bytes: BYTES,
    });
    let mut gather = Command::new(Opcode::COPY).destination(&gathered, whole)?;
    let mut scatter = Command::new(Opcode::COPY).source(&gathered, whole)?;
    let mut checksum = Command::new(Opcode::CHECKSUM);
    for span in spans.clone() {
        gather = gather.source(&source, span)?;
        scatter = scatter.destination(&target, span)?;
        checksum = checksum.source(&target, span)?;
    }
    let fence = Command::new(Opcode::FENCE);
    let commands = [gather, fence, scatter, checksum.unordered()];
    let results = t.device.batch(&commands, false)?.ok()?;
    for memory in [&source, &target] {
        expect_resident(t, memory.range(), memory.pages() as u64)?;
    }
    let crc = u64::from(gathered.crc32c(whole.bytes));
    ensure!(results[3] == crc, "{:#x}, not {crc:#x}", results[3]);
    // The CPU's look brings them back.
    let [from, to] = [&source, &target].map(|memory| memory.read_bytes(memory.bytes()));
    let found = gathered.read_bytes(whole.bytes);
    for (span, piece) in spans.zip(found.chunks(BYTES)) {
        let inside = span.offset..span.offset + BYTES;
        ensure!(from[inside.clone()] == *piece, "{span:?} was not gathered");
        ensure!(to[inside] == *piece, "{span:?} was not scattered");
    }
    let counted = Command::new(Opcode::HISTOGRAM)
        .width(8)
        .repeat(9)
        .args(0, 1)
        .source(
            &gathered,
            Span {
                offset: 0,
                bytes: 72,
            },
        )?
        .destination(
            &target,
            Span {
                offset: 0,
                bytes: 72,
            },
        )?;
    let refused = t.device.batch(&[Command::new(Opcode::NOP), counted], false);
    expect_errno(refused, Errno::EOPNOTSUPP)
}

fn batch_that_meets_a_hole_tells_what_it_did_before(t: &Fixture) -> Result<()> {
    let memory = resident_pages(t, 4, 34)?;
    let hole = resident_pages(t, 1, 35)?;
    hole.protect_pages(0, 1, ProtFlags::PROT_NONE)?;
    fn fill(memory: &Mapping, offset: usize) -> std::io::Result<Command<'_>> {
        Command::fill(8, 5).destination(memory, Span { offset, bytes: 64 })
    }
    let commands = [
        fill(&memory, 0)?,
        fill(&hole, 0)?,
        fill(&memory, PAGE_BYTES)?,
    ];
    let done = t.device.batch(&commands, false)?;
    let error = done.error.as_ref().and_then(std::io::Error::raw_os_error);
    ensure!(error == Some(Errno::EFAULT as i32), "{done:?}");
    ensure!(done.fates[0].ok().is_ok(), "{done:?}");
    ensure!(done.fates[1..] == [Fate::NotBegun; 2], "{done:?}");
    ensure!(memory.word(0).load(Relaxed) == 5);
    memory.check_pattern_pages(34, 1..4)?;
    // With nothing done, the call itself fails.
    expect_errno(t.device.batch(&commands[1..], false), Errno::EFAULT)
}

fn command_on_addresses_works_on_pages_in_place(t: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    for memory in [resident_pages(t, 64, 21)?, resident_folio(t, 21)?] {
        let all = Span::all(&memory);
        let crc = bound.checksum(&memory, all, 0)?;
        bound.fill(&memory, all, 8, 5)?.ok()?;
        let elements = Elements {
            number: Number::U64,
            stride: 0,
        };
        let sum = bound.sum(&memory, all, elements, 0)?.ok()?;
        ensure!(sum == 5 * (memory.bytes() / 8) as u64, "sum {sum}");
        expect_resident(t, memory.range(), memory.pages() as u64)?;
        // The CPU's look brings them back.
        memory.check_fill(5)?;
        memory.fill_pattern(21);
        let expected = memory.crc32c(memory.bytes());
        ensure!(crc == expected, "CRC {crc:#x}, not {expected:#x}");
        // And the device finds them where they are now.
        let crc = bound.checksum(&memory, all, 0)?;
        ensure!(crc == expected, "CRC {crc:#x}, not {expected:#x}");
    }
    Ok(())
}

fn memory_that_commands_use_moves_to_the_device_and_back_to_the_cpu(t: &Fixture) -> Result<()> {
    let bound = Bound::open(0)?;
    let memory = hot::granules(4, 31)?;
    let expected = memory.crc32c(memory.bytes());
    bound.move_hot(hot::UNLIMITED)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let pages = memory.pages() as u64;
    while t.device.residency(0, memory.range())?.this_device != pages {
        ensure!(Instant::now() < deadline, "it does not move");
        let crc = bound.checksum(&memory, Span::all(&memory), 0)?;
        ensure!(crc == expected, "CRC {crc:#x}, not {expected:#x}");
    }
    bound.leave_hot()?;
    memory.check_pattern(31)?;
    expect_resident(t, memory.range(), 0)
}

fn cpu_and_command_on_addresses_take_turns_on_pages(t: &Fixture) -> Result<()> {
    const COUNTED: usize = 16;
    const ROUNDS: u64 = 30;
    const EACH: u64 = 50;
    let bound = Bound::open(0)?;
    let memory = Mapping::anonymous(COUNTED * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill(0);
    let one = |page: usize| Span {
        offset: page * PAGE_BYTES,
        bytes: 8,
    };
    // The CPU brings pages back, and waits for the device's copy, while commands wait for them.
    thread::scope(|scope| -> Result<()> {
        let device = scope.spawn(|| -> Result<()> {
            for _ in 0..ROUNDS {
                for page in 0..COUNTED {
                    bound.fetch_add(&memory, one(page), 1, EACH as u32)?.ok()?;
                }
            }
            Ok(())
        });
        let cpu = || -> Result<()> {
            for _ in 0..ROUNDS {
                t.device.migrate(0, memory.range(), Direction::ToDevice)?;
                for page in 0..COUNTED {
                    memory.word(page * PAGE_BYTES).fetch_add(EACH, Relaxed);
                }
            }
            Ok(())
        };
        let cpu = cpu();
        device.join().expect("the thread panics nowhere").and(cpu)
    })?;
    for page in 0..COUNTED {
        let found = memory.word(page * PAGE_BYTES).load(Relaxed);
        let expected = 2 * ROUNDS * EACH;
        ensure!(found == expected, "page {page}: {found}, not {expected}");
    }
    Ok(())
}

fn child_reads_device_pages_and_the_parent_keeps_its_bytes(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 12)?;
    let child = Child::spawn(|_| Ok(memory.check_pattern(12)?))?;
    child.finish()?;
    memory.check_pattern(12)?;
    expect_resident(t, memory.range(), 0)
}

fn writes_on_both_sides_of_a_fork_keep_both_right(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(PAGES, 13)?;
    let mut child = Child::spawn(|parent| {
        // The first half before the parent, the second half after it.
        let half = PAGES / 2 * PAGE_BYTES;
        for page in 0..PAGES / 2 {
            memory.word(page * PAGE_BYTES).store(page as u64, Relaxed);
        }
        parent.meet()?;
        for page in PAGES / 2..PAGES {
            let word = memory.word(page * PAGE_BYTES);
            let index = page * PAGE_BYTES / 8;
            ensure!(
                word.load(Relaxed) == cdm_guest_tools::memory::pattern(13, index),
                "page {page} has what the parent wrote"
            );
            word.store(page as u64, Relaxed);
        }
        for page in 0..PAGES {
            let found = memory.word(page * PAGE_BYTES).load(Relaxed);
            ensure!(found == page as u64, "page {page} has {found}");
        }
        ensure!(half < memory.bytes(), "no second half");
        Ok(())
    })?;
    child.wait_for_arrival()?;
    memory.check_pattern(13)?;
    memory.fill_pattern(14);
    child.release()?;
    child.finish()?;
    memory.check_pattern(14)?;
    Ok(())
}

fn protection_and_mremap_leave_device_pages_alone(t: &Fixture) -> Result<()> {
    let mut memory = t.resident_memory(PAGES, 15)?;
    memory.protect_pages(0, PAGES, ProtFlags::PROT_READ)?;
    expect_resident(t, memory.range(), PAGES as u64)?;
    memory.protect_pages(0, PAGES, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    let before = memory.address();
    memory.move_and_resize(2 * PAGES * PAGE_BYTES)?;
    ensure!(memory.address() != before, "the mapping did not move");
    expect_resident_or_absent(t, memory.page_range(0, PAGES))?;
    memory.check_pattern_pages(15, 0..PAGES)?;
    Ok(())
}

fn expect_resident_or_absent(t: &Fixture, range: AddressRange) -> Result<()> {
    let found = t.device.residency(0, range)?;
    ensure!(found.this_device == range.pages(), "{found:?}");
    Ok(())
}

fn unmapped_and_dropped_pages_are_free_again(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut memory = resident_pages(t, PAGES, 16)?;
    t.expect_free_pages(free - PAGES as u64)?;
    memory.advise_pages(0, 64, MmapAdvise::MADV_DONTNEED)?;
    t.expect_free_pages(free - PAGES as u64 + 64)?;
    memory.unmap_tail(64 * PAGE_BYTES)?;
    t.expect_free_pages(free - PAGES as u64 + 128)?;
    for page in 0..64 {
        let found = memory.word(page * PAGE_BYTES).load(Relaxed);
        ensure!(found == 0, "dropped page {page} still holds {found:#x}");
    }
    memory.check_pattern_pages(16, 64..PAGES - 64)?;
    drop(memory);
    t.expect_free_pages(free)
}

fn shared_memory_does_not_move(t: &Fixture) -> Result<()> {
    let memory = Mapping::shared(64 * PAGE_BYTES)?;
    memory.fill_pattern(17);
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.moved == 0 && migration.failed() == 64,
        "{migration:?}"
    );
    memory.check_pattern(17)?;
    Ok(())
}

fn full_device_takes_a_part_and_gives_all_of_it_back(t: &Fixture) -> Result<()> {
    const EXCESS: u64 = 1024;
    let free = t.free_pages()?;
    let memory = t.system_memory((free + EXCESS) as usize, 18)?;
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(
        (migration.moved, migration.no_memory) == (free, EXCESS),
        "{free} pages have room: {migration:?}"
    );
    expect_resident(t, memory.range(), free)?;
    t.expect_free_pages(0)?;
    // A part by faults, page by page; the rest at once.
    for page in (0..memory.pages()).step_by(128) {
        memory.check_pattern_pages(18, page..page + 1)?;
    }
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(18)?;
    t.expect_free_pages(free)
}

fn killed_process_leaves_no_page_behind(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut child = Child::spawn(|parent| {
        let _memory = t.resident_memory(PAGES, 19)?;
        parent.meet()
    })?;
    child.wait_for_arrival()?;
    t.expect_free_pages(free - PAGES as u64)?;
    child.kill()?;
    t.expect_free_pages(free)
}

fn faults_and_migrations_at_the_same_time_lose_no_byte(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(PAGES, 20)?;
    let device = Device::open(0)?;
    thread::scope(|scope| -> Result<()> {
        let mover = scope.spawn(|| -> Result<u64> {
            let mut moved = 0;
            for _ in 0..20 {
                moved += device
                    .migrate(0, memory.range(), Direction::ToDevice)?
                    .moved;
            }
            Ok(moved)
        });
        while !mover.is_finished() {
            memory.check_pattern(20)?;
        }
        let moved = mover.join().expect("the mover panicked")?;
        t.note(format!("{moved} pages moved while they were read"));
        ensure!(moved >= PAGES as u64, "only {moved} pages moved at all");
        Ok(())
    })?;
    memory.check_pattern(20)?;
    Ok(())
}

/// The other private device of the machine.
fn second() -> Result<Device> {
    let second = Device::open(1).context("these tests want two private devices")?;
    ensure!(
        second.query()?.memory_type == CDM_MEMORY_PRIVATE,
        "the second device is not private"
    );
    Ok(second)
}

/// Moves memory to a device and expects all of it to arrive; pages that moved as large folios.
fn gather(device: &Device, memory: &Mapping) -> Result<u64> {
    let (migration, _) = move_patiently(device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.moved == memory.pages() as u64,
        "device {}: {migration:?}",
        device.number()
    );
    let found = device.residency(0, memory.range())?;
    ensure!(
        found.this_device == memory.pages() as u64,
        "device {}: {found:?}",
        device.number()
    );
    Ok(migration.large)
}

fn memory_moves_to_another_private_device_and_back(t: &Fixture) -> Result<()> {
    let second = second()?;
    let (free, free_second) = (t.free_pages()?, free_pages(&second)?);
    let memory = resident_pages(t, PAGES, 25)?;
    let bytes = memory_bytes(PAGES, 25);
    gather(&second, &memory)?;
    t.expect_free_pages(free)?;
    expect_free_pages(&second, free_second - PAGES as u64)?;
    let crc = second.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        crc == crc32c::crc32c(&bytes),
        "the second device has {crc:#010x}"
    );
    gather(&t.device, &memory)?;
    expect_free_pages(&second, free_second)?;
    expect_resident(t, memory.range(), PAGES as u64)?;
    gather(&second, &memory)?;
    // Faults find the device that the page is in.
    memory.check_pattern(25)?;
    expect_free_pages(&second, free_second)?;
    t.expect_free_pages(free)
}

fn large_folio_moves_to_another_private_device_as_a_whole(t: &Fixture) -> Result<()> {
    let second = second()?;
    let memory = resident_folio(t, 26)?;
    let large = gather(&second, &memory)?;
    ensure!(large == PAGES as u64, "{large} pages moved as a whole");
    let large = gather(&t.device, &memory)?;
    ensure!(large == PAGES as u64, "{large} pages moved back as a whole");
    memory.check_pattern(26)?;
    Ok(())
}

fn places_tell_private_devices_apart_and_each_brings_home_its_own(t: &Fixture) -> Result<()> {
    let second = second()?;
    let memory = t.system_memory(9, 27)?;
    t.move_all(memory.page_range(0, 3), Direction::ToDevice)?;
    let (migration, _) = move_patiently(&second, 0, memory.page_range(3, 3), Direction::ToDevice)?;
    ensure!(migration.moved == 3, "{migration:?}");
    let expect = |device: &Device, a, b| -> Result<()> {
        let places = device.places(0, memory.range())?;
        ensure!(
            places == [[a; 3], [b; 3], [Place::System; 3]].concat(),
            "device {}: {places:?}",
            device.number()
        );
        Ok(())
    };
    expect(&t.device, Place::ThisDevice, Place::OtherDevice)?;
    expect(&second, Place::OtherDevice, Place::ThisDevice)?;
    let home = t.device.migrate(0, memory.range(), Direction::ToSystem)?;
    ensure!(
        (home.moved, home.there, home.unsupported) == (3, 3, 3),
        "{home:?}"
    );
    expect(&second, Place::System, Place::ThisDevice)?;
    memory.check_pattern(27)?;
    Ok(())
}

fn unload_brings_resident_pages_home(t: &Fixture) -> Result<()> {
    unload::without_node(t, || {
        let device = Device::open(0)?;
        let free = free_pages(&device)?;
        let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
        memory.fill_pattern(21);
        let (migration, _) = move_patiently(&device, 0, memory.range(), Direction::ToDevice)?;
        ensure!(migration.moved == PAGES as u64, "{migration:?}");
        drop(device);
        let unloaded = module::unload()?;
        let left = iomem::resources()?
            .into_iter()
            .find(|r| r.name == "Device Private Memory");
        let entries = pagemap::own(memory.range())?;
        let checked = (|| {
            ensure!(left.is_none(), "addresses are still reserved: {left:?}");
            ensure!(
                entries.iter().all(|entry| entry.is_present()),
                "not all pages came home"
            );
            Ok(memory.check_pattern(21)?)
        })();
        unloaded.reload()?;
        checked?;
        let device = Device::open(0)?;
        ensure!(free_pages(&device)? == free, "the device came back smaller");
        let (migration, _) = move_patiently(&device, 0, memory.range(), Direction::ToDevice)?;
        ensure!(migration.moved == PAGES as u64, "{migration:?}");
        memory.check_pattern(21)?;
        Ok(())
    })
}
