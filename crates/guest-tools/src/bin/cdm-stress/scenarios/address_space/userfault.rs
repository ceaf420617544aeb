// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory whose faults a thread of the process answers (userfaultfd), while its
//! pages move.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::userfault::Userfault;
use nix::sys::mman::MmapAdvise;

use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::{Stage, any_options};

const WORKERS: usize = 2;
const PAGES: usize = 64;
/// How long a fault is waited for before it is looked whether there will be any more.
const POLL: Duration = Duration::from_millis(2);

pub const MISSING: Scenario = Scenario {
    name: "address_space::missing_pages_come_as_userfaultfd_fills_them",
    property: "A page that userfaultfd fills is what it was filled with, whoever touches it first \
               and wherever it goes.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 15,
    least: &[
        Least::PerThousand(Count::UserfaultFilled, 30_000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::InAll(Count::Foreign, 10),
    ],
    body: missing,
};

pub const WRITES: Scenario = Scenario {
    name: "address_space::no_store_passes_the_protection_of_userfaultfd",
    property: "Every store to a page that is write-protected by userfaultfd is told before it \
               happens, wherever the page went since.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 15,
    least: &[
        Least::PerThousand(Count::UserfaultWrites, 10_000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::InAll(Count::Foreign, 10),
    ],
    body: writes,
};

pub const MOVES: Scenario = Scenario {
    name: "address_space::pages_that_userfaultfd_moves_keep_their_words",
    property: "A page that UFFDIO_MOVE takes to another address has its contents there and leaves \
               a hole, in the device and out of it.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 60,
    least: &[
        Least::PerThousand(Count::UserfaultMoved, 2000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::InAll(Count::Foreign, 10),
    ],
    body: moves,
};

/// Gives `answer` the page of each fault until it is over.
fn answer_all(
    userfault: &Userfault,
    memory: &Mapping,
    is_over: &AtomicBool,
    mut answer: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    while !is_over.load(SeqCst) {
        let answered = match userfault.wait_for_any(POLL) {
            Ok(None) => continue,
            Ok(Some(address)) => {
                answer(((address - memory.address()) / PAGE_BYTES as u64) as usize)
            }
            Err(error) => Err(error),
        };
        if answered.is_err() {
            // Whoever waits must not do so for ever.
            userfault.leave(memory)?;
            return answered;
        }
    }
    Ok(())
}

/// Runs `work`, and beside it a thread that gives `answer` each fault, and one that moves the memory
/// from inside the process, which waits for answers as well.
fn answered(
    hand: &mut Hand,
    userfault: &Userfault,
    memory: &Mapping,
    answer: impl FnMut(usize) -> Result<()> + Send,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let is_over = AtomicBool::new(false);
    let (stage, devices) = (hand.stage, &hand.devices);
    let seed = hand.random.number();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let answering = scope.spawn(|| answer_all(userfault, memory, &is_over, answer));
        let moving = scope.spawn(|| move_until(stage, devices, memory, seed, &is_done));
        let worked = work();
        is_done.store(true, SeqCst);
        let moved = match moving.join() {
            Ok(moved) => moved,
            Err(_) => bail!("the thread that moves panicked"),
        };
        is_over.store(true, SeqCst);
        match answering.join() {
            Ok(answered) => answered.and(worked).and(moved),
            Err(_) => bail!("the thread that answers panicked"),
        }
    })
}

fn move_until(
    stage: &Stage,
    devices: &[Device],
    memory: &Mapping,
    seed: u64,
    is_done: &AtomicBool,
) -> Result<()> {
    let mut random = Random::new(seed);
    while !is_done.load(SeqCst) {
        let pages = random.piece(memory.pages());
        let range = memory.page_range(pages.start, pages.len());
        let device = &devices[random.below(devices.len())];
        let direction = match random.one_in(3) {
            true => Direction::ToSystem,
            false => Direction::ToDevice,
        };
        let options = any_options(&mut random, direction);
        stage.migrate(device, 0, range, direction, options)?;
    }
    Ok(())
}

fn watched_memory(is_huge: bool) -> Result<Mapping> {
    let memory = match is_huge {
        true => Mapping::huge_aligned(HUGE_PAGE_BYTES)?,
        false => Mapping::anonymous(PAGES * PAGE_BYTES)?,
    };
    memory.advise(match is_huge {
        true => MmapAdvise::MADV_HUGEPAGE,
        false => MmapAdvise::MADV_NOHUGEPAGE,
    })?;
    Ok(memory)
}

fn missing(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, 1, |hand| {
        let source = Mapping::anonymous(PAGES * PAGE_BYTES)?;
        let memory = watched_memory(false)?;
        hand.publish(0, memory.range());
        while hand.stage.round() {
            let seed = hand.random.number();
            source.fill_pattern(seed);
            let userfault = Userfault::watch_missing(&memory)?;
            // From here on nobody but the answers fills it, not even those who move it.
            memory.advise(MmapAdvise::MADV_DONTNEED)?;
            missing_round(hand, &userfault, (&source, &memory), seed)
                .with_context(|| format!("contents of seed {seed:#x}"))?;
            userfault.leave(&memory)?;
            memory
                .check_pattern(seed)
                .context("when nobody watched it any more")?;
            hand.stage.add(Count::Verified, 2 * PAGES as u64);
        }
        Ok(())
    })
}

fn missing_round(
    hand: &mut Hand,
    userfault: &Userfault,
    (source, memory): (&Mapping, &Mapping),
    seed: u64,
) -> Result<()> {
    let stage = hand.stage;
    let again = hand.random.below(PAGES);
    let answer = |page: usize| {
        if userfault.copy_page(memory, source, page)? {
            stage.add(Count::UserfaultFilled, 1);
        }
        Ok(())
    };
    answered(hand, userfault, memory, answer, || {
        thread::scope(|scope| {
            let others = scope.spawn(|| memory.check_pattern(seed));
            // From the other end, so that they meet.
            let mine = (0..PAGES)
                .rev()
                .try_for_each(|page| memory.check_pattern_pages(seed, page..page + 1));
            let others = others.join().expect("a comparison does not panic");
            mine.and(others)
        })?;
        // What is dropped is missing once more.
        memory.advise_pages(again, 1, MmapAdvise::MADV_DONTNEED)?;
        memory.check_pattern(seed).context("after a drop")
    })
}

fn writes(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, 1, |hand| {
        let mut number = 0;
        let mut memory = watched_memory(false)?;
        while hand.stage.round() {
            number += 1;
            if number % 8 == 0 {
                memory = watched_memory(hand.random.one_in(2))?;
            }
            hand.publish(0, memory.range());
            writes_round(hand, &memory)?;
        }
        Ok(())
    })
}

/// Pages that are stored to in a round.
const STORED: usize = 24;

fn writes_round(hand: &mut Hand, memory: &Mapping) -> Result<()> {
    let (old, new) = (hand.random.number(), hand.random.number());
    memory.fill_pattern(old);
    let pages = memory.pages();
    let mut stored: Vec<usize> = (0..STORED).map(|_| hand.random.below(pages)).collect();
    stored.sort_unstable();
    stored.dedup();
    let told: Vec<AtomicBool> = (0..pages).map(|_| AtomicBool::new(false)).collect();
    let count = AtomicU64::new(0);
    let userfault = Userfault::watch_writes(memory)?;
    userfault.protect(memory, true)?;
    let answer = |page: usize| {
        // A page that several wait for is told several times.
        if !told[page].swap(true, SeqCst) {
            memory
                .check_pattern_pages(old, page..page + 1)
                .context("a store to a protected page happened before it was told")?;
            count.fetch_add(1, SeqCst);
        }
        userfault.protect_page(memory, page, false)
    };
    answered(hand, &userfault, memory, answer, || {
        for page in &stored {
            memory.fill_pattern_pages(new, *page..page + 1);
        }
        Ok(())
    })?;
    for (page, told) in told.iter().enumerate() {
        let is_stored = stored.binary_search(&page).is_ok();
        ensure!(
            !is_stored || told.load(SeqCst),
            "nobody was told of the store to page {page}"
        );
        let seed = if is_stored { new } else { old };
        memory
            .check_pattern_pages(seed, page..page + 1)
            .with_context(|| format!("a page that was stored to: {is_stored}"))?;
    }
    hand.stage.add(Count::Verified, pages as u64);
    hand.stage.add(Count::UserfaultWrites, count.load(SeqCst));
    userfault.leave(memory)
}

/// Two places, and which of them has each page.
struct Pair {
    places: [Mapping; 2],
    at: Vec<usize>,
    seed: u64,
}

impl Pair {
    fn new(is_huge: bool, seed: u64) -> Result<Self> {
        let places = [watched_memory(is_huge)?, watched_memory(is_huge)?];
        places[0].fill_pattern(seed);
        let at = vec![0; places[0].pages()];
        Ok(Self { places, at, seed })
    }

    /// Compares all pages where they are; where they are not, nobody may look.
    fn verify(&self, stage: &Stage) -> Result<()> {
        stage.add(Count::Verified, self.at.len() as u64);
        for (page, place) in self.at.iter().enumerate() {
            self.places[*place]
                .check_pattern_pages(self.seed, page..page + 1)
                .with_context(|| format!("at place {place}"))?;
        }
        Ok(())
    }
}

fn moves(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, 2, |hand| {
        let mut number = 0;
        let mut pair = Pair::new(false, hand.random.number())?;
        while hand.stage.round() {
            number += 1;
            if number % 16 == 0 {
                let is_huge = hand.random.one_in(2);
                pair = Pair::new(is_huge, hand.random.number())?;
            }
            for (slot, place) in pair.places.iter().enumerate() {
                hand.publish(slot, place.range());
            }
            moves_round(hand, &mut pair)?;
            pair.verify(hand.stage)?;
        }
        Ok(())
    })
}

/// How long a page is tried that somebody holds for a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes a run of pages that are at one place to the other one. Both are watched only meanwhile:
/// nobody answers faults on their holes, and whoever moves the memory may fault them in.
fn moves_round(hand: &mut Hand, pair: &mut Pair) -> Result<()> {
    let pages = hand.random.piece(pair.at.len());
    let from = pair.at[pages.start];
    let run = pair.at[pages.clone()]
        .iter()
        .take_while(|place| **place == from)
        .count();
    let (source, target) = (&pair.places[from], &pair.places[1 - from]);
    hand.move_some(source)?;
    // What was faulted in there must be a hole again.
    let first = pages.start;
    let deadline = Instant::now() + PATIENCE;
    let userfault = Userfault::watch_missing(target)?;
    let mut done = 0;
    while done < run {
        let (start, count) = (first + done, run - done);
        target.advise_pages(start, count, MmapAdvise::MADV_DONTNEED)?;
        let (moved, stopped) = userfault.move_pages(source, target, start..start + count);
        done += moved;
        match stopped.as_ref().and_then(std::io::Error::raw_os_error) {
            None => {}
            Some(libc::EAGAIN | libc::EBUSY | libc::EEXIST) if Instant::now() < deadline => {
                thread::yield_now();
            }
            error => bail!("UFFDIO_MOVE of page {} of {from}: {error:?}", start + moved),
        }
    }
    userfault.leave(target)?;
    pair.at[first..first + run].fill(1 - from);
    hand.stage.add(Count::UserfaultMoved, run as u64);
    // The hole reads as zero.
    let words = PAGE_BYTES / size_of::<u64>();
    let hole = &pair.places[from].words()[first * words..(first + run) * words];
    ensure!(
        hole.iter().all(|word| word.load(SeqCst) == 0),
        "UFFDIO_MOVE left contents behind"
    );
    Ok(())
}
