// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of `cdm test`, which comes exactly once: after the last stage, or when the time
//! limit of the whole run is up, whatever the run is doing then.

use std::path::PathBuf;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::report::{Report, TestResult, Verdict};
use super::run::Run;
use crate::evidence;
use crate::progress::Progress;
use crate::results::Origin;
use crate::vm;

/// Name of the result that a run without time left gets.
const TIME_LIMIT: &str = "test::time_limit";

/// All that the end needs.
pub struct Closing {
    folder: PathBuf,
    origin: Origin,
    report: Arc<Mutex<Report>>,
    progress: Progress,
    started: Instant,
    closed: Mutex<bool>,
}

impl Closing {
    /// The end of this run, which began now.
    pub fn new(run: &Run<'_>, origin: Origin) -> Arc<Self> {
        Arc::new(Self {
            folder: run.folder().to_owned(),
            origin,
            report: run.shared_report(),
            progress: run.ctx().progress.clone(),
            started: Instant::now(),
            closed: Mutex::new(false),
        })
    }

    /// Ends the whole process when the time is up, with the results so far.
    pub fn end_after(self: &Arc<Self>, limit: Duration) {
        let closing = Arc::clone(self);
        thread::spawn(move || {
            thread::sleep(limit);
            closing.expire(limit);
            vm::put_in_order();
            process::exit(1);
        });
    }

    /// Fails whatever has no result.
    fn expire(&self, limit: Duration) {
        let why = format!(
            "the time limit of the whole run, {} min, was up; see --time-limit",
            limit.as_secs() / 60
        );
        {
            let mut report = lock(&self.report);
            let fail = |name: &str| TestResult::new(name, Verdict::Failed, Duration::ZERO, &why);
            for name in report.missing() {
                report.record(fail(&name));
            }
            report.record(fail(TIME_LIMIT));
        }
        match self.close() {
            Ok(_) => {}
            Err(error) => eprintln!("cdm: {error:#}"),
        }
    }

    /// Tells what failed, writes the results down, and counts. Whether all is good. Whoever
    /// comes second waits for the end of the process.
    pub fn close(&self) -> Result<bool> {
        let mut closed = lock(&self.closed);
        if *closed {
            loop {
                thread::park();
            }
        }
        *closed = true;
        let report = lock(&self.report);
        for result in report.failed() {
            evidence::of_failure(&self.folder, &result.name, &result.detail, None)?;
        }
        print!("{}{}", report.failures(), report.summary());
        report.write(&self.folder, &self.origin, self.started.elapsed())?;
        self.progress
            .say(format!("logs and results: {}", self.folder.display()));
        if report.is_empty() {
            self.progress
                .say("no test matches: see 'just test --list' for the names");
        } else if !report.is_good() {
            let folder = evidence::folder_in(&self.folder);
            self.progress
                .say(format!("what failed: {}", folder.display()));
        }
        println!("{}", report.count());
        Ok(report.is_good())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Results are whole between two calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use crate::schema;

    #[test]
    fn run_whose_time_is_up_has_a_failure_for_each_test_without_a_result() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(folder.path());
        let mut run = Run::quiet(&ctx, folder.path().to_owned());
        run.expect(&["unit::done".into(), "unit::hangs".into()]);
        run.record("unit::done", Verdict::Passed, Duration::ZERO, "");
        let closing = Closing::new(&run, Origin::new("just test", "abc"));
        closing.expire(Duration::from_secs(180));
        let text = std::fs::read(folder.path().join("results.json")).expect("written");
        let json = schema::follows("cdm-test-results.schema.json", &text).expect("as it says");
        assert_eq!((&json["passed"], &json["failed"]), (&1.into(), &2.into()));
        assert_eq!(json["results"][1]["name"], "unit::hangs");
        let detail = json["results"][1]["detail"].as_str().expect("a text");
        assert!(detail.contains("3 min"), "{detail}");
        let repeat = folder.path().join("failures/unit.hangs/repeat.txt");
        let line = std::fs::read_to_string(repeat).expect("written");
        assert_eq!(line, "ci/just test unit::hangs\n");
    }
}
