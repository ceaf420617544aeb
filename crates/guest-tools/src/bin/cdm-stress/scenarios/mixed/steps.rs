// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a worker does to its memory, one step at a time.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Comparison, Direction, Evicted, Span};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::pagemap;
use cdm_guest_tools::random::Random;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, SpliceFFlags, fallocate, splice};
use nix::sys::mman::{MmapAdvise, ProtFlags, mlock, munlock};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};

use super::worker::{HUGE_COUNT, SMALL_PAGES, Worker};
use crate::contents::{Contents, Kind, Region};
use crate::counts::Count;
use crate::pin::Pin;

/// Something that a worker does.
pub struct Step {
    pub name: &'static str,
    /// How often it is chosen among the others.
    pub weight: usize,
    pub run: fn(&mut Worker) -> Result<()>,
}

const fn step(name: &'static str, weight: usize, run: fn(&mut Worker) -> Result<()>) -> Step {
    Step { name, weight, run }
}

/// Every step as often as its weight says, in any order. Dealt out of such a deck, each kind has its
/// share of however few operations a slow machine makes.
pub fn shuffled(random: &mut Random) -> Vec<&'static Step> {
    let mut deck: Vec<&Step> = STEPS
        .iter()
        .flat_map(|step| std::iter::repeat_n(step, step.weight))
        .collect();
    for last in (1..deck.len()).rev() {
        deck.swap(last, random.below(last + 1));
    }
    deck
}

/// Every step.
const STEPS: &[Step] = &[
    step("to device", 20, to_device),
    step("to system", 10, to_system),
    step("rewrite", 10, rewrite),
    step("device fill", 5, device_fill),
    step("device copy", 5, device_copy),
    step("device checksum", 8, device_checksum),
    step("device comparison", 3, device_comparison),
    step("device atomics", 3, device_atomics),
    step("evict", 4, evict),
    step("locate", 4, locate),
    step("fork", 4, fork_child),
    step("unmap part", 4, unmap_part),
    step("mremap", 4, remap),
    step("mprotect", 4, protect_part),
    step("drop", 4, drop_contents),
    step("pin", 4, pin),
    step("truncate", 3, truncate),
    step("punch", 3, punch),
    step("read and write", 4, read_and_write),
    step("splice", 4, splice_pages),
    step("private mapping", 3, private_mapping),
    step("lock", 3, lock),
    step("collapse", 3, collapse),
    step("shrink", 1, shrink),
];

fn to_device(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    // Of a common file also the pages of others.
    let pages = w.random.piece(w.regions[region].memory.pages());
    w.migrate(region, &pages, Direction::ToDevice).map(drop)
}

fn to_system(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.random.piece(w.regions[region].memory.pages());
    w.migrate(region, &pages, Direction::ToSystem).map(drop)
}

fn rewrite(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.own_pages(region);
    let seed = w.random.number();
    w.stage.add(Count::Rewrite, pages.len() as u64);
    w.regions[region].rewrite(pages, seed);
    Ok(())
}

fn span(pages: &Range<usize>) -> Span {
    Span {
        offset: pages.start * PAGE_BYTES,
        bytes: pages.len() * PAGE_BYTES,
    }
}

fn device_fill(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.own_pages(region);
    let value = w.random.number();
    let device = w.random.below(w.devices.len());
    let target = &mut w.regions[region];
    w.devices[device]
        .fill(&target.memory, span(&pages), 8, value)?
        .ok()?;
    target.set(pages, |_| Contents::Fill(value));
    w.stage.add(Count::DeviceStore, 1);
    Ok(())
}

fn device_copy(w: &mut Worker) -> Result<()> {
    let (from, to) = (w.any_region(), w.any_region());
    if from == to {
        return Ok(());
    }
    let (source, target) = (w.own_pages(from), w.own_pages(to));
    let pages = source.len().min(target.len());
    let source = source.start..source.start + pages;
    let target = target.start..target.start + pages;
    let device = w.random.below(w.devices.len());
    w.devices[device]
        .copy(
            (&w.regions[from].memory, span(&source)),
            (&w.regions[to].memory, span(&target)),
        )?
        .ok()?;
    let copied: Vec<Contents> = source.map(|page| w.regions[from].contents(page)).collect();
    let first = target.start;
    w.regions[to].set(target, |page| copied[page - first]);
    w.stage.add(Count::DeviceStore, 1);
    Ok(())
}

fn device_checksum(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.own_pages(region);
    let device = w.random.below(w.devices.len());
    let region = &w.regions[region];
    let by_device = w.devices[device].checksum(&region.memory, span(&pages), 0)?;
    let by_cpu = pages.fold(0, |crc, page| {
        crc32c::crc32c_append(crc, &region.contents(page).bytes())
    });
    ensure!(
        by_device == by_cpu,
        "the device computes {by_device:#010x}, the CPU {by_cpu:#010x}"
    );
    w.stage.add(Count::DeviceRead, 1);
    Ok(())
}

fn device_comparison(w: &mut Worker) -> Result<()> {
    let (a, b) = (w.any_region(), w.any_region());
    let pages = (w.own_pages(a), w.own_pages(b));
    let count = pages.0.len().min(pages.1.len());
    let device = w.random.below(w.devices.len());
    let told = w.devices[device].compare(
        (
            &w.regions[a].memory,
            span(&(pages.0.start..pages.0.start + count)),
        ),
        (
            &w.regions[b].memory,
            span(&(pages.1.start..pages.1.start + count)),
        ),
    )?;
    let contents = |region: usize, first: usize, page: usize| {
        let region: &Region = &w.regions[region];
        region.contents(first + page).bytes()
    };
    let differs = (0..count).find_map(|page| {
        let (left, right) = (
            contents(a, pages.0.start, page),
            contents(b, pages.1.start, page),
        );
        let byte = left.iter().zip(&right).position(|(l, r)| l != r)?;
        Some((page * PAGE_BYTES + byte) as u64)
    });
    let expected = differs.map_or(Comparison::Equal, Comparison::DiffersAt);
    ensure!(
        told == expected,
        "the device compares and finds {told:?}, not {expected:?}"
    );
    w.stage.add(Count::DeviceCompare, 1);
    Ok(())
}

/// A number of the worker's own that the device adds to and exchanges, and puts back as it was.
fn device_atomics(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.own_pages(region);
    let device = w.random.below(w.devices.len());
    let addend = w.random.number();
    let repeat = 1 + w.random.below(100) as u32;
    let memory = &w.regions[region].memory;
    let place = Span {
        offset: pages.start * PAGE_BYTES,
        bytes: size_of::<u64>(),
    };
    let device = &w.devices[device];
    let before = w.regions[region].contents(pages.start).word(0);
    let sum = before.wrapping_add(addend.wrapping_mul(repeat.into()));
    let added = device.fetch_add(memory, place, addend, repeat)?.ok()?;
    let exchanged = device.compare_swap(memory, place, sum, before)?.ok()?;
    // What it found before the last addition.
    let last = sum.wrapping_sub(addend);
    ensure!(
        (added, exchanged) == (last, sum),
        "the device finds {added:#x} and {exchanged:#x}, not {last:#x} and {sum:#x}"
    );
    w.stage.add(Count::DeviceAtomic, 1);
    Ok(())
}

/// Brings pages out of a device by their frames, or those that have been there longest, whoever they
/// belong to.
fn evict(w: &mut Worker) -> Result<()> {
    /// Few enough to leave the others something to move.
    const PAGES_MAX: usize = 512;
    let device = w.random.below(w.devices.len());
    let limit = 1 + w.random.below(PAGES_MAX) as u64;
    let which = match w.random.below(3) {
        0 => Evicted::Oldest,
        1 => any_frames(w, device)?,
        _ => match own_frame(w, device)? {
            Some(frame) => frame,
            None => Evicted::Oldest,
        },
    };
    w.stage.evict(&w.devices[device], which, limit).map(drop)
}

/// Some frames of a device that pages can have.
fn frames(w: &Worker, device: usize) -> Result<Range<u64>> {
    let query = w.devices[device].query()?;
    let start = query.base + query.bytes_metadata;
    Ok(start..start + query.bytes_total)
}

fn any_frames(w: &mut Worker, device: usize) -> Result<Evicted> {
    let all = frames(w, device)?;
    let pages = (all.end - all.start) as usize / PAGE_BYTES;
    let piece = w.random.piece(pages);
    let address = |page: usize| all.start + (page * PAGE_BYTES) as u64;
    Ok(Evicted::Frames(address(piece.start), address(piece.end)))
}

/// The frame of a page of the worker's own, if it is in that device.
fn own_frame(w: &mut Worker, device: usize) -> Result<Option<Evicted>> {
    let all = frames(w, device)?;
    let region = w.any_region();
    let pages = w.own_pages(region);
    let range = w.regions[region]
        .memory
        .page_range(pages.start, pages.len());
    let entries = pagemap::own(range).context("cannot read the page map")?;
    let mut found = entries.iter().filter_map(|entry| entry.physical_address());
    let inside = found.find(|address| all.contains(address));
    Ok(inside.map(|start| Evicted::Frames(start, start + PAGE_BYTES as u64)))
}

/// Asks where the pages of a region are.
fn locate(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.random.piece(w.regions[region].memory.pages());
    let range = w.regions[region]
        .memory
        .page_range(pages.start, pages.len());
    let device = w.random.below(w.devices.len());
    let found = w.devices[device].residency(0, range)?;
    let sum = found.absent + found.system + found.this_device + found.other_device;
    ensure!(
        sum == range.pages() && found.large <= found.this_device,
        "the places of {} pages do not add up: {found:?}",
        range.pages()
    );
    w.stage.add(Count::PagesLocated, sum);
    Ok(())
}

/// Exit status of a child that found wrong contents.
const WRONG: i32 = 101;

/// Part of [`fork_child`] that runs in the child. Other threads may have held any lock at the fork,
/// so it takes none; it only touches memory.
fn child(w: &Worker) -> i32 {
    for region in &w.regions {
        let is_private = matches!(region.kind, Kind::Anonymous);
        for page in region.own.clone() {
            // What is shared the parent goes on to write to.
            if is_private && region.verify(page).is_err() {
                return WRONG;
            }
        }
        if is_private {
            // Every other page, so that a block is cut on both sides.
            for page in region.own.clone().step_by(2) {
                region.memory.fill_pattern_pages(77, page..page + 1);
            }
            if region.memory.check_pattern_pages(77, 0..1).is_err() {
                return WRONG;
            }
        }
    }
    0
}

fn fork_child(w: &mut Worker) -> Result<()> {
    // SAFETY: the child takes no lock: it loads and stores in its mappings and ends.
    let pid = match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            let status = child(w);
            // SAFETY: `_exit` takes any status and does not return.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => child,
    };
    // The parent copies on write meanwhile.
    let region = w.any_region();
    let pages = w.own_pages(region);
    let seed = w.random.number();
    w.regions[region].rewrite(pages, seed);
    let status = loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => {}
            other => break other.context("cannot wait for a child")?,
        }
    };
    w.stage.add(Count::Fork, 1);
    match status {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, WRONG) => bail!("a child found wrong contents in its copy"),
        other => bail!("a child ended with {other:?}"),
    }
}

fn unmap_part(w: &mut Worker) -> Result<()> {
    let Some(index) = pick(w, |region| matches!(region.kind, Kind::Anonymous)) else {
        return Ok(());
    };
    w.stage.add(Count::UnmapPart, 1);
    let pages = w.regions[index].memory.pages();
    if pages > SMALL_PAGES / 4 && !w.random.one_in(4) {
        let gone = 1 + w.random.below(pages / 2);
        let region = &mut w.regions[index];
        region.memory.unmap_tail(gone * PAGE_BYTES)?;
        region.forget_tail(gone);
    } else {
        w.regions[index] = match w.regions[index].is_huge {
            true => Region::huge(HUGE_COUNT)?,
            false => Region::small(SMALL_PAGES)?,
        };
    }
    Ok(())
}

fn remap(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let bytes = w.regions[region].memory.bytes();
    // To where huge pages fit, or to where they cannot.
    let mut target =
        Mapping::huge_aligned(bytes.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES)?;
    if w.random.one_in(2) {
        target.unmap_head((1 + w.random.below(511)) * PAGE_BYTES)?;
    }
    target.unmap_tail(target.bytes() - bytes)?;
    w.regions[region].memory.move_over(target)?;
    w.stage.add(Count::Remap, 1);
    Ok(())
}

fn protect_part(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.random.piece(w.regions[region].memory.pages());
    let region = &w.regions[region];
    let memory = &region.memory;
    memory.protect_pages(pages.start, pages.len(), ProtFlags::PROT_READ)?;
    let first = pages.start.max(region.own.start);
    let checked = match first < pages.end.min(region.own.end) {
        true => region.verify(first),
        false => Ok(()),
    };
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    memory.protect_pages(pages.start, pages.len(), all)?;
    w.stage.add(Count::Protect, 1);
    checked.context("read-only memory: wrong contents")
}

fn drop_contents(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.own_pages(region);
    let region = &mut w.regions[region];
    let (first, count) = (pages.start, pages.len());
    region
        .memory
        .advise_pages(first, count, MmapAdvise::MADV_DONTNEED)?;
    // A file keeps what only the mapping lost.
    if matches!(region.kind, Kind::Anonymous) {
        region.set(pages, |_| Contents::Zeroes);
    }
    w.stage.add(Count::Drop, 1);
    Ok(())
}

fn pin(w: &mut Worker) -> Result<()> {
    const OPERATIONS_MAX: usize = 3;
    if let Some(pin) = &mut w.pin {
        match pin.left.checked_sub(1) {
            Some(left) => pin.left = left,
            None => w.pin = None,
        }
        return Ok(());
    }
    let region = w.any_region();
    let pages = w.own_pages(region);
    let range = w.regions[region]
        .memory
        .page_range(pages.start, pages.len());
    let left = w.random.below(OPERATIONS_MAX);
    w.pin = Some(Pin::new(range, left)?);
    w.stage.add(Count::Pin, 1);
    // Nobody may pin device memory for long, so none of it is there now, and none goes there.
    let migration = w.migrate(region, &pages, Direction::ToDevice)?;
    ensure!(
        migration.moved + migration.there == 0,
        "pages are in a device that are pinned for long: {migration:?}"
    );
    w.verify(region, pages)
}

/// A region of the worker's that satisfies `wanted`, by chance.
fn pick(w: &mut Worker, wanted: impl Fn(&Region) -> bool) -> Option<usize> {
    let fitting: Vec<usize> = (0..w.regions.len())
        .filter(|index| wanted(&w.regions[*index]))
        .collect();
    (!fitting.is_empty()).then(|| fitting[w.random.below(fitting.len())])
}

fn truncate(w: &mut Worker) -> Result<()> {
    let Some(index) = pick(w, |region| matches!(region.kind, Kind::File(_))) else {
        return Ok(());
    };
    let keep = w.random.below(w.regions[index].own.len());
    let region = &mut w.regions[index];
    let Kind::File(file) = &region.kind else {
        return Ok(());
    };
    file.set_len((keep * PAGE_BYTES) as u64)?;
    file.set_len(region.memory.bytes() as u64)?;
    region.set(keep..region.own.end, |_| Contents::Zeroes);
    w.stage.add(Count::Truncate, 1);
    Ok(())
}

fn punch(w: &mut Worker) -> Result<()> {
    let Some(index) = pick(w, |region| region.backing().is_some()) else {
        return Ok(());
    };
    let pages = w.own_pages(index);
    let region = &mut w.regions[index];
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (pages.start * PAGE_BYTES, pages.len() * PAGE_BYTES);
    let file = region.backing().context("it has a file")?;
    fallocate(file, flags, offset as i64, length as i64).context("cannot punch a hole")?;
    region.set(pages, |_| Contents::Zeroes);
    w.stage.add(Count::Punch, 1);
    Ok(())
}

fn read_and_write(w: &mut Worker) -> Result<()> {
    let Some(index) = pick(w, |region| region.backing().is_some()) else {
        return Ok(());
    };
    let pages = w.own_pages(index);
    let seed = w.random.number();
    let region = &mut w.regions[index];
    let file = region.backing().context("it has a file")?;
    let mut found = vec![0; PAGE_BYTES];
    for page in pages.clone() {
        let offset = (page * PAGE_BYTES) as u64;
        file.read_exact_at(&mut found, offset)?;
        ensure!(
            found == region.contents(page).bytes(),
            "region {index}, page {page}: read() gives wrong contents"
        );
        if page % 2 == 0 {
            file.write_all_at(&Contents::pattern(seed, page).bytes(), offset)?;
        }
    }
    for page in pages.filter(|page| page % 2 == 0) {
        region.set(page..page + 1, |page| Contents::pattern(seed, page));
    }
    w.stage.add(Count::ReadWrite, 1);
    Ok(())
}

fn splice_pages(w: &mut Worker) -> Result<()> {
    /// A pipe has room for so many.
    const PAGES_MAX: usize = 8;
    let Some(index) = pick(w, |region| region.backing().is_some()) else {
        return Ok(());
    };
    let pages = w.own_pages(index);
    let pages = pages.start..pages.end.min(pages.start + PAGES_MAX);
    let (from, to) = pipe().context("cannot make a pipe")?;
    let mut offset = (pages.start * PAGE_BYTES) as i64;
    let mut left = pages.len() * PAGE_BYTES;
    let file = w.regions[index].backing().context("it has a file")?;
    while left > 0 {
        let flags = SpliceFFlags::empty();
        let lent = splice(file, Some(&mut offset), &to, None, left, flags).context("splice")?;
        ensure!(lent > 0, "splice finds the end of the file");
        left -= lent;
    }
    // The pipe holds the pages of the file now; they must not move away under it.
    w.migrate(index, &pages, Direction::ToDevice)?;
    let mut found = vec![0; PAGE_BYTES];
    let mut from = fs::File::from(from);
    for page in pages {
        std::io::Read::read_exact(&mut from, &mut found)?;
        ensure!(
            found == w.regions[index].contents(page).bytes(),
            "region {index}, page {page}: the pipe holds wrong contents"
        );
    }
    w.stage.add(Count::Splice, 1);
    Ok(())
}

fn private_mapping(w: &mut Worker) -> Result<()> {
    let Some(index) = pick(w, |region| region.backing().is_some()) else {
        return Ok(());
    };
    let pages = w.own_pages(index);
    let region = &w.regions[index];
    let file = region.backing().context("it has a file")?;
    let private = Mapping::private_file(file, region.memory.bytes())?;
    for page in pages.clone() {
        let read = region.verify_in(&private, page);
        read.with_context(|| format!("region {index}: a private mapping reads wrong contents"))?;
        if page % 2 == 0 {
            private.fill_pattern_pages(5, page..page + 1);
            private.check_pattern_pages(5, page..page + 1)?;
        }
    }
    w.stage.add(Count::PrivateMapping, 1);
    // The file has none of it.
    w.verify(index, pages)
}

fn lock(w: &mut Worker) -> Result<()> {
    let region = w.any_region();
    let pages = w.random.piece(w.regions[region].memory.pages());
    let range = w.regions[region]
        .memory
        .page_range(pages.start, pages.len());
    let start = NonNull::new(range.start() as *mut libc::c_void).context("mapped above zero")?;
    let bytes = range.bytes() as usize;
    // SAFETY: the range is the worker's own mapping; locking changes nothing that a program sees.
    unsafe { mlock(start, bytes) }.context("cannot lock memory")?;
    w.migrate(region, &pages, Direction::ToDevice)?;
    // SAFETY: as above.
    unsafe { munlock(start, bytes) }.context("cannot unlock memory")?;
    w.stage.add(Count::Lock, 1);
    Ok(())
}

fn collapse(w: &mut Worker) -> Result<()> {
    let Some(index) = pick(w, |region| region.is_huge) else {
        return Ok(());
    };
    // Whether there is anything to collapse, and room for it, is the kernel's to say.
    let _ = w.regions[index].memory.collapse();
    w.stage.add(Count::Collapse, 1);
    Ok(())
}

fn shrink(w: &mut Worker) -> Result<()> {
    let (path, value) = match w.random.below(3) {
        0 => ("/proc/sys/vm/compact_memory", "1"),
        1 => ("/proc/sys/vm/drop_caches", "1"),
        _ => ("/proc/sys/vm/drop_caches", "2"),
    };
    fs::write(path, value).with_context(|| format!("cannot write to {path}"))?;
    w.stage.add(Count::Shrink, 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deck_has_each_step_as_often_as_it_weighs_in_an_order_of_its_own() {
        let names = |seed| -> Vec<&str> {
            let deck = shuffled(&mut Random::new(seed));
            deck.iter().map(|step| step.name).collect()
        };
        let (one, other) = (names(1), names(2));
        for step in STEPS {
            let times = one.iter().filter(|name| **name == step.name).count();
            assert_eq!(times, step.weight, "{}", step.name);
        }
        assert_eq!(one, names(1));
        assert_ne!(one, other);
    }
}
