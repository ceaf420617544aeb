// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is done of a soak, a line for each draw, so that an interruption costs the draw that ran.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::super::scenarios::result::ScenarioResult;
use super::draw::Draw;
use crate::cache::{self, KeyBuilder};
use crate::context::Context;
use crate::git::Commit;

/// Version of the form.
const VERSION: u32 = 2;

/// What makes two soaks the same one. How long it goes on is not of it: more may be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Options {
    /// Kernel, by name or path.
    pub kernel: String,
    /// Kind of its build.
    pub build: String,
    /// Type of the device memory, or `best`.
    pub memory_type: String,
    /// What is drawn from: scenarios and families, or all of them.
    pub names: Vec<String>,
    /// Seed of the draws.
    pub seed: u64,
    /// The part of the soak.
    pub shard: String,
}

/// First line of the file.
#[derive(Debug, Deserialize, Serialize)]
struct Head {
    version: u32,
    options: Options,
    commit: String,
    /// Stands for everything that was built from the commit and runs.
    inputs: String,
}

/// A draw that is done.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Done {
    /// What was drawn.
    pub draw: Draw,
    /// How each scenario of it ended.
    pub results: Vec<ScenarioResult>,
}

impl Done {
    /// Seconds that it took, the looking afterwards included. Boots are not.
    pub fn seconds(&self) -> f64 {
        let took = self.results.iter().map(|result| result.seconds);
        took.fold(0.0, f64::max)
    }

    /// What was wrong, if something was.
    pub fn breach(&self) -> Option<&ScenarioResult> {
        self.results.iter().find(|result| !result.is_good())
    }
}

/// What is done of a soak.
#[derive(Debug)]
pub struct State {
    file: File,
    done: Vec<Done>,
}

impl State {
    /// The state of a soak, new or (`resume`) as it was left.
    pub fn open(
        ctx: &Context,
        options: &Options,
        commit: &Commit,
        inputs: &str,
        resume: bool,
    ) -> Result<Self> {
        let mut key = KeyBuilder::new();
        key.text("options", serde_json::to_string(options)?);
        let folder = ctx.cache.join("soak");
        cache::create_folder(&folder)?;
        let path = folder.join(format!("{}.jsonl", key.finish()));
        let head = Head {
            version: VERSION,
            options: options.clone(),
            commit: commit.to_string(),
            inputs: inputs.to_owned(),
        };
        let done = match resume {
            true => read(&path, &head)?,
            false => None,
        };
        // Written anew also where it goes on: the last line may be half a line.
        let mut text = line(&head)?;
        for one in done.iter().flatten() {
            text += &line(one)?;
        }
        cache::write_whole(&path, text)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file,
            done: done.unwrap_or_default(),
        })
    }

    /// Keeps a draw, for good.
    pub fn add(&mut self, done: Done) -> Result<()> {
        self.file
            .write_all(line(&done)?.as_bytes())
            .and_then(|()| self.file.sync_data())
            .context("cannot write down what is done")?;
        self.done.push(done);
        Ok(())
    }

    /// What is done, in its order.
    pub fn done(&self) -> &[Done] {
        &self.done
    }

    /// Seconds that were run.
    pub fn seconds(&self) -> f64 {
        self.done.iter().map(Done::seconds).sum()
    }

    /// What was wrong, if something was.
    pub fn breach(&self) -> Option<&ScenarioResult> {
        self.done.iter().find_map(Done::breach)
    }
}

fn line(what: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(what)? + "\n")
}

/// What was kept; none if there is no file.
fn read(path: &Path, head: &Head) -> Result<Option<Vec<Done>>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    // A line that was cut short is of a draw that is not done.
    let mut lines = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let is_none = || format!("{} is no state of a soak", path.display());
    let found: Head =
        serde_json::from_str(lines.next().unwrap_or_default()).with_context(is_none)?;
    ensure!(
        found.version == VERSION,
        "{} was written by another version of this tool; begin again without --resume",
        path.display()
    );
    ensure!(
        found.inputs == head.inputs,
        "what is being resumed was begun on commit {}, and what runs now was built from something \
         else; the totals would not be of one commit. Check that commit out, or begin again without \
         --resume",
        found.commit
    );
    let done: Vec<Done> = lines
        .map(|line| serde_json::from_str(line).with_context(is_none))
        .collect::<Result<_>>()?;
    if let Some(breach) = done.iter().find_map(Done::breach) {
        bail!(
            "what is being resumed has failed: {}: {}\nBegin again without --resume once that is \
             mended",
            breach.name,
            breach.detail
        );
    }
    Ok(Some(done))
}

#[cfg(test)]
pub mod tests {
    use super::super::super::outcome::Verdict;
    use super::super::super::said::Totals;
    use super::super::super::scenarios::order::Room;
    use super::*;

    pub fn options() -> Options {
        Options {
            kernel: "public".into(),
            build: "plain".into(),
            memory_type: "best".into(),
            names: Vec::new(),
            seed: 7,
            shard: "1/1".into(),
        }
    }

    fn commit() -> Commit {
        Commit {
            hash: "abc".into(),
            changed: false,
        }
    }

    pub fn done(number: u64, verdict: Verdict) -> Done {
        let name = "moves::about".to_owned();
        Done {
            draw: Draw {
                number,
                scenarios: vec![name.clone()],
                seed: 9,
                seconds: 10,
                devices: 2,
                room: Room::Plenty,
            },
            results: vec![ScenarioResult {
                name,
                verdict,
                seconds: 12.5,
                detail: "why".into(),
                totals: Totals::from([("operations".into(), 5), ("pages_to_device".into(), 10)]),
                repeat: "just stress moves::about --seed 9".into(),
                logs: None,
            }],
        }
    }

    fn open(ctx: &Context, inputs: &str, resume: bool) -> Result<State> {
        State::open(ctx, &options(), &commit(), inputs, resume)
    }

    /// A soak with one draw, in a cache of its own.
    fn begun(verdict: Verdict) -> (tempfile::TempDir, Context, State) {
        let dir = tempfile::tempdir().expect("a folder");
        let ctx = Context::for_test(dir.path());
        let mut state = open(&ctx, "i", false).expect("new");
        state.add(done(0, verdict)).expect("kept");
        (dir, ctx, state)
    }

    #[test]
    fn interrupted_soak_goes_on_where_it_was() {
        let (_dir, ctx, mut state) = begun(Verdict::Passed);
        state.add(done(1, Verdict::Passed)).expect("kept");
        drop(state);
        let mut state = open(&ctx, "i", true).expect("as it was");
        assert_eq!((state.done().len(), state.seconds()), (2, 25.0));
        state.add(done(2, Verdict::Passed)).expect("kept");
        assert_eq!(open(&ctx, "i", true).expect("as it was").done().len(), 3);
        // Without the option it begins again.
        assert_eq!(open(&ctx, "i", false).expect("new").done().len(), 0);
    }

    #[test]
    fn line_that_was_cut_short_is_a_draw_that_is_not_done() {
        let (_dir, ctx, mut state) = begun(Verdict::Passed);
        state.file.write_all(b"{\"draw\":{\"num").expect("written");
        drop(state);
        let mut state = open(&ctx, "i", true).expect("as it was");
        assert_eq!(state.done().len(), 1);
        state.add(done(1, Verdict::Passed)).expect("kept");
        assert_eq!(open(&ctx, "i", true).expect("whole").done().len(), 2);
    }

    #[test]
    fn other_options_are_another_soak() {
        let (_dir, ctx, _) = begun(Verdict::Passed);
        let other = Options {
            shard: "2/2".into(),
            ..options()
        };
        let state = State::open(&ctx, &other, &commit(), "i", true).expect("new");
        assert!(state.done().is_empty());
    }

    #[test]
    fn soak_of_something_else_cannot_be_resumed() {
        let (_dir, ctx, _) = begun(Verdict::Passed);
        let text = open(&ctx, "two", true).expect_err("another").to_string();
        assert!(
            text.contains("commit abc") && text.contains("without --resume"),
            "{text}"
        );
    }

    #[test]
    fn breach_is_not_washed_away() {
        let (_dir, ctx, state) = begun(Verdict::Lost);
        assert!(state.breach().is_some());
        let error = open(&ctx, "i", true).expect_err("failed").to_string();
        assert!(error.contains("moves::about: why"), "{error}");
    }
}
