// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Writes test results as KTAP, version 1 (Documentation/dev-tools/ktap.rst).

use std::io::{self, Write};

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold, for the reason in the diagnostics.
    Failed,
    /// It could not be tried here, for this reason.
    Skipped(String),
}

/// A stream of results: version and plan first, then one line a test.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    planned: usize,
    done: usize,
}

impl<W: Write> Writer<W> {
    /// Begins a stream of `planned` results.
    pub fn begin(mut out: W, planned: usize) -> io::Result<Self> {
        writeln!(out, "KTAP version 1\n1..{planned}")?;
        out.flush()?;
        Ok(Self {
            out,
            planned,
            done: 0,
        })
    }

    /// Writes a diagnostic; each of its lines becomes one.
    pub fn diagnostic(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            writeln!(self.out, "# {line}")?;
        }
        self.out.flush()
    }

    /// Writes the result of the next test.
    ///
    /// # Panics
    /// If there are more results than planned, or `name` would not survive as one token: both are
    /// faults of the program, not of what it tests.
    pub fn result(&mut self, name: &str, outcome: &Outcome) -> io::Result<()> {
        assert!(self.done < self.planned, "more results than planned");
        assert!(
            !name.contains([' ', '#', '\n']),
            "'{name}' cannot be a test name"
        );
        self.done += 1;
        let number = self.done;
        match outcome {
            Outcome::Passed => writeln!(self.out, "ok {number} {name}"),
            Outcome::Failed => writeln!(self.out, "not ok {number} {name}"),
            Outcome::Skipped(reason) => {
                let reason = reason.lines().next().unwrap_or("no reason given");
                writeln!(self.out, "ok {number} {name} # SKIP {reason}")
            }
        }?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_begins_with_version_and_plan() {
        let mut out = Vec::new();
        let mut writer = Writer::begin(&mut out, 2).unwrap();
        writer.diagnostic("one\ntwo").unwrap();
        writer.result("group.first", &Outcome::Failed).unwrap();
        writer
            .result("group.second", &Outcome::Skipped("no swap\nhere".into()))
            .unwrap();
        let expected = "KTAP version 1\n1..2\n# one\n# two\nnot ok 1 group.first\n\
                        ok 2 group.second # SKIP no swap\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    #[should_panic(expected = "more results than planned")]
    fn result_beyond_the_plan_is_a_fault() {
        let mut writer = Writer::begin(Vec::new(), 0).unwrap();
        writer.result("one", &Outcome::Passed).unwrap();
    }
}
