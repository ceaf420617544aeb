// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults by seed: of each kind, on whatever it can happen to, as often and as badly as it comes.

use anyhow::{Context as _, Result};
use cdm_control_protocol::{Fault, FaultKind, Operation};
use fastrand::Rng;

/// Commands that processes give all the time, by their names.
const COMMANDS: [&str; 5] = ["FILL", "COPY", "CHECKSUM", "COMPARE", "FETCH_ADD"];
/// Control requests that come with the use of address spaces.
const SPACES: [&str; 3] = ["BIND", "UNBIND", "INVALIDATE"];
/// Statuses that a device may refuse a command with; the last is one that no version has.
const STATUSES: [u16; 4] = [16, 11, 7, 999];
/// Statuses of a page that is not to be had.
const PAGE_STATUSES: [u16; 3] = [23, 24, 27];
/// How late something is that the driver waits for.
const LATE_MS: u64 = 300;

fn operation(name: &str) -> Result<Operation> {
    name.parse()
        .with_context(|| format!("the device knows no {name}"))
}

/// One of these operations, or any command.
fn of_one(random: &mut Rng, fault: &mut Fault, names: &[&str]) -> Result<()> {
    let at = random.usize(0..=names.len());
    fault.opcode = names.get(at).map(|name| operation(name)).transpose()?;
    Ok(())
}

/// A fault of a kind. Poison is for memory that is used: somewhere in `pages`.
pub fn fault(random: &mut Rng, kind: FaultKind, pages: std::ops::Range<u64>) -> Result<Fault> {
    let mut fault = Fault::new(kind);
    fault.seed = random.u64(..);
    let both: Vec<&str> = COMMANDS.into_iter().chain(SPACES).collect();
    match kind {
        FaultKind::Hang => of_one(random, &mut fault, &COMMANDS)?,
        FaultKind::Drop => of_one(random, &mut fault, &both)?,
        FaultKind::Delay => {
            of_one(random, &mut fault, &both)?;
            fault.ms = Some(random.u64(1..LATE_MS));
        }
        FaultKind::LateInvalidation | FaultKind::LateAccess => {
            fault.ms = Some(random.u64(1..LATE_MS))
        }
        FaultKind::Duplicate => of_one(random, &mut fault, &COMMANDS)?,
        FaultKind::Reorder => {
            of_one(random, &mut fault, &COMMANDS)?;
            fault.every = random.u64(1..=3);
        }
        FaultKind::Truncate => {
            of_one(random, &mut fault, &COMMANDS)?;
            fault.bytes = random.bool().then(|| random.u32(0..24));
        }
        FaultKind::WrongLength => {
            of_one(random, &mut fault, &COMMANDS)?;
            let lengths = [Some(0), Some(16), Some(25), Some(u32::MAX), None];
            fault.bytes = lengths[random.usize(..lengths.len())];
        }
        FaultKind::Corrupt => {
            of_one(random, &mut fault, &COMMANDS)?;
            fault.offset = random.bool().then(|| random.u32(0..24));
        }
        FaultKind::Fail => {
            of_one(random, &mut fault, &COMMANDS)?;
            fault.status = Some(STATUSES[random.usize(..STATUSES.len())]);
        }
        FaultKind::RefusePage => {
            fault.status = Some(PAGE_STATUSES[random.usize(..PAGE_STATUSES.len())]);
        }
        FaultKind::Poison => {
            fault.page = Some(random.u64(pages));
            fault.count = random.u64(1..=3);
            return Ok(fault);
        }
    }
    // Address spaces come and go more seldom than commands.
    fault.nth = match fault.opcode.is_some_and(|opcode| opcode.is_on(0)) {
        true => random.u64(1..=2),
        false => random.u64(1..=4),
    };
    // What has to be waited for, or ends the use of a queue, happens once at a time.
    let once = [FaultKind::Hang, FaultKind::Drop, FaultKind::Duplicate];
    if !once.contains(&kind) {
        fault.count = random.u64(1..=6);
    }
    Ok(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_can_be_drawn_and_each_drawn_fault_makes_sense() {
        let mut random = Rng::with_seed(1);
        for kind in FaultKind::ALL {
            let mut drawn = BTreeSet::new();
            for _ in 0..200 {
                let fault = fault(&mut random, kind, 100..200).expect("drawn");
                assert_eq!(fault.check(), Ok(()), "{fault}");
                drawn.insert(fault.to_string());
            }
            assert!(drawn.len() > 20, "{kind}: {drawn:?}");
        }
    }

    #[test]
    fn one_seed_draws_the_same_faults() {
        let draw = |seed| {
            let mut random = Rng::with_seed(seed);
            let kinds = FaultKind::ALL.into_iter();
            kinds
                .map(|kind| fault(&mut random, kind, 0..9).expect("drawn").to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn nothing_is_drawn_that_ends_the_device_for_good() {
        let mut random = Rng::with_seed(3);
        for _ in 0..500 {
            let fault = fault(&mut random, FaultKind::Hang, 0..9).expect("drawn");
            assert_ne!(fault.queue, Some(0));
            let control = fault.opcode.is_some_and(|opcode| opcode.is_on(0));
            assert!(!control, "{fault}: not even a RESET is answered behind it");
        }
    }
}
