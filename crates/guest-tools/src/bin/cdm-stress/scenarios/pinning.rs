// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages that somebody holds against their migration: for long, for a request,
//! or in a pipe.

mod buffers;
mod direct_io;
mod dma_buffers;
mod pipes;

use anyhow::{Result, ensure};
use cdm_guest_tools::pagemap;
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::wait::wait_until_nothing;

use crate::hand::Hand;
use crate::patience::HANGS;
use crate::scenario::Scenario;

/// The family.
pub const SCENARIOS: &[Scenario] = &[
    buffers::BUFFERS,
    dma_buffers::DMA_BUFFERS,
    direct_io::DIRECT_IO,
    pipes::PIPES,
];

/// Frames of pages that are pinned for long, none of which is in a device.
fn pinned_frames(hand: &Hand, range: AddressRange) -> Result<Vec<u64>> {
    let mut frames = Vec::new();
    wait_until_nothing(HANGS, || {
        let places = hand.devices[0].residency(0, range)?;
        ensure!(
            places.this_device + places.other_device == 0,
            "pages that are pinned for long are in a device: {places:?}"
        );
        let entries = pagemap::own(range)?;
        frames = entries
            .iter()
            .filter_map(|entry| entry.physical_address())
            .collect();
        let is_whole = frames.len() as u64 == range.pages();
        Ok(
            (!is_whole)
                .then(|| format!("pages that are pinned for long are not there: {places:?}")),
        )
    })?;
    Ok(frames)
}
