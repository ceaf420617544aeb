// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What all stages of one `cdm test` share: where logs go, and the results.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::report::{Report, TestResult, Verdict};
use crate::context::Context;
use crate::evidence::{self, Guest};

/// Ends a test as skipped.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// One run of tests.
#[derive(Debug)]
pub struct Run<'a> {
    ctx: &'a Context,
    folder: PathBuf,
    report: Arc<Mutex<Report>>,
    /// Whether results are printed as they come.
    prints: bool,
}

impl<'a> Run<'a> {
    /// A run whose logs go to `folder`, which exists.
    pub fn new(ctx: &'a Context, folder: PathBuf) -> Self {
        Self {
            ctx,
            folder,
            report: Arc::default(),
            prints: true,
        }
    }

    /// A run that prints nothing, for results that are part of a test.
    pub fn quiet(ctx: &'a Context, folder: PathBuf) -> Self {
        Self {
            prints: false,
            ..Self::new(ctx, folder)
        }
    }

    /// The same run, for a thread of its own.
    pub fn beside(&self) -> Self {
        Self {
            ctx: self.ctx,
            folder: self.folder.clone(),
            report: self.shared_report(),
            prints: self.prints,
        }
    }

    /// Repository, cache, progress.
    pub fn ctx(&self) -> &'a Context {
        self.ctx
    }

    /// Where logs of this run go.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The log of something that this run does.
    pub fn log(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}.log"))
    }

    /// The results.
    pub fn report(&self) -> MutexGuard<'_, Report> {
        // Results are whole between two calls.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The results, for who may outlive the run.
    pub fn shared_report(&self) -> Arc<Mutex<Report>> {
        Arc::clone(&self.report)
    }

    /// Announces tests, each of which must get a result.
    pub fn expect(&mut self, names: &[String]) {
        self.report().expect(names);
    }

    /// Records a result and prints it.
    pub fn record(&mut self, name: &str, verdict: Verdict, took: Duration, detail: &str) {
        let mut report = self.report();
        let result = report.record(TestResult::new(name, verdict, took, detail));
        let word = match result.verdict {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        let mut line = format!("{word:<7} {name} ({:.1} s)", result.seconds);
        if result.verdict == Verdict::Skipped {
            line.push_str(": ");
            line.push_str(result.detail.lines().next().unwrap_or_default());
        }
        if self.prints {
            println!("{line}");
            if result.verdict == Verdict::Failed {
                // Said at once, as the run may not come to its end.
                result
                    .detail
                    .lines()
                    .for_each(|text| println!("        {text}"));
            }
        }
    }

    /// Records a failure that no test function found.
    pub fn fail(&mut self, name: &str, detail: &str) {
        self.record(name, Verdict::Failed, Duration::ZERO, detail);
    }

    /// Records a failure for those of `names` that were announced and have no result.
    pub fn fail_missing_of(&mut self, names: &[String], why: &str) {
        let missing = self.report().missing();
        for name in missing {
            if names.contains(&name) {
                self.fail(&name, why);
            }
        }
    }

    /// Keeps what is known of those of these tests that failed, with what their guest left.
    pub fn keep_evidence<'g>(&self, names: &[String], guest: impl FnOnce() -> Option<Guest<'g>>) {
        let failed: Vec<TestResult> = self
            .report()
            .failed()
            .filter(|result| names.contains(&result.name))
            .cloned()
            .collect();
        if failed.is_empty() {
            return;
        }
        let guest = guest();
        for result in failed {
            let kept = evidence::of_failure(&self.folder, &result.name, &result.detail, guest);
            if let Err(error) = kept {
                // The result itself is not lost.
                self.ctx
                    .progress
                    .say(format!("cdm: of {}: {error:#}", result.name));
            }
        }
    }

    /// Runs a test function and records how it ended. A panic is a failure.
    pub fn check(&mut self, name: &str, test: impl FnOnce(&Self) -> Result<()>) {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| test(self)));
        let (verdict, detail) = match result {
            Ok(Ok(())) => (Verdict::Passed, String::new()),
            Ok(Err(error)) => match error.downcast_ref::<Skip>() {
                Some(skip) => (Verdict::Skipped, skip.0.clone()),
                None => (Verdict::Failed, format!("{error:#}")),
            },
            Err(panic) => (
                Verdict::Failed,
                format!("panic: {}", message(panic.as_ref())),
            ),
        };
        self.record(name, verdict, started.elapsed(), &detail);
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of an unknown kind")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn error_and_panic_fail_a_test_and_skip_skips_it() {
        let ctx = Context::for_test("/nonexistent".as_ref());
        let mut run = Run::new(&ctx, "/nonexistent".into());
        run.check("good", |_| Ok(()));
        run.check("bad", |_| bail!("no"));
        run.check("worse", |_| panic!("oh"));
        run.check("elsewhere", |_| Err(Skip("not here".into()).into()));
        assert_eq!(run.report().count(), "1 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn missing_tests_fail_with_the_reason_and_those_of_others_do_not() {
        let ctx = Context::for_test("/nonexistent".as_ref());
        let mut run = Run::new(&ctx, "/nonexistent".into());
        run.expect(&["one".into(), "another stage's".into()]);
        run.fail_missing_of(&["one".into()], "the guest died");
        assert_eq!(run.report().missing(), ["another stage's"]);
        assert!(run.report().failures().contains("the guest died"));
    }
}
