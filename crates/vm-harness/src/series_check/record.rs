// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results of the check: kept for the next run, and written down.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cache::{self, Key};
use crate::context::Context;
use crate::git::Commit;
use crate::results::{self, Origin, cell};

/// The command that writes all this.
const COMMAND: &str = "just series-check --record";

/// How the check of one prefix ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Checked {
    /// What of the project it was checked with: the driver, the tests and the tools.
    commit: String,
    build_seconds: u64,
    boot_seconds: u64,
    /// Type of the device memory that the driver chose.
    memory_type: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    failure: Option<String>,
}

impl Checked {
    /// It built, booted and worked.
    pub fn passed(
        commit: &Commit,
        build_seconds: u64,
        boot_seconds: u64,
        memory_type: String,
    ) -> Self {
        Self {
            commit: commit.to_string(),
            build_seconds,
            boot_seconds,
            memory_type,
            failure: None,
        }
    }

    /// Something went wrong.
    pub fn failed(commit: &Commit, build_seconds: u64, error: &anyhow::Error) -> Self {
        Self {
            commit: commit.to_string(),
            build_seconds,
            boot_seconds: 0,
            memory_type: String::new(),
            failure: Some(format!("{error:#}")),
        }
    }

    /// One line for standard output; what failed follows in further ones.
    pub fn line(&self, number: usize, subject: &str) -> String {
        match &self.failure {
            None => format!(
                "ok      {number:>2} {subject} (built in {} s, booted in {} s, {})",
                self.build_seconds, self.boot_seconds, self.memory_type
            ),
            Some(why) => format!("FAILED  {number:>2} {subject}\n{why}"),
        }
    }
}

/// What passed so far, under what it passed with.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    passed: BTreeMap<String, Checked>,
}

impl Store {
    /// Nothing has passed.
    pub fn empty(ctx: &Context) -> Result<Self> {
        let folder = ctx.cache.join("series-check");
        cache::create_folder(&folder)?;
        Ok(Self {
            path: folder.join("passed.json"),
            passed: BTreeMap::new(),
        })
    }

    /// What the cache knows.
    pub fn open(ctx: &Context) -> Result<Self> {
        let mut store = Self::empty(ctx)?;
        match fs::read(&store.path) {
            Ok(text) => {
                store.passed = serde_json::from_slice(&text).with_context(|| {
                    format!("{} cannot be understood; use --anew", store.path.display())
                })?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", store.path.display()));
            }
        }
        Ok(store)
    }

    /// How a prefix passed, if it did.
    pub fn passed(&self, key: &Key) -> Option<&Checked> {
        self.passed.get(key.as_str())
    }

    /// Keeps a result if it is good: what failed is tried again.
    pub fn add(&mut self, key: &Key, checked: &Checked) -> Result<()> {
        if checked.failure.is_some() {
            return Ok(());
        }
        self.passed.insert(key.as_str().to_owned(), checked.clone());
        cache::write_whole(&self.path, serde_json::to_string_pretty(&self.passed)?)
    }
}

/// What is written down.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    passed: usize,
    failed: usize,
    /// Prefixes that no run has got to yet.
    unchecked: usize,
    prefixes: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    patches: usize,
    last: String,
    #[serde(flatten)]
    checked: Option<Checked>,
}

impl Document {
    /// A document of these results, by the number of patches.
    pub fn new(commit: &Commit, subjects: &[String], results: &BTreeMap<usize, Checked>) -> Self {
        let good = |checked: &&Checked| checked.failure.is_none();
        let passed = results.values().filter(good).count();
        Self {
            origin: Origin::new(COMMAND, commit.to_string()),
            passed,
            failed: results.len() - passed,
            unchecked: subjects.len() - results.len(),
            prefixes: subjects
                .iter()
                .enumerate()
                .map(|(number, subject)| Row {
                    patches: number,
                    last: subject.clone(),
                    checked: results.get(&number).cloned(),
                })
                .collect(),
        }
    }

    /// Whether each prefix was checked and passed.
    pub fn is_good(&self) -> bool {
        self.passed > 0 && self.failed == 0 && self.unchecked == 0
    }

    /// The closing line.
    pub fn count(&self) -> String {
        format!(
            "{} prefixes passed, {} failed, {} not checked yet",
            self.passed, self.failed, self.unchecked
        )
    }

    /// Writes results.json into the run's folder, and both forms into the repository.
    pub fn publish(&self, ctx: &Context, folder: &Path, record: bool) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        results::write(&folder.join("results.json"), &json)?;
        if record {
            results::record(ctx, "series-check", &json, &self.page())?;
        }
        Ok(())
    }

    fn page(&self) -> String {
        let title = "Each prefix of the kernel series, built and booted";
        let mut page = self.origin.head(title);
        let _ = writeln!(
            page,
            "{}. Each prefix stays good until a patch up to it or the configuration changes; \
             *with* is the commit whose driver and tests it was checked with. Seconds are those \
             of an incremental build in one tree, beside whatever else the machine did.\n",
            self.count()
        );
        page += "| patches | last one | result | memory type | build, s | boot, s | with |\n";
        page += "|---|---|---|---|---|---|---|\n";
        for row in &self.prefixes {
            let (number, last) = (row.patches, cell(&row.last));
            let _ = match &row.checked {
                None => writeln!(page, "| {number} | {last} | not checked yet | | | | |"),
                Some(checked) => {
                    let result = match &checked.failure {
                        None => "passed".to_owned(),
                        Some(why) => format!("FAILED: {}", why.lines().next().unwrap_or_default()),
                    };
                    writeln!(
                        page,
                        "| {number} | {last} | {} | {} | {} | {} | {} |",
                        cell(&result),
                        checked.memory_type,
                        checked.build_seconds,
                        checked.boot_seconds,
                        Commit::short(&checked.commit)
                    )
                }
            };
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KeyBuilder;

    fn key(text: &str) -> Key {
        KeyBuilder::new().text("test", text).finish()
    }

    fn commit() -> Commit {
        Commit {
            hash: "0123456789abcdef".into(),
            changed: false,
        }
    }

    fn good() -> Checked {
        Checked::passed(&commit(), 60, 5, "public".into())
    }

    fn bad() -> Checked {
        Checked::failed(&commit(), 60, &anyhow::anyhow!("does not boot\nbecause"))
    }

    #[test]
    fn next_run_knows_what_passed_and_tries_again_what_did_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let mut store = Store::open(&ctx).expect("nothing yet");
        store.add(&key("a"), &good()).expect("kept");
        store.add(&key("b"), &bad()).expect("left");
        drop(store);
        let store = Store::open(&ctx).expect("there");
        assert_eq!(store.passed(&key("a")), Some(&good()));
        assert_eq!(store.passed(&key("b")), None);
        assert_eq!(Store::empty(&ctx).expect("new").passed(&key("a")), None);
    }

    fn document(results: &[(usize, Checked)]) -> Document {
        let subjects = ["none", "mm: one", "mm: two"].map(str::to_owned);
        Document::new(&commit(), &subjects, &results.iter().cloned().collect())
    }

    #[test]
    fn whole_series_is_good_only_when_each_prefix_passed() {
        assert!(document(&[(0, good()), (1, good()), (2, good())]).is_good());
        assert!(!document(&[(0, good()), (1, good())]).is_good());
        assert!(!document(&[(0, good()), (1, bad()), (2, good())]).is_good());
        assert!(!document(&[]).is_good());
        let document = document(&[(0, good()), (1, bad())]);
        assert_eq!(
            document.count(),
            "1 prefixes passed, 1 failed, 1 not checked yet"
        );
    }

    #[test]
    fn page_tells_of_each_prefix_how_it_went() {
        let page = document(&[(0, good()), (1, bad())]).page();
        for line in [
            "| 0 | none | passed | public | 60 | 5 | 0123456789ab |",
            "| 1 | mm: one | FAILED: does not boot |  | 60 | 0 | 0123456789ab |",
            "| 2 | mm: two | not checked yet | | | | |",
        ] {
            assert!(page.contains(line), "{line} is not in:\n{page}");
        }
        assert!(page.contains("    just series-check --record\n"), "{page}");
    }
}
