// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes that come to their end, or become another program, while others
//! move their memory.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::isolate::{Child, Parent};
use cdm_guest_tools::memory::PAGE_BYTES;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::contents::Region;
use crate::counts::Count;
use crate::deck::Deck;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
const SMALL_PAGES: usize = 192;
/// Moves of a child's memory by the process that waits for its end, at most.
const MOVES_MAX: usize = 12;

pub const ENDS: Scenario = Scenario {
    name: "address_space::exec_and_exit_in_mid_migration_leave_nothing",
    property: "A process that ends, is killed or becomes another program while its pages move \
               takes nobody else's along and leaves none behind.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 40,
    least: &[
        Least::PerThousand(Count::Exit, 250),
        Least::PerThousand(Count::Exec, 120),
        Least::PerThousand(Count::Kill, 120),
        Least::PerThousand(Count::PagesToDevice, 20_000),
    ],
    body,
};

/// How a child comes to its end.
#[derive(Clone, Copy, Debug)]
enum End {
    Exit,
    /// The same with threads that use the memory until then.
    ExitOfThreads,
    Exec,
    Kill,
    /// Everything is unmapped first.
    Unmap,
}

const WEIGHTS: &[(End, usize)] = &[
    (End::Exit, 2),
    (End::ExitOfThreads, 1),
    (End::Exec, 2),
    (End::Kill, 2),
    (End::Unmap, 1),
];

fn body(stage: &Stage) -> Result<()> {
    while_moved(stage, WORKERS, 4, |hand| {
        let mut regions = [Region::small(SMALL_PAGES)?, Region::huge(1)?];
        let mut deck = Deck::new(WEIGHTS);
        while hand.stage.round() {
            // Of this, pages that the child shares until it writes.
            for region in &mut regions {
                hand.rewrite_some(region);
                hand.move_some(&region.memory)?;
            }
            hand.publish_all(&regions);
            let end = deck.deal(&mut hand.random);
            one(hand, &regions, end).with_context(|| format!("{end:?}"))?;
            hand.verify(&regions)?;
        }
        Ok(())
    })
}

fn one(hand: &mut Hand, regions: &[Region], end: End) -> Result<()> {
    let mut child = Child::spawn(|parent| live_and_end(hand, regions, end, parent))?;
    child.wait_for_arrival()?;
    let pid = child.pid();
    child.release()?;
    for number in 0..1 + hand.random.below(MOVES_MAX) {
        for region in regions {
            hand.move_other(pid, region.memory.range())?;
        }
        if matches!(end, End::Kill) && number == 0 {
            // In the middle of what the other mover does.
            kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill a child")?;
        }
    }
    let (status, words) = child.end_message()?;
    match (end, status) {
        (End::Kill, WaitStatus::Signaled(_, Signal::SIGKILL, _)) => {
            hand.stage.add(Count::Kill, 1);
        }
        (End::Exec, WaitStatus::Exited(_, 0)) => hand.stage.add(Count::Exec, 1),
        (End::Exit | End::ExitOfThreads | End::Unmap, WaitStatus::Exited(_, 0)) => {
            hand.stage.add(Count::Exit, 1);
        }
        (_, status) => bail!("a child ended with {status:?} {words}"),
    }
    Ok(())
}

fn live_and_end(hand: &mut Hand, regions: &[Region], end: End, parent: &mut Parent) -> Result<()> {
    for (index, region) in regions.iter().enumerate() {
        hand.publish(regions.len() + index, region.memory.range());
    }
    // Half of it becomes the child's own.
    for region in regions {
        for page in region.own.clone().step_by(2) {
            region.memory.fill_pattern_pages(7, page..page + 1);
        }
        hand.migrate(region.memory.range(), Direction::ToDevice)?;
    }
    parent.meet()?;
    match end {
        End::Exit => Ok(()),
        End::ExitOfThreads => exit_with_threads(regions),
        End::Exec => Err(Command::new("/proc/self/exe")
            .arg("--version")
            .stdout(Stdio::null())
            .exec())
        .context("cannot become another program"),
        End::Kill => loop {
            touch(regions, 1)?;
        },
        End::Unmap => {
            for region in regions {
                let range = region.memory.range();
                // SAFETY: nothing of it is used any more; this process ends without a destructor.
                let gone = unsafe {
                    libc::munmap(range.start() as *mut libc::c_void, range.bytes() as usize)
                };
                ensure!(gone == 0, "munmap: {}", std::io::Error::last_os_error());
            }
            Ok(())
        }
    }
}

/// Adds to a word of every other page, which is the process's own.
fn touch(regions: &[Region], rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        for region in regions {
            for page in region.own.clone().step_by(2) {
                region.memory.word(page * PAGE_BYTES).fetch_add(1, Relaxed);
            }
        }
    }
    Ok(())
}

/// Ends the process under the feet of threads that use the memory.
fn exit_with_threads(regions: &[Region]) -> Result<()> {
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| touch(regions, usize::MAX));
        }
        touch(regions, 1)?;
        // SAFETY: `_exit` takes any status and does not return.
        unsafe { libc::_exit(0) }
    })
}
