// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The long run: `cdm-stress` in one guest after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::Task;
use super::publish::{Published, publish};
use super::state::{Options, Piece, State};
use crate::build::BuildKind;
use crate::cache::KeyBuilder;
use crate::evidence;
use crate::test::Session;
use crate::vm::boot::Stream;
use crate::vm::{ByteSize, Limits, MemoryType, Parts, VmSpec};

/// How often the program says what it has done, in seconds.
const REPORT_SECONDS: u64 = 10;
/// Longest silence of the program: its last checks take a minute on a debug kernel.
const SILENCE: Duration = Duration::from_secs(300);
/// What a piece may take beyond its time: it fills the devices first, and checks all contents last.
const PIECE_SLACK: Duration = Duration::from_secs(900);

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
        session.text(&format!("echo clear > {LEAKS}"))?;
    }
    let progress = task
        .ctx
        .progress
        .task(format!("stress, piece {number}, seed {seed}"), None);
    let mut said = Said::default();
    let line =
        format!("cdm-stress --seed {seed} --seconds {seconds} --report-every {REPORT_SECONDS}");
    let ran = session.vm().and_then(|vm| {
        let limits = Limits {
            silence: Some(SILENCE),
            whole: Some(Duration::from_secs(seconds) + PIECE_SLACK),
        };
        vm.exec_streaming_within(limits, &line, |stream, text| match stream {
            Stream::Stdout => {
                progress.set_detail(text);
                said.take(text);
            }
            Stream::Stderr => said.complain(text),
        })
    });
    drop(progress);
    let ended = ran
        .and_then(|status| match status.shell_code() {
            0 | 1 => Ok(()),
            _ => bail!("'{line}' ended with {status:?}"),
        })
        .and_then(|()| match task.kernel.kind {
            BuildKind::Debug => find_leaks(&mut session),
            BuildKind::Plain => Ok(()),
        })
        .and_then(|()| session.judge_log())
        .and_then(|()| session.power_off())
        .map(|_| ());
    let problems = match ended {
        Ok(()) => said.judge(),
        // What the program found, as far as it came, may be the reason.
        Err(error) => Err(error).context(said.complaints.join("\n")),
    };
    let failure = problems.err().map(|error| format!("{error:#}"));
    if let Some(why) = &failure {
        let name = format!("piece{number}");
        let repeat = repeat(task, order, seed);
        task.ctx.progress.say(format!("repeat: {repeat}"));
        evidence::of_named(&task.folder, &name, why, &repeat, session.evidence())?;
    }
    Ok(Piece {
        seed,
        seconds: said.totals.get("seconds").copied().unwrap_or_default(),
        totals: said.totals,
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

/// Memory of the kernel that nothing points to any more: to be asked for, and to be told.
const LEAKS: &str = "/sys/kernel/debug/kmemleak";

/// Has the kernel look for memory that it lost since `clear`. What is on its way from one owner to
/// the next may look lost once; what is younger than five seconds is not looked at.
fn find_leaks(session: &mut Session<'_>) -> Result<()> {
    let line = format!("for scan in 1 2; do sleep 6; echo scan > {LEAKS}; done; cat {LEAKS}");
    let mut said = Vec::new();
    let vm = session.vm()?;
    let status = vm.exec_streaming_within(SILENCE, &line, |_, text| said.push(text.to_owned()))?;
    ensure!(
        status.shell_code() == 0 && said.is_empty(),
        "the kernel has lost memory:\n{}",
        said.join("\n")
    );
    Ok(())
}

/// What the program said.
#[derive(Debug, Default)]
struct Said {
    totals: BTreeMap<String, u64>,
    result: Option<String>,
    complaints: Vec<String>,
}

/// Totals without which nothing has been shown. A wrong byte or a page that is left over ends the
/// program with a result that says so.
const NEEDED: [&str; 3] = ["seconds", "operations", "verified_pages"];

impl Said {
    /// Takes in a line of standard output.
    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("total ") {
            let parsed = rest
                .split_once(' ')
                .and_then(|(name, number)| Some((name, number.trim().parse::<u64>().ok()?)));
            match parsed {
                Some((name, number)) if self.totals.insert(name.to_owned(), number).is_none() => {}
                _ => self.complain(&format!("a total that is none: '{line}'")),
            }
        } else if let Some(result) = line.strip_prefix("result ") {
            self.result = Some(result.to_owned());
        } else if line.starts_with("below minimum ") {
            self.complain(line);
        }
    }

    fn complain(&mut self, line: &str) {
        self.complaints.push(line.to_owned());
    }

    /// Whether it says that it is good, and gives the numbers for it.
    fn judge(&self) -> Result<()> {
        let mut wrong = Vec::new();
        match self.result.as_deref() {
            Some("ok") => {}
            Some(result) => wrong.push(result.to_owned()),
            None => wrong.push("it gave no result".to_owned()),
        }
        for name in NEEDED {
            if self.totals.get(name).copied().unwrap_or_default() == 0 {
                wrong.push(format!("no {name}"));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        wrong.extend(self.complaints.iter().cloned());
        bail!(wrong.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
cdm-stress: seed 1, 3 processes of 2 threads
progress 10 s, 3456 operations
total seconds 20
total operations 6000
total verified_pages 99
result ok";

    fn said(text: &str) -> Said {
        let mut said = Said::default();
        text.lines().for_each(|line| said.take(line));
        said
    }

    #[test]
    fn good_run_is_good_and_counted() {
        let said = said(GOOD);
        said.judge().expect("good");
        assert_eq!(said.totals["operations"], 6000);
    }

    #[test]
    fn each_thing_that_may_be_wrong_fails() {
        let cases = [
            (
                "total operations 6000",
                "total operations 0",
                "no operations",
            ),
            ("total verified_pages 99\n", "", "no verified_pages"),
            ("result ok", "result failed: why", "failed: why"),
            ("\nresult ok", "", "no result"),
        ];
        for (from, to, wanted) in cases {
            let text = GOOD.replace(from, to);
            let error = said(&text).judge().expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn failure_comes_with_all_complaints() {
        let text = GOOD.replace(
            "result ok",
            "below minimum cow: 1 < 5\nresult failed: too few",
        ) + "\ntotal operations 1\ntotal x";
        let error = said(&text).judge().expect_err("too few").to_string();
        for part in ["cow: 1 < 5", "'total operations 1'", "'total x'"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
}
