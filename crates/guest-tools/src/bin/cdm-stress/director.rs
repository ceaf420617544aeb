// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Something that happens again and again while others work, each time after they have got on: how
//! much they do for each time does not depend on how fast the machine is.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::counts::Count;
use crate::crew::Crew;
use crate::patience::HANGS;
use crate::stage::Stage;
use crate::survivor::{Allowed, Survivor};

const POLL: Duration = Duration::from_millis(1);
/// Index of the director's own random numbers: no process has it.
pub const DIRECTOR: usize = usize::MAX;

/// Waits until there is `more` of a count than `before`; not beyond the end of the scenario, to which
/// those who count come by themselves.
pub fn await_more(stage: &Stage, count: Count, before: u64, more: u64) -> Result<()> {
    let deadline = Instant::now() + HANGS;
    while stage.counts().get(count) < before + more && !stage.is_over() {
        ensure!(
            Instant::now() < deadline,
            "{} did not grow by {more} in {HANGS:?}",
            count.name()
        );
        thread::sleep(POLL);
    }
    Ok(())
}

/// Has `workers` processes use devices while `event` happens again and again
/// in this one: each time after they have done `commands` commands. Each event is an operation of
/// the scenario.
pub fn direct(
    stage: &Stage,
    workers: usize,
    commands: u64,
    allowed: Allowed,
    mut event: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut crew = Crew::new(stage);
    for index in 0..workers {
        crew.start(&format!("worker {index}"), || {
            let mut survivor = Survivor::new(stage.random(index), stage.counts(), allowed)?;
            while !stage.is_over() {
                survivor.round()?;
            }
            survivor.verify_all()
        })?;
    }
    let happened = (|| {
        loop {
            let before = stage.counts().get(Count::CommandsDone);
            await_more(stage, Count::CommandsDone, before, commands)?;
            if !stage.round() {
                return Ok(());
            }
            event()?;
        }
    })();
    if happened.is_err() {
        stage.counts().stop();
    }
    // A worker that failed says more than an event that met a worker that had.
    crew.finish().and(happened)
}
