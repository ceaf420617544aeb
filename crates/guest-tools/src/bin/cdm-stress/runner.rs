// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs scenarios, each in a process group and a control group of its own, and looks afterwards
//! whether they left anything behind. Results go out as KTAP.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cdm_guest_tools::cgroup::Cgroup;
use cdm_guest_tools::invariants::Snapshot;
use cdm_guest_tools::ktap::{Outcome, Writer};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, setpgid};

use crate::ballast::{self, Ballast};
use crate::counts::Count;
use crate::crew::Member;
use crate::scenario::{Machine, Scenario, below_minimum};
use crate::stage::{Length, Stage};

const POLL: Duration = Duration::from_millis(20);
/// Word of the kernel's for huge pages of files, which scenarios ask for.
const SHMEM_HUGE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// The result that tells whether scenarios that ran at once left anything behind.
pub const TOGETHER: &str = "all_at_once::nothing_is_left_behind";

static SIGNALLED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    SIGNALLED.store(true, Relaxed);
}

/// How scenarios run.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Where random sequences begin.
    pub seed: u64,
    /// How long each scenario goes on.
    pub length: Length,
    /// Whether the devices are kept full beside it.
    pub scarce: bool,
    /// Whether all run at once.
    pub together: bool,
    /// How often it is told how far one is.
    pub report_every: Duration,
    /// When one that does not get on is killed.
    pub limit: Duration,
}

/// Runs all of `scenarios`; whether all held or were skipped.
pub fn run<W: Write>(
    out: W,
    scenarios: &[&Scenario],
    machine: Machine,
    order: &Order,
) -> Result<bool> {
    catch_signals()?;
    let planned = scenarios.len() + usize::from(order.together);
    let mut report = Report {
        writer: Writer::begin(out, planned)?,
        is_good: true,
    };
    report.writer.diagnostic(&format!("seed {}", order.seed))?;
    let was = with_huge_files()?;
    let ran = match order.together {
        true => run_together(scenarios, machine, order, &mut report),
        false => scenarios
            .iter()
            .try_for_each(|scenario| run_alone(scenario, machine, order, &mut report)),
    };
    fs::write(SHMEM_HUGE, was).context("cannot set back huge pages of files")?;
    ran?;
    Ok(report.is_good)
}

fn catch_signals() -> Result<()> {
    let handler = SigHandler::Handler(on_signal);
    for number in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler stores to an atomic, which is allowed in a handler.
        unsafe { signal(number, handler) }.context("cannot handle signals")?;
    }
    Ok(())
}

/// Lets files have huge pages where that is asked for; what it was before.
fn with_huge_files() -> Result<String> {
    let was = chosen(&fs::read_to_string(SHMEM_HUGE).context("no huge pages of files")?)?;
    fs::write(SHMEM_HUGE, "advise").context("cannot have huge pages of files")?;
    Ok(was)
}

/// The word in brackets, which is the one in force.
fn chosen(text: &str) -> Result<String> {
    let (_, rest) = text.split_once('[').context("no word is in brackets")?;
    let (word, _) = rest.split_once(']').context("no word is in brackets")?;
    Ok(word.to_owned())
}

fn run_alone<W: Write>(
    scenario: &Scenario,
    machine: Machine,
    order: &Order,
    report: &mut Report<W>,
) -> Result<()> {
    if let Some(reason) = scenario.needs.unmet(&machine) {
        return report.skipped(scenario, reason);
    }
    if scenario.alone && order.scarce {
        // What keeps devices full would be what is disturbed.
        return report.skipped(scenario, "runs by itself only".into());
    }
    let before = Snapshot::take()?;
    let mut acts = [Act::start(scenario, machine, order, Ballast::new()?)?];
    watch(&mut acts, order, report)?;
    let [act] = acts;
    let failed = act.stage.counts().get(Count::PagesFailed);
    report.ended(act, || before.compare_but_for_failed(failed))
}

fn run_together<W: Write>(
    scenarios: &[&Scenario],
    machine: Machine,
    order: &Order,
    report: &mut Report<W>,
) -> Result<()> {
    let before = Snapshot::take()?;
    let ballast = Ballast::new()?;
    let mut acts = Vec::new();
    for scenario in scenarios {
        match scenario.needs.unmet(&machine) {
            Some(reason) => report.skipped(scenario, reason)?,
            None if scenario.alone => report.skipped(scenario, "runs by itself only".into())?,
            None => acts.push(Act::start(scenario, machine, order, ballast.clone())?),
        }
    }
    watch(&mut acts, order, report)?;
    for act in acts {
        report.ended(act, || Ok(()))?;
    }
    // Whose it is cannot be told.
    report.result(TOGETHER, before.compare().err().into_iter().collect())
}

/// A scenario that runs.
struct Act<'a> {
    scenario: &'a Scenario,
    stage: Stage,
    member: Member,
    group: Option<Cgroup>,
    started: Instant,
    reported: Instant,
    /// What it had counted when it last got on, and when that was.
    counted: u64,
    got_on: Instant,
    result: Option<Result<()>>,
}

impl<'a> Act<'a> {
    fn start(
        scenario: &'a Scenario,
        machine: Machine,
        order: &Order,
        ballast: Ballast,
    ) -> Result<Self> {
        let group = match Cgroup::is_possible() {
            true => Some(Cgroup::new()?),
            false => None,
        };
        let stage = Stage::new(scenario, machine, order.seed, order.length, ballast)?;
        let member = Member::start(scenario.name, || {
            // A group of its own, so that a scenario that hangs is ended with all its processes.
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).context("setpgid")?;
            for number in [Signal::SIGTERM, Signal::SIGINT] {
                // SAFETY: no handler is set, but the one of the runner is taken away.
                unsafe { signal(number, SigHandler::SigDfl) }?;
            }
            group.as_ref().map_or(Ok(()), Cgroup::enter)?;
            match order.scarce {
                true => ballast::beside(&stage, || (scenario.body)(&stage)),
                false => (scenario.body)(&stage),
            }
        })?;
        let now = Instant::now();
        Ok(Self {
            scenario,
            stage,
            member,
            group,
            started: now,
            reported: now,
            counted: 0,
            got_on: now,
            result: None,
        })
    }

    /// How far it is, in one line.
    fn progress(&self) -> String {
        let figures: Vec<String> = self
            .stage
            .counts()
            .all()
            .map(|(name, number)| format!("{name} {number}"))
            .collect();
        format!(
            "progress {} {} s, {}",
            self.scenario.name,
            self.started.elapsed().as_secs(),
            figures.join(", ")
        )
    }

    /// Whether it has counted nothing for so long, or, with all of it done, has not ended. What it does
    /// may take as long as it does: a debug kernel under TCG is a hundred times slower than a machine.
    fn hangs(&mut self, limit: Duration) -> bool {
        let counted = self.stage.counts().all().map(|(_, number)| number).sum();
        if counted != self.counted && !self.stage.is_over() {
            self.counted = counted;
            self.got_on = Instant::now();
        }
        self.got_on.elapsed() > limit
    }

    /// Ends all of its processes that are left.
    fn end_group(&self) {
        // There may be none any more.
        let _ = kill(Pid::from_raw(-self.member.pid().as_raw()), Signal::SIGKILL);
    }
}

/// Waits until all have ended, and tells meanwhile how far they are.
fn watch<W: Write>(acts: &mut [Act<'_>], order: &Order, report: &mut Report<W>) -> Result<()> {
    loop {
        let mut running = 0;
        for act in acts.iter_mut().filter(|act| act.result.is_none()) {
            if SIGNALLED.load(Relaxed) {
                act.stage.counts().stop();
            }
            if let Some(result) = act.member.ended() {
                act.end_group();
                act.result = Some(result);
                continue;
            }
            running += 1;
            if act.hangs(order.limit) {
                let limit = order.limit.as_secs();
                act.stage.counts().stop();
                act.end_group();
                ensure!(
                    act.member.end(),
                    "{} has hung for {limit} s and cannot be killed",
                    act.scenario.name
                );
                act.result = Some(Err(anyhow!("it has hung for {limit} s and was killed")));
            } else if act.reported.elapsed() >= order.report_every {
                act.reported = Instant::now();
                report.writer.diagnostic(&act.progress())?;
            }
        }
        if running == 0 {
            ensure!(!SIGNALLED.load(Relaxed), "interrupted");
            return Ok(());
        }
        thread::sleep(POLL);
    }
}

/// Where results go.
struct Report<W> {
    writer: Writer<W>,
    is_good: bool,
}

impl<W: Write> Report<W> {
    fn skipped(&mut self, scenario: &Scenario, reason: String) -> Result<()> {
        self.writer
            .result(scenario.name, &Outcome::Skipped(reason))
            .context("cannot write a result")
    }

    /// What an act came to, and whether nothing is left of it.
    fn ended(&mut self, act: Act<'_>, nothing_left: impl FnOnce() -> Result<()>) -> Result<()> {
        let Act {
            scenario,
            stage,
            group,
            result,
            ..
        } = act;
        let name = scenario.name;
        let counts = stage.counts();
        self.writer
            .diagnostic(&format!("total {name} seconds {}", stage.seconds()))?;
        for (count, number) in counts.all() {
            self.writer
                .diagnostic(&format!("total {name} {count} {number}"))?;
        }
        let mut wrong = Vec::new();
        match result {
            Some(Ok(())) => {
                for (count, found, least) in below_minimum(scenario, counts) {
                    wrong.push(anyhow!("it did not count: {count} {found}, least {least}"));
                }
            }
            Some(Err(error)) => wrong.push(error),
            None => wrong.push(anyhow!("it has no result")),
        }
        let left = nothing_left().and_then(|()| group.map_or(Ok(()), expect_gone));
        wrong.extend(left.err().map(|error| error.context("left behind")));
        self.result(name, wrong)
    }

    fn result(&mut self, name: &str, wrong: Vec<anyhow::Error>) -> Result<()> {
        for error in &wrong {
            self.writer.diagnostic(&format!("{error:#}"))?;
        }
        self.is_good &= wrong.is_empty();
        let outcome = match wrong.is_empty() {
            true => Outcome::Passed,
            false => Outcome::Failed,
        };
        self.writer
            .result(name, &outcome)
            .context("cannot write a result")
    }
}

/// Expects that no page is charged to a group any more, and that nothing holds its remains.
fn expect_gone(group: Cgroup) -> Result<()> {
    group.expect_no_pages()?;
    group.remove()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_force_is_the_one_in_brackets() {
        assert_eq!(chosen("always [never] advise\n").unwrap(), "never");
        assert!(chosen("always never").is_err());
    }
}
