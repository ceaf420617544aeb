// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who is measured, and in which order: in each round everybody has one turn, in a
//! process of its own.

use std::ops::Range;

use anyhow::{Context, Result};
use cdm_guest_tools::isolate::Child;

use crate::sample::Measured;

/// What decides what is measured.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Fewer sizes, less long.
    pub quick: bool,
    /// CPUs of the guest.
    pub cpus: usize,
}

/// A turn of somebody: measures, in a process of its own.
pub struct Turn {
    /// Who it is.
    pub by: &'static str,
    /// What it does; fails rather than give a value of something else.
    pub measure: Box<dyn Fn() -> Result<Vec<Measured>>>,
}

/// Turns that measure the same thing.
pub struct Contest {
    /// What it is.
    pub name: String,
    /// Each of them, in the order of a round.
    pub turns: Vec<Turn>,
}

/// Measures all contests of a group, round after round, and prints each sample as it comes.
pub fn run(group: &str, contests: &[Contest], rounds: Range<u32>) -> Result<()> {
    for round in rounds {
        for contest in contests {
            for turn in &contest.turns {
                let name = &contest.name;
                eprintln!("progress {group}: round {}: {name}: {}", round + 1, turn.by);
                let child = Child::spawn(|_| {
                    for measured in (turn.measure)()? {
                        println!("{}", measured.in_round(round).line()?);
                    }
                    Ok(())
                });
                child
                    .and_then(Child::finish)
                    .with_context(|| format!("{name}, {}", turn.by))?;
            }
        }
    }
    Ok(())
}
