// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A debugger that stops a process and looks at its words and changes them.

use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::isolate::{Child, Parent};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES, WORD_BYTES, pattern};
use cdm_guest_tools::random::Random;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
const PAGES: usize = 48;
/// Words that are changed in a round.
const POKES: usize = 32;

pub const DEBUGGER: Scenario = Scenario {
    name: "address_space::debugger_peeks_and_pokes",
    property: "A debugger reads the words of a stopped process, and what it writes there the \
               process finds, wherever the page is.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 20,
    least: &[
        Least::PerThousand(Count::Poked, 30_000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::InAll(Count::Foreign, 10),
    ],
    body,
};

fn body(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, 2, |hand| {
        let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
        while hand.stage.round() {
            debug(hand, &memory)?;
        }
        Ok(())
    })
}

/// Words that are changed, each once: index and new value.
fn pokes(seed: u64) -> Vec<(usize, u64)> {
    const WORDS: usize = PAGES * PAGE_BYTES / WORD_BYTES;
    let mut random = Random::new(seed);
    let mut pokes: Vec<_> = (0..POKES)
        .map(|_| (random.below(WORDS), random.number()))
        .collect();
    pokes.sort_unstable();
    pokes.dedup_by_key(|(index, _)| *index);
    pokes
}

fn debug(hand: &mut Hand, memory: &Mapping) -> Result<()> {
    let (before, changes) = (hand.random.number(), hand.random.number());
    hand.publish(0, memory.range());
    let mut child = Child::spawn(|parent| debugged(hand, memory, (before, changes), parent))?;
    child.wait_for_arrival()?;
    let pid = Pid::from_raw(child.pid());
    ptrace::seize(pid, ptrace::Options::empty()).context("PTRACE_SEIZE")?;
    ptrace::interrupt(pid).context("PTRACE_INTERRUPT")?;
    match waitpid(pid, None).context("cannot wait for the stop")? {
        WaitStatus::PtraceEvent(_, Signal::SIGTRAP, _) | WaitStatus::Stopped(..) => {}
        other => bail!("instead of a stop: {other:?}"),
    }
    for (index, value) in pokes(changes) {
        if hand.random.one_in(4) {
            hand.move_other(pid.as_raw(), memory.range())?;
        }
        let address = (memory.address() as usize + index * WORD_BYTES) as ptrace::AddressType;
        let found = ptrace::read(pid, address)
            .context("PTRACE_PEEKDATA")?
            .cast_unsigned();
        let expected = pattern(before, index);
        ensure!(
            found == expected,
            "word {index} reads as {found:#x}, not {expected:#x}"
        );
        ptrace::write(pid, address, value.cast_signed()).context("PTRACE_POKEDATA")?;
        let found = ptrace::read(pid, address)?.cast_unsigned();
        ensure!(
            found == value,
            "word {index} reads as {found:#x} after {value:#x} was written"
        );
        hand.stage.add(Count::Poked, 1);
    }
    ptrace::detach(pid, None).context("PTRACE_DETACH")?;
    hand.move_other(pid.as_raw(), memory.range())?;
    child.release()?;
    child.finish()
}

/// The process that is debugged.
fn debugged(
    hand: &mut Hand,
    memory: &Mapping,
    (before, changes): (u64, u64),
    parent: &mut Parent,
) -> Result<()> {
    hand.publish(1, memory.range());
    memory.fill_pattern(before);
    hand.migrate(memory.range(), Direction::ToDevice)?;
    parent.meet()?;
    let pokes = pokes(changes);
    for (index, word) in memory.words().iter().enumerate() {
        let expected = match pokes.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => pokes[at].1,
            Err(_) => pattern(before, index),
        };
        let found = word.load(SeqCst);
        ensure!(
            found == expected,
            "the process finds {found:#x} in word {index}, not {expected:#x}"
        );
    }
    hand.stage.add(Count::Verified, PAGES as u64);
    Ok(())
}
