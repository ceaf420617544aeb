// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices that fail, as their process is told by a seed while these scenarios run
//! (`crates/vm-harness/src/stress`): what a process has in memory is as it should be, and each
//! command ends well or with an error that is defined.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use cdm_guest_tools::invariants::Snapshot;

use crate::counts::Count;
use crate::scenario::{Needs, Scenario};
use crate::scenarios::life::{DRIVEN_LEAST, DRIVEN_ROUNDS, work};
use crate::stage::Stage;
use crate::survivor::Allowed;

const ERRORS: Allowed = Allowed {
    errors: true,
    ..Allowed::NOTHING
};

/// A scenario during which the device is told to fail.
const fn scenario(
    name: &'static str,
    property: &'static str,
    body: fn(&Stage) -> Result<()>,
) -> Scenario {
    Scenario {
        name,
        property,
        needs: Needs::DEVICE,
        alone: true,
        operations: DRIVEN_ROUNDS,
        least: DRIVEN_LEAST,
        body,
    }
}

/// Scenarios of this family, all of which need the host.
pub const DRIVEN: &[Scenario] = &[
    scenario(
        "faults::late_and_reordered_answers",
        "Answers that come late or in another order cost time and nothing else.",
        |stage| work(stage, Allowed::NOTHING),
    ),
    scenario(
        "faults::refused_and_cut_answers",
        "A command that is refused, or whose answer is cut, is an error for its caller alone, and has \
         stored nothing but a part of what it should.",
        |stage| work(stage, ERRORS),
    ),
    scenario(
        "faults::corrupt_answers",
        "An answer with a wrong byte is an error, or a wrong result; it changes no memory, and nobody \
         reads behind a buffer for it.",
        |stage| {
            let lies = true;
            work(stage, Allowed { lies, ..ERRORS })
        },
    ),
    scenario(
        "faults::lost_answers",
        "A device that does not answer is reset, and whoever waited has an error and all his memory.",
        |stage| work(stage, ERRORS),
    ),
    scenario(
        "faults::doubled_answers",
        "A device that answers twice costs its queue until the driver is bound anew, and no memory.",
        |stage| {
            let absence = true;
            work(stage, Allowed { absence, ..ERRORS })
        },
    ),
    scenario(
        "faults::failing_memory",
        "A page of the device that fails is lost alone, and nobody gets it again.",
        failing_memory,
    ),
];

/// How long the driver may take for news of memory that has failed.
const NEWS: Duration = Duration::from_millis(500);

fn failing_memory(stage: &Stage) -> Result<()> {
    let before = Snapshot::take()?;
    let loss = true;
    work(
        stage,
        Allowed {
            loss,
            ..Allowed::NOTHING
        },
    )?;
    thread::sleep(NEWS);
    stage.add(Count::PagesFailed, before.failed_since()?);
    Ok(())
}
