// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Direct I/O between a disk and memory that moves (O_DIRECT).

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::stores::{Mounted, xfs_disk};

use crate::contents::{Contents, Region};
use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
const SMALL_PAGES: usize = 64;
/// Pages of a worker's file.
const FILE_PAGES: usize = 64;

pub const DIRECT_IO: Scenario = Scenario {
    name: "pinning::direct_io_reads_and_writes_what_moves",
    property: "O_DIRECT writes what the memory holds and reads what the disk holds, with pages in \
               the device and on their way.",
    needs: Needs {
        files: &["/dev/vda"],
        ..Needs::DEVICE
    },
    alone: false,
    operations: 40,
    least: &[
        Least::PerThousand(Count::DirectPages, 4000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::InAll(Count::Foreign, 10),
    ],
    body,
};

fn body(stage: &Stage) -> Result<()> {
    let mounted = Mounted::new(xfs_disk()?, "xfs", "")?;
    while_moved(stage, WORKERS, 2, |hand| {
        let (file, _name) = direct_file(&mounted, hand.index)?;
        let mut regions = [Region::small(SMALL_PAGES)?, Region::huge(1)?];
        hand.publish_all(&regions);
        let mut stored = vec![Contents::Zeroes; FILE_PAGES];
        while hand.stage.round() {
            for region in &mut regions {
                hand.rewrite_some(region);
                hand.move_some(&region.memory)?;
            }
            let index = hand.random.below(regions.len());
            exchange(hand, &file, &mut stored, &mut regions[index])
                .with_context(|| format!("region {index}"))?;
            hand.verify(&regions)?;
        }
        Ok(())
    })
}

/// A name in a file system; taken away on drop.
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        // What is left goes with the guest.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn direct_file(mounted: &Mounted, index: usize) -> Result<(File, Name)> {
    let name = Name(mounted.path.join(format!("direct{index}")));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&name.0)
        .context("no file for direct I/O")?;
    file.set_len((FILE_PAGES * PAGE_BYTES) as u64)?;
    Ok((file, name))
}

/// Writes some pages of a region to the file, and reads others from there.
fn exchange(
    hand: &mut Hand,
    file: &File,
    stored: &mut [Contents],
    region: &mut Region,
) -> Result<()> {
    for is_write in [true, false] {
        let pages = hand.random.piece(FILE_PAGES.min(region.own.len()));
        let at = hand.random.below(region.own.len() - pages.len() + 1);
        hand.move_some(&region.memory)?;
        let memory = at..at + pages.len();
        let offset = (pages.start * PAGE_BYTES) as u64;
        let done = match is_write {
            true => region.memory.write_pages_to(memory.clone(), file, offset),
            false => region.memory.read_pages_from(memory.clone(), file, offset),
        };
        let done = done.with_context(|| format!("direct I/O, a write: {is_write}"))?;
        ensure!(
            done == pages.len() * PAGE_BYTES,
            "direct I/O did {done} bytes"
        );
        for (page, slot) in memory.zip(pages.clone()) {
            match is_write {
                true => stored[slot] = region.contents(page),
                false => region.set(page..page + 1, |_| stored[slot]),
            }
        }
        hand.stage.add(Count::DirectPages, pages.len() as u64);
    }
    Ok(())
}
