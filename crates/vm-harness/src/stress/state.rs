// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A long run in pieces: what is done, kept so that an interruption costs one piece,
//! and what all pieces come to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cache::{self, KeyBuilder};
use crate::context::Context;
use crate::git::Commit;
use crate::results::{Origin, cell};

/// Version of the state's form.
const VERSION: u32 = 1;

/// What makes two runs the same run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Options {
    /// Kernel, by name or path.
    pub kernel: String,
    /// Kind of its build.
    pub build: String,
    /// Type of the device memory, or `best`.
    pub memory_type: String,
    /// Seed of the first piece.
    pub seed: u64,
    /// How long all pieces run together.
    pub minutes: u64,
    /// How long one piece runs.
    pub piece_minutes: u64,
}

/// One piece.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Piece {
    /// Seed that the program was given.
    pub seed: u64,
    /// How long it ran.
    pub seconds: u64,
    /// What it counted.
    pub totals: BTreeMap<String, u64>,
    /// What was wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<String>,
}

/// What is done of a run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct State {
    version: u32,
    options: Options,
    commit: String,
    /// Stands for everything that was built from the commit and runs.
    inputs: String,
    pieces: Vec<Piece>,
    #[serde(skip)]
    path: PathBuf,
}

impl State {
    /// The state of a run, new or (`resume`) as it was left.
    pub fn open(
        ctx: &Context,
        options: &Options,
        commit: &Commit,
        inputs: &str,
        resume: bool,
    ) -> Result<Self> {
        let mut key = KeyBuilder::new();
        key.text("options", serde_json::to_string(options)?);
        let folder = ctx.cache.join("stress");
        cache::create_folder(&folder)?;
        let path = folder.join(format!("{}.json", key.finish()));
        if resume && let Some(state) = Self::read(&path)? {
            ensure!(
                state.inputs == inputs,
                "what is being resumed was begun on commit {}, and what runs now was built from \
                 something else; the totals would not be of one commit. Check that commit out, or \
                 begin again without --resume",
                state.commit
            );
            if let Some(failure) = state.failure() {
                bail!(
                    "what is being resumed has failed: {failure}\nBegin again without --resume once \
                     that is mended"
                );
            }
            return Ok(state);
        }
        Ok(Self {
            version: VERSION,
            options: options.clone(),
            commit: commit.to_string(),
            inputs: inputs.to_owned(),
            pieces: Vec::new(),
            path,
        })
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let state: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no state of a run", path.display()))?;
        ensure!(
            state.version == VERSION,
            "{} was written by another version of this tool; begin again without --resume",
            path.display()
        );
        Ok(Some(Self {
            path: path.to_owned(),
            ..state
        }))
    }

    /// The next piece: its seed and its seconds; none when all is done or something failed.
    pub fn next(&self) -> Option<(u64, u64)> {
        let left = (self.options.minutes * 60).saturating_sub(self.seconds());
        if left == 0 || self.failure().is_some() {
            return None;
        }
        let seed = self.options.seed.wrapping_add(self.pieces.len() as u64);
        Some((seed, left.min(self.options.piece_minutes * 60)))
    }

    /// Keeps a piece, for good.
    pub fn add(&mut self, piece: Piece) -> Result<()> {
        self.pieces.push(piece);
        cache::write_whole(&self.path, serde_json::to_string_pretty(self)?)
    }

    /// Seconds that were run.
    pub fn seconds(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.seconds).sum()
    }

    /// Number of pieces.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    fn failure(&self) -> Option<&str> {
        self.pieces
            .iter()
            .find_map(|piece| piece.failure.as_deref())
    }

    /// What it all comes to.
    pub fn summary(&self, command: &str) -> Summary {
        let mut totals: BTreeMap<String, u64> = BTreeMap::new();
        for (name, number) in self.pieces.iter().flat_map(|piece| &piece.totals) {
            *totals.entry(name.clone()).or_default() += number;
        }
        Summary {
            origin: Origin::new(command, self.commit.clone()),
            options: self.options.clone(),
            complete: self.seconds() >= self.options.minutes * 60,
            good: self.failure().is_none(),
            seconds: self.seconds(),
            totals,
            pieces: self.pieces.clone(),
        }
    }
}

/// What a run comes to.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    origin: Origin,
    options: Options,
    /// Whether it ran for as long as it should.
    complete: bool,
    /// Whether no piece failed.
    good: bool,
    seconds: u64,
    /// Over all pieces.
    pub totals: BTreeMap<String, u64>,
    pieces: Vec<Piece>,
}

impl Summary {
    /// Whether it ran for as long as it should and nothing failed.
    pub fn is_good(&self) -> bool {
        self.complete && self.good
    }

    /// Whether it ran for as long as it should.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The pieces that ran.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Name of its files.
    pub fn name(&self) -> String {
        let kernel = match self.options.kernel.contains('/') {
            true => "tree",
            false => &self.options.kernel,
        };
        let memory = match self.options.memory_type.as_str() {
            "best" => String::new(),
            memory => format!("-{memory}"),
        };
        format!("mixed-{kernel}{memory}-{}", self.options.build)
    }

    /// The page for people.
    pub fn page(&self) -> String {
        let options = &self.options;
        let title = format!(
            "Mixed stress on the {} kernel, {} build, {} memory type",
            options.kernel, options.build, options.memory_type
        );
        let mut page = self.origin.head(&title);
        let state = match (self.good, self.complete) {
            (true, true) => "It ran to its end, and nothing was wrong",
            (true, false) => "It has not run to its end; nothing was wrong so far",
            (false, _) => "It FAILED",
        };
        let _ = writeln!(
            page,
            "{state}: {} s of {} s, in {} pieces, each in a new guest. After each piece the contents \
             of all pages, the driver's counts and the guest's kernel log were checked.\n",
            self.seconds,
            options.minutes * 60,
            self.pieces.len()
        );
        page += "| total | number |\n|---|---|\n";
        for (name, number) in &self.totals {
            let _ = writeln!(page, "| {name} | {number} |");
        }
        page += "\n| piece | seed | seconds | operations | result |\n|---|---|---|---|---|\n";
        for (index, piece) in self.pieces.iter().enumerate() {
            let operations = piece.totals.get("operations").copied().unwrap_or_default();
            let result = piece.failure.as_deref().unwrap_or("good");
            let _ = writeln!(
                page,
                "| {} | {} | {} | {operations} | {} |",
                index + 1,
                piece.seed,
                piece.seconds,
                cell(result.lines().next().unwrap_or_default())
            );
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::super::junit;
    use super::*;
    use crate::junit::Ending;
    use crate::schema;

    fn options() -> Options {
        Options {
            kernel: "public".into(),
            build: "plain".into(),
            memory_type: "best".into(),
            seed: 7,
            minutes: 12,
            piece_minutes: 5,
        }
    }

    fn commit() -> Commit {
        Commit {
            hash: "abc".into(),
            changed: false,
        }
    }

    fn piece(seed: u64, seconds: u64) -> Piece {
        Piece {
            seed,
            seconds,
            totals: BTreeMap::from([("operations".to_owned(), 10), ("mismatches".to_owned(), 0)]),
            failure: None,
        }
    }

    #[test]
    fn interrupted_run_goes_on_where_it_was_and_its_totals_add_up() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let open = |resume| State::open(&ctx, &options(), &commit(), "inputs", resume);
        let mut state = open(false).expect("new");
        assert_eq!(state.next(), Some((7, 300)));
        state.add(piece(7, 300)).expect("kept");
        drop(state);

        let mut state = open(true).expect("as it was");
        assert_eq!(state.next(), Some((8, 300)));
        state.add(piece(8, 300)).expect("kept");
        assert_eq!(state.next(), Some((9, 120)));
        assert!(!state.summary("x").is_good(), "it is not complete");
        state.add(piece(9, 121)).expect("kept");
        assert_eq!(state.next(), None);
        let summary = state.summary("x");
        assert!(summary.is_good());
        assert_eq!((summary.seconds, summary.totals["operations"]), (721, 30));

        // Without the option it begins again.
        assert_eq!(open(false).expect("new").next(), Some((7, 300)));
    }

    #[test]
    fn other_options_are_another_run() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let mut state = State::open(&ctx, &options(), &commit(), "i", false).expect("new");
        state.add(piece(7, 300)).expect("kept");
        let other = Options {
            seed: 8,
            ..options()
        };
        let state = State::open(&ctx, &other, &commit(), "i", true).expect("new");
        assert_eq!(state.pieces(), 0);
    }

    #[test]
    fn run_of_something_else_cannot_be_resumed() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let mut state = State::open(&ctx, &options(), &commit(), "one", false).expect("new");
        state.add(piece(7, 300)).expect("kept");
        let error = State::open(&ctx, &options(), &commit(), "two", true).expect_err("another");
        let text = error.to_string();
        assert!(
            text.contains("commit abc") && text.contains("without --resume"),
            "{text}"
        );
    }

    #[test]
    fn failed_piece_ends_the_run_and_is_not_washed_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let mut state = State::open(&ctx, &options(), &commit(), "i", false).expect("new");
        let failed = Piece {
            failure: Some("a wrong byte".into()),
            ..piece(7, 20)
        };
        state.add(failed).expect("kept");
        assert_eq!(state.next(), None);
        assert!(!state.summary("x").is_good());
        assert!(state.summary("x").page().contains("a wrong byte"));
        let error = State::open(&ctx, &options(), &commit(), "i", true).expect_err("failed");
        assert!(error.to_string().contains("a wrong byte"), "{error}");
    }

    #[test]
    fn page_has_the_command_and_names_no_folder_of_this_machine() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let mut state = State::open(&ctx, &options(), &commit(), "i", false).expect("new");
        state.add(piece(7, 300)).expect("kept");
        let summary = state.summary("just stress --suite mixed");
        let page = summary.page();
        assert!(page.contains("    just stress --suite mixed\n"), "{page}");
        assert!(page.contains("| operations | 10 |"), "{page}");
        assert!(!page.contains(&dir.path().display().to_string()), "{page}");
        assert_eq!(summary.name(), "mixed-public-plain");
    }

    #[test]
    fn json_follows_its_schema_and_each_piece_is_a_case() {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let mut state = State::open(&ctx, &options(), &commit(), "i", false).expect("new");
        state.add(piece(7, 300)).expect("kept");
        let failed = Piece {
            failure: Some("a wrong byte".into()),
            ..piece(8, 20)
        };
        state.add(failed).expect("kept");
        let summary = state.summary("just stress --suite mixed");
        let text = serde_json::to_vec(&summary).expect("JSON");
        schema::follows("cdm-stress-results.schema.json", &text).expect("as it says");
        let cases = junit::of_mixed(&summary);
        let endings: Vec<Ending> = cases.iter().map(|case| case.ending).collect();
        let failed = Ending::Failed("failed");
        assert_eq!(endings, [Ending::Passed, failed, failed]);
        assert_eq!(cases[1].name, "piece 2, seed 8");
    }
}
