// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Buffers that io_uring pins for long and does I/O with.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::stores::memory_file;
use io_uring::{IoUring, opcode, types};

use crate::contents::{Contents, KINDS, Region};
use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::pin::Pin;
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

use super::pinned_frames;

const WORKERS: usize = 2;
const SMALL_PAGES: usize = 96;
/// Pages that are pinned at once, at most.
const PINNED_MAX: usize = 64;

pub const BUFFERS: Scenario = Scenario {
    name: "pinning::registered_buffers_leave_the_device_and_stay_where_they_are",
    property: "What io_uring pins for long is in system memory at one place until it lets go, and \
               I/O with it has the right contents.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 40,
    least: &[
        Least::PerThousand(Count::Pin, 1000),
        Least::PerThousand(Count::PinnedIo, 2000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::PerThousand(Count::PagesHeld, 500),
    ],
    body,
};

fn body(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, KINDS, |hand| {
        let mut regions = Region::of_each_kind(SMALL_PAGES)?;
        hand.publish_all(&regions);
        while hand.stage.round() {
            for region in &mut regions {
                hand.rewrite_some(region);
                hand.move_some(&region.memory)?;
            }
            let index = hand.random.below(KINDS);
            pinned(hand, &mut regions[index]).with_context(|| format!("region {index}"))?;
            hand.verify(&regions)?;
        }
        Ok(())
    })
}

fn pinned(hand: &mut Hand, region: &mut Region) -> Result<()> {
    let piece = hand.random.piece(region.own.len());
    let pages = piece.start..piece.end.min(piece.start + PINNED_MAX);
    let range = region.memory.page_range(pages.start, pages.len());
    let mut pin = Pin::new(range, 0)?;
    hand.stage.add(Count::Pin, 1);
    let frames = pinned_frames(hand, range)?;
    for _ in 0..2 {
        // Asked for themselves, and beside what is free to go.
        let migration = hand.migrate(range, Direction::ToDevice)?;
        ensure!(
            migration.moved + migration.there == 0,
            "pages went to a device that are pinned for long: {migration:?}"
        );
        hand.move_some(&region.memory)?;
    }
    let file = memory_file(pages.len() * PAGE_BYTES)?;
    transfer(&mut pin, true, &file, range.start(), pages.len())?;
    let mut found = vec![0; PAGE_BYTES];
    for (at, page) in pages.clone().enumerate() {
        file.read_exact_at(&mut found, (at * PAGE_BYTES) as u64)?;
        ensure!(
            found == region.contents(page).bytes(),
            "io_uring wrote something else of page {page}"
        );
    }
    // And the other way: what is read into the buffer is what the program finds.
    let seed = hand.random.number();
    for (at, page) in pages.clone().enumerate() {
        let bytes = Contents::pattern(seed, page).bytes();
        file.write_all_at(&bytes, (at * PAGE_BYTES) as u64)?;
    }
    transfer(&mut pin, false, &file, range.start(), pages.len())?;
    region.set(pages, |page| Contents::pattern(seed, page));
    hand.stage.add(Count::PinnedIo, 2);
    ensure!(
        pinned_frames(hand, range)? == frames,
        "pages that are pinned for long were moved"
    );
    Ok(())
}

/// Writes a pinned buffer to a file, or reads it from there.
fn transfer(pin: &mut Pin, is_write: bool, file: &File, address: u64, pages: usize) -> Result<()> {
    // In a thread of its own, for the reason that `Pin` has.
    let done = thread::scope(|scope| {
        scope
            .spawn(|| submit(pin.ring(), is_write, file, address, pages * PAGE_BYTES))
            .join()
    });
    done.map_err(|_| anyhow!("the thread that does I/O panicked"))?
}

fn submit(
    ring: &mut IoUring,
    is_write: bool,
    file: &File,
    address: u64,
    bytes: usize,
) -> Result<()> {
    let (fd, length) = (types::Fd(file.as_raw_fd()), bytes as u32);
    let entry = match is_write {
        true => opcode::WriteFixed::new(fd, address as *const u8, length, 0).build(),
        false => opcode::ReadFixed::new(fd, address as *mut u8, length, 0).build(),
    };
    // SAFETY: the buffer is the one that is registered; its memory is a mapping that lives until
    // after the completion, which is waited for, and that only atomics access.
    unsafe { ring.submission().push(&entry) }.context("no room in the ring")?;
    ring.submit_and_wait(1).context("io_uring_enter")?;
    let Some(completion) = ring.completion().next() else {
        bail!("a request without a completion");
    };
    ensure!(
        completion.result() == bytes as i32,
        "fixed I/O of {bytes} bytes ended with {}",
        completion.result()
    );
    Ok(())
}
