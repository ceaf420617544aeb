// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A scenario that runs in the guest while the host does its part.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cdm_agent_protocol::{Command, Exec, ExitStatus};

use crate::stress::said::{Said, Totals};
use crate::test::Session;
use crate::test::ktap::Outcome;
use crate::test::report::Verdict;
use crate::vm::{Event, Running};

/// Made when the host has done its part: the scenario comes to its end then. Known to `cdm-stress`.
const END_FILE: &str = "/tmp/cdm-stress.end";
/// More rounds than anybody waits for.
const ROUNDS: u64 = 1 << 40;
/// The host has limits of its own.
const A_DAY: Duration = Duration::from_secs(86_400);
/// After so long without getting on, or coming to its end, a scenario is taken to hang. No measure of
/// speed: on a debug kernel under TCG, on a machine with other work, minutes of waiting are nothing.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// A scenario in the guest, as far as it is.
pub struct Playing {
    name: String,
    running: Running,
    partial: Vec<u8>,
    errors: Vec<u8>,
    said: Said,
    progress: Totals,
    ended: Option<ExitStatus>,
}

impl Playing {
    /// Starts a scenario that goes on until [`Self::end`].
    pub fn start(session: &mut Session<'_>, name: &str, seed: u64) -> Result<Self> {
        session.text(&format!("rm -f {END_FILE}"))?;
        let line = format!(
            "exec cdm-stress run {name} --seed {seed} --rounds {ROUNDS} --report-every 1 --limit {}",
            A_DAY.as_secs()
        );
        let running = session.vm()?.start(Exec {
            command: Command::Shell(line),
            tty: None,
            env: Vec::new(),
            cwd: None,
        })?;
        Ok(Self {
            name: name.to_owned(),
            running,
            partial: Vec::new(),
            errors: Vec::new(),
            said: Said::default(),
            progress: Totals::new(),
            ended: None,
        })
    }

    /// Takes in what it says for so long.
    pub fn listen(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while self.ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.running.next_event(left) {
                None => return Ok(()),
                Some(Event::Stdout(data)) => self.hear(&data),
                Some(Event::Stderr(data)) => self.errors.extend(data),
                Some(Event::Exit(status)) => self.ended = Some(status),
                Some(Event::Failed(reason)) => bail!("{}: {reason}", self.name),
                Some(Event::Lost(lost)) => bail!("{} is lost: {lost}", self.name),
            }
        }
        Ok(())
    }

    fn hear(&mut self, data: &[u8]) {
        self.partial.extend(data);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let rest = self.partial.split_off(end + 1);
            let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
            self.partial = rest;
            match line.strip_prefix("# progress ") {
                Some(progress) => self.progress = counts(progress),
                None => self.said.take(&line),
            }
        }
    }

    /// What it has counted, as far as it said so.
    pub fn count(&self, name: &str) -> u64 {
        self.progress.get(name).copied().unwrap_or(0)
    }

    /// Listens until `is_so`, which must come about, and fails if the scenario ends instead.
    pub fn listen_until(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.listen(POLL)?;
            ensure!(self.ended.is_none(), "it ended before {what}{}", self.why());
            if is_so(self)? {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what} does not come about");
        }
    }

    /// Waits until a count has grown.
    pub fn await_more(&mut self, name: &str, more: u64) -> Result<()> {
        // What was said last may be of some time ago.
        let mut before = None;
        let mut lines = 0;
        let mut last = self.progress.clone();
        self.listen_until(&format!("{name} grew by {more}"), |playing| {
            if playing.progress != last {
                last.clone_from(&playing.progress);
                lines += 1;
            }
            let now = playing.count(name);
            if lines > 0 && before.is_none() {
                before = Some(now);
            }
            Ok(before.is_some_and(|before| now >= before + more))
        })
    }

    fn why(&self) -> String {
        let said = self.said.outcome(&self.name);
        let notes = said.map(|outcome| outcome.diagnostics.join("\n"));
        let errors = String::from_utf8_lossy(&self.errors);
        format!(": {}\n{errors}", notes.unwrap_or_default())
    }

    /// Has it come to its end, and gives what it counted; fails if it did not hold.
    pub fn end(mut self, session: &mut Session<'_>) -> Result<Totals> {
        session.text(&format!("touch {END_FILE}"))?;
        let deadline = Instant::now() + LIMIT;
        while self.ended.is_none() {
            ensure!(Instant::now() < deadline, "it does not come to its end");
            self.listen(POLL)?;
        }
        let why = self.why();
        self.said.check().with_context(|| why.clone())?;
        let outcome = self.said.outcome(&self.name);
        match outcome.map(|outcome| outcome.verdict) {
            Some(Verdict::Passed) if self.ended.is_some_and(|status| status.success()) => {
                Ok(self.said.totals(&self.name))
            }
            verdict => bail!("it ended with {verdict:?}, {:?}{why}", self.ended),
        }
    }

    /// Expects that it ended with its guest, and had found nothing wrong before.
    pub fn expect_lost(mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.ended.is_none() && self.listen(POLL).is_ok() {
            ensure!(Instant::now() < deadline, "it outlives its guest");
        }
        let failed = |outcome: &Outcome| outcome.verdict == Verdict::Failed;
        ensure!(
            !self.said.outcomes.iter().any(failed),
            "it failed{}",
            self.why()
        );
        Ok(())
    }
}

/// The counts of a line that tells how far a scenario is: `NAME 3 s, operations 5, forks 2`.
fn counts(progress: &str) -> Totals {
    progress
        .split(", ")
        .skip(1)
        .filter_map(|count| {
            let (name, number) = count.split_once(' ')?;
            Some((name.to_owned(), number.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_by_its_names() {
        let counts = counts("life::x 3 s, operations 5, commands_done 20");
        assert_eq!(counts["operations"], 5);
        assert_eq!(counts["commands_done"], 20);
        assert_eq!(counts.len(), 2);
    }
}
