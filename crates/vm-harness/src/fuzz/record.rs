// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What all runs of the fuzzers come to: kept for the next run, and written down.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::coverage::Coverage;
use super::{Figures, Target};
use crate::build;
use crate::cache::{self, Key, KeyBuilder};
use crate::context::Context;
use crate::git::Commit;
use crate::results::{self, Origin};

/// The command that writes all this.
const COMMAND: &str = "just fuzz --record";
/// Seconds that each target shall run, over all runs.
const ENOUGH_S: u64 = 3600;

/// What the fuzzers feed, and they themselves.
const SOURCES: [&str; 5] = [
    "crates/device-backend/src",
    "crates/device-backend/fuzz/src",
    "crates/device-backend/fuzz/fuzz_targets",
    "crates/control-protocol/src",
    "crates/device-protocol/src",
];

/// Names the code that is fuzzed.
pub fn source(ctx: &Context) -> Result<Key> {
    let mut key = KeyBuilder::new();
    for folder in SOURCES {
        key.tree(&ctx.repo, &ctx.repo.join(folder))?;
    }
    let lock = ctx.repo.join(build::FUZZ_FOLDER).join("Cargo.lock");
    key.file(&ctx.repo, &lock)?;
    Ok(key.finish())
}

/// All runs of one target on the same code.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Stretch {
    target: String,
    source: String,
    /// A commit with that code.
    commit: String,
    seconds: u64,
    executions: u64,
    /// Day of the last run.
    date: String,
}

/// All runs.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    stretches: Vec<Stretch>,
}

/// What was run, and when.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Names the code.
    pub source: &'a Key,
    /// A commit with it.
    pub commit: &'a Commit,
    /// Today.
    pub date: &'a str,
}

impl Store {
    /// What the cache knows.
    pub fn open(ctx: &Context) -> Result<Self> {
        let folder = ctx.cache.join("fuzz");
        cache::create_folder(&folder)?;
        let path = folder.join("runs.json");
        let stretches = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} cannot be understood; remove it", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Self { path, stretches })
    }

    /// Adds a run that found nothing.
    pub fn add(
        &mut self,
        target: Target,
        run: &Run<'_>,
        seconds: u64,
        figures: &Figures,
    ) -> Result<()> {
        let (target, source) = (target.name(), run.source.as_str());
        let index = self
            .stretches
            .iter()
            .position(|stretch| stretch.target == target && stretch.source == source);
        // The last one is where the target was last.
        let before = index.map(|index| self.stretches.remove(index));
        let (seconds_before, executions_before) =
            before.map_or((0, 0), |before| (before.seconds, before.executions));
        self.stretches.push(Stretch {
            target: target.to_owned(),
            source: source.to_owned(),
            commit: run.commit.to_string(),
            seconds: seconds_before + seconds,
            executions: executions_before + figures.executions,
            date: run.date.to_owned(),
        });
        cache::write_whole(&self.path, serde_json::to_string_pretty(&self.stretches)?)
    }

    fn row(&self, target: Target, source: &Key, left_to_fix: usize) -> Row {
        let of_target = || {
            let name = target.name();
            self.stretches
                .iter()
                .filter(move |each| each.target == name)
        };
        let present = of_target().find(|stretch| stretch.source == source.as_str());
        let last = of_target().next_back();
        Row {
            target: target.name(),
            seconds: of_target().map(|stretch| stretch.seconds).sum(),
            executions: of_target().map(|stretch| stretch.executions).sum(),
            seconds_on_this_code: present.map_or(0, |stretch| stretch.seconds),
            executions_on_this_code: present.map_or(0, |stretch| stretch.executions),
            last_commit: last.map(|stretch| stretch.commit.clone()),
            last_run: last.map(|stretch| stretch.date.clone()),
            left_to_fix,
        }
    }
}

/// One target, in what is written down.
#[derive(Debug, Serialize)]
struct Row {
    target: &'static str,
    seconds: u64,
    executions: u64,
    seconds_on_this_code: u64,
    executions_on_this_code: u64,
    last_commit: Option<String>,
    last_run: Option<String>,
    /// Inputs that break something, and still do.
    left_to_fix: usize,
}

impl Row {
    fn is_enough(&self) -> bool {
        self.seconds >= ENOUGH_S
    }

    /// Whether the code has changed since it was fuzzed last.
    fn is_stale(&self) -> bool {
        self.seconds_on_this_code == 0
    }

    fn verdict(&self) -> String {
        match self {
            _ if self.left_to_fix > 0 => format!("{} inputs BREAK it", self.left_to_fix),
            _ if !self.is_enough() => format!("less than {ENOUGH_S} s yet"),
            _ if self.is_stale() => "stale: nothing of it on this code".to_owned(),
            _ => "nothing left to fix".to_owned(),
        }
    }
}

/// What is written down.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    date: String,
    source: String,
    targets: Vec<Row>,
    coverage: Coverage,
}

impl Document {
    /// All that the store knows, seen from the code as it is now.
    pub fn new(
        store: &Store,
        run: &Run<'_>,
        left_to_fix: impl Fn(Target) -> usize,
        coverage: Coverage,
    ) -> Self {
        let row = |target| store.row(target, run.source, left_to_fix(target));
        Self {
            origin: Origin::new(COMMAND, run.commit.to_string()),
            date: run.date.to_owned(),
            source: run.source.as_str().to_owned(),
            targets: Target::ALL.map(row).into(),
            coverage,
        }
    }

    /// Whether each target ran for long enough, also on the code as it is, and nothing breaks.
    pub fn is_good(&self) -> bool {
        let is_good = |row: &Row| row.left_to_fix == 0 && row.is_enough() && !row.is_stale();
        self.targets.iter().all(is_good)
    }

    /// Writes both forms into the repository.
    pub fn publish(&self, ctx: &Context) -> Result<()> {
        results::record(
            ctx,
            "fuzz",
            &serde_json::to_string_pretty(self)?,
            &self.page(),
        )
    }

    fn page(&self) -> String {
        let mut page = self.origin.head("The fuzzers, all runs taken together");
        let _ = writeln!(
            page,
            "{}. `--seconds` says for how long each target runs, and later runs go on where earlier \
             ones ended, with the inputs that they kept. A run that finds an input that breaks \
             something counts nothing. *On this code* is what ran since the device or a fuzzer \
             changed last; a target without any is stale. The code is {} now, a hash over {}.\n",
            self.date,
            self.source,
            SOURCES.map(|folder| format!("`{folder}`")).join(", ")
        );
        page += "| target | seconds | inputs tried | seconds on this code | inputs tried on it | last run | \
                 with | result |\n|---|---|---|---|---|---|---|---|\n";
        for row in &self.targets {
            let commit = row.last_commit.as_deref().map(Commit::short);
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                row.target,
                row.seconds,
                row.executions,
                row.seconds_on_this_code,
                row.executions_on_this_code,
                row.last_run.as_deref().unwrap_or("never"),
                commit.unwrap_or_default(),
                row.verdict()
            );
        }
        page += &self.coverage.section();
        page
    }
}

#[cfg(test)]
mod tests {
    use super::super::coverage;
    use super::*;

    fn key(text: &str) -> Key {
        KeyBuilder::new().text("test", text).finish()
    }

    fn commit() -> Commit {
        Commit {
            hash: "0123456789abcdef".into(),
            changed: false,
        }
    }

    fn figures(executions: u64) -> Figures {
        Figures {
            executions,
            coverage: 1,
            corpus: 1,
        }
    }

    /// A store with these runs: target, code, seconds. Each tries as many inputs as seconds.
    fn store(ctx: &Context, runs: &[(Target, &str, u64)]) -> Store {
        let mut store = Store::open(ctx).expect("a store");
        for &(target, code, seconds) in runs {
            let run = Run {
                source: &key(code),
                commit: &commit(),
                date: "2026-01-31",
            };
            let added = store.add(target, &run, seconds, &figures(seconds));
            added.expect("kept");
        }
        store
    }

    fn document(store: &Store, code: &str, left_to_fix: usize) -> Document {
        let run = Run {
            source: &key(code),
            commit: &commit(),
            date: "2026-02-01",
        };
        Document::new(store, &run, |_| left_to_fix, coverage::tests::sample())
    }

    #[test]
    fn runs_of_one_target_on_the_same_code_add_up_over_processes() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        drop(store(&ctx, &[(Target::Config, "a", 100)]));
        drop(store(
            &ctx,
            &[(Target::Config, "a", 20), (Target::Chains, "a", 7)],
        ));
        let row = Store::open(&ctx).expect("there");
        let row = row.row(Target::Config, &key("a"), 0);
        assert_eq!((row.seconds, row.seconds_on_this_code), (120, 120));
        assert_eq!((row.executions, row.executions_on_this_code), (120, 120));
    }

    #[test]
    fn code_that_changes_makes_the_record_stale_until_it_is_fuzzed() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let hour = Target::ALL.map(|target| (target, "a", ENOUGH_S));
        let store_of = |runs: &[_]| store(&ctx, runs);
        let of_hour = store_of(&hour);
        assert!(document(&of_hour, "a", 0).is_good());
        let stale = document(&of_hour, "b", 0);
        assert!(!stale.is_good());
        assert!(stale.page().contains("stale: nothing of it on this code"));
        let again = store_of(&Target::ALL.map(|target| (target, "b", 5)));
        assert!(document(&again, "b", 0).is_good());
        let row = again.row(Target::Chains, &key("b"), 0);
        assert_eq!((row.seconds, row.seconds_on_this_code), (ENOUGH_S + 5, 5));
    }

    #[test]
    fn less_than_an_hour_and_inputs_that_break_something_are_not_good() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let short = Target::ALL.map(|target| (target, "a", ENOUGH_S - 1));
        let short = store(&ctx, &short);
        assert!(!document(&short, "a", 0).is_good());
        assert!(document(&short, "a", 0).page().contains("less than 3600 s"));
        let broken = document(&short, "a", 2);
        assert!(!broken.is_good());
        assert!(broken.page().contains("2 inputs BREAK it"));
    }

    #[test]
    fn page_has_the_command_the_date_and_a_row_for_each_target() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let store = store(&ctx, &[(Target::Config, "a", 100)]);
        let page = document(&store, "a", 0).page();
        let wanted = "| config | 100 | 100 | 100 | 100 | 2026-01-31 | 0123456789ab | \
                      less than 3600 s yet |";
        for line in [
            "    just fuzz --record\n",
            "2026-02-01. ",
            wanted,
            "| pages | 0 |",
        ] {
            assert!(page.contains(line), "{line} is not in:\n{page}");
        }
        assert!(!page.contains(&dir.path().display().to_string()), "{page}");
    }

    #[test]
    fn name_of_the_code_follows_what_is_fuzzed() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        for folder in SOURCES {
            fs::create_dir_all(dir.path().join(folder)).expect("made");
        }
        let lock = dir.path().join(build::FUZZ_FOLDER).join("Cargo.lock");
        fs::write(lock, "").expect("written");
        let before = source(&ctx).expect("named");
        let elsewhere = dir.path().join("README.md");
        fs::write(elsewhere, "text").expect("written");
        assert_eq!(source(&ctx).expect("named"), before);
        let code = dir.path().join(SOURCES[0]).join("lib.rs");
        fs::write(code, "code").expect("written");
        assert_ne!(source(&ctx).expect("named"), before);
    }
}
