// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DMA buffers made of memory files, whose pages they pin for long.

use std::fs::File;
use std::io;
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::stores::memory_file;
use cdm_guest_tools::udmabuf::dma_buffer;
use nix::sys::mman::MmapAdvise;

use crate::contents::Region;
use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::patience::HANGS;
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

use super::pinned_frames;

const WORKERS: usize = 2;
const PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;
/// Pages of a buffer, at most.
const BUFFER_MAX: usize = 128;

pub const DMA_BUFFERS: Scenario = Scenario {
    name: "pinning::dma_buffers_of_files_leave_the_device_and_share_their_pages",
    property: "The pages of a memory file that a DMA buffer pins are in system memory at one \
               place, and both ways to them see the same words.",
    needs: Needs {
        files: &["/dev/udmabuf"],
        ..Needs::DEVICE
    },
    alone: false,
    operations: 30,
    least: &[
        Least::PerThousand(Count::DmaBuffer, 1000),
        Least::PerThousand(Count::FilePagesToDevice, 1000),
    ],
    body,
};

fn body(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, 1, |hand| {
        let file = memory_file(PAGES * PAGE_BYTES)?;
        let mut region = Region::common(&file, 0..PAGES)?;
        if hand.index % 2 == 1 {
            // One worker has a huge page, the other small ones.
            region.memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
        }
        let seed = hand.random.number();
        region.rewrite(0..PAGES, seed);
        hand.publish(0, region.memory.range());
        while hand.stage.round() {
            let moved = hand.migrate(region.memory.range(), Direction::ToDevice)?;
            hand.stage.add(Count::FilePagesToDevice, moved.moved);
            buffer(hand, &file, &mut region)?;
            hand.verify(std::slice::from_ref(&region))?;
        }
        Ok(())
    })
}

/// Makes a buffer of a part of the file, as soon as nobody holds a page of it.
fn buffer(hand: &mut Hand, file: &File, region: &mut Region) -> Result<()> {
    let piece = hand.random.piece(PAGES);
    let pages = piece.start..piece.end.min(piece.start + BUFFER_MAX);
    let range = region.memory.page_range(pages.start, pages.len());
    let deadline = Instant::now() + HANGS;
    let buffer = loop {
        match dma_buffer(file, pages.clone()) {
            Ok(buffer) => break buffer,
            Err(error) if is_of_a_holder(&error) && Instant::now() < deadline => {
                thread::yield_now();
            }
            Err(error) => return Err(error),
        }
    };
    hand.stage.add(Count::DmaBuffer, 1);
    // Entries of pages that were moved on the way are there again at the next access.
    hand.verify(std::slice::from_ref(region))?;
    let frames = pinned_frames(hand, range)?;
    let seen = Mapping::shared_file(&buffer, range.bytes() as usize)?;
    let migration = hand.migrate(range, Direction::ToDevice)?;
    ensure!(
        migration.moved + migration.there == 0,
        "pages went to a device that a DMA buffer has: {migration:?}"
    );
    hand.move_some(&region.memory)?;
    let seed = hand.random.number();
    region.rewrite(pages.clone(), seed);
    let found = seen.read_bytes(seen.bytes());
    for (page, found) in pages.clone().zip(found.chunks(PAGE_BYTES)) {
        ensure!(
            found == region.contents(page).bytes(),
            "page {page} is another one in the DMA buffer"
        );
    }
    hand.verify(std::slice::from_ref(region))?;
    ensure!(
        pinned_frames(hand, range)? == frames,
        "pages that a DMA buffer has were moved"
    );
    drop((seen, buffer));
    Ok(())
}

/// Whether a page that somebody holds for a moment explains an error.
fn is_of_a_holder(error: &anyhow::Error) -> bool {
    use nix::errno::Errno;
    let errno = error
        .downcast_ref::<Errno>()
        .map(|errno| *errno as i32)
        .or_else(|| error.downcast_ref::<io::Error>()?.raw_os_error());
    matches!(
        errno,
        Some(libc::EBUSY | libc::EAGAIN | libc::EFAULT | libc::EINTR | libc::ENOMEM)
    )
}
