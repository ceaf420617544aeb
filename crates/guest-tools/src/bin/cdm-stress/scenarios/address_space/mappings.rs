// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Mappings that are cut, moved, protected and locked.

use anyhow::{Context, Result};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use nix::sys::mman::ProtFlags;

use crate::contents::Region;
use crate::counts::Count;
use crate::deck::Deck;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
const SMALL_PAGES: usize = 96;
/// Pieces that a worker has at most.
const PIECES_MAX: usize = 10;
/// Fewer pages than these, and new ones are mapped.
const PAGES_MIN: usize = 128;

pub const PATCHWORK: Scenario = Scenario {
    name: "address_space::mappings_cut_moved_and_protected_keep_their_words",
    property: "What is not unmapped keeps its contents through munmap, mremap and mprotect of it \
               and its neighbours.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 200,
    least: &[
        Least::PerThousand(Count::UnmapPart, 60),
        Least::PerThousand(Count::Remap, 90),
        Least::PerThousand(Count::Protect, 90),
        Least::PerThousand(Count::PagesToDevice, 1000),
        Least::InAll(Count::Foreign, 10),
    ],
    body: |stage| patchwork(stage, WEIGHTS),
};

pub const LOCKED: Scenario = Scenario {
    name: "address_space::locked_pages_move_and_are_unlocked_in_the_end",
    property: "What is locked into memory moves and is cut like all else, and no page is counted \
               as locked when nobody locks it any more.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 200,
    least: &[
        Least::PerThousand(Count::Lock, 150),
        Least::PerThousand(Count::UnmapPart, 40),
        Least::PerThousand(Count::PagesToDevice, 1000),
        Least::InAll(Count::Foreign, 10),
    ],
    body: |stage| patchwork(stage, WEIGHTS_LOCKED),
};

/// What is done to a piece.
#[derive(Clone, Copy)]
enum Step {
    Rewrite,
    Move,
    Cut,
    Remap,
    Resize,
    LeaveEmpty,
    ReadOnly,
    Inaccessible,
    Lock,
}

const WEIGHTS: &[(Step, usize)] = &[
    (Step::Rewrite, 3),
    (Step::Move, 4),
    (Step::Cut, 2),
    (Step::Remap, 1),
    (Step::Resize, 1),
    (Step::LeaveEmpty, 1),
    (Step::ReadOnly, 2),
    (Step::Inaccessible, 1),
];

/// Of a worker that locks its memory.
const WEIGHTS_LOCKED: &[(Step, usize)] = &[
    (Step::Rewrite, 2),
    (Step::Move, 3),
    (Step::Cut, 2),
    (Step::Remap, 1),
    (Step::ReadOnly, 1),
    (Step::Lock, 5),
];

fn patchwork(stage: &Stage, weights: &[(Step, usize)]) -> Result<()> {
    while_moved(stage, WORKERS, PIECES_MAX, |hand| {
        let mut pieces = Vec::new();
        let mut deck = Deck::new(weights);
        let mut number = 0;
        while hand.stage.round() {
            replenish(hand, &mut pieces)?;
            hand.publish_all(&pieces);
            let step = deck.deal(&mut hand.random);
            take(hand, &mut pieces, step)?;
            number += 1;
            if number % 4 == 0 {
                hand.verify(&pieces)?;
            }
        }
        hand.verify(&pieces)
    })
}

/// Maps new memory where too little is left, and drops what is in too many pieces.
fn replenish(hand: &mut Hand, pieces: &mut Vec<Region>) -> Result<()> {
    while pieces.len() > PIECES_MAX - 2 {
        pieces.swap_remove(hand.random.below(pieces.len()));
    }
    while pieces.iter().map(|piece| piece.own.len()).sum::<usize>() < PAGES_MIN {
        let mut new = match hand.random.one_in(2) {
            true => Region::huge(1)?,
            false => Region::small(SMALL_PAGES)?,
        };
        // All of it, so that its parts can be mended after a cut by their protection.
        let seed = hand.random.number();
        new.rewrite(new.own.clone(), seed);
        pieces.push(new);
    }
    Ok(())
}

fn take(hand: &mut Hand, pieces: &mut Vec<Region>, step: Step) -> Result<()> {
    let index = hand.random.below(pieces.len());
    let piece = &mut pieces[index];
    match step {
        Step::Rewrite => hand.rewrite_some(piece),
        Step::Move => drop(hand.move_some(&piece.memory)?),
        Step::Cut => {
            let piece = pieces.swap_remove(index);
            cut(hand, pieces, piece);
        }
        Step::Remap => {
            let target = target(hand, piece.memory.bytes())?;
            piece.memory.move_over(target).context("mremap")?;
            hand.stage.add(Count::Remap, 1);
        }
        Step::Resize => resize(hand, piece)?,
        Step::LeaveEmpty => leave_empty(hand, piece)?,
        Step::ReadOnly => protect(hand, piece, ProtFlags::PROT_READ)?,
        Step::Inaccessible => protect(hand, piece, ProtFlags::PROT_NONE)?,
        Step::Lock => lock(hand, piece)?,
    }
    Ok(())
}

/// Unmaps a part of a piece: its head, its tail, or what is between two parts that stay.
fn cut(hand: &mut Hand, pieces: &mut Vec<Region>, piece: Region) {
    let mut rest = piece;
    let pages = rest.own.len();
    let gone = hand.random.piece(pages);
    if gone.len() == pages {
        hand.stage.add(Count::UnmapPart, 1);
        return;
    }
    if gone.end < pages {
        let (head, tail) = rest.split_at(gone.end);
        pieces.push(tail);
        rest = head;
    }
    if gone.start > 0 {
        let (head, middle) = rest.split_at(gone.start);
        pieces.push(head);
        rest = middle;
    }
    drop(rest);
    hand.stage.add(Count::UnmapPart, 1);
}

/// Room for `bytes` where huge pages fit, or where they cannot.
fn target(hand: &mut Hand, bytes: usize) -> Result<Mapping> {
    const PAGES: usize = HUGE_PAGE_BYTES / PAGE_BYTES;
    let whole = bytes.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES;
    let mut target = Mapping::huge_aligned(whole)?;
    if hand.random.one_in(2) {
        target.unmap_head((1 + hand.random.below(PAGES - 1)) * PAGE_BYTES)?;
    }
    target.unmap_tail(target.bytes() - bytes)?;
    Ok(target)
}

/// Makes a piece shorter or longer, elsewhere.
fn resize(hand: &mut Hand, piece: &mut Region) -> Result<()> {
    const PAGES: usize = 32;
    let pages = piece.own.len();
    let new = match hand.random.one_in(2) {
        true => pages + 1 + hand.random.below(PAGES),
        false => 1 + hand.random.below(pages),
    };
    piece
        .memory
        .move_over(target(hand, new * PAGE_BYTES)?)
        .with_context(|| format!("mremap of {pages} pages to {new}"))?;
    piece.resize(new);
    hand.stage.add(Count::Remap, 1);
    Ok(())
}

/// Moves the pages away and leaves the mapping, which then reads as zeroes.
fn leave_empty(hand: &mut Hand, piece: &mut Region) -> Result<()> {
    let target = target(hand, piece.memory.bytes())?;
    let left = piece
        .memory
        .move_pages_over(target)
        .context("mremap with MREMAP_DONTUNMAP")?;
    left.check_fill(0)
        .context("what MREMAP_DONTUNMAP leaves is not empty")?;
    hand.stage.add(Count::Remap, 1);
    Ok(())
}

/// Takes rights away from some pages, has them moved, and gives the rights back.
fn protect(hand: &mut Hand, piece: &mut Region, protection: ProtFlags) -> Result<()> {
    let pages = hand.random.piece(piece.own.len());
    let (first, count) = (pages.start, pages.len());
    piece.memory.protect_pages(first, count, protection)?;
    let checked = hand
        .move_some(&piece.memory)
        .and_then(|_| match protection {
            ProtFlags::PROT_READ => Ok(piece.verify(first)?),
            _ => Ok(()),
        });
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    piece.memory.protect_pages(first, count, all)?;
    hand.stage.add(Count::Protect, 1);
    checked.with_context(|| format!("memory with {protection:?}"))
}

/// Locks some pages, has them moved, and unlocks the whole piece.
fn lock(hand: &mut Hand, piece: &mut Region) -> Result<()> {
    let pages = hand.random.piece(piece.own.len());
    piece
        .memory
        .lock_pages(pages.start, pages.len())
        .context("cannot lock memory")?;
    let moved = hand.move_some(&piece.memory);
    hand.rewrite_some(piece);
    piece.memory.unlock().context("cannot unlock memory")?;
    hand.stage.add(Count::Lock, 1);
    moved.map(drop)
}
