// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Advice about memory, of each kind that touches pages.

use anyhow::{Context, Result, ensure};
use nix::sys::mman::MmapAdvise;

use crate::contents::{Contents, Kind, Region};
use crate::counts::Count;
use crate::deck::Deck;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
const SMALL_PAGES: usize = 96;
const REGIONS: usize = 4;
/// Regions that are no files, which are the first ones.
const ANONYMOUS: usize = 2;

pub const ADVICE: Scenario = Scenario {
    name: "address_space::advice_drops_what_it_says_and_nothing_else",
    property: "MADV_DONTNEED and MADV_REMOVE leave zeroes, MADV_FREE zeroes or what was there, and \
               all other advice the contents.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 200,
    least: &[
        Least::PerThousand(Count::Drop, 50),
        Least::PerThousand(Count::LazyFree, 50),
        Least::PerThousand(Count::Collapse, 50),
        Least::PerThousand(Count::Advice, 160),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::InAll(Count::Foreign, 10),
    ],
    body,
};

/// What a worker does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Rewrite,
    Move,
    /// Contents go now.
    Drop,
    /// Contents may go.
    Free,
    /// Small pages become huge ones.
    Collapse,
    /// Huge ones or small ones from now on.
    Size,
    /// Contents stay.
    Harmless,
}

const WEIGHTS: &[(Step, usize)] = &[
    (Step::Rewrite, 2),
    (Step::Move, 4),
    (Step::Drop, 2),
    (Step::Free, 2),
    (Step::Collapse, 2),
    (Step::Size, 1),
    (Step::Harmless, 5),
];

/// Advice that changes nothing a program sees.
const HARMLESS: &[MmapAdvise] = &[
    MmapAdvise::MADV_COLD,
    MmapAdvise::MADV_PAGEOUT,
    MmapAdvise::MADV_WILLNEED,
    MmapAdvise::MADV_POPULATE_READ,
    MmapAdvise::MADV_POPULATE_WRITE,
];

fn body(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, REGIONS, |hand| {
        let mut regions: [Region; REGIONS] = [
            Region::small(SMALL_PAGES)?,
            Region::huge(2)?,
            Region::file(SMALL_PAGES)?,
            Region::huge_file(1)?,
        ];
        hand.publish_all(&regions);
        let mut deck = Deck::new(WEIGHTS);
        let mut number = 0;
        while hand.stage.round() {
            let step = deck.deal(&mut hand.random);
            let index = hand.random.below(match step {
                // Only memory of a process's own can be freed in this way.
                Step::Free => ANONYMOUS,
                _ => REGIONS,
            });
            take(hand, &mut regions[index], step)
                .with_context(|| format!("{step:?} of region {index}"))?;
            number += 1;
            if number % 8 == 0 {
                hand.verify(&regions)?;
            }
        }
        hand.verify(&regions)
    })
}

fn take(hand: &mut Hand, region: &mut Region, step: Step) -> Result<()> {
    let pages = hand.random.piece(region.own.len());
    let (first, count) = (pages.start, pages.len());
    match step {
        Step::Rewrite => hand.rewrite_some(region),
        Step::Move => drop(hand.move_some(&region.memory)?),
        Step::Drop => {
            let advice = match (&region.kind, hand.random.one_in(2)) {
                (Kind::Anonymous, _) | (_, true) => MmapAdvise::MADV_DONTNEED,
                _ => MmapAdvise::MADV_REMOVE,
            };
            region.memory.advise_pages(first, count, advice)?;
            // A file keeps what only the mapping lost.
            if region.backing().is_none() || advice == MmapAdvise::MADV_REMOVE {
                region.set(pages, |_| Contents::Zeroes);
            }
            hand.stage.add(Count::Drop, 1);
        }
        Step::Free => return free(hand, region),
        Step::Collapse => {
            // Whether there is anything to collapse, and room for it, is the kernel's to say.
            let _ = region.memory.collapse();
            hand.stage.add(Count::Collapse, 1);
        }
        Step::Size => {
            let is_huge = hand.random.one_in(2);
            region.memory.advise(match is_huge {
                true => MmapAdvise::MADV_HUGEPAGE,
                false => MmapAdvise::MADV_NOHUGEPAGE,
            })?;
            hand.stage.add(Count::Advice, 1);
        }
        Step::Harmless => {
            let advice = HARMLESS[hand.random.below(HARMLESS.len())];
            region
                .memory
                .advise_pages(first, count, advice)
                .with_context(|| format!("{advice:?}"))?;
            hand.stage.add(Count::Advice, 1);
        }
    }
    Ok(())
}

/// Lets the kernel drop contents when it likes, until they are written to again.
fn free(hand: &mut Hand, region: &mut Region) -> Result<()> {
    let pages = hand.random.piece(region.own.len());
    region
        .memory
        .advise_pages(pages.start, pages.len(), MmapAdvise::MADV_FREE)
        .context("MADV_FREE")?;
    hand.move_some(&region.memory)?;
    region
        .memory
        .advise_pages(pages.start, pages.len(), MmapAdvise::MADV_PAGEOUT)?;
    for page in pages.clone() {
        let is_old = region.verify(page).is_ok();
        let before = region.contents(page);
        region.set(page..page + 1, |_| Contents::Zeroes);
        ensure!(
            is_old || region.verify(page).is_ok(),
            "page {page} is neither what it was nor zero"
        );
        region.set(page..page + 1, |_| before);
    }
    // Stores make them stay.
    region.rewrite(pages, hand.random.number());
    hand.stage.add(Count::LazyFree, 1);
    Ok(())
}
