// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The long run: `cdm-stress` in one guest after the other.

use anyhow::{Result, bail};

use super::publish::{Published, publish};
use super::said::{REPORT_SECONDS, Said};
use super::state::{Options, Piece, State};
use super::{Task, leaks};
use crate::build::BuildKind;
use crate::cache::KeyBuilder;
use crate::evidence;
use crate::test::Session;
use crate::test::report::Verdict;
use crate::vm::{ByteSize, MemoryType, Parts, VmSpec};

/// The scenario that each piece runs.
const SCENARIO: &str = "mixed::everything";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Type of the device memory; the best that the kernel has if absent.
    pub memory_type: Option<MemoryType>,
    /// Seed of the first piece.
    pub seed: u64,
    /// How long all pieces run together.
    pub minutes: u64,
    /// How long one piece runs.
    pub piece_minutes: u64,
}

/// Runs all pieces that are not done yet. Whether all were good.
pub fn run(task: &Task<'_>, order: &Order, resume: bool) -> Result<bool> {
    let options = Options {
        kernel: task.kernel.choice.to_string(),
        build: task.kernel.kind.to_string(),
        memory_type: match order.memory_type {
            Some(memory_type) => memory_type.to_string(),
            None => "best".to_owned(),
        },
        seed: order.seed,
        minutes: order.minutes,
        piece_minutes: order.piece_minutes,
    };
    let mut state = State::open(task.ctx, &options, &task.commit, &inputs(task)?, resume)?;
    if resume && state.pieces() > 0 {
        println!(
            "{} pieces, {} s: done before",
            state.pieces(),
            state.seconds()
        );
    }
    while let Some((seed, seconds)) = state.next() {
        let number = state.pieces() + 1;
        let piece = run_piece(task, order, number, seed, seconds)?;
        let operations = piece.totals.get("operations").copied().unwrap_or_default();
        let result = piece.failure.as_deref().unwrap_or("ok");
        println!(
            "piece {number}: seed {seed}, {} s, {operations} operations: {result}",
            piece.seconds
        );
        state.add(piece)?;
    }
    let summary = state.summary(&task.command);
    for (name, total) in &summary.totals {
        println!("total {name} {total}");
    }
    publish(task, &Published::Mixed(&summary))?;
    Ok(summary.is_good())
}

/// Stands for all that runs.
fn inputs(task: &Task<'_>) -> Result<String> {
    let parts = Parts::build(task.ctx, &task.kernel)?;
    let mut key = KeyBuilder::new();
    key.text("kernel", task.kernel.key.as_str())
        .text("backend", parts.backend.to_string_lossy())
        .text("initramfs", parts.initramfs.to_string_lossy());
    Ok(key.finish().to_string())
}

/// Two small devices, which the program keeps full, and room in the guest for what both hold.
fn machine(task: &Task<'_>, memory_type: Option<MemoryType>) -> VmSpec {
    let mut spec = VmSpec::new(task.kernel.clone());
    spec.devices = 2;
    spec.device_memory = ByteSize(256 << 20);
    spec.memory = ByteSize(2 << 30);
    spec.memory_types = memory_type.into_iter().collect();
    spec
}

fn run_piece(
    task: &Task<'_>,
    order: &Order,
    number: usize,
    seed: u64,
    seconds: u64,
) -> Result<Piece> {
    let logs = task.folder.join(format!("piece{number}"));
    let spec = machine(task, order.memory_type);
    let mut session = Session::new(task.ctx, spec, logs);
    // A machine that does not boot is no result of the program's.
    session.vm()?;
    if task.kernel.kind == BuildKind::Debug {
        leaks::forget(&mut session)?;
    }
    let progress = task
        .ctx
        .progress
        .task(format!("stress, piece {number}, seed {seed}"), None);
    let line = format!(
        "cdm-stress run {SCENARIO} --seed {seed} --seconds {seconds} --report-every {REPORT_SECONDS}"
    );
    let (said, ran) = Said::by(&mut session, &line, |detail| progress.set_detail(detail));
    drop(progress);
    let ended = ran
        .and_then(|()| match task.kernel.kind {
            BuildKind::Debug => leaks::find(&mut session),
            BuildKind::Plain => Ok(()),
        })
        .and_then(|()| session.judge_log())
        .and_then(|()| session.power_off())
        .map(|_| ());
    let problems = match ended {
        Ok(()) => judge(&said),
        Err(error) => Err(error),
    };
    let failure = problems.err().map(|error| format!("{error:#}"));
    if let Some(why) = &failure {
        let name = format!("piece{number}");
        let repeat = repeat(task, order, seed);
        task.ctx.progress.say(format!("repeat: {repeat}"));
        evidence::of_named(&task.folder, &name, why, &repeat, session.evidence())?;
    }
    let totals = said.totals(SCENARIO);
    Ok(Piece {
        seed,
        seconds: totals.get("seconds").copied().unwrap_or_default(),
        totals,
        failure,
    })
}

/// The line that runs a piece again, by itself.
fn repeat(task: &Task<'_>, order: &Order, seed: u64) -> String {
    let memory = order
        .memory_type
        .map(|memory| format!(" --memory-type {memory}"));
    format!(
        "ci/just stress --suite mixed{} --kernel {} --build {} --seed {seed} --minutes {}",
        memory.unwrap_or_default(),
        task.kernel.choice,
        task.kernel.kind,
        order.piece_minutes.min(order.minutes)
    )
}

/// Totals without which nothing has been shown. A wrong byte or a page that is left over ends the
/// program with a result that says so.
const NEEDED: [&str; 3] = ["seconds", "operations", "verified_pages"];

/// Whether the scenario says that it held, and gives the numbers for it.
fn judge(said: &Said) -> Result<()> {
    let mut wrong = Vec::new();
    match said.outcome(SCENARIO) {
        Some(outcome) if outcome.verdict == Verdict::Passed => {}
        Some(outcome) => wrong.extend(outcome.diagnostics.iter().cloned()),
        None => wrong.push("it gave no result".to_owned()),
    }
    let totals = said.totals(SCENARIO);
    for name in NEEDED {
        if totals.get(name).copied().unwrap_or_default() == 0 {
            wrong.push(format!("no {name}"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.extend(said.complaints.iter().cloned());
    bail!(wrong.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
KTAP version 1
1..1
# total mixed::everything seconds 20
# total mixed::everything operations 6000
# total mixed::everything verified_pages 99
ok 1 mixed::everything";

    #[test]
    fn good_run_is_good() {
        let (said, ended) = Said::of(GOOD);
        ended.expect("complete");
        judge(&said).expect("good");
    }

    #[test]
    fn each_thing_that_may_be_wrong_fails() {
        let cases = [
            ("operations 6000", "operations 0", "no operations"),
            (
                "# total mixed::everything verified_pages 99\n",
                "",
                "no verified_pages",
            ),
            ("ok 1", "# why\nnot ok 1", "why"),
            ("\nok 1 mixed::everything", "", "no result"),
        ];
        for (from, to, wanted) in cases {
            let (said, _) = Said::of(&GOOD.replace(from, to));
            let error = judge(&said).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
