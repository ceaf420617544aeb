// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Progress of long work on stderr: what, how far, how long, and where the log
//! is. A terminal gets one line that moves; anything else gets a plain line now
//! and then, so that a CI log shows that work goes on.
//!
//! Work that ends within [`QUIET`] leaves no trace.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How long work may take before anybody is told about it.
const QUIET: Duration = Duration::from_millis(1500);
/// Between two plain lines about the same work.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);
/// Between two looks at whether [`QUIET`] or [`PLAIN_INTERVAL`] is over.
const TICK: Duration = Duration::from_millis(100);

/// Starts tasks and writes lines that do not collide with their display.
#[derive(Clone, Debug)]
pub struct Progress {
    style: Style,
    /// One for each task that goes on: machines run beside each other.
    bars: MultiProgress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Terminal,
    Plain,
    Silent,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Progress on stderr, drawn if that is a terminal.
    pub fn new() -> Self {
        let style = if std::io::stderr().is_terminal() {
            Style::Terminal
        } else {
            Style::Plain
        };
        Self {
            style,
            bars: MultiProgress::new(),
        }
    }

    /// No progress at all, for tests.
    pub fn silent() -> Self {
        Self {
            style: Style::Silent,
            bars: MultiProgress::new(),
        }
    }

    /// Starts a task. `what` reads as "building the kernel"; `log` is where the
    /// details go.
    pub fn task(&self, what: impl Into<String>, log: Option<&Path>) -> Task {
        Task::start(self.clone(), what.into(), log.map(Path::to_owned))
    }

    /// Writes a line to stderr, above any moving line.
    pub fn say(&self, line: impl AsRef<str>) {
        if self.style == Style::Silent {
            return;
        }
        self.bars.suspend(|| eprintln!("{}", line.as_ref()));
    }
}

/// A piece of work that goes on. Dropping it ends the display.
#[derive(Debug)]
pub struct Task {
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    progress: Progress,
    what: String,
    log: Option<PathBuf>,
    started: Instant,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    position: u64,
    total: u64,
    detail: String,
    ended: bool,
    announced: Option<Instant>,
}

impl Task {
    fn start(progress: Progress, what: String, log: Option<PathBuf>) -> Self {
        let silent = progress.style == Style::Silent;
        let shared = Arc::new(Shared {
            progress,
            what,
            log,
            started: Instant::now(),
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let ticker = (!silent).then(|| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.tick_until_ended())
        });
        Self { shared, ticker }
    }

    /// How many steps there are; 0 means that nobody knows.
    pub fn set_total(&self, total: u64) {
        lock(&self.shared.state).total = total;
    }

    /// How many steps are done.
    pub fn set_position(&self, position: u64) {
        lock(&self.shared.state).position = position;
    }

    /// One more step is done.
    pub fn advance(&self) {
        lock(&self.shared.state).position += 1;
    }

    /// What is being done right now, in a few words.
    pub fn set_detail(&self, detail: impl Into<String>) {
        lock(&self.shared.state).detail = detail.into();
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.shared.started.elapsed()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.wake.notify_all();
        if let Some(ticker) = self.ticker.take() {
            // The ticker only draws: a panic in it is no reason to fail the work.
            let _ = ticker.join();
        }
    }
}

impl Shared {
    fn tick_until_ended(&self) {
        let mut bar = None;
        let mut state = lock(&self.state);
        while !state.ended {
            let elapsed = self.started.elapsed();
            if elapsed >= QUIET {
                match self.progress.style {
                    Style::Terminal => {
                        let bar = bar.get_or_insert_with(|| self.new_bar());
                        bar.set_message(describe(&self.what, &state, elapsed, self.log.as_deref()));
                        bar.tick();
                    }
                    Style::Plain => {
                        if state
                            .announced
                            .is_none_or(|at| at.elapsed() >= PLAIN_INTERVAL)
                        {
                            state.announced = Some(Instant::now());
                            let line = describe(&self.what, &state, elapsed, self.log.as_deref());
                            self.progress.say(line);
                        }
                    }
                    Style::Silent => {}
                }
            }
            state = self
                .wake
                .wait_timeout(state, TICK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let elapsed = self.started.elapsed();
        drop(state);
        if let Some(bar) = bar {
            bar.finish_and_clear();
            self.progress.bars.remove(&bar);
        }
        if elapsed >= QUIET {
            self.progress
                .say(format!("{}: {}", self.what, seconds(elapsed)));
        }
    }

    fn new_bar(&self) -> ProgressBar {
        let bar = self.progress.bars.add(ProgressBar::no_length());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar
    }
}

/// One line: what, how far, how long, where the log is.
fn describe(what: &str, state: &State, elapsed: Duration, log: Option<&Path>) -> String {
    let mut line = what.to_owned();
    if state.total > 0 {
        let position = state.position.min(state.total);
        let percent = position * 100 / state.total;
        line += &format!(": {position}/{} ({percent} %)", state.total);
    } else if state.position > 0 {
        line += &format!(": {} done", state.position);
    }
    line += &format!(", {}", seconds(elapsed));
    if !state.detail.is_empty() {
        line += &format!(", {}", state.detail);
    }
    if let Some(log) = log {
        line += &format!(", log {}", log.display());
    }
    line
}

/// A duration for people: `7 s`, `3 min 05 s`.
pub fn seconds(elapsed: Duration) -> String {
    let total = elapsed.as_secs();
    if total < 60 {
        format!("{total} s")
    } else {
        format!("{} min {:02} s", total / 60, total % 60)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: a panic elsewhere cannot have left it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_how_far_how_long_and_where_the_log_is() {
        let state = State {
            position: 30,
            total: 120,
            detail: "mm/".into(),
            ..State::default()
        };
        let line = describe(
            "building the kernel",
            &state,
            Duration::from_secs(65),
            Some(Path::new("/c/kernel.log")),
        );
        assert_eq!(
            line,
            "building the kernel: 30/120 (25 %), 1 min 05 s, mm/, log /c/kernel.log"
        );
    }

    #[test]
    fn a_line_without_a_known_total_counts_what_is_done() {
        let state = State {
            position: 7,
            ..State::default()
        };
        assert_eq!(
            describe("unpacking", &state, Duration::from_secs(3), None),
            "unpacking: 7 done, 3 s"
        );
    }

    #[test]
    fn a_position_beyond_the_total_is_not_more_than_everything() {
        let state = State {
            position: 9,
            total: 3,
            ..State::default()
        };
        assert_eq!(
            describe("x", &state, Duration::ZERO, None),
            "x: 3/3 (100 %), 0 s"
        );
    }

    #[test]
    fn dropping_a_task_ends_its_ticker() {
        let progress = Progress {
            style: Style::Plain,
            bars: MultiProgress::new(),
        };
        let task = progress.task("nothing", None);
        task.advance();
        let shared = Arc::downgrade(&task.shared);
        drop(task);
        assert!(
            shared.upgrade().is_none(),
            "the ticker still holds the task"
        );
    }
}
