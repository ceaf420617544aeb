// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a worker does to its files, one step at a time.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::stores::memory_file;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, copy_file_range, fallocate, posix_fadvise};
use nix::sys::mman::MmapAdvise;
use nix::sys::sendfile::sendfile;

use crate::contents::{Contents, Region};
use crate::counts::Count;
use crate::hand::Hand;

use super::places::Place;

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Stored by the mapping.
    Rewrite,
    Move,
    Read,
    Write,
    Truncate,
    Punch,
    Sync,
    /// Pages of the cache that nobody needs are dropped.
    Forget,
    Sendfile,
    /// Copied from one file to the other by the kernel.
    Copy,
    PrivateMapping,
    /// Unmapped and mapped anew.
    MapAgain,
}

pub const WEIGHTS: &[(Step, usize)] = &[
    (Step::Rewrite, 3),
    (Step::Move, 6),
    (Step::Read, 2),
    (Step::Write, 2),
    (Step::Truncate, 1),
    (Step::Punch, 1),
    (Step::Sync, 1),
    (Step::Forget, 1),
    (Step::Sendfile, 2),
    (Step::Copy, 2),
    (Step::PrivateMapping, 1),
    (Step::MapAgain, 1),
];

/// Takes a step with the file that all workers map, or with the worker's own, which is the second.
pub fn take(hand: &mut Hand, place: &Place, regions: &mut [Region; 2], step: Step) -> Result<()> {
    let index = hand.random.below(regions.len());
    let region = &mut regions[index];
    match step {
        Step::Rewrite => {
            hand.rewrite_some(region);
            Ok(())
        }
        Step::Move => move_file(hand, place, region),
        Step::Read => read(hand, region),
        Step::Write => write(hand, region),
        // What others map may not go under their hands.
        Step::Truncate => truncate(hand, &mut regions[1]),
        Step::Punch => punch(hand, region),
        Step::Sync => sync(hand, region),
        Step::Forget => forget(hand, region),
        Step::Sendfile => send(hand, region),
        Step::Copy => copy(hand, regions, index),
        Step::PrivateMapping => private_mapping(hand, region),
        Step::MapAgain => map_again(hand, region),
    }
}

fn file(region: &Region) -> Result<&File> {
    region.backing().context("it has a file")
}

/// Pages of the worker's own, by chance.
fn own_pages(hand: &mut Hand, region: &Region) -> Range<usize> {
    let piece = hand.random.piece(region.own.len());
    region.own.start + piece.start..region.own.start + piece.end
}

fn offset(page: usize) -> u64 {
    (page * PAGE_BYTES) as u64
}

fn move_file(hand: &mut Hand, place: &Place, region: &Region) -> Result<()> {
    // Also the pages of others.
    let pages = hand.random.piece(region.memory.pages());
    let direction = hand.direction();
    let range = region.memory.page_range(pages.start, pages.len());
    let migration = hand.migrate(range, direction)?;
    if direction == Direction::ToSystem {
        return Ok(());
    }
    hand.stage.add(Count::FilePagesToDevice, migration.moved);
    hand.stage
        .add(Count::Refused, migration.failed() - migration.not_present);
    let can_move = place.can_move && hand.stage.counts().can_be(Count::FilePagesToDevice);
    ensure!(
        can_move || migration.moved + migration.there == 0,
        "pages went to a device that are refused: {migration:?}"
    );
    Ok(())
}

fn read(hand: &mut Hand, region: &Region) -> Result<()> {
    let pages = own_pages(hand, region);
    let mut found = vec![0; pages.len() * PAGE_BYTES];
    file(region)?.read_exact_at(&mut found, offset(pages.start))?;
    expect(region, pages, &found).context("read()")?;
    hand.stage.add(Count::ReadWrite, 1);
    Ok(())
}

/// Compares bytes with what must be in some pages.
fn expect(region: &Region, pages: Range<usize>, found: &[u8]) -> Result<()> {
    for (page, found) in pages.zip(found.chunks(PAGE_BYTES)) {
        ensure!(
            found == region.contents(page).bytes(),
            "page {page} has wrong contents"
        );
    }
    Ok(())
}

fn write(hand: &mut Hand, region: &mut Region) -> Result<()> {
    let pages = own_pages(hand, region);
    let seed = hand.random.number();
    let bytes: Vec<u8> = pages
        .clone()
        .flat_map(|page| Contents::pattern(seed, page).bytes())
        .collect();
    file(region)?.write_all_at(&bytes, offset(pages.start))?;
    region.set(pages, |page| Contents::pattern(seed, page));
    hand.stage.add(Count::ReadWrite, 1);
    Ok(())
}

fn truncate(hand: &mut Hand, region: &mut Region) -> Result<()> {
    let keep = hand.random.below(region.own.len());
    let whole = region.memory.bytes() as u64;
    let file = file(region)?;
    file.set_len(offset(keep)).context("cannot cut the file")?;
    hand.move_some(&region.memory)?;
    file.set_len(whole).context("cannot let the file grow")?;
    region.set(keep..region.own.end, |_| Contents::Zeroes);
    hand.stage.add(Count::Truncate, 1);
    Ok(())
}

fn punch(hand: &mut Hand, region: &mut Region) -> Result<()> {
    let pages = own_pages(hand, region);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (start, length) = (offset(pages.start), pages.len() * PAGE_BYTES);
    fallocate(file(region)?, flags, start as i64, length as i64).context("cannot punch a hole")?;
    region.set(pages, |_| Contents::Zeroes);
    hand.stage.add(Count::Punch, 1);
    Ok(())
}

fn sync(hand: &mut Hand, region: &Region) -> Result<()> {
    match hand.random.one_in(2) {
        true => file(region)?.sync_all(),
        false => file(region)?.sync_data(),
    }
    .context("fsync")?;
    hand.stage.add(Count::Sync, 1);
    Ok(())
}

/// Has the kernel drop pages of the cache: those that are clean, and of disks.
fn forget(hand: &mut Hand, region: &Region) -> Result<()> {
    let pages = own_pages(hand, region);
    region
        .memory
        .advise_pages(pages.start, pages.len(), MmapAdvise::MADV_DONTNEED)?;
    let (start, length) = (offset(pages.start), pages.len() * PAGE_BYTES);
    let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    posix_fadvise(file(region)?, start as i64, length as i64, advice).context("posix_fadvise")?;
    hand.stage.add(Count::Drop, 1);
    Ok(())
}

fn send(hand: &mut Hand, region: &Region) -> Result<()> {
    let pages = own_pages(hand, region);
    let bytes = pages.len() * PAGE_BYTES;
    let to = memory_file(bytes)?;
    let mut from = offset(pages.start) as i64;
    let mut left = bytes;
    while left > 0 {
        let sent = sendfile(&to, file(region)?, Some(&mut from), left).context("sendfile")?;
        ensure!(sent > 0, "sendfile finds the end of the file");
        left -= sent;
    }
    let mut found = vec![0; bytes];
    to.read_exact_at(&mut found, 0)?;
    expect(region, pages, &found).context("sendfile")?;
    hand.stage.add(Count::Sendfile, 1);
    Ok(())
}

/// Copies pages of one file to the other.
fn copy(hand: &mut Hand, regions: &mut [Region; 2], from: usize) -> Result<()> {
    let (source, target) = (
        own_pages(hand, &regions[from]),
        own_pages(hand, &regions[1 - from]),
    );
    let pages = source.len().min(target.len());
    let (mut read, mut written) = (offset(source.start) as i64, offset(target.start) as i64);
    let mut left = pages * PAGE_BYTES;
    while left > 0 {
        let copied = copy_file_range(
            file(&regions[from])?,
            Some(&mut read),
            file(&regions[1 - from])?,
            Some(&mut written),
            left,
        )
        .context("copy_file_range")?;
        ensure!(copied > 0, "copy_file_range finds the end of the file");
        left -= copied;
    }
    for at in 0..pages {
        let contents = regions[from].contents(source.start + at);
        let page = target.start + at;
        regions[1 - from].set(page..page + 1, |_| contents);
    }
    hand.stage.add(Count::ReadWrite, 1);
    Ok(())
}

/// Looks at the file by a mapping whose stores are the process's own, and stores to it.
fn private_mapping(hand: &mut Hand, region: &Region) -> Result<()> {
    let pages = own_pages(hand, region);
    let private = Mapping::private_file(file(region)?, region.memory.bytes())?;
    for page in pages.clone() {
        region
            .verify_in(&private, page)
            .context("a private mapping reads wrong contents")?;
        if page % 2 == 0 {
            private.fill_pattern_pages(5, page..page + 1);
        }
    }
    hand.move_some(&private)?;
    for page in pages.clone() {
        match page % 2 {
            0 => private.check_pattern_pages(5, page..page + 1),
            _ => region.verify_in(&private, page),
        }
        .context("a private mapping")?;
        region
            .verify(page)
            .context("the file beside a private mapping")?;
    }
    hand.stage.add(Count::PrivateMapping, 1);
    Ok(())
}

/// Leaves the pages to the cache alone, looks at them by a call, and maps them anew.
fn map_again(hand: &mut Hand, region: &mut Region) -> Result<()> {
    let file = file(region)?.try_clone()?;
    let before = std::mem::replace(&mut region.memory, Mapping::anonymous(PAGE_BYTES)?);
    drop(before);
    let page = region.own.start + hand.random.below(region.own.len());
    let mut found = vec![0; PAGE_BYTES];
    file.read_exact_at(&mut found, offset(page))?;
    ensure!(
        found == region.contents(page).bytes(),
        "page {page} of a file that is not mapped here has wrong contents"
    );
    let bytes = file.metadata()?.len() as usize;
    region.memory = match hand.random.one_in(2) {
        true => Mapping::huge_aligned_file(&file, bytes)?,
        false => Mapping::shared_file(&file, bytes)?,
    };
    hand.stage.add(Count::MapAgain, 1);
    Ok(())
}
