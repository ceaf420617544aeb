// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Everything at once: processes and threads with memory of all sizes and kinds, which they write,
//! fork, cut, pin and give to the devices while others move it, and one more process for each
//! device that keeps it full.

mod mover;
mod steps;
mod worker;

use std::fs::File;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, PAGE_BYTES};

use crate::ballast;
use crate::contents::memory_file;
use crate::counts::Count;
use crate::directory::Directory;
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;
use worker::{COMMON_BYTES, Worker};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "mixed::everything",
    property: "Whatever processes do to their memory, and wherever others move it meanwhile, it \
               holds what was stored last.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 300,
    // The numbers go by how often a step is taken and what one does at least, never by how fast
    // anything is: a slow machine makes fewer operations, and of each kind as large a part. A step
    // that is one in thirty is not seen at all in three hundred once in ten thousand runs.
    least: &[
        Least::PerThousand(Count::ToDevice, 60),
        Least::PerThousand(Count::ToSystem, 25),
        Least::PerThousand(Count::Foreign, 10),
        Least::PerThousand(Count::Populate, 10),
        Least::PerThousand(Count::MakeRoom, 10),
        Least::PerThousand(Count::Small, 10),
        Least::PerThousand(Count::PagesToDevice, 3000),
        Least::PerThousand(Count::FilePagesToDevice, 200),
        Least::PerThousand(Count::PagesToSystem, 200),
        Least::PerThousand(Count::PagesLarge, 300),
        Least::PerThousand(Count::PagesNoRoom, 20),
        Least::PerThousand(Count::PagesMadeRoom, 20),
        Least::PerThousand(Count::Evict, 4),
        Least::PerThousand(Count::PagesEvicted, 20),
        Least::PerThousand(Count::PagesHeld, 5),
        Least::PerThousand(Count::PagesLocated, 100),
        Least::PerThousand(Count::Rewrite, 100),
        Least::PerThousand(Count::DeviceStore, 20),
        Least::PerThousand(Count::DeviceRead, 15),
        Least::PerThousand(Count::DeviceCompare, 3),
        Least::PerThousand(Count::DeviceAtomic, 3),
        Least::PerThousand(Count::Fork, 4),
        Least::PerThousand(Count::UnmapPart, 4),
        Least::PerThousand(Count::Remap, 4),
        Least::PerThousand(Count::Protect, 4),
        Least::PerThousand(Count::Drop, 4),
        Least::PerThousand(Count::Pin, 3),
        Least::PerThousand(Count::Truncate, 3),
        Least::PerThousand(Count::Punch, 3),
        Least::PerThousand(Count::ReadWrite, 4),
        Least::PerThousand(Count::Splice, 4),
        Least::PerThousand(Count::PrivateMapping, 3),
        Least::PerThousand(Count::Lock, 3),
        Least::PerThousand(Count::Collapse, 3),
        Least::PerThousand(Count::Shrink, 1),
        Least::PerThousand(Count::Verified, 10000),
    ],
    body: everything,
}];

const PROCESSES: usize = 3;
/// Threads of a process, besides one that moves the memory of others.
const THREADS: usize = 2;

/// What the processes share.
struct Shared<'a> {
    stage: &'a Stage,
    directory: Directory,
    common: File,
}

fn everything(stage: &Stage) -> Result<()> {
    let bytes = (PROCESSES * THREADS * COMMON_BYTES).next_multiple_of(HUGE_PAGE_BYTES);
    let shared = Shared {
        stage,
        directory: Directory::new()?,
        common: memory_file(bytes)?,
    };
    ballast::beside(stage, || {
        stage.processes(PROCESSES, |number| process(&shared, number))
    })
}

/// What a process does: threads that work, and one that moves what all of them work on.
fn process(shared: &Shared<'_>, number: usize) -> Result<()> {
    let seed = |thread: usize| number * (THREADS + 1) + thread;
    shared.stage.threads(THREADS + 1, |thread| match thread {
        THREADS => mover::run(shared, seed(thread)),
        _ => work(shared, seed(thread), number * THREADS + thread),
    })
}

fn work(shared: &Shared<'_>, seed: usize, index: usize) -> Result<()> {
    let pages = COMMON_BYTES / PAGE_BYTES;
    let own = index * pages..(index + 1) * pages;
    let mut worker = Worker::new(shared, seed, own)?;
    ensure!(!worker.devices.is_empty(), "there is no device");
    worker.run().with_context(|| format!("worker {index}"))
}
