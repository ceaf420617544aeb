// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Files of every kind of file system, used in every way while their pages are
//! in the device, or refused by it.

mod hugetlb;
mod places;
mod steps;

use anyhow::{Context, Result};
use cdm_guest_tools::memory::PAGE_BYTES;

use crate::contents::Region;
use crate::counts::Count;
use crate::deck::Deck;
use crate::hand::while_moved;
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

use places::Place;

/// The family.
pub const SCENARIOS: &[Scenario] = &[MEMFD, TMPFS, XFS, EXT4, hugetlb::HUGETLB];

const PROPERTY: &str = "Every way to a file shows the same contents to every process, while its \
                        pages are in the device or come and go.";
const WORKERS: usize = 3;
/// Pages of the file that all workers map, each of which has an equal part of it for its own.
const COMMON_PAGES: usize = WORKERS * 48;
/// Pages of the file that each worker has besides.
const OWN_PAGES: usize = 64;

/// Of a store whose pages can move.
const LEAST: &[Least] = &[
    Least::PerThousand(Count::FilePagesToDevice, 400),
    Least::PerThousand(Count::ReadWrite, 100),
    Least::PerThousand(Count::Truncate, 20),
    Least::PerThousand(Count::Punch, 20),
    Least::PerThousand(Count::Sync, 20),
    Least::PerThousand(Count::Sendfile, 40),
    Least::PerThousand(Count::PrivateMapping, 20),
    Least::PerThousand(Count::MapAgain, 20),
];

const MEMFD: Scenario = Scenario {
    name: "files::memfd_is_the_same_by_every_way",
    property: PROPERTY,
    needs: Needs::DEVICE,
    alone: false,
    operations: 150,
    least: LEAST,
    body: |stage| work(stage, Place::memfd()),
};

const TMPFS: Scenario = Scenario {
    name: "files::tmpfs_is_the_same_by_every_way",
    property: PROPERTY,
    needs: Needs::DEVICE,
    alone: false,
    operations: 150,
    least: LEAST,
    body: |stage| work(stage, Place::tmpfs()?),
};

const XFS: Scenario = Scenario {
    name: "files::xfs_on_a_disk_is_the_same_by_every_way",
    property: PROPERTY,
    needs: Needs {
        files: &["/dev/vda"],
        ..Needs::DEVICE
    },
    alone: false,
    operations: 150,
    least: LEAST,
    body: |stage| work(stage, Place::xfs()?),
};

const EXT4: Scenario = Scenario {
    name: "files::ext4_is_refused_and_stays_whole",
    property: "Pages of a file system that cannot let them go are refused, and the file is the \
               same by every way.",
    needs: Needs {
        // The modules of file systems come with the disk.
        files: &["/dev/vda"],
        ..Needs::DEVICE
    },
    alone: false,
    operations: 150,
    least: &[
        Least::PerThousand(Count::Refused, 1000),
        Least::PerThousand(Count::ReadWrite, 100),
        Least::PerThousand(Count::Truncate, 20),
        Least::PerThousand(Count::Punch, 20),
        Least::PerThousand(Count::Sync, 20),
        Least::PerThousand(Count::Sendfile, 40),
    ],
    body: |stage| work(stage, Place::ext4()?),
};

fn work(stage: &Stage, place: Place) -> Result<()> {
    let common = place.file("common", COMMON_PAGES * PAGE_BYTES)?;
    while_moved(stage, WORKERS, 2, |hand| {
        let own = place.file(&format!("own{}", hand.index), OWN_PAGES * PAGE_BYTES)?;
        let part = COMMON_PAGES / WORKERS;
        let part = hand.index * part..(hand.index + 1) * part;
        let mut regions = [
            Region::common(&common, part)?,
            Region::common(&own, 0..OWN_PAGES)?,
        ];
        let mut deck = Deck::new(steps::WEIGHTS);
        let mut number = 0;
        while hand.stage.round() {
            hand.publish_all(&regions);
            let step = deck.deal(&mut hand.random);
            steps::take(hand, &place, &mut regions, step)
                .with_context(|| format!("{step:?}, the {number}. of worker {}", hand.index))?;
            number += 1;
            if number % 4 == 0 {
                hand.verify(&regions)?;
            }
        }
        hand.verify(&regions)
    })
}
