// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The stress scenarios, each for a few seconds; `just stress` has the patience for more.

use anyhow::{Context as _, Result, ensure};

use super::super::report::Verdict;
use super::super::run::Run;
use super::{Check, Session};
use crate::build::{self, BuildKind, KernelChoice};
use crate::stress::outcome::Verdict as Ended;
use crate::stress::said::Said;
use crate::stress::scenarios::order::{DEVICES, Length, Order, Room};
use crate::stress::scenarios::{self, GUESTS, Stand};

/// Seconds of each scenario on each kernel: more than five minutes for all of them together.
const SECONDS: u64 = 6;
/// The same each time, so that a failure is one of what was changed.
const SEED: u64 = 1;

/// What is planted in the guest, and the words without which it was not found.
const PLANTED: &[(&str, &str)] = &[
    (
        "planted::wrong_word",
        "wrong contents: offset 0x6008 (page 6)",
    ),
    (
        "planted::too_little",
        "did not count: pages_rewritten 0, least 1",
    ),
    ("planted::killed", "process 1: it was ended by SIGKILL"),
    ("planted::endless", "has hung for 5 s and was killed"),
    // The last, as it stays for a minute.
    ("planted::left_behind", "left behind: device 0 has"),
];

/// Tests of the frame that scenarios run in, on a guest of their own.
pub const FRAME: &[Check] = &[
    (
        "scenarios::planted_faults_are_found",
        planted_faults_are_found,
    ),
    (
        "scenarios::lost_guest_costs_one_scenario",
        lost_guest_costs_one,
    ),
];

/// Kernels that they run on.
pub const KERNELS: [KernelChoice; 2] = [KernelChoice::Public, KernelChoice::Vanilla];

/// Name of the test that runs a scenario on a kernel.
pub fn test_name(kernel: &KernelChoice, scenario: &str) -> String {
    format!("e2e::{kernel}::scenarios::{scenario}")
}

/// Names of the scenarios.
pub fn list(run: &Run<'_>) -> Result<Vec<String>> {
    let listed = scenarios::list(run.ctx())?;
    Ok(listed.into_iter().map(|listed| listed.name).collect())
}

fn order(length: Length) -> Order {
    Order {
        names: Vec::new(),
        seed: SEED,
        length,
        devices: DEVICES,
        memory_type: None,
        room: Room::Plenty,
        shard: None,
        all_at_once: false,
    }
}

/// Scenarios that do wrong fail, and say what was wrong.
fn planted_faults_are_found(session: &mut Session) -> Result<()> {
    let names: Vec<&str> = PLANTED.iter().map(|(name, _)| *name).collect();
    let line = format!("cdm-stress run {} --rounds 1 --limit 5", names.join(" "));
    let (said, ended) = Said::by(session, &line, |_| {});
    ended?;
    for (name, words) in PLANTED {
        let outcome = said.outcome(name).with_context(|| format!("no {name}"))?;
        let notes = outcome.diagnostics.join("\n");
        ensure!(
            outcome.verdict == Verdict::Failed && notes.contains(words),
            "{name} ended as {:?} and said: {notes}",
            outcome.verdict
        );
    }
    // What one of them left is of no use to another test.
    session.discard();
    Ok(())
}

/// A guest that a scenario takes down, or whose kernel reports a fault, is that scenario's failure,
/// and the next one runs in a new guest.
fn lost_guest_costs_one(session: &mut Session) -> Result<()> {
    const SCENARIO: &str = "moves::overlapping_ranges_both_ways";
    let ctx = session.ctx();
    let kernel = session.spec().kernel.clone();
    let folder = session.new_folder("scenarios")?;
    let mut stand = Stand::new(ctx, kernel, order(Length::Rounds(1)), &folder, GUESTS)?;
    for (name, expected) in [
        ("planted::crash", Ended::Lost),
        ("planted::warning", Ended::Failed),
        (SCENARIO, Ended::Passed),
    ] {
        let result = stand.run(name, |_| {});
        ensure!(result.verdict == expected, "{}", result.lines());
        ensure!(
            result
                .repeat
                .contains(&format!("just stress {name} --seed {SEED}")),
            "{}",
            result.repeat
        );
    }
    let guests = stand.end()?;
    ensure!(guests == 3, "it took {guests} guests, not 3");
    Ok(())
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
    let order = order(Length::Seconds(SECONDS));
    let folder = run.folder().join(format!("scenarios-{kernel}"));
    let built = build::kernel(run.ctx(), kernel, BuildKind::Plain)?;
    let mut stand = Stand::new(run.ctx(), built, order, &folder, GUESTS)?;
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
