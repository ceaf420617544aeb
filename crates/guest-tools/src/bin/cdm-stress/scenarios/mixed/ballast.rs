// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A process that keeps a device full, so that whoever wants room has to fight for it.

use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Options};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use nix::sys::mman::MmapAdvise;

use super::Shared;
use crate::counts::Count;
use crate::stage::Stage;

/// What it leaves free of a device: less than the others want to have there.
const ROOM_BYTES: usize = HUGE_PAGE_BYTES;
/// Pages that it moves at once, at most, into a device that is almost full.
const PIECE_PAGES: usize = 4096;
/// Pages that it compares after each.
const SAMPLES: usize = 16;
/// It is there to be in the way, not to take the processors.
const PAUSE: Duration = Duration::from_millis(50);

/// Fills a device with memory whose contents it knows, says so, and does it again until the end.
pub fn run(shared: &Shared<'_>, number: u32) -> Result<()> {
    let stage = shared.stage;
    let seed = stage.seed().wrapping_add(number.into());
    let device = Device::open(number).with_context(|| format!("device {number}"))?;
    let mut random = Random::new(seed);
    let total = device.query()?.bytes_total as usize;
    ensure!(total > ROOM_BYTES, "a device of {total} bytes has no room");
    let memory = Mapping::huge_aligned((total - ROOM_BYTES) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_HUGEPAGE)?;
    memory.fill_pattern(seed);
    let mut is_first = true;
    while !stage.is_over() {
        let pages = match device.query()?.bytes_free as usize > ROOM_BYTES {
            true => 0..memory.pages(),
            false => some_pages(&mut random, memory.pages()),
        };
        let range = memory.page_range(pages.start, pages.len());
        let options = Options {
            make_room: random.one_in(2),
            ..Options::default()
        };
        stage.migrate(&device, 0, range, Direction::ToDevice, options)?;
        if is_first {
            shared.full.word(0).fetch_add(1, SeqCst);
            is_first = false;
        }
        for _ in 0..SAMPLES {
            let page = pages.start + random.below(pages.len());
            check(&memory, seed, page, stage)?;
        }
        thread::sleep(PAUSE);
    }
    (0..memory.pages()).try_for_each(|page| check(&memory, seed, page, stage))
}

/// Not too many of `total` pages.
fn some_pages(random: &mut Random, total: usize) -> Range<usize> {
    let piece = random.piece(total);
    piece.start..piece.end.min(piece.start + PIECE_PAGES)
}

fn check(memory: &Mapping, seed: u64, page: usize, stage: &Stage) -> Result<()> {
    stage.add(Count::Verified, 1);
    memory
        .check_pattern_pages(seed, page..page + 1)
        .with_context(|| {
            format!(
                "page {page} of {}: wrong contents",
                memory.bytes() / PAGE_BYTES
            )
        })
}
