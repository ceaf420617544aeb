// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The stress scenarios, each for a few seconds; `just stress` has the patience for more.

use anyhow::Result;

use super::super::report::Verdict;
use super::super::run::Run;
use crate::build::{self, BuildKind, KernelChoice};
use crate::stress::outcome::Verdict as Ended;
use crate::stress::scenarios::order::{DEVICES, Length, Order, Room};
use crate::stress::scenarios::{self, Stand};

/// Seconds of each scenario on each kernel: five minutes and more for all of them together.
const SECONDS: u64 = 8;
/// The same each time, so that a failure is one of what was changed.
const SEED: u64 = 1;

/// Kernels that they run on.
pub const KERNELS: [KernelChoice; 2] = [KernelChoice::Public, KernelChoice::Vanilla];

/// Name of the test that runs a scenario on a kernel.
pub fn test_name(kernel: &KernelChoice, scenario: &str) -> String {
    format!("e2e::{kernel}::scenarios::{scenario}")
}

/// Names of all scenarios.
pub fn list(run: &Run<'_>) -> Result<Vec<String>> {
    let listed = scenarios::list(run.ctx())?;
    Ok(listed.into_iter().map(|listed| listed.name).collect())
}

/// Runs those of the scenarios on a kernel that are wanted, and records how they ended.
pub fn run(
    run: &mut Run<'_>,
    kernel: &KernelChoice,
    scenarios: &[String],
    wanted: &[String],
) -> Result<()> {
    let chosen: Vec<&String> = scenarios
        .iter()
        .filter(|scenario| wanted.contains(&test_name(kernel, scenario)))
        .collect();
    if chosen.is_empty() {
        return Ok(());
    }
    let order = Order {
        names: Vec::new(),
        seed: SEED,
        length: Length::Seconds(SECONDS),
        devices: DEVICES,
        memory_type: None,
        room: Room::Plenty,
        shard: None,
        all_at_once: false,
    };
    let folder = run.folder().join(format!("scenarios-{kernel}"));
    let built = build::kernel(run.ctx(), kernel, BuildKind::Plain)?;
    let mut stand = Stand::new(run.ctx(), built, order, &folder)?;
    for scenario in chosen {
        let result = stand.run(scenario, |_| {});
        let (verdict, detail) = match result.verdict {
            Ended::Passed => (Verdict::Passed, String::new()),
            Ended::Skipped => (Verdict::Skipped, result.detail.clone()),
            Ended::Failed | Ended::Lost => {
                let detail = format!("{}\nrepeat: {}", result.detail, result.repeat);
                (Verdict::Failed, detail)
            }
        };
        run.record(
            &test_name(kernel, scenario),
            verdict,
            result.took(),
            &detail,
        );
    }
    stand.end().map(drop)
}
