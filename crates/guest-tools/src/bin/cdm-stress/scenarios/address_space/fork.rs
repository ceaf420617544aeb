// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Trees of processes that share pages until somebody writes.

use anyhow::{Context, Result};
use cdm_guest_tools::isolate::Child;

use crate::contents::Region;
use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

/// Generations below a worker.
const DEPTH: usize = 2;
/// Children that each has at a time.
const FANOUT: usize = 2;
/// Processes of a tree: one, two, four.
const TREE_SIZE: usize = (1 << (DEPTH + 1)) - 1;
const WORKERS: usize = 2;
const SMALL_PAGES: usize = 64;
/// Regions of a worker.
const REGIONS: usize = 2;

pub const TREE: Scenario = Scenario {
    name: "address_space::fork_trees_copy_on_write",
    property: "Each process of a tree of forks keeps its own contents, whoever writes and wherever \
               the shared pages go.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 10,
    least: &[
        Least::PerThousand(Count::Fork, 6000),
        Least::PerThousand(Count::PagesToDevice, 20_000),
        Least::PerThousand(Count::PagesToSystem, 2000),
        Least::PerThousand(Count::Rewrite, 10_000),
        Least::InAll(Count::Foreign, 10),
    ],
    body,
};

fn body(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, TREE_SIZE * REGIONS, |hand| {
        let mut regions = [Region::small(SMALL_PAGES)?, Region::huge(1)?];
        while hand.stage.round() {
            write_and_move(hand, &mut regions, 0)?;
            grow(hand, &mut regions, 0, 0)?;
        }
        hand.verify(&regions)
    })
}

/// Changes some pages, and has some moved.
fn write_and_move(hand: &mut Hand, regions: &mut [Region], place: usize) -> Result<()> {
    for (index, region) in regions.iter_mut().enumerate() {
        hand.publish(place * REGIONS + index, region.memory.range());
        hand.rewrite_some(region);
        hand.move_some(&region.memory)?;
    }
    Ok(())
}

/// Has children who do the same and have children of their own; `place` is the process's in the
/// tree.
fn grow(hand: &mut Hand, regions: &mut [Region], place: usize, depth: usize) -> Result<()> {
    if depth == DEPTH {
        return Ok(());
    }
    let mut children = Vec::new();
    for branch in 0..FANOUT {
        let place = place * FANOUT + 1 + branch;
        hand.random.number();
        children.push(Child::spawn(|_| {
            // A copy has the parent's random numbers up to here, and its own from here on.
            (0..place).for_each(|_| {
                hand.random.number();
            });
            hand.verify(regions).context("right after the fork")?;
            write_and_move(hand, regions, place)?;
            grow(hand, regions, place, depth + 1)?;
            hand.verify(regions)
        })?);
    }
    // They write to what they share with this process, and it to what it shares with them.
    write_and_move(hand, regions, place)?;
    for child in children {
        child.finish()?;
        hand.stage.add(Count::Fork, 1);
    }
    hand.verify(regions).context("after the children's end")
}
