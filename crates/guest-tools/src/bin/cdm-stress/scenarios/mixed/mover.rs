// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A thread that moves the memory of all processes while they work on it.

use anyhow::{Context, Result};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::random::Random;
use cdm_guest_tools::range::AddressRange;

use super::Shared;
use crate::counts::Count;
use crate::stage::any_options;

/// Moves pieces of what the directory names until the end.
pub fn run(shared: &Shared<'_>, seed: usize) -> Result<()> {
    let stage = shared.stage;
    let devices = stage.devices()?;
    let mut random = stage.random(seed);
    while !stage.is_over() {
        let Some((pid, whole)) = shared.directory.pick(&mut random) else {
            std::thread::yield_now();
            continue;
        };
        let range = piece(&mut random, whole);
        // More often in than out: where everything is at home there is nothing to test.
        let direction = match random.one_in(3) {
            true => Direction::ToSystem,
            false => Direction::ToDevice,
        };
        let device = &devices[random.below(devices.len())];
        let options = any_options(&mut random, direction);
        match device.migrate_with(pid, range, direction, options) {
            Ok(migration) => {
                stage.add(Count::Foreign, 1);
                stage.count_moved(direction, options, &migration)?;
            }
            // The process is at its end, or the entry was half old and half new.
            Err(error) if is_expected(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot move {range} of {pid} {direction:?}, {options:?}")
                });
            }
        }
    }
    Ok(())
}

fn is_expected(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::EINTR | libc::EINVAL)
    )
}

/// A part of a range, in whole pages.
fn piece(random: &mut Random, whole: AddressRange) -> AddressRange {
    /// A range that is made of two entries may be very long.
    const PAGES_MAX: u64 = 4096;
    let pages = whole.pages().clamp(1, PAGES_MAX) as usize;
    let piece = random.piece(pages);
    let start = whole.start() + (piece.start * PAGE_BYTES) as u64;
    AddressRange::new(start, start + (piece.len() * PAGE_BYTES) as u64).unwrap_or(whole)
}
