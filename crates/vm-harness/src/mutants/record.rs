// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What became of mutants: kept for the next run, and written down.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::catalogue::{Mutant, Part};
use super::trial::Trial;
use crate::build::{KernelOptions, series};
use crate::cache::{self, Key, KeyBuilder};
use crate::context::Context;
use crate::git::Commit;
use crate::results::{self, Origin, cell};

/// Longest text in a table's cell.
const CELL_CHARS: usize = 160;

/// What became of one mutant.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Outcome {
    /// What of the project it was tried with.
    commit: String,
    build_seconds: u64,
    /// From the first command to what found it, or to the end of the search.
    seconds: u64,
    #[serde(flatten)]
    verdict: Verdict,
    /// What went wrong that no check has found.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    signs: Vec<String>,
}

/// How the search for a mistake ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// Something found it.
    Caught {
        /// The command in the guest.
        command: String,
        /// The test of that command that failed.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        test: Option<String>,
        /// What the check said.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        words: Option<String>,
        /// What the kernel reported.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        report: Option<String>,
    },
    /// Nothing did.
    Survived {
        /// The commands that ran.
        tried: Vec<String>,
    },
}

impl Outcome {
    /// The outcome of a search.
    pub fn new(commit: &Commit, build_seconds: u64, trial: Trial) -> Self {
        let verdict = match trial.found {
            Some(found) => {
                let (test, words) = match found.check {
                    Some(check) => (check.test, Some(check.words)),
                    None => (None, None),
                };
                Verdict::Caught {
                    command: found.command,
                    test,
                    words,
                    report: found.report,
                }
            }
            None => Verdict::Survived { tried: trial.tried },
        };
        Self {
            commit: commit.to_string(),
            build_seconds,
            seconds: trial.seconds,
            verdict,
            signs: trial.signs,
        }
    }

    /// Whether something found it.
    pub fn is_caught(&self) -> bool {
        matches!(self.verdict, Verdict::Caught { .. })
    }

    /// Whether what was tried is in a commit.
    fn is_of_a_commit(&self) -> bool {
        !self.commit.contains(' ')
    }

    /// What found it, in a few words.
    fn by(&self) -> String {
        match &self.verdict {
            Verdict::Caught {
                test: Some(test), ..
            } => test.clone(),
            Verdict::Caught { command, .. } => command.clone(),
            Verdict::Survived { tried } => format!("not by {} commands", tried.len()),
        }
    }

    /// What it said.
    fn said(&self) -> String {
        match &self.verdict {
            Verdict::Caught { words, report, .. } => {
                let report = report.as_ref().map(|report| format!("kernel: {report}"));
                let said: Vec<String> = words.iter().cloned().chain(report).collect();
                said.join("; ")
            }
            Verdict::Survived { .. } => self.signs.join("; "),
        }
    }
}

/// One line for standard output.
pub fn line(mutant: &Mutant, outcome: Option<&Outcome>) -> String {
    let Mutant { name, mistake, .. } = mutant;
    match outcome {
        None => format!("not tried {name}: {mistake}"),
        Some(outcome) => format!(
            "{} {name}: {mistake}\n          {} s, {}: {}",
            match outcome.is_caught() {
                true => "caught   ",
                false => "SURVIVED ",
            },
            outcome.seconds,
            outcome.by(),
            outcome.said()
        ),
    }
}

/// What results are kept under.
#[derive(Debug)]
pub struct Keys {
    /// Of the parts, each with its kernel.
    parts: Vec<(Part, Key)>,
    /// Stands for the tests.
    tests: Key,
}

impl Keys {
    /// The keys for the sources as they are.
    pub fn new(ctx: &Context, kernel: &KernelOptions) -> Result<Self> {
        let parts = Part::ALL.map(|part| {
            let mut key = KeyBuilder::new();
            key.text("toolbox", &ctx.toolbox)
                .text("kernel", kernel.kernel.to_string())
                .text("build", kernel.build.to_string());
            part.add_to(&mut key, &ctx.repo)?;
            Ok((part, key.finish()))
        });
        let mut tests = KeyBuilder::new();
        tests.tree(&ctx.repo, &ctx.repo.join("crates/guest-tools/src"))?;
        Ok(Self {
            parts: parts.into_iter().collect::<Result<_>>()?,
            tests: tests.finish(),
        })
    }

    /// The key of what becomes of a mutant.
    fn of(&self, mutant: &Mutant) -> Result<String> {
        let part = self.parts.iter().find(|(part, _)| *part == mutant.part);
        let (_, part) = part.context("every part has a key")?;
        let mut key = KeyBuilder::new();
        key.text("part", part.as_str())
            .bytes("patch", &series::diff(&mutant.patch)?);
        Ok(key.finish().to_string())
    }
}

/// What is kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Kept {
    /// Stands for the tests that looked for it.
    tests: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// All that is known, under what it is known of.
#[derive(Debug)]
pub struct Store<'a> {
    path: PathBuf,
    keys: &'a Keys,
    /// What was found with changes that are in no commit is as good as unknown.
    of_commits: bool,
    known: BTreeMap<String, Kept>,
}

impl<'a> Store<'a> {
    /// What the cache knows; of commits alone, if it is to be written down.
    pub fn open(ctx: &Context, keys: &'a Keys, of_commits: bool) -> Result<Self> {
        let folder = ctx.cache.join("mutants");
        cache::create_folder(&folder)?;
        let path = folder.join("known.json");
        let known = read(&path)?;
        Ok(Self {
            path,
            keys,
            of_commits,
            known,
        })
    }

    /// What became of a mutant. One that survived may not survive other tests.
    pub fn find(&self, mutant: &Mutant) -> Result<Option<&Outcome>> {
        let kept = self.known.get(&self.keys.of(mutant)?);
        Ok(kept
            .filter(|kept| kept.outcome.is_caught() || kept.tests == self.keys.tests.as_str())
            .map(|kept| &kept.outcome)
            .filter(|outcome| !self.of_commits || outcome.is_of_a_commit()))
    }

    /// Keeps an outcome.
    pub fn add(&mut self, ctx: &Context, mutant: &Mutant, outcome: Outcome) -> Result<()> {
        let key = self.keys.of(mutant)?;
        let tests = self.keys.tests.to_string();
        self.change(ctx, |known| {
            known.insert(key, Kept { tests, outcome });
        })
    }

    /// Forgets what is no mutant.
    pub fn forget(&mut self, ctx: &Context, mutant: &Mutant) -> Result<()> {
        let key = self.keys.of(mutant)?;
        self.change(ctx, |known| {
            known.remove(&key);
        })
    }

    /// Changes what is kept, besides what another run may do to it.
    fn change(
        &mut self,
        ctx: &Context,
        change: impl FnOnce(&mut BTreeMap<String, Kept>),
    ) -> Result<()> {
        let _lock = cache::lock(ctx, "mutants-known", "keeping a result")?;
        self.known = read(&self.path)?;
        change(&mut self.known);
        cache::write_whole(&self.path, serde_json::to_string_pretty(&self.known)?)
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Kept>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} cannot be understood; remove it", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What is written down.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(flatten)]
    origin: Origin,
    caught: usize,
    survived: usize,
    /// Mutants that no run has got to yet, or that were none.
    untried: usize,
    mutants: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    part: Part,
    mistake: String,
    #[serde(flatten)]
    outcome: Option<Outcome>,
}

impl Document {
    /// A document of all mutants and what is known of them.
    pub fn new(command: &str, commit: &Commit, rows: Vec<(&Mutant, Option<Outcome>)>) -> Self {
        let count = |wanted: Option<bool>| {
            let caught = rows
                .iter()
                .map(|(_, outcome)| outcome.as_ref().map(Outcome::is_caught));
            caught.filter(|caught| *caught == wanted).count()
        };
        Self {
            origin: Origin::new(command, commit.to_string()),
            caught: count(Some(true)),
            survived: count(Some(false)),
            untried: count(None),
            mutants: rows
                .into_iter()
                .map(|(mutant, outcome)| Row {
                    name: mutant.name.clone(),
                    part: mutant.part,
                    mistake: mutant.mistake.clone(),
                    outcome,
                })
                .collect(),
        }
    }

    /// The closing line.
    pub fn count(&self) -> String {
        format!(
            "caught: {}, survived: {}, not tried: {}",
            self.caught, self.survived, self.untried
        )
    }

    /// Writes results.json into the run's folder, and both forms into the repository.
    pub fn publish(&self, ctx: &Context, folder: &Path, record: bool) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        results::write(&folder.join("results.json"), &json)?;
        if record {
            results::record(ctx, "mutants", &json, &self.page())?;
        }
        Ok(())
    }

    fn page(&self) -> String {
        let mut page = self.origin.head("Planted mistakes, and what finds them");
        let _ = writeln!(
            page,
            "caught: {}\nsurvived: {}\nnot tried: {}\n",
            self.caught, self.survived, self.untried
        );
        page += "Each mutant boots and passes `cdmctl info`. Seconds count from then to what found \
                 it, beside whatever else the machine did; what found it passes without the \
                 mistake. *With* is the commit whose tests found it. A result stays good until the \
                 mistake, or what it is planted in, changes. [mutants.md](../how-to/mutants.md) tells \
                 more.\n\n";
        page += "| mutant | mistake | result | by | after, s | what it said | with |\n";
        page += "|---|---|---|---|---|---|---|\n";
        for row in &self.mutants {
            let head = format!("| {} | {} |", row.name, cell(&row.mistake));
            let _ = match &row.outcome {
                None => writeln!(page, "{head} not tried | | | | |"),
                Some(outcome) => writeln!(
                    page,
                    "{head} {} | `{}` | {} | {} | {} |",
                    match outcome.is_caught() {
                        true => "caught",
                        false => "SURVIVED",
                    },
                    outcome.by(),
                    outcome.seconds,
                    cell(&short(&outcome.said())),
                    Commit::short(&outcome.commit)
                ),
            };
        }
        page
    }
}

/// A text that fits a cell; the JSON has all of it.
fn short(text: &str) -> String {
    match text.char_indices().nth(CELL_CHARS) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{Check, Found};
    use super::*;

    fn mutant(dir: &Path, name: &str) -> Mutant {
        let patch = dir.join(format!("{name}.patch"));
        fs::write(&patch, format!("diff --git a/x b/x\n{name}\n")).expect("written");
        Mutant {
            name: format!("driver/{name}"),
            part: Part::Driver,
            patch,
            mistake: "it forgets a | page".into(),
            seen_by: vec!["cdm-guest-tests --group fork".into()],
        }
    }

    fn keys(tests: &str) -> Keys {
        let key = |text: &str| KeyBuilder::new().text("test", text).finish();
        Keys {
            parts: Part::ALL
                .map(|part| (part, key(part.name())))
                .into_iter()
                .collect(),
            tests: key(tests),
        }
    }

    fn commit() -> Commit {
        Commit {
            hash: "0123456789abcdef".into(),
            changed: false,
        }
    }

    fn outcome(found: bool) -> Outcome {
        let trial = Trial {
            seconds: 7,
            found: found.then(|| Found {
                command: "cdm-guest-tests --group fork".into(),
                check: Some(Check {
                    test: Some("fork::a".into()),
                    words: "word 3 is 4".into(),
                }),
                report: Some("WARNING: mm/x.c:3".into()),
            }),
            tried: vec!["cdm-guest-tests --group fork".into()],
            signs: Vec::new(),
        };
        Outcome::new(&commit(), 60, trial)
    }

    #[test]
    fn caught_stays_known_and_a_survivor_meets_new_tests() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let (old, new) = (keys("old"), keys("new"));
        let (one, two) = (mutant(dir.path(), "01-a"), mutant(dir.path(), "02-b"));
        let mut store = Store::open(&ctx, &old, false).expect("empty");
        store.add(&ctx, &one, outcome(true)).expect("kept");
        store.add(&ctx, &two, outcome(false)).expect("kept");

        let store = Store::open(&ctx, &old, false).expect("readable");
        assert_eq!(store.find(&one).expect("a key"), Some(&outcome(true)));
        assert_eq!(store.find(&two).expect("a key"), Some(&outcome(false)));
        let mut store = Store::open(&ctx, &new, false).expect("readable");
        assert_eq!(store.find(&one).expect("a key"), Some(&outcome(true)));
        assert_eq!(store.find(&two).expect("a key"), None);
        // Another run has found something meanwhile.
        let mut other = Store::open(&ctx, &new, false).expect("readable");
        other.add(&ctx, &two, outcome(true)).expect("kept");
        store.forget(&ctx, &one).expect("written");
        let store = Store::open(&ctx, &new, false).expect("readable");
        assert_eq!(store.find(&one).expect("a key"), None);
        assert_eq!(store.find(&two).expect("a key"), Some(&outcome(true)));
    }

    #[test]
    fn what_was_found_with_changes_is_not_written_down() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let keys = keys("tests");
        let (one, two) = (mutant(dir.path(), "01-a"), mutant(dir.path(), "02-b"));
        let mut store = Store::open(&ctx, &keys, false).expect("empty");
        let mut with_changes = outcome(true);
        with_changes.commit.push_str(" with changes");
        store.add(&ctx, &one, with_changes).expect("kept");
        store.add(&ctx, &two, outcome(true)).expect("kept");
        assert!(store.find(&one).expect("a key").is_some());
        let store = Store::open(&ctx, &keys, true).expect("readable");
        assert_eq!(store.find(&one).expect("a key"), None);
        assert!(store.find(&two).expect("a key").is_some());
    }

    #[test]
    fn changed_patch_is_another_mutant() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let keys = keys("tests");
        let one = mutant(dir.path(), "01-a");
        let mut store = Store::open(&ctx, &keys, false).expect("empty");
        store.add(&ctx, &one, outcome(true)).expect("kept");
        fs::write(&one.patch, "diff --git a/x b/x\nanother\n").expect("written");
        assert_eq!(store.find(&one).expect("a key"), None);
    }

    #[test]
    fn page_and_json_have_the_totals_and_who_found_each() {
        let dir = tempfile::tempdir().expect("a folder");
        let mutants = ["01-a", "02-b", "03-c"].map(|name| mutant(dir.path(), name));
        let found = [Some(outcome(true)), Some(outcome(false)), None];
        let rows = mutants.iter().zip(found).collect();
        let document = Document::new("just mutants --record", &commit(), rows);
        let page = document.page();
        for part in [
            "    just mutants --record\n",
            "caught: 1\nsurvived: 1\nnot tried: 1\n",
            "| driver/01-a | it forgets a \\| page | caught | `fork::a` | 7 | word 3 is 4; kernel: \
             WARNING: mm/x.c:3 | 0123456789ab |",
            "| driver/02-b | it forgets a \\| page | SURVIVED | `not by 1 commands` | 7 |",
            "| driver/03-c | it forgets a \\| page | not tried |",
        ] {
            assert!(page.contains(part), "{part} is not in:\n{page}");
        }
        let json = serde_json::to_value(&document).expect("JSON");
        assert_eq!(json["caught"], 1);
        assert_eq!(json["survived"], 1);
        assert_eq!(json["mutants"][0]["verdict"], "caught");
        assert_eq!(json["mutants"][0]["test"], "fork::a");
        assert_eq!(json["mutants"][2]["verdict"], serde_json::Value::Null);
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        assert_eq!(short("é"), "é");
        let long = "é".repeat(CELL_CHARS + 1);
        assert_eq!(short(&long).chars().count(), CELL_CHARS + 1);
    }
}
