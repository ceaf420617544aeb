// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages that the kernel keeps for hugetlbfs, which no device gets.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::hugetlb::Reserved;
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, PAGE_BYTES};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::contents::{Contents, Region};
use crate::counts::Count;
use crate::deck::Deck;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
/// Each has one huge page of the file for its own.
const HUGE_PAGES: usize = WORKERS;
const PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;

pub const HUGETLB: Scenario = Scenario {
    name: "files::hugetlb_is_refused_and_stays_whole",
    property: "Pages of hugetlbfs are refused for what they are, and their file is the same by \
               every way.",
    needs: Needs {
        files: &["/proc/sys/vm/nr_hugepages"],
        ..Needs::DEVICE
    },
    alone: false,
    operations: 60,
    least: &[
        Least::PerThousand(Count::Refused, 5000),
        Least::PerThousand(Count::Punch, 50),
        Least::PerThousand(Count::ReadWrite, 100),
    ],
    body,
};

/// What is done to the file.
#[derive(Clone, Copy, Debug)]
enum Step {
    Rewrite,
    Move,
    Read,
    Punch,
}

const WEIGHTS: &[(Step, usize)] = &[
    (Step::Rewrite, 2),
    (Step::Move, 4),
    (Step::Read, 2),
    (Step::Punch, 1),
];

fn body(stage: &Stage) -> Result<()> {
    let _reserved = Reserved::new(HUGE_PAGES as u64)?;
    let file = File::from(memfd_create(c"cdm-hugetlb", MFdFlags::MFD_HUGETLB)?);
    file.set_len((HUGE_PAGES * HUGE_PAGE_BYTES) as u64)?;
    while_moved(stage, WORKERS, 1, |hand| {
        let own = hand.index * PAGES..(hand.index + 1) * PAGES;
        let mut region = Region::hugetlb(&file, own)?;
        hand.publish(0, region.memory.range());
        let mut deck = Deck::new(WEIGHTS);
        while hand.stage.round() {
            let step = deck.deal(&mut hand.random);
            take(hand, &file, &mut region, step).with_context(|| format!("{step:?}"))?;
            hand.verify(std::slice::from_ref(&region))?;
        }
        Ok(())
    })
}

fn take(hand: &mut Hand, file: &File, region: &mut Region, step: Step) -> Result<()> {
    match step {
        Step::Rewrite => hand.rewrite_some(region),
        Step::Move => {
            let pages = hand.random.piece(region.memory.pages());
            let range = region.memory.page_range(pages.start, pages.len());
            let migration = hand.migrate(range, Direction::ToDevice)?;
            ensure!(
                migration.unsupported + migration.not_present == migration.asked,
                "pages of hugetlbfs were not all refused for what they are: {migration:?}"
            );
            hand.stage.add(Count::Refused, migration.unsupported);
        }
        Step::Read => {
            let page = region.own.start + hand.random.below(PAGES);
            let mut found = vec![0; PAGE_BYTES];
            file.read_exact_at(&mut found, (page * PAGE_BYTES) as u64)?;
            ensure!(
                found == region.contents(page).bytes(),
                "read() gives something else for page {page}"
            );
            hand.stage.add(Count::ReadWrite, 1);
        }
        Step::Punch => {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let start = (region.own.start * PAGE_BYTES) as i64;
            fallocate(file, flags, start, HUGE_PAGE_BYTES as i64).context("cannot punch a hole")?;
            region.set(region.own.clone(), |_| Contents::Zeroes);
            hand.stage.add(Count::Punch, 1);
        }
    }
    Ok(())
}
