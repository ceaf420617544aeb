// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The named scenarios of `cdm-stress`, each by itself in a guest or all at once. What
//! the program says of one, what its kernel says and what the debug kernel has lost make the
//! result together. A guest that is not as it should be afterwards is given up, and the scenarios
//! that are left run in a new one.

pub mod order;
pub mod result;
pub mod skips;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use self::order::{Order, Room};
use self::result::{Document, ScenarioResult};
use super::driven::{self, Driven};
use super::outcome::Verdict;
use super::said::{Said, Totals};
use super::{Task, junit, leaks};
use crate::build::{self, BuildKind, Kernel, KernelChoice};
use crate::context::Context;
use crate::evidence;
use crate::results::{self, Origin};
use crate::test::Session;
use crate::test::report::Verdict as Told;
use crate::vm::FileCopy;

/// The result of a run of all at once that tells whether anything was left behind.
const TOGETHER: &str = "all_at_once::nothing_is_left_behind";

/// Folder of the logs of guests.
pub const GUESTS: &str = "guests";

/// Why a scenario does not run beside anything, as the program says it.
const BY_ITSELF: &str = "runs by itself only";

/// What `cdm-stress list --json` tells of a scenario.
#[derive(Clone, Debug, Deserialize)]
pub struct Listed {
    /// `family::what_happens`.
    pub name: String,
    /// What must hold.
    pub property: String,
    /// Devices that it needs.
    pub devices: u8,
    /// Whether it cannot run beside others.
    pub alone: bool,
}

/// Every scenario, those behind the others of which the host does a part. The programs for the guest are static, so it takes no guest to list them.
pub fn list(ctx: &Context) -> Result<Vec<Listed>> {
    let program = build::guest_tools(ctx)?.join("cdm-stress");
    let output = Command::new(&program)
        .args(["list", "--json"])
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} cannot list its scenarios: {}",
        program.display(),
        output.status
    );
    let mut all: Vec<Listed> =
        serde_json::from_slice(&output.stdout).context("the list of scenarios is no JSON")?;
    all.extend(driven::SCENARIOS.iter().map(|driven| Listed {
        name: driven.name.to_owned(),
        property: driven.property.to_owned(),
        devices: 1,
        alone: true,
    }));
    skips::check(all.iter().map(|scenario| scenario.name.as_str()))?;
    Ok(all)
}

/// The first words of what the program says of its progress: the scenario, the time, the operations.
pub fn first_words(detail: &str) -> String {
    let words: Vec<&str> = detail.split(", ").take(2).collect();
    words.join(", ")
}

/// Runs what is asked for; whether all of it held.
pub fn run(task: &Task<'_>, order: &Order) -> Result<bool> {
    let names = choose(list(task.ctx)?, order)?;
    let kernel = task.kernel.clone();
    let mut stand = Stand::new(task.ctx, kernel, order.clone(), &task.folder, GUESTS)?;
    let mut results = Vec::new();
    let progress = task.ctx.progress.task("stress", None);
    progress.set_total(names.len() as u64);
    let mut say = |result: ScenarioResult| {
        println!("{}", result.lines());
        results.push(result);
    };
    if order.all_at_once {
        stand
            .run_together(&names, |detail| progress.set_detail(first_words(detail)))
            .into_iter()
            .for_each(&mut say);
    } else {
        for name in &names {
            say(stand.run(name, |detail| progress.set_detail(first_words(detail))));
            progress.advance();
        }
    }
    drop(progress);
    let guests = stand.end()?;
    let origin = Origin::new(&task.command, task.commit.to_string());
    let document = Document::new(origin, order.seed, guests, results);
    println!("{}", document.summary());
    let json = serde_json::to_string_pretty(&document)?;
    results::write(&task.folder.join("results.json"), &json)?;
    let cases = junit::of_scenarios(&document.results);
    crate::junit::write(&task.folder.join("junit.xml"), &task.command, &cases)?;
    Ok(document.is_good())
}

/// The scenarios that are called by name or by family.
pub fn called(mut all: Vec<Listed>, names: &[String]) -> Result<Vec<Listed>> {
    let is_called =
        |scenario: &str, name: &str| scenario == name || scenario.split("::").next() == Some(name);
    for name in names {
        ensure!(
            all.iter().any(|scenario| is_called(&scenario.name, name)),
            "there is no scenario and no family '{name}'; there are {}",
            all.iter()
                .map(|scenario| scenario.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    all.retain(|scenario| {
        names.is_empty() || names.iter().any(|name| is_called(&scenario.name, name))
    });
    Ok(all)
}

/// Of the scenarios that are called, the part that is this run's.
fn choose(all: Vec<Listed>, order: &Order) -> Result<Vec<String>> {
    let mut chosen: Vec<String> = called(all, &order.names)?
        .into_iter()
        .map(|listed| listed.name)
        .collect();
    if let Some(shard) = order.shard {
        chosen = shard.of(chosen);
        ensure!(
            !chosen.is_empty(),
            "part {shard} is empty: there are fewer scenarios than parts"
        );
    }
    Ok(chosen)
}

/// Guests for scenarios, one after the other.
pub struct Stand<'a> {
    session: Session<'a>,
    order: Order,
    kernel: Kernel,
    /// Where the folders of failures go.
    folder: PathBuf,
    /// Guests so far.
    guests: u32,
    /// Whether the guest that runs is one of them already.
    is_counted: bool,
}

impl<'a> Stand<'a> {
    /// Guests of an order. What fails has its folder below `folder`; logs go to `guests` below it,
    /// where no other guests' are.
    pub fn new(
        ctx: &'a Context,
        kernel: Kernel,
        order: Order,
        folder: &Path,
        guests: &str,
    ) -> Result<Self> {
        let mut spec = order.machine(kernel.clone());
        // File systems and block devices are modules.
        spec.files.push(FileCopy::kernel_modules(ctx, &kernel)?);
        Ok(Self {
            session: Session::new(ctx, spec, folder.join(guests)),
            order,
            kernel,
            folder: folder.to_owned(),
            guests: 0,
            is_counted: false,
        })
    }

    /// Has the scenarios that come now obey another order, which the same machine must do for.
    pub fn obey(&mut self, order: Order) {
        self.order = order;
    }

    /// Runs one scenario, unless it is declared that it is not begun here.
    pub fn run(&mut self, name: &str, mut on_progress: impl FnMut(&str)) -> ScenarioResult {
        if let Some(result) = self.not_begun(name) {
            return result;
        }
        if let Some(driven) = driven::find(name) {
            on_progress(name);
            return self.play(driven);
        }
        let names = [name.to_owned()];
        let mut results = self.run_names(&names, on_progress);
        results.swap_remove(0)
    }

    /// Runs scenarios at the same time. One more result tells what they left behind together.
    pub fn run_together(
        &mut self,
        names: &[String],
        on_progress: impl FnMut(&str),
    ) -> Vec<ScenarioResult> {
        let mut results: Vec<_> = names
            .iter()
            .filter_map(|name| self.not_begun(name))
            .collect();
        let is_begun = |name: &&String| results.iter().all(|result| result.name != **name);
        let mut names: Vec<String> = names.iter().filter(is_begun).cloned().collect();
        names.push(TOGETHER.to_owned());
        results.extend(self.run_names(&names, on_progress));
        results
    }

    fn not_begun(&self, name: &str) -> Option<ScenarioResult> {
        let why = skips::not_begun(&self.kernel.choice, &self.order.names, name)?;
        Some(ScenarioResult {
            name: name.to_owned(),
            verdict: Verdict::Skipped,
            seconds: 0.0,
            detail: why,
            totals: Totals::new(),
            repeat: self.order.line(&[name.to_owned()], &self.kernel),
            logs: None,
        })
    }

    fn run_names(
        &mut self,
        names: &[String],
        on_progress: impl FnMut(&str),
    ) -> Vec<ScenarioResult> {
        let called: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| *name != TOGETHER)
            .collect();
        let line = self.order.guest_line(&called);
        let begun = self.begin();
        // A machine that boots is no part of a scenario.
        let started = Instant::now();
        let (said, ran) = match begun {
            Ok(()) => Said::by(&mut self.session, &line, on_progress),
            Err(error) => (Said::default(), Err(error)),
        };
        let logs = self.session.logs();
        let is_lost = ran.is_err();
        let ended = ran.and_then(|()| self.look());
        let told = Judge {
            kernel: &self.kernel.choice,
            order: &self.order,
            said: &said,
            is_lost,
            wrong: ended.err().map(|error| format!("{error:#}")),
        };
        let verdicts: Vec<_> = names.iter().map(|name| told.verdict(name)).collect();
        let seconds = started.elapsed();
        let called: Vec<String> = called.into_iter().map(str::to_owned).collect();
        let repeat = match (self.order.all_at_once, self.order.shard) {
            (true, None) => self.order.line(&self.order.names, &self.kernel),
            _ => self.order.line(&called, &self.kernel),
        };
        let mut results: Vec<_> = names
            .iter()
            .zip(verdicts)
            .map(|(name, (verdict, detail))| ScenarioResult {
                name: name.clone(),
                verdict,
                seconds: seconds.as_millis() as f64 / 1000.0,
                detail,
                totals: said.totals(name),
                repeat: repeat.clone(),
                logs: logs.clone(),
            })
            .collect();
        if !results.iter().all(ScenarioResult::is_good) {
            self.keep_evidence(&mut results);
            // What is wrong with this guest must not be the next one's failure.
            self.session.discard();
            self.is_counted = false;
        }
        results
    }

    /// A folder for each failure, while its guest is at hand.
    fn keep_evidence(&self, results: &mut [ScenarioResult]) {
        for result in results.iter_mut().filter(|result| !result.is_good()) {
            let (name, repeat) = (&result.name, format!("ci/{}", result.repeat));
            let guest = self.session.evidence();
            let kept = evidence::of_named(&self.folder, name, &result.detail, &repeat, guest);
            if let Err(error) = kept {
                result.detail += &format!("\nits folder is not complete: {error:#}");
            }
        }
    }

    /// Runs a scenario of which the host does a part. Guests may come and go with it.
    fn play(&mut self, driven: &'static Driven) -> ScenarioResult {
        let started = Instant::now();
        let asked = match self.order.room {
            Room::Plenty => None,
            Room::Scarce => skips::declared(&self.kernel.choice, &self.order, BY_ITSELF),
        };
        let (verdict, totals, detail) = match asked {
            Some(why) => (Verdict::Skipped, Totals::new(), why),
            None => {
                let (totals, held) = match self.begin() {
                    Ok(()) => driven.play(&mut self.session, self.order.seed, self.order.length),
                    Err(error) => (Totals::new(), Err(error)),
                };
                // A machine that was of no more use is gone by now.
                let held = held.and_then(|()| match self.session.is_up() {
                    true => self.look(),
                    false => Ok(()),
                });
                match held {
                    Ok(()) => (Verdict::Passed, totals, String::new()),
                    Err(error) => (Verdict::Failed, totals, format!("{error:#}")),
                }
            }
        };
        let logs = self.session.logs();
        self.guests += totals.get("guests").copied().unwrap_or_default() as u32;
        let mut result = ScenarioResult {
            name: driven.name.to_owned(),
            verdict,
            seconds: started.elapsed().as_millis() as f64 / 1000.0,
            detail,
            totals,
            repeat: self.order.line(&[driven.name.to_owned()], &self.kernel),
            logs,
        };
        if !result.is_good() {
            self.keep_evidence(std::slice::from_mut(&mut result));
            self.session.discard();
        }
        self.is_counted &= self.session.is_up();
        result
    }

    /// Has a guest, and has it forget what was lost before.
    fn begin(&mut self) -> Result<()> {
        self.session.vm()?;
        if !self.is_counted {
            self.guests += 1;
            self.is_counted = true;
        }
        match self.kernel.kind {
            BuildKind::Debug => leaks::forget(&mut self.session),
            BuildKind::Plain => Ok(()),
        }
    }

    /// What the kernel reports and has lost since.
    fn look(&mut self) -> Result<()> {
        if self.kernel.kind == BuildKind::Debug {
            leaks::find(&mut self.session)?;
        }
        self.session.judge_log()
    }

    /// Turns the guest off; how many there were.
    pub fn end(self) -> Result<u32> {
        self.session.end()?;
        Ok(self.guests)
    }
}

/// Tells how scenarios ended from what the guest said and what was found in it.
struct Judge<'a> {
    kernel: &'a KernelChoice,
    order: &'a Order,
    said: &'a Said,
    /// Whether the program did not come to its end.
    is_lost: bool,
    /// What was wrong beside what the program said.
    wrong: Option<String>,
}

impl Judge<'_> {
    /// How a scenario ended, and why not well. What cannot be told whose it is, is everybody's.
    fn verdict(&self, name: &str) -> (Verdict, String) {
        let wrong = self.wrong.clone().unwrap_or_default();
        let Some(outcome) = self.said.outcome(name) else {
            let detail = match wrong.is_empty() {
                true => "it has no result".to_owned(),
                false => wrong,
            };
            return (Verdict::Lost, detail);
        };
        let notes = outcome.diagnostics.join("\n");
        let (verdict, detail) = match outcome.verdict {
            Told::Passed => (Verdict::Passed, String::new()),
            Told::Failed => (Verdict::Failed, notes),
            Told::Skipped => match skips::declared(self.kernel, self.order, &outcome.reason) {
                Some(why) => (Verdict::Skipped, format!("{why} ({})", outcome.reason)),
                None => (
                    Verdict::Failed,
                    format!("skipped, but it must run here: {}", outcome.reason),
                ),
            },
        };
        match (self.is_lost, wrong.is_empty()) {
            (false, true) => (verdict, detail),
            (false, false) => (Verdict::Failed, joined(&detail, &wrong)),
            (true, _) => (Verdict::Lost, joined(&detail, &wrong)),
        }
    }
}

fn joined(one: &str, other: &str) -> String {
    match one.is_empty() {
        true => other.to_owned(),
        false => format!("{one}\n{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::order::{Length, Room};
    use super::*;

    fn order() -> Order {
        Order {
            names: Vec::new(),
            seed: 1,
            length: Length::Seconds(1),
            devices: 2,
            memory_type: None,
            room: Room::Plenty,
            shard: None,
            all_at_once: false,
        }
    }

    fn listed(names: &[&str]) -> Vec<Listed> {
        let listed = |name: &&str| Listed {
            name: (*name).to_owned(),
            property: String::new(),
            devices: 1,
            alone: false,
        };
        names.iter().map(listed).collect()
    }

    #[test]
    fn scenarios_are_called_by_name_and_by_family() {
        let all = || listed(&["a::x", "a::y", "b::x"]);
        let called = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            choose(all(), &Order { names, ..order() })
        };
        assert_eq!(called(&[]).expect("all").len(), 3);
        assert_eq!(called(&["a"]).expect("two"), ["a::x", "a::y"]);
        assert_eq!(called(&["b::x"]).expect("one"), ["b::x"]);
        let error = called(&["c"]).expect_err("none").to_string();
        assert!(error.contains("'c'") && error.contains("a::y"), "{error}");
    }

    #[test]
    fn part_without_a_scenario_is_refused() {
        let shard = |text: &str| Order {
            shard: text.parse().ok(),
            ..order()
        };
        let chosen = choose(listed(&["a::x", "a::y"]), &shard("2/2"));
        assert_eq!(chosen.expect("one"), ["a::y"]);
        assert!(choose(listed(&["a::x"]), &shard("2/2")).is_err());
    }

    const TEXT: &str = "KTAP version 1\n1..3\nok 1 a::good\n# wrong contents\nnot ok 2 a::bad\n\
                        ok 3 a::skipped # SKIP needs capability move_files";

    fn verdict(
        text: &str,
        kernel: KernelChoice,
        wrong: Option<&str>,
        name: &str,
    ) -> (Verdict, String) {
        let (said, ended) = Said::of(text);
        let judge = Judge {
            kernel: &kernel,
            order: &order(),
            said: &said,
            is_lost: ended.is_err(),
            wrong: wrong
                .map(str::to_owned)
                .or_else(|| ended.err().map(|error| error.to_string())),
        };
        judge.verdict(name)
    }

    #[test]
    fn verdict_is_the_guests_where_nothing_else_is_wrong() {
        let of = |name| verdict(TEXT, KernelChoice::Vanilla, None, name);
        assert_eq!(of("a::good"), (Verdict::Passed, String::new()));
        assert_eq!(of("a::bad"), (Verdict::Failed, "wrong contents".into()));
        assert_eq!(of("a::skipped").0, Verdict::Skipped);
        assert_eq!(of("a::absent").0, Verdict::Lost);
    }

    #[test]
    fn skip_that_is_not_declared_is_a_failure() {
        let (verdict, why) = verdict(TEXT, KernelChoice::Public, None, "a::skipped");
        assert_eq!(verdict, Verdict::Failed);
        assert!(why.contains("must run here"), "{why}");
    }

    #[test]
    fn scenario_that_held_in_a_guest_that_reports_a_fault_failed() {
        let report = Some("the guest's kernel reports a BUG");
        let (verdict, why) = verdict(TEXT, KernelChoice::Public, report, "a::good");
        assert_eq!(verdict, Verdict::Failed);
        assert!(why.contains("a BUG"), "{why}");
    }

    #[test]
    fn scenarios_of_a_guest_that_died_are_lost() {
        let cut = TEXT.lines().take(3).collect::<Vec<_>>().join("\n");
        let of = |name| verdict(&cut, KernelChoice::Public, None, name).0;
        assert_eq!(of("a::bad"), Verdict::Lost);
        // It came to its end, in a guest of which nothing can be told any more.
        assert_eq!(of("a::good"), Verdict::Lost);
    }
}
