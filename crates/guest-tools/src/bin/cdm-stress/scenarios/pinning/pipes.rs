// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages that a pipe holds: lent by a process (vmsplice) or by a file (splice),
//! doubled (tee), and given away to a file.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::stores::memory_file;
use nix::fcntl::{SpliceFFlags, splice, tee};
use nix::unistd::pipe;

use crate::contents::{KINDS, Region};
use crate::counts::Count;
use crate::deck::Deck;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
const SMALL_PAGES: usize = 64;
/// A pipe has room for so many.
const LENT_MAX: usize = 8;
/// The region that is a file.
const FILE: usize = KINDS - 1;

pub const PIPES: Scenario = Scenario {
    name: "pinning::pipes_show_the_pages_that_they_hold",
    property: "A pipe that holds pages of a process or of a file gives their contents, wherever \
               they are asked to go meanwhile.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 60,
    least: &[
        Least::PerThousand(Count::Splice, 1000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::PerThousand(Count::PagesHeld, 500),
    ],
    body,
};

/// Where the pages of a pipe come from and go to.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Lent by the process, and read.
    Lent,
    /// Lent by the process, doubled, and read twice.
    Doubled,
    /// Given away by the process, to a file.
    Given,
    /// Lent by a file, and read.
    OfFile,
    /// Lent by a file, to another one.
    FromFileToFile,
}

const WEIGHTS: &[(Way, usize)] = &[
    (Way::Lent, 2),
    (Way::Doubled, 1),
    (Way::Given, 1),
    (Way::OfFile, 2),
    (Way::FromFileToFile, 1),
];

fn body(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, KINDS, |hand| {
        let mut regions = Region::of_each_kind(SMALL_PAGES)?;
        hand.publish_all(&regions);
        let mut deck = Deck::new(WEIGHTS);
        while hand.stage.round() {
            for region in &mut regions {
                hand.rewrite_some(region);
                hand.move_some(&region.memory)?;
            }
            let way = deck.deal(&mut hand.random);
            let index = match way {
                Way::OfFile | Way::FromFileToFile => FILE,
                _ => hand.random.below(FILE),
            };
            pass(hand, &mut regions[index], way).with_context(|| format!("{way:?}"))?;
            hand.stage.add(Count::Splice, 1);
            hand.verify(&regions)?;
        }
        Ok(())
    })
}

fn pass(hand: &mut Hand, region: &mut Region, way: Way) -> Result<()> {
    let piece = hand.random.piece(region.own.len());
    let pages = piece.start..piece.end.min(piece.start + LENT_MAX);
    let bytes = pages.len() * PAGE_BYTES;
    let expected: Vec<u8> = pages
        .clone()
        .flat_map(|page| region.contents(page).bytes())
        .collect();
    let (from, to) = pipe().context("cannot make a pipe")?;
    match way {
        Way::Lent | Way::Doubled | Way::Given => {
            let flags = match way {
                Way::Given => SpliceFFlags::SPLICE_F_GIFT,
                _ => SpliceFFlags::empty(),
            };
            let lent = region.memory.lend_pages(pages.clone(), to.as_fd(), flags);
            let lent = lent.context("vmsplice")?;
            ensure!(lent == bytes, "vmsplice lent {lent} bytes of {bytes}");
        }
        Way::OfFile | Way::FromFileToFile => {
            let file = region.backing().context("it has a file")?;
            let mut offset = (pages.start * PAGE_BYTES) as i64;
            fill(file, &mut offset, &to, bytes)?;
        }
    }
    // Both the pages that the pipe holds and those beside them.
    let range = region.memory.page_range(pages.start, pages.len());
    let direction = hand.direction();
    hand.migrate(range, direction)?;
    hand.move_some(&region.memory)?;
    match way {
        Way::Lent | Way::OfFile => expect(from, &expected)?,
        Way::Doubled => {
            let (copy, copy_to) = pipe().context("cannot make a pipe")?;
            let doubled = tee(&from, &copy_to, bytes, SpliceFFlags::empty()).context("tee")?;
            ensure!(doubled == bytes, "tee doubled {doubled} bytes of {bytes}");
            hand.migrate(range, direction)?;
            expect(from, &expected)?;
            expect(copy, &expected).context("the second pipe")?;
        }
        Way::Given | Way::FromFileToFile => {
            let file = memory_file(bytes)?;
            empty(&from, &file, bytes)?;
            let mut found = vec![0; bytes];
            file.read_exact_at(&mut found, 0)?;
            ensure!(found == expected, "the file got something else");
        }
    }
    Ok(())
}

/// Lends pages of a file to a pipe.
fn fill(file: &File, offset: &mut i64, to: &OwnedFd, bytes: usize) -> Result<()> {
    let mut left = bytes;
    while left > 0 {
        let lent = splice(file, Some(offset), to, None, left, SpliceFFlags::empty())?;
        ensure!(lent > 0, "splice finds the end of the file");
        left -= lent;
    }
    Ok(())
}

/// Gives what a pipe holds to a file, pages and all where that is possible.
fn empty(from: &OwnedFd, file: &File, bytes: usize) -> Result<()> {
    let (mut offset, mut left) = (0, bytes);
    while left > 0 {
        let flags = SpliceFFlags::SPLICE_F_MOVE;
        let given = splice(from, None, file, Some(&mut offset), left, flags)?;
        ensure!(given > 0, "splice finds the end of the pipe");
        left -= given;
    }
    Ok(())
}

/// Reads a pipe.
fn expect(from: OwnedFd, expected: &[u8]) -> Result<()> {
    let mut found = vec![0; expected.len()];
    File::from(from).read_exact(&mut found)?;
    let differs = found
        .chunks(PAGE_BYTES)
        .zip(expected.chunks(PAGE_BYTES))
        .position(|(found, expected)| found != expected);
    ensure!(
        differs.is_none(),
        "the pipe holds something else for its page {differs:?}"
    );
    Ok(())
}
